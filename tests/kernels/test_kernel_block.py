"""A block written out is `Block`: same losses, same gradients, in every form that it takes."""

import dataclasses

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch
from query_sums import as_added_up

pytest.importorskip("triton", reason="Triton is not installed")

from pgolf.kernels import elements, epilogue, float8, folding, leaky_mlp
from pgolf.model.attention import Segments
from pgolf.model.config import ModelConfig, ValueEmbedConfig
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.train import fused_block, fused_mlp, fused_model
from pgolf.train.fused_model import fits, fused_functions

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
LENGTH, VOCAB = 10, 40
CONFIG = ModelConfig(  # record-1855 in small: an encoder, a recurrent segment, skips, lanes
    layers=3, dim=16, heads=2, kv_heads=1, mlp_mult=4, rope_dims=4, xsa_layers=2, ln_scale=True, attn_gate="sparse",
    attn_gate_scale=0.5, gate_window=12, parallel="lanes", parallel_from=2, lane_init=1.1, skips="gated", loop_start=1,
    loop_end=1, loop_runs=2, softcap=5.0, embed_std=0.5,
)  # fmt: skip

SHORT = {"parallel": "none", "parallel_from": None, "layers": 2, "loop_start": 0, "loop_end": 0, "loop_runs": 1}


def build(dtype=torch.float32, length=LENGTH, **changes):
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(CONFIG, **changes), VOCAB, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model = model.to(DEVICE)
    model.prepare(length)
    return model.train()


def write_out(model, eight=False):
    for block, name, function in fused_functions(model, eight):
        setattr(block, name, function)
    return model


@pytest.fixture(autouse=True)
def small(monkeypatch):
    if not ON_GPU:
        monkeypatch.setattr(folding, "FOLD_ROWS", 64)  # the interpreter takes programs one after the other
        monkeypatch.setattr(leaky_mlp, "TILE", leaky_mlp.Tile(tokens=32, units=64, depth=16, warps=4, stages=2))


def gradients(model, rows=1, segments=None, length=LENGTH):
    torch.manual_seed(1)
    ids, targets = torch.randint(VOCAB, (2, rows, length), device=DEVICE)
    losses = model.losses(ids, targets, segments)
    model.zero_grad()
    losses.mean().backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_alike(found, expected, bound=1e-4):
    torch.testing.assert_close(found[0], expected[0], rtol=bound, atol=bound)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        assert float((gradient - expected[1][name]).norm() / expected[1][name].norm()) < bound, name


@pytest.fixture(params=[False, True], ids=["passes", "epilogues"])
def epilogues(request, monkeypatch):
    """Both forms of the MLP half; the sign of a hidden unit is then the last bit of a float32."""
    monkeypatch.setattr(epilogue, "present", lambda: request.param)
    monkeypatch.setattr(elements, "PLACE", 0)
    return request.param


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
def test_a_packed_model_trains_alike(epilogues):
    """Also after a step of AdamW, which changes the weights in place."""
    segments = Segments(torch.tensor([0, 4, LENGTH], dtype=torch.int32), 6)
    model, twin = write_out(build()), build()
    found, expected = gradients(model, segments=segments), gradients(twin, segments=segments)
    assert_alike(found, expected)
    chain = model.blocks[0].forward.__self__.chain
    assert chain.first is None, "it keeps the graph of a pass that is over"
    for each in (model, twin):
        for name, parameter in each.named_parameters():
            parameter.grad = expected[1][name].clone()
        torch.optim.AdamW(each.parameters(), lr=1e-2, fused=True).step()
    with torch.no_grad():
        torch.manual_seed(1)
        ids, targets = torch.randint(VOCAB, (2, 1, LENGTH))
        after = [each.losses(ids, targets, segments) for each in (model, twin)]
    torch.testing.assert_close(*after, rtol=1e-4, atol=1e-4)
    assert float((after[1] - expected[0]).norm()) > 0.1


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
@pytest.mark.parametrize("changes", [{}, SHORT | {"attn_gate": "none", "xsa_layers": 0}], ids=["all", "bare"])
def test_gradients_of_queries_as_attention_adds_them_up(epilogues, monkeypatch, changes):
    """The same, and delta is what attention's kernel would make of dy and y."""
    seen, attend_with_gradient = [], fused_block.attend_with_gradient

    def attend(q, k, v, segments, rows):
        y, gradient = attend_with_gradient(q, k, v, segments)
        parts, scale = q.size(2) // k.size(2), q.size(3) ** -0.5

        def in_sums(dy, delta):
            seen.append(rows)
            torch.testing.assert_close(delta, (dy * y).sum(-1)[0], rtol=1e-4, atol=1e-6)
            dq, dk, dv = gradient(dy)
            return [as_added_up(dq[0, :, part::parts], rows, scale) for part in range(parts)], dk, dv

        return y, in_sums

    monkeypatch.setattr(fused_block, "attend_with_gradient", attend)
    monkeypatch.setattr(fused_model, "gives_sums", lambda *_: True)
    segments = Segments(torch.tensor([0, 4, LENGTH, LENGTH], dtype=torch.int32), 6)
    changes = changes | {"dim": 32, "rope_dims": 16}
    found, expected = (gradients(each, segments=segments) for each in (write_out(build(**changes)), build(**changes)))
    assert_alike(found, expected)
    assert len(seen) >= 2
    assert all(rows is seen[0] for rows in seen)


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
def test_visits_that_get_no_gradient_leave_those_of_the_others():
    """Of a layer visited four times: one is followed by others, one is not, and a pass without gradients is between."""
    found = []
    for model in (write_out(build(**SHORT)), build(**SHORT)):
        torch.manual_seed(1)
        x, x0, other, wanted = torch.randn(4, 1, LENGTH, CONFIG.dim).unbind()
        x0.requires_grad_()
        context = Context(x0, model._scales[0], (model._cos, model._sin), None)
        first, second = model.blocks
        twice = first(first(x, context), context)
        first(x, context)
        out = second(twice, context)
        first(x, context)
        with torch.no_grad():
            first(x, context._replace(x0=other))
        (out * wanted).sum().backward()
        names = {name: p.grad for name, p in model.blocks.named_parameters()}
        found.append((out.detach(), names | {"x0": x0.grad}))
    assert None not in found[1][1].values()
    assert_alike(*found)


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
def test_passes_do_not_mix_and_gradients_arrive_once():
    """Two passes before either is gone back through; a looped layer's gradients come to autograd added up."""
    torch.manual_seed(1)
    ids, targets = torch.randint(VOCAB, (2, 2, 1, LENGTH))
    found, arrived = [], []
    for model in (write_out(build()), build()):
        losses = [model.losses(*each) for each in zip(ids, targets, strict=True)]
        for number in (0, 1):
            losses[number].mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((torch.stack(losses).detach(), gradients))
        nodes, seen = [losses[0].grad_fn], set()
        while nodes:
            node = nodes.pop()
            seen.add(node)
            nodes += [after for after, _ in node.next_functions if after is not None and after not in seen]
        edges = [after for node in seen for after, _ in node.next_functions]
        looped = model.blocks[CONFIG.loop_start].mlp.fc.weight
        arrived.append(sum(getattr(after, "variable", None) is looped for after in edges))
    assert_alike(*found)
    assert arrived == [1, CONFIG.loop_runs]


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
def test_rows_without_gate_or_lanes_train_alike():
    changes = SHORT | {"attn_gate": "none", "xsa_layers": 0}
    assert_alike(gradients(write_out(build(**changes)), rows=2), gradients(build(**changes), rows=2))


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
def test_layers_whose_values_have_something_added_stay_as_they_are():
    changes = SHORT | {"value_embed": ValueEmbedConfig(last=1, dim=8)}
    model = write_out(build(**changes))
    assert ["forward" in vars(block) for block in model.blocks] == [True, False]
    assert_alike(gradients(model), gradients(build(**changes)))


def test_a_block_of_another_form_stays_as_it_is():
    for changes in (
        {"norm": "peri"}, {"norm": "hybrid"}, {"attn_gate": "headwise"}, {"attn_gate": "per_head"}, {"mlp_gate": True},
        {"token_gate": True}, {"value_residual": "gated"}, {"value_residual": "learned"}, {"activation": "swiglu"},
        {"attention": "differential"}, {"norm_pct": 0.5}, {"parallel": "gptj", "parallel_from": 2},
        {"parallel": "merge", "parallel_from": 2},
    ):  # fmt: skip
        model = build(**{"parallel": "none", "parallel_from": None} | changes)
        assert not fits(model.blocks[2]), changes
    assert all(fits(block) for block in build().blocks)


@pytest.mark.parametrize("changes", [SHORT, {}], ids=["sequential", "lanes"])
def test_8_bit_products_of_a_model(changes, monkeypatch):
    """With more bits they would be the same; with 8 the losses are near, and so are gradients."""
    if not ON_GPU:
        monkeypatch.setattr(epilogue, "present", lambda: True)
    length = 16  # what is written across tokens fills whole rows of 16 bytes
    expected = gradients(build(length=length, **changes), length=length)
    (in8, back8), (in16, back16) = (
        gradients(write_out(build(torch.bfloat16, length, **changes), eight), length=length) for eight in (True, False)
    )
    assert float((in8 - in16).abs().mean()) > 0
    assert float((in8 - expected[0]).abs().mean()) < 0.1
    wrong = {name: float((g - back16[name]).norm() / expected[1][name].norm()) for name, g in back8.items()}
    assert max(wrong[name] for name in wrong if "mlp.fc" in name) < 0.5, wrong
    if not ON_GPU:
        monkeypatch.setattr(elements, "PLACE", 0)
        monkeypatch.setattr(float8, "KIND", torch.float32)
        model = write_out(build(length=length, **changes), eight=True)
        assert_alike(gradients(model, length=length), expected)


@pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
def test_gradients_read_operands_of_8_bits(monkeypatch):
    """Of the last block: down's is the same whatever rounds behind it, up's is of dp and h in 8 bits, that of z behind
    it of dp.
    """
    monkeypatch.setattr(epilogue, "present", lambda: True)
    written = fused_mlp.feed_backward

    def found(eight):
        def feed_backward(call, *rest):
            weights = call.weights if eight else call.weights._replace(eight=None)
            return written(call._replace(weights=weights), *rest)

        monkeypatch.setattr(fused_block, "feed_backward", feed_backward)
        return gradients(write_out(build(torch.bfloat16, **SHORT), eight=True))[1]

    def apart(a, b, name):
        name = f"blocks.{SHORT['layers'] - 1}.{name}.weight"
        return float((a[name] - b[name]).norm() / b[name].norm())

    bf16, in8 = found(False), found(True)
    assert apart(in8, bf16, "mlp.proj") == 0
    assert 0.005 < apart(in8, bf16, "mlp.fc") < 0.2
    assert 0.005 < apart(in8, bf16, "attn.proj") < 0.2


@pytest.mark.gpu
def test_at_training_shapes_roundings_are_no_worse_than_those_of_plain_bfloat16():
    length, shape = 4096, {"dim": 512, "heads": 8, "kv_heads": 4, "rope_dims": 16}
    segments = Segments(torch.tensor([0, 700, 2500, length], dtype=torch.int32, device=DEVICE), 2048)

    def found(dtype, out):
        model = build(dtype, length, **shape)
        return gradients(write_out(model) if out else model, segments=segments, length=length)[1]

    truth, plain, written = found(torch.float32, False), found(torch.bfloat16, False), found(torch.bfloat16, True)
    for name, wanted in truth.items():
        ours, theirs = (float((each[name] - wanted).norm() / wanted.norm()) for each in (written, plain))
        assert ours < 1.5 * theirs + 5e-3, name
