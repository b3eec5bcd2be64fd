import math

import pytest
import torch

from pgolf.model import blocks as blocks_module
from pgolf.model.attention import Segments
from pgolf.model.config import ModelConfig
from pgolf.model.context import Context
from pgolf.model.gpt import GPT, TiedHead, matrix_inputs
from pgolf.model.mlp import leaky_relu_squared
from pgolf.model.norm import rms_norm

VOCAB, LENGTH = 96, 16
TINY = ModelConfig(
    layers=5, dim=32, heads=4, kv_heads=2, rope_dims=4, loop_start=1, loop_end=2, loop_runs=2,
    parallel_from=3, xsa_layers=5,
)  # fmt: skip


def fresh(config=TINY, seed=0):
    torch.manual_seed(seed)
    model = GPT(config, VOCAB)
    model.prepare(LENGTH)
    return model


def shaken(config=TINY):
    """A model whose zero projections and gates are random, as after training."""
    model = fresh(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.weight"):
                parameter.normal_(std=0.3)
            elif parameter.ndim < 2 or "skip" in name or "resid_mix" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            elif name == "tok_emb.weight":
                parameter.normal_(std=0.3)
    return model


def tokens(rows=2, length=LENGTH):
    torch.manual_seed(1)
    return torch.randint(VOCAB, (rows, length)), torch.randint(VOCAB, (rows, length))


def test_parameter_count_of_pr_1493():
    with torch.device("meta"):
        model = GPT(ModelConfig(), 8192)
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_944_536
    assert model.skip_weights.shape == model.skip_gates.shape == (8, 512)
    assert not list(model.buffers())


PR_1855 = ModelConfig(
    qk_gain=5.0, attn_gate="sparse", attn_gate_scale=0.5, smear="window", parallel="lanes", parallel_from=8
)


def test_parameter_count_of_pr_1855():
    with torch.device("meta"):
        model = GPT(PR_1855, 8192)
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_945_671
    assert model.blocks[10].attn.attn_gate_w.shape == (8, 12)
    assert model.parallel_post_lambdas.shape == (11, 2, 2)


def test_a_document_never_sees_the_one_before_it():
    """Packed rows with smear and every gate: changing document 1 leaves the losses of document 2 untouched."""
    config = ModelConfig(
        layers=4, dim=32, heads=4, kv_heads=2, rope_dims=4, loop_start=0, loop_end=1, loop_runs=2, xsa_layers=4,
        parallel="lanes", parallel_from=2, smear="window", attn_gate="sparse",
    )  # fmt: skip
    model = shaken(config)
    ids, targets = tokens(rows=1)
    ids[0, 0] = ids[0, 6] = 1
    segments = Segments(torch.tensor([0, 6, LENGTH], dtype=torch.int32), 10)
    before = model.losses(ids, targets, segments)
    changed = ids.clone()
    changed[0, 1:6] = (ids[0, 1:6] + 7) % (VOCAB - 2) + 2
    after = model.losses(changed, targets, segments)
    assert not torch.equal(before[0, :6], after[0, :6])
    assert torch.equal(before[0, 6:], after[0, 6:])


def test_shapes_follow_the_table():
    shapes = {name: tuple(parameter.shape) for name, parameter in GPT(TINY, VOCAB).named_parameters()}
    d, kv, hidden = TINY.dim, TINY.kv_heads * TINY.head_dim, TINY.mlp_hidden
    expected = {"tok_emb.weight": (VOCAB, d), "skip_weights": (3, d), "skip_gates": (3, d)}
    for i in range(TINY.layers):
        expected |= {
            f"blocks.{i}.attn.c_q.weight": (d, d),
            f"blocks.{i}.attn.c_k.weight": (kv, d),
            f"blocks.{i}.attn.c_v.weight": (kv, d),
            f"blocks.{i}.attn.proj.weight": (d, d),
            f"blocks.{i}.attn.q_gain": (TINY.heads,),
            f"blocks.{i}.mlp.fc.weight": (hidden, d),
            f"blocks.{i}.mlp.proj.weight": (d, hidden),
            f"blocks.{i}.attn_scale": (d,),
            f"blocks.{i}.mlp_scale": (d,),
            f"blocks.{i}.resid_mix": (2, d),
        }
    assert shapes == expected


def test_initial_values():
    model = fresh(
        ModelConfig(layers=2, dim=64, heads=4, kv_heads=2, qk_gain=3.5, loop_runs=1, xsa_layers=2, parallel_from=1)
    )
    for block in model.blocks:
        for matrix in (block.attn.c_q.weight, block.attn.c_k.weight, block.attn.c_v.weight, block.mlp.fc.weight):
            singular = torch.linalg.svdvals(matrix.detach())
            torch.testing.assert_close(singular, torch.ones_like(singular), rtol=1e-4, atol=1e-4)
        for matrix in (block.attn.proj.weight, block.mlp.proj.weight):
            assert not matrix.any()
        assert torch.equal(block.attn_scale.data, torch.ones(64))
        assert torch.equal(block.mlp_scale.data, torch.ones(64))
        assert torch.equal(block.resid_mix.data, torch.stack([torch.ones(64), torch.zeros(64)]))
        assert torch.equal(block.attn.q_gain.data, torch.full((4,), 3.5))
    assert not model.skip_gates.any()
    assert torch.equal(model.skip_weights.data, torch.ones(1, 64))
    assert model.tok_emb.weight.std().item() == pytest.approx(0.005, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    matrices = [block.attn.c_q.weight.data for block in model.blocks]
    assert not torch.equal(*matrices)


@pytest.mark.parametrize("looped", [False, True])
def test_first_loss_is_the_logarithm_of_the_vocabulary(looped):
    torch.manual_seed(0)
    model = GPT(TINY, 8192)
    model.prepare(64)
    model.looped = looped
    ids = torch.randint(8192, (2, 65))
    loss = model.losses(ids[:, :-1], ids[:, 1:]).mean().item()
    assert loss == pytest.approx(math.log(8192), rel=1e-3)


def test_blocks_are_the_identity_at_initialisation():
    """So skips join equal streams, halves add up to one, and the final state is the embedding normalised."""
    model = fresh()
    x, x0 = torch.randn(2, 1, LENGTH, TINY.dim)
    for block in model.blocks:
        assert torch.equal(block(x, Context(x0, torch.tensor(1.0), (model._cos, model._sin), None)), x)
    ids, _ = tokens()
    for looped in (False, True):
        model.looped = looped
        normed = rms_norm(rms_norm(model.tok_emb.weight[ids]))  # at the input and at the end
        torch.testing.assert_close(model.hidden(ids), normed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("looped", [False, True])
def test_later_tokens_leave_earlier_losses_bit_identical(looped):
    model = shaken()
    model.looped = looped
    ids, targets = tokens()
    with torch.no_grad():
        before = model.losses(ids, targets)
        for cut in (1, 7, LENGTH - 1):
            other = ids.clone()
            other[:, cut:] = (other[:, cut:] + 1 + torch.arange(LENGTH - cut)) % VOCAB
            after = model.losses(other, targets)
            assert torch.equal(before[:, :cut], after[:, :cut])
            assert not torch.equal(before[:, cut:], after[:, cut:])


def test_earlier_tokens_reach_later_losses():
    model = shaken()
    ids, targets = tokens()
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % VOCAB
    with torch.no_grad():
        changed = model.losses(other, targets) != model.losses(ids, targets)
    assert changed[:, -1].all()


def test_packed_documents_score_as_if_alone():
    """Although positions run on along the packed row: rotary scores depend on distances only."""
    model = shaken()
    ids, targets = tokens(rows=1)
    bounds = [0, 5, 6, LENGTH, LENGTH, LENGTH]
    with torch.no_grad():
        packed = model.losses(ids, targets, Segments(torch.tensor(bounds, dtype=torch.int32), 10))
        for a, b in ((0, 5), (5, 6), (6, LENGTH)):
            alone = model.losses(ids[:, a:b], targets[:, a:b])
            torch.testing.assert_close(packed[:, a:b], alone, rtol=1e-4, atol=1e-4)
        assert (packed - model.losses(ids, targets))[:, 6:].abs().max() > 1e-3


def test_rows_do_not_see_each_other():
    model = shaken()
    ids, targets = tokens(rows=3)
    with torch.no_grad():
        together = model.losses(ids, targets)
        for row in range(3):
            alone = model.losses(ids[row : row + 1], targets[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_softcap_bounds_the_logits_and_keeps_small_ones():
    head = TiedHead(5.0)
    hidden, embedding = torch.randn(1, 4, 8), torch.randn(VOCAB, 8)
    large = head(hidden * 1000, embedding)
    assert large.abs().max() <= 5
    assert large.abs().max() > 4.99
    small = head(hidden * 1e-3, embedding)
    torch.testing.assert_close(small, hidden @ embedding.T * 1e-3, rtol=1e-3, atol=1e-6)


def test_leaky_relu_squared_on_both_sides_of_zero():
    p = torch.tensor([-2.0, -0.5, 0.0, 0.5, 3.0], requires_grad=True)
    f = leaky_relu_squared(p, 0.5)
    torch.testing.assert_close(f.detach(), torch.tensor([1.0, 0.0625, 0.0, 0.25, 9.0]))
    f.sum().backward()
    torch.testing.assert_close(p.grad, torch.tensor([-1.0, -0.25, 0.0, 1.0, 6.0]))


def spy_attention(monkeypatch):
    """Record what each attention call receives."""
    calls, attend = [], blocks_module.attend

    def spy(q, k, v, segments=None):
        calls.append((q.detach(), k.detach(), v.detach()))
        return attend(q, k, v, segments)

    monkeypatch.setattr(blocks_module, "attend", spy)
    return calls


def test_queries_carry_the_gain_and_keys_unit_norm(monkeypatch):
    """The gain comes after the normalisation: |q| = gain sqrt(D), whatever the scale of the projections; v is raw."""
    calls = spy_attention(monkeypatch)
    model = shaken()
    attention = model.blocks[1].attn
    with torch.no_grad():
        attention.c_q.weight.mul_(3)
        attention.q_gain.copy_(torch.tensor([0.5, 1.0, 2.0, -4.0]))
        n = torch.randn(2, LENGTH, TINY.dim)
        attention(n, Context(n, torch.tensor(1.0), (model._cos, model._sin), None))
    q, k, v = calls[0]
    root = math.sqrt(TINY.head_dim)
    expected = (torch.tensor([0.5, 1.0, 2.0, 4.0]) * root).expand(2, LENGTH, 4)
    torch.testing.assert_close(q.norm(dim=-1), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(k.norm(dim=-1), torch.full((2, LENGTH, 2), root), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(v.flatten(2), n @ attention.c_v.weight.T)


def test_layer_scale_follows_the_physical_index_in_repeats():
    """Inputs of attention and MLP have root mean square 1/sqrt(i + 1), however often the layer runs."""
    model = shaken()
    seen = {}
    for index, block in enumerate(model.blocks):
        for module in (block.attn, block.mlp):
            module.register_forward_pre_hook(
                lambda _, args, index=index: seen.setdefault(index, []).append(args[0].square().mean(-1).sqrt())
            )
    model(tokens()[0])
    assert {index: len(values) for index, values in seen.items()} == {0: 2, 1: 4, 2: 4, 3: 2, 4: 2}
    for index, values in seen.items():
        for value in values:
            torch.testing.assert_close(value, torch.full_like(value, (index + 1) ** -0.5), rtol=1e-4, atol=1e-4)


def test_recurrence_changes_the_output_and_a_single_run_does_not():
    ids, _ = tokens()
    for runs, same in ((2, False), (1, True)):
        model = shaken(ModelConfig(**{f: getattr(TINY, f) for f in TINY.__slots__} | {"loop_runs": runs}))
        outputs = []
        for looped in (False, True):
            model.looped = looped
            outputs.append(model(ids))
        assert torch.equal(*outputs) is same


def test_exclusive_attention_is_on_the_last_layers():
    model = GPT(ModelConfig(**{f: getattr(TINY, f) for f in TINY.__slots__} | {"xsa_layers": 2}), VOCAB)
    assert [block.attn.exclusive_output for block in model.blocks] == [False, False, False, True, True]


def test_matrix_inputs_names_every_matrix_and_its_source():
    model = GPT(TINY, VOCAB)
    modules = dict(model.named_modules())
    sources = matrix_inputs(TINY)
    control = ("resid_mix", "skip_weights", "skip_gates")
    matrices = {n: p for n, p in model.named_parameters() if p.ndim == 2 and not n.endswith(control)}
    assert sources.keys() == matrices.keys()
    seen = {}
    for source in set(sources.values()):
        modules[source].register_forward_pre_hook(lambda _, args, key=source: seen.update({key: args[0].size(-1)}))
    model.prepare(LENGTH)
    model(tokens()[0])
    assert {name: matrix.size(1) for name, matrix in matrices.items()} == {n: seen[sources[n]] for n in matrices}


def test_rotary_tables_grow_and_do_not_change_shorter_rows():
    model = shaken()
    ids, targets = tokens()
    before = model.losses(ids, targets)
    model.prepare(4 * LENGTH)
    assert torch.equal(model.losses(ids, targets), before)
    assert torch.isfinite(model(tokens(length=4 * LENGTH)[0])).all()
