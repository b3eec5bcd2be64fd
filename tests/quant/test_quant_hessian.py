import itertools

import numpy as np
import pytest
import torch
from looped_model import CONFIG, looped_model
from matrix_products import seen

from pgolf.data.batches import Batch
from pgolf.errors import InputError
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.quant.calibrate import calibrate
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.hessian import collect_hessians

VOCAB = 40


@pytest.fixture
def model():
    return looped_model(VOCAB, 12)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCAB, (count, 3, 12), generator=generator)
    return [Batch(rows, rows, None) for rows in ids]


def products_by_hand(model, data, monkeypatch):
    """Every matrix product of some forward passes: sum of X^T X by parameter name in float64, and number of passes."""
    sums, passes = {}, {}

    def see(name, x, y):
        rows = x.detach().reshape(-1, x.size(-1)).double()
        sums[name] = sums.get(name, 0) + rows.mT @ rows
        passes[name] = passes.get(name, 0) + 1

    with seen(model, monkeypatch, see), torch.no_grad():
        for batch in data:
            model(batch.inputs)
    return sums, passes


@pytest.mark.parametrize("looped", [False, True])
def test_every_matrix_gets_the_covariance_of_what_it_multiplies(model, monkeypatch, looped):
    model.looped = looped
    data = batches(3)
    sums, passes = products_by_hand(model, data, monkeypatch)
    hessians = collect_hessians(model, iter(data), 3)
    sources = matrix_inputs(CONFIG)
    matrices = {name for name, p in model.named_parameters() if name == "tok_emb.weight" or ".weight" in name}
    assert set(sources) == matrices == set(sums)
    for name, expected in sums.items():
        runs = 2 if looped and name.startswith(("blocks.1.", "blocks.2.")) else 1
        assert passes[name] == 3 * runs, name
        found = hessians[sources[name]].double()
        assert torch.allclose(found, expected / 3, rtol=1e-5, atol=1e-5 * expected.abs().max().item()), name


def test_one_hessian_per_input(model):
    hessians = collect_hessians(model, iter(batches(1)), 1)
    assert len(hessians) == 4 * CONFIG.layers + 1
    sources = matrix_inputs(CONFIG)
    assert len({sources[f"blocks.2.attn.{name}.weight"] for name in ("c_q", "c_k", "c_v")}) == 1
    assert hessians[sources["tok_emb.weight"]].shape == (16, 16)
    assert hessians[sources["blocks.0.mlp.proj.weight"]].shape == (32, 32)
    assert all(h.dtype == torch.float32 and torch.allclose(h, h.mT, rtol=1e-4, atol=1e-3) for h in hessians.values())


def test_hessians_are_averaged_over_batches_not_tokens(model):
    first, second = batches(2)
    one, two = (collect_hessians(model, iter([batch]), 1) for batch in (first, second))
    both = collect_hessians(model, iter([first, second]), 2)
    twice = collect_hessians(model, iter([first, first]), 2)
    for name, mean in both.items():
        assert torch.allclose(mean, (one[name] + two[name]) / 2, rtol=1e-4, atol=1e-3)
        assert torch.allclose(twice[name], one[name], rtol=1e-4, atol=1e-3)


def test_only_as_many_batches_as_asked_are_taken_and_reported(model):
    stream = iter(batches(4))
    seen = []
    collect_hessians(model, stream, 3, seen.append)
    assert seen == [1, 2, 3]
    assert len(list(stream)) == 1


def test_nothing_stays_behind_even_after_an_error(model):
    def broken():
        yield batches(1)[0]
        raise RuntimeError("the stream broke")

    with pytest.raises(RuntimeError, match="the stream broke"):
        collect_hessians(model, broken(), 2)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def write_shard(path, tokens):
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())


def test_calibration_reads_rows_of_the_shards(model, tmp_path, monkeypatch):
    shard = tmp_path / "fineweb_train_000000.bin"
    tokens = np.random.default_rng(0).integers(2, VOCAB, 200)
    write_shard(shard, tokens)
    config = CalibrateConfig(batches=2, rows=3, seq_len=24)
    seen = []
    plain = GPT.forward

    def spy(self, ids, segments=None):
        assert segments is None, "rows are attended to densely"
        seen.append(ids)
        return plain(self, ids, segments)

    monkeypatch.setattr(GPT, "forward", spy)
    hessians = calibrate(model, config, [shard])
    assert [ids.shape for ids in seen] == [(3, 24)] * 2
    pieces = {tuple(tokens[start : start + 24]) for start in range(len(tokens) - 23)}
    assert all(tuple(row) in pieces for ids in seen for row in ids.tolist())
    by_hand = collect_hessians(model, itertools.chain(Batch(ids, ids, None) for ids in list(seen)), 2)
    assert all(torch.equal(h, by_hand[name]) for name, h in hessians.items())


@pytest.mark.parametrize("key", ["batches", "rows", "seq_len"])
def test_calibration_refuses_nothing_to_read(key):
    with pytest.raises(InputError, match=f"`{key}` is 0"):
        CalibrateConfig(**{key: 0})
