"""FlashAttention-4's operators and the choice between back ends, with plain kernels in place of the real ones."""

import itertools
import math
import sys
from types import ModuleType, SimpleNamespace

import plain_package
import pytest
import torch

from pgolf.model import attention, attention_gradient, flash4, flash4_gradient, sdpa
from pgolf.model.attention import Segments, attend, backend, present, using
from pgolf.model.attention_gradient import attend_with_gradient

BOUNDS = [0, 3, 4, 9, 11, 11, 11]
CUDA = torch.device("cuda")
INTERFACE = "flash_attn.cute.interface"


def spans(q, lengths):
    """(row, slice) of every sequence, for packed [T, H, D] and for fixed [B, T, H, D] tensors."""
    if "cu_seqlens_q" not in lengths:
        return [(b, slice(0, q.size(1))) for b in range(q.size(0))]
    assert lengths["cu_seqlens_q"] is lengths["cu_seqlens_k"]
    assert lengths["max_seqlen_q"] == lengths["max_seqlen_k"] >= lengths["cu_seqlens_q"].diff().max()
    bounds = lengths["cu_seqlens_q"].tolist()
    return [(..., slice(a, b)) for a, b in itertools.pairwise(bounds) if b > a]


def causal_scores(q, k, scale):
    """[H, L, L], -inf in the future; k has a head for every query head."""
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    return scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -math.inf)


def plain_forward(q, k, v, *, softmax_scale, causal, return_lse, **lengths):
    assert causal
    assert return_lse
    group = q.size(-2) // k.size(-2)
    y, lse = torch.empty_like(q), q.new_empty((*q.shape[:-3], q.size(-2), q.size(-3)), dtype=torch.float32)
    for row, span in spans(q, lengths):
        keys, values = (x[row][span].repeat_interleave(group, 1) for x in (k, v))
        scores = causal_scores(q[row][span], keys, softmax_scale)
        y[row][span] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), values)
        lse[row][:, span] = scores.logsumexp(-1).float()
    return y, lse, None, None, None


def plain_backward(q, k, v, y, dy, lse, *, softmax_scale, causal, dq, dk, dv, **lengths):
    assert causal
    assert dy.stride(-1) == 1
    group = q.size(-2) // k.size(-2)
    for row, span in spans(q, lengths):
        keys, values = (x[row][span].repeat_interleave(group, 1) for x in (k, v))
        query, grad = q[row][span], dy[row][span]
        p = (causal_scores(query, keys, softmax_scale) - lse[row][:, span, None]).exp()
        delta = torch.einsum("ihd,ihd->hi", grad, y[row][span])
        ds = p * (torch.einsum("ihd,jhd->hij", grad, values) - delta[..., None]) * softmax_scale
        dq[row][span] = torch.einsum("hij,jhd->ihd", ds, keys).to(dq)
        for out, full in ((dk, torch.einsum("hij,ihd->jhd", ds, query)), (dv, torch.einsum("hij,ihd->jhd", p, grad))):
            out[row][span] = full.unflatten(1, (-1, group)).sum(2).to(out)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(flash4, "kernels", (plain_forward, plain_backward))


def inputs(packed, heads=6, kv_heads=2, dtype=torch.float32):
    torch.manual_seed(0)
    rows = 1 if packed else 3
    return [torch.randn(rows, 11, n, 8, dtype=dtype, requires_grad=True) for n in (heads, kv_heads, kv_heads)]


def segments(packed):
    return Segments(torch.tensor(BOUNDS, dtype=torch.int32), 5) if packed else None


def with_gradients(function, qkv, dy):
    y = function(*qkv)
    return y, *torch.autograd.grad(y, qkv, dy)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_the_operators_give_what_sdpa_gives(plain, packed, kv_heads):
    qkv = inputs(packed, kv_heads=kv_heads)
    dy = torch.randn_like(qkv[0]).transpose(0, 1).contiguous().transpose(0, 1)

    def through_seam(*tensors):
        return attend(*tensors, segments(packed))

    expected = with_gradients(through_seam, qkv, dy)
    with using("fa4"):
        found = with_gradients(through_seam, qkv, dy)
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["fa4", "sdpa"])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_gradients_in_parts_add_up_to_those_of_a_graph(plain, monkeypatch, packed, kv_heads, name):
    """With FlashAttention-4 in calls of as many query heads as key heads."""
    qkv = inputs(packed, kv_heads=kv_heads)
    dy = torch.randn_like(qkv[0])

    def unshared(q, k, *rest, **options):
        assert q.shape == k.shape
        plain_backward(q, k, *rest, **options)

    expected = with_gradients(lambda *tensors: attend(*tensors, segments(packed)), qkv, dy)
    monkeypatch.setattr(flash4, "kernels", (plain_forward, unshared))
    with using(name):
        y, gradient = attend_with_gradient(*qkv, segments(packed))
    assert not y.requires_grad
    dq, dk, dv = gradient(dy)
    assert len(dk) == len(dv) == (6 // kv_heads if name == "fa4" else 1)
    for got, want in zip((y, dq, dk.sum(0), dv.sum(0)), expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class PlainRows:
    """`pgolf.kernels.attention_rows.Rows` for the plain package, which zeroes and fills in its own pass."""

    def __init__(self, cu_seqlens):
        self.documents = list(plain_package.padded_rows(cu_seqlens))

    def prepare(self, delta, lse, dpsum, lse_log2, sums):
        for tokens, rows in self.documents:
            dpsum[:, rows], lse_log2[:, rows] = delta[tokens].T, lse[:, tokens] / math.log(2)
            sums.unflatten(1, (len(dpsum[0]), -1))[:, rows] = 0

    def dq(self, sums, like):
        """[1, T, H, D] of the parts' sums."""
        dq, parts = torch.empty_like(like), len(sums)
        for part, each in enumerate(sums):
            for tokens, rows in self.documents:
                dq[0, tokens, part::parts] = each.unflatten(1, (-1, like.size(-1)))[:, rows].transpose(0, 1)
        return dq * like.size(-1) ** -0.5


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_gradients_in_sums_without_the_passes_of_the_package(monkeypatch, kv_heads):
    """The package's function runs between passes of our own, and is what it was afterwards."""
    qkv, packed = inputs(packed=True, kv_heads=kv_heads), segments(True)
    kept, dy, rows = [tensor.detach().clone() for tensor in qkv], torch.randn_like(qkv[0]), PlainRows(packed.cu_seqlens)
    monkeypatch.setattr(flash4, "kernels", (plain_forward, plain_package.backward))

    def gradients(*given):
        with using("fa4"):
            y, gradient = attend_with_gradient(*qkv, packed, *given)
        return y, gradient(dy, (dy * y).sum(-1)[0]) if given else gradient(dy)

    before, passes = dict(vars(plain_package)), []
    for name in ("_bwd_preprocess", "_bwd_postprocess_convert"):
        own = getattr(plain_package, name)
        monkeypatch.setattr(
            plain_package, name, lambda *a, own=own, name=name, **b: passes.append(name) or own(*a, **b)
        )
    y, (dq, *rest) = gradients()
    assert len(passes) == 2 * 6 // kv_heads
    passes.clear()
    _, (sums, *others) = gradients(rows)
    assert not passes
    assert len(sums) == 6 // kv_heads
    monkeypatch.undo()
    assert vars(plain_package) == before
    for got, want in zip((rows.dq(sums, dq), *others, *qkv), (dq, *rest, *kept), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    dense = with_gradients(lambda *tensors: attend(*tensors, packed), qkv, dy)
    for got, want in zip((y, dq, *(each.sum(0) for each in rest)), dense, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("installed", "capability", "head_dim", "expected"),
    [
        (flash4_gradient.KNOWN, 9, 64, True),
        ("4.0.0b37", 9, 64, False),
        (flash4_gradient.KNOWN, 10, 64, False),
        (flash4_gradient.KNOWN, 9, 128, False),
    ],
)
def test_sums_are_read_only_where_they_are_known(machine, monkeypatch, installed, capability, head_dim, expected):
    machine(capability, "fa4", "varlen")
    monkeypatch.setattr(flash4_gradient, "version", {"flash-attn-4": installed}.__getitem__)
    flash4_gradient._is_known.cache_clear()
    try:
        assert attention_gradient.gives_sums(CUDA, torch.bfloat16, head_dim) == expected
    finally:
        flash4_gradient._is_known.cache_clear()
    assert not attention_gradient.gives_sums(CUDA, torch.float32, 64)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_the_compiler_is_told_the_truth(plain, packed):
    """Schemas, shapes, strides, dtypes and gradients that the compiler assumes are those of the kernels."""
    q, k, v = ((x[0] if packed else x).detach() for x in inputs(packed))
    cu, longest = segments(packed) or (None, 0)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    torch.library.opcheck(flash4.forward, (*leaves, cu, longest), test_utils=checks)
    y, lse = flash4.forward(q, k, v, cu, longest)
    torch.library.opcheck(flash4.backward, (torch.randn_like(y), q, k, v, y, lse, cu, longest), test_utils=checks)


@pytest.mark.parametrize("name", ["fa4", "sdpa"])
def test_one_graph_holds_the_chosen_back_end(plain, monkeypatch, name):
    """The whole seam is traced without a break, and the choice is made while tracing."""
    monkeypatch.setattr(sdpa, "has_flash", lambda device, dtype: name == "fa4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    nodes = []

    def see(graph, example):
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    def twice(q, k, v, cu):
        return attend(attend(q, k, v, Segments(cu, 5)), k, v) if name == "fa4" else sdpa.blocked(q, k, v, cu, 5)

    qkv, (cu, _) = inputs(packed=True), segments(True)
    torch._dynamo.reset()
    compiled, dy = torch.compile(twice, backend=see, fullgraph=True, dynamic=False), torch.randn_like(qkv[0])
    for got, want in zip(
        with_gradients(lambda *x: compiled(*x, cu), qkv, dy),
        with_gradients(lambda *x: twice(*x, cu), qkv, dy),
        strict=True,
    ):
        torch.testing.assert_close(got, want)
    torch._dynamo.reset()
    assert sum("flash4_forward" in node for node in nodes) == (2 if name == "fa4" else 0)


def test_gradients_of_a_frozen_input_are_not_asked_for(plain):
    q, k, v = inputs(packed=False)
    with using("fa4"):
        attend(q, k.detach(), v.detach()).sum().backward()
    assert q.grad is not None
    assert k.grad is None


def test_without_a_gpu_there_is_only_sdpa():
    for dtype in (torch.float32, torch.bfloat16):
        assert present(torch.device("cpu"), dtype, 64) == ["sdpa"]
        assert backend(torch.device("cpu"), dtype) == "sdpa"


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a GPU of a compute capability with packages installed."""

    def pretend(capability, *packages):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
        monkeypatch.setattr(flash4, "kernels", (plain_forward, plain_backward) if "fa4" in packages else None)
        monkeypatch.setattr(attention, "flash_libraries", {name: None for name in packages if name in ("fa3", "fa2")})
        monkeypatch.setattr(attention, "varlen_attn", print if "varlen" in packages else None)

    return pretend


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (7, ["sdpa"]),
        (8, ["fa2", "varlen", "sdpa"]),
        (9, ["fa4", "fa3", "fa2", "varlen", "sdpa"]),
        (10, ["fa4", "fa2", "varlen", "sdpa"]),
        (12, ["fa2", "varlen", "sdpa"]),
    ],
)
def test_a_gpu_takes_what_its_generation_can(machine, capability, expected):
    machine(capability, "fa4", "fa3", "fa2", "varlen")
    assert present(CUDA, torch.bfloat16, 64) == expected
    assert backend(CUDA, torch.float16) == expected[0]
    assert present(CUDA, torch.bfloat16, 64, packed=False) == [name for name in expected if name != "varlen"]


def test_what_is_not_installed_is_passed_over(machine):
    machine(9, "varlen")
    assert present(CUDA, torch.bfloat16, 64) == ["varlen", "sdpa"]
    machine(9)
    assert present(CUDA, torch.bfloat16, 64) == ["sdpa"]


def test_single_precision_and_odd_heads_take_sdpa(machine):
    machine(9, "fa4", "varlen")
    assert backend(CUDA, torch.float32) == "sdpa"
    assert backend(CUDA, torch.bfloat16, 60) == "sdpa"
    assert backend(CUDA, torch.bfloat16, 264) == "sdpa"
    assert backend(CUDA, torch.bfloat16, 256) == "fa4"
    machine(10, "fa4", "varlen")
    assert backend(CUDA, torch.bfloat16, 256) == "varlen"


def test_a_forced_choice_ends(machine):
    machine(9, "fa4", "varlen")
    with using("varlen"), using("sdpa"):
        assert backend(CUDA, torch.bfloat16) == "sdpa"
    assert backend(CUDA, torch.bfloat16) == "fa4"
    with pytest.raises(RuntimeError), using("sdpa"):
        raise RuntimeError
    assert backend(CUDA, torch.bfloat16) == "fa4"


@pytest.mark.parametrize("generation", ["fa3", "fa2"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_older_generations_are_called_for_the_same_result(monkeypatch, generation, packed):
    """FlashAttention 2 returns the output, some versions of 3 also the log-sum-exp."""

    def result(y, lse, *_):
        return y if generation == "fa2" else (y, lse)

    def dense(q, k, v, *, causal):
        return result(*plain_forward(q, k, v, softmax_scale=q.size(-1) ** -0.5, causal=causal, return_lse=True))

    def varlen(q, k, v, cu_q, cu_k, longest_q, longest_k, *, causal):
        lengths = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": longest_q, "max_seqlen_k": longest_k}
        scale = q.size(-1) ** -0.5
        return result(*plain_forward(q, k, v, softmax_scale=scale, causal=causal, return_lse=True, **lengths))

    library = SimpleNamespace(flash_attn_func=dense, flash_attn_varlen_func=varlen)
    monkeypatch.setattr(attention, "flash_libraries", {generation: library})
    qkv = [tensor.detach() for tensor in inputs(packed)]
    expected = attend(*qkv, segments(packed))
    with using(generation):
        torch.testing.assert_close(attend(*qkv, segments(packed)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("installed", ["nothing", "another version", "the package"])
def test_the_package_may_be_missing_or_of_another_version(monkeypatch, installed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = ModuleType(INTERFACE)
    if installed == "the package":
        module._flash_attn_fwd, module._flash_attn_bwd = plain_forward, plain_backward
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, INTERFACE, None if installed == "nothing" else module)
    if installed == "another version":
        with pytest.warns(UserWarning, match="does not load"):
            assert flash4._load() is None
    else:
        assert flash4._load() == (None if installed == "nothing" else (plain_forward, plain_backward))
