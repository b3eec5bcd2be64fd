"""The overlay `emulate-8xh100`: one process meets what eight ranks would, in their order."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.data.shards import write_shard
from pgolf.presets import apply_preset
from pgolf.sections import load_sections
from pgolf.train.run import open_batches, open_rank
from pgolf.train.schedule import progress, settings

ROOT = Path(__file__).parents[2]
ROW = 128


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Eight shards, one per rank of the loaders that share them out, of documents of about 50 tokens."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shards")
    paths = [folder / f"fineweb_train_{index:06d}.bin" for index in range(8)]
    for path in paths:
        tokens = random.integers(8, 500, 5000).astype(np.uint16)
        tokens[random.integers(1, 5000, 100)] = 1
        tokens[0] = 1
        write_shard(path, tokens)
    return paths


def emulated(name, folder):
    params = folder / "params.yaml"
    params.write_bytes((ROOT / "params.yaml").read_bytes())
    apply_preset(params, name, "emulate-8xh100", folder=ROOT / "presets")
    return load_sections(params).train


@pytest.mark.parametrize("name", ["record-1855", "record-1493", "pr635"])
def test_one_process_reads_the_micro_batches_of_eight_ranks_in_turn(name, shards, tmp_path):
    config = emulated(name, tmp_path)
    assert config.batch_tokens == 8 * config.micro_tokens  # eight ranks, one row each
    small = dataclasses.replace(config, seq_len=32, micro_tokens=ROW, batch_tokens=8 * ROW)
    alone = open_batches(small, shards)
    ranks = [open_rank(small, shards, rank, 8) for rank in range(8)]
    seen = []
    for _ in range(3):
        for rank in ranks:
            found, expected = next(alone), next(rank)
            assert torch.equal(found.inputs, expected.inputs)
            assert torch.equal(found.targets, expected.targets)
            assert (found.cu_seqlens is None) == (expected.cu_seqlens is None)
            if found.cu_seqlens is not None:
                assert torch.equal(found.cu_seqlens, expected.cu_seqlens)
            seen.append(found.inputs.flatten().tolist())
    assert len({tuple(row) for row in seen}) == len(seen), "two ranks read the same"


def test_the_schedule_is_that_of_the_clock(tmp_path):
    """Progress by step against seconds by step, as the log of PR 1855 has them."""
    config = emulated("record-1855", tmp_path)
    on = [settings(config, step, progress(config, step, 0.0)).runs > 1 for step in range(config.steps)]
    assert on.index(True) == pytest.approx(2178, abs=2)
    at_half = progress(config, 3000, 0.0)
    assert at_half == pytest.approx((2178 * 96.3e-3 + (3000 - 2178) * 140.9e-3) / 599.5, abs=2e-3)
