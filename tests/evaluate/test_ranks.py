"""Two processes find what one finds: windows, chunks, documents and the update of shared weights."""

import dataclasses
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist
from document_models import LENGTH, settings_of, stream_of, tiny_model

from pgolf import ranks
from pgolf.audit.probes import intervals
from pgolf.evaluate.config import CacheConfig, ChunkTTTConfig, PhasesConfig
from pgolf.evaluate.journal import Journal, Part
from pgolf.evaluate.run import evaluate
from pgolf.evaluate.updates import Update, as_table

TOKENS = stream_of(5, 1, 21, 4, 9, 26, 17)
FORMS = ("none", "chunk", "lora", "phased", "cached", "cache")


def settings(ttt):
    sgd = ChunkTTTConfig(chunk_tokens=3 * LENGTH, lr=0.05, epochs=1, rows_per_step=2)
    phases = PhasesConfig(prefix_documents=4, count=2, ranks=1)
    # a row at a time: one that is packed behind the row before it has a predecessor to smear from
    config = settings_of("lora", chunk=sgd, phases=phases, warm_start=False, batch_tokens=LENGTH)
    if ttt == "cache":
        return dataclasses.replace(config, ttt="none", cache=CacheConfig(sharpness=20.0, bias=0.0), stride=8)
    return dataclasses.replace(config, ttt=ttt, stride=8)


def found(ttt):
    """Losses and updates of one form."""
    sizes = np.ones(len(TOKENS), dtype=np.int64)
    result = evaluate(tiny_model(dtype=torch.float64), TOKENS, sizes, settings(ttt))
    return result.losses, as_table(result.updates).numpy()


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {f"{ttt} {kind}": array for ttt in FORMS for kind, array in zip("lu", found(ttt), strict=True)}
    np.savez(f"{folder}/{rank}.npz", **results)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch._dynamo", "pgolf.evaluate.run"])
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=2, start_method="forkserver")
    return [np.load(folder / f"{rank}.npz") for rank in range(2)]


@pytest.mark.parametrize("ttt", FORMS)
def test_two_ranks_find_what_one_finds(pair, ttt):
    losses, updates = found(ttt)
    for results in pair:
        np.testing.assert_allclose(results[f"{ttt} l"], losses, rtol=0, atol=2e-6)
        table = results[f"{ttt} u"]
        assert intervals(table, len(TOKENS) - 1).verdict == "pass"
        assert table[:, 3].sum() == updates[:, 3].sum()
        assert (table[:, 2] - table[:, 1]).sum() == (updates[:, 2] - updates[:, 1]).sum()


def test_one_process_is_one_rank():
    assert (ranks.rank(), ranks.world(), ranks.collect("x")) == (0, 1, ["x"])
    losses = torch.tensor([1.0, float("nan")])
    assert ranks.merge_losses(losses) is losses


def test_the_journal_counts_phase_by_phase_and_rank_by_rank():
    one, journal = Part(10, (Update(6, 2, 6, 1),)), Journal()
    journal.close([one, Part(7, (Update(7, 3, 7, 1),))], steps=5)
    journal.score(4)
    journal.learn(3)
    journal.close([journal.part(), one])
    assert journal.updates == [
        Update(6, 2, 6, 1), Update(17, 13, 17, 1), Update(17, 0, 17, 5), Update(21, 18, 21, 1), Update(27, 23, 27, 1),
    ]  # fmt: skip
