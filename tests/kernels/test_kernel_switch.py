"""`train.kernels`: a model behind kernels computes the same, keeps its names, and comes back."""

import dataclasses
import sys

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch

from pgolf.data.batches import Batch
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.train import fast
from pgolf.train.compiled import compile_model, plain_model
from pgolf.train.config import TrainConfig
from pgolf.train.openings import openings
from pgolf.train.schedule import settings
from pgolf.train.trainer import Trainer

VOCAB, LENGTH = 40, 12
CONFIG = ModelConfig(
    layers=2, dim=16, heads=2, kv_heads=1, rope_dims=4, mlp_mult=4, xsa_layers=2, loop_start=0, loop_end=0, loop_runs=1,
    parallel_from=None, softcap=5.0,
)  # fmt: skip
TRAIN = TrainConfig(steps=1, seconds=None, seq_len=16, micro_tokens=32, batch_tokens=32)
ON_GPU = torch.cuda.is_available()


def build(**changes):
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(CONFIG, **changes), VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.prepare(LENGTH)
    return model.begin_training()


def gradients(model):
    torch.manual_seed(1)
    ids, targets = torch.randint(VOCAB, (2, 2, LENGTH))
    losses = model.losses(ids, targets)
    model.zero_grad()
    losses.mean().backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(found, expected):
    torch.testing.assert_close(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        wrong = (gradient - expected[1][name]).norm() / expected[1][name].norm().clamp_min(1e-6)
        assert wrong < 1e-4, name


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
def test_a_model_behind_kernels_trains_alike_and_comes_back():
    pytest.importorskip("triton", reason="Triton is not installed")
    torch._dynamo.reset()
    model, expected = build(), gradients(build())
    names = list(model.state_dict())
    fast.hide(model)
    hidden = {name for owner, name, _ in fast._replacements(model) if name in vars(owner)}
    assert {"surprise", "forward"} <= hidden
    assert_alike(gradients(model), expected)
    skip = model.skip
    compile_model(model, backend="aot_eager")
    assert model.skip is skip, "it is compiled"
    assert_alike(gradients(model), expected)
    plain_model(model)
    fast.remove(model)
    assert list(model.state_dict()) == names
    assert not any(name in vars(owner) for owner, name, _ in fast._replacements(model))
    assert not {"skip", "norm"} & set(vars(model))
    assert_alike(gradients(model), expected)
    torch._dynamo.reset()


def test_the_end_of_lanes_comes_back():
    pytest.importorskip("triton", reason="Triton is not installed")
    model = build(parallel="lanes", parallel_from=1)
    form = model.lane_form
    fast.hide(model)
    assert model.lane_form != form
    assert {"skip", "norm"} <= set(vars(model))
    fast.remove(model)
    assert model.lane_form == form
    assert not {"skip", "norm"} & set(vars(model))


def test_gates_are_observed_of_the_plain_model():
    """While a model with lanes trains behind kernels; what stood in for its functions stands there after."""
    pytest.importorskip("triton", reason="Triton is not installed")
    model = build(parallel="lanes", parallel_from=1, attn_gate="sparse", gate_window=4, xsa_layers=0)
    ids = torch.randint(VOCAB, (1, LENGTH))
    expected = openings(model, ids)
    fast.hide(model)
    before = dict(vars(model))
    found = openings(model, ids)
    assert vars(model) == before
    assert found.keys() == expected.keys() == {"attn_gate"}
    assert torch.equal(found["attn_gate"], expected["attn_gate"])


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
def test_a_block_of_another_form_has_the_mlp_behind_a_kernel():
    pytest.importorskip("triton", reason="Triton is not installed")
    changes = {"norm": "peri", "layers": 1, "xsa_layers": 0}  # with XSA the first token's output is rounding alone
    model, expected = build(**changes), gradients(build(**changes))
    fast.hide(model)
    assert "forward" not in vars(model.blocks[0])
    assert "forward" in vars(model.blocks[0].mlp)
    assert_alike(gradients(model), expected)


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
def test_a_training_step_weighs_all_tokens_by_one_number(monkeypatch):
    """Then no pass over the head's gradient multiplies by it."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from pgolf.kernels import softcap_loss

    seen = []

    def watched(name):
        function = getattr(softcap_loss, name)

        def watch(*given):
            seen.append((name, given[-1].stride()))
            return function(*given)

        monkeypatch.setattr(softcap_loss, name, watch)

    for name in ("_gradients_of_equal", "_gradients_of_any"):
        watched(name)
    model = GPT(CONFIG, VOCAB)
    model.prepare(16)
    trainer = Trainer(model, TRAIN)
    fast.hide(model)
    ids, targets = torch.randint(VOCAB, (2, 2, 16))
    trainer.backward(iter([Batch(ids, targets, None)]), settings(TRAIN, 0, 0.0))
    assert seen == [("_gradients_of_equal", (0,))]


def test_another_mlp_stays_plain():
    others = {"activation": "star_relu", "mlp_rank": 0.5, "mlp_blocks": 2, "norm_pct": 0.5, "mlp_mult": 3}
    for changes in ({name: value} for name, value in others.items()):
        assert not fast.fits(build(**changes).blocks[0].mlp), changes
    assert fast.fits(build().blocks[0].mlp)


def test_a_softcap_beyond_the_kernel_stays_plain():
    for softcap, hidden in ((fast.LARGEST_SOFTCAP, True), (fast.LARGEST_SOFTCAP + 1, False)):
        names = {name for _, name, _ in fast._replacements(build(softcap=softcap))}
        assert ("surprise" in names) == hidden


def test_8_bits_are_refused_where_they_would_be_nowhere(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from pgolf.kernels import epilogue

    present = [True]
    monkeypatch.setattr(epilogue, "present", lambda: present[0])
    fast.check_eight(build(), TRAIN)
    with pytest.raises(InputError, match=r"no block of this model .* set it to bfloat16"):
        fast.check_eight(build(norm="peri"), TRAIN)
    with pytest.raises(InputError, match="multiples of 16"):
        fast.check_eight(build(dim=8, heads=1, mlp_mult=8, gate_window=4), TRAIN)
    with pytest.raises(InputError, match="multiples of 16, not `micro_tokens` 24"):
        fast.check_eight(build(), dataclasses.replace(TRAIN, micro_tokens=24, batch_tokens=24, seq_len=24))
    with pytest.raises(InputError, match=r"`token_fraction` 0\.5 rows have no gradient"):
        fast.check_eight(build(), dataclasses.replace(TRAIN, token_fraction=0.5))
    present[:] = [False]
    with pytest.raises(InputError, match=r"Hopper GPU and the package quack-kernels"):
        fast.check_eight(build(), TRAIN)


def test_a_cpu_goes_without_and_says_so():
    model = build()
    with pytest.warns(UserWarning, match="need a GPU"):
        fast.install(model, TRAIN)
    assert "surprise" not in vars(model)


def test_a_gpu_without_triton_is_told_what_to_do(monkeypatch):
    model = build()
    monkeypatch.setitem(sys.modules, "triton", None)
    model.tok_emb = torch.nn.Embedding(VOCAB, 16, device="meta")  # stands for a GPU: not a CPU
    with pytest.raises(InputError, match="pip install triton"):
        fast.install(model, TRAIN)
