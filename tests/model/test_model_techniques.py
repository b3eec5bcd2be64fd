"""Properties of single techniques: initial values, order of layers, document boundaries, what training alone has."""

import dataclasses
import math

import pytest
import torch
from model_twin import BOS, Twin

from pgolf.model.attention import Segments
from pgolf.model.config import HashConfig, ModelConfig, MultiTokenConfig, ValueEmbedConfig
from pgolf.model.context import Context
from pgolf.model.differential import initial_lambda
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.model.hash_embedding import BIGRAM, TRIGRAM, hash_rows
from pgolf.model.linear import Linear
from pgolf.model.mlp_variants import BlockDiagonal
from pgolf.model.norm_pct import linear_quantile, norm_pct_dropout
from pgolf.model.overtone import overtone, phased_mix
from pgolf.model.rotary import inverse_frequencies
from pgolf.model.smear_vector import VectorSmear
from pgolf.model.yarn import interpolate, sharpness

VOCAB, LENGTH = 96, 16
FLAT = ModelConfig(
    layers=3, dim=32, heads=4, kv_heads=2, rope_dims=4, mlp_mult=2.0, loop_runs=1, parallel="none", xsa_layers=3
)


def fresh(seed=0, **changes):
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(FLAT, **changes), VOCAB)
    model.prepare(LENGTH)
    return model


def shaken(**changes):
    model = fresh(**changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def tokens(rows=2):
    torch.manual_seed(1)
    return torch.randint(BOS + 1, VOCAB, (rows, LENGTH)), torch.randint(VOCAB, (rows, LENGTH))


# what a technique is at the start


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"attn_gate": "per_head"}, 0.98201),
        ({"attn_gate": "per_head", "attn_gate_bias": 2.94}, 0.94979),
        ({"attn_gate": "sparse"}, 0.5),
        ({"attn_gate": "window"}, 1.0),
        ({"attn_gate": "window", "attn_gate_query": True}, 1.0),
    ],
    ids=str,
)
def test_a_gate_starts_at_its_constant(changes, gate):
    attention = fresh(**changes).blocks[1].attn
    y, n = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 32)
    torch.testing.assert_close(attention.gate(attention, y, n, attention.c_q(n)), gate * y, rtol=1e-4, atol=1e-5)


def test_gates_by_widening_start_near_a_half_and_dense_ones_closer():
    n = torch.randn(1, 50, 32)
    spread = {}
    for kind in ("headwise", "elementwise", "dense"):
        attention = fresh(attn_gate=kind).blocks[0].attn
        gates = attention.gate(attention, torch.ones(1, 50, 4, 8), n, attention.c_q(n))
        assert gates.mean().item() == pytest.approx(0.5, abs=0.1)
        spread[kind] = gates.std().item()
    assert spread["dense"] < 0.03 < spread["headwise"]


def test_every_technique_off_the_residual_leaves_the_blocks_the_identity():
    """Output projections are zero, so gates, values and norms of sublayer outputs change nothing at first."""
    for changes in (
        {"attn_gate": "elementwise", "mlp_gate": True, "token_gate": True}, {"norm": "peri"},
        {"value_residual": "learned", "value_embed": ValueEmbedConfig(last=3)}, {"attention": "differential"},
        {"activation": "star_swiglu", "mlp_blocks": 4, "mlp_rank": 0.5},
    ):  # fmt: skip
        model = fresh(**changes)
        x, x0 = torch.randn(2, 1, LENGTH, 32)
        context = Context(x0, torch.tensor(1.0), (model._cos, model._sin), None)
        assert torch.equal(model.blocks[2](x, context), x), changes


def test_hashed_embeddings_start_at_nothing_but_can_start():
    """E is zero and P is not: the first gradient reaches E through P."""
    model = fresh(bigram=HashConfig(rows=50, dim=8, gain=0.25))
    assert not model.bigram.embed.weight.any()
    singular = torch.linalg.svdvals(model.bigram.proj.weight.detach())
    torch.testing.assert_close(singular, torch.full_like(singular, 0.25))
    assert model.bigram.factor.item() == pytest.approx(0.05)
    ids, targets = tokens()
    plain = fresh()
    assert torch.equal(model.tok_emb.weight, plain.tok_emb.weight)
    torch.testing.assert_close(model.losses(ids, targets), plain.losses(ids, targets))
    model.losses(ids, targets).mean().backward()
    assert model.bigram.embed.weight.grad.abs().max() > 0
    assert not model.bigram.proj.weight.grad.any()


def test_value_embedding_starts_small_on_the_last_layers():
    model = fresh(value_embed=ValueEmbedConfig(last=2, dim=8))
    assert model.ve_shared.embed.weight.std().item() == pytest.approx(0.01, rel=0.1)
    singular = torch.linalg.svdvals(model.ve_shared.proj.weight.detach())
    torch.testing.assert_close(singular, torch.ones_like(singular))
    assert model.ve_shared.factor.item() == pytest.approx(0.1)
    assert model.ve_layer_scales.tolist() == [1, 1]
    assert set(model.layer_values(tokens()[0])) == {1, 2}


def test_other_initial_values():
    assert torch.equal(fresh(value_residual="learned").blocks[2].attn.vr_lambda, torch.tensor([0.5, 0.5]))
    assert fresh(value_residual="gated").blocks[0].vrl_lambda.item() == 0.5
    assert fresh(parallel="merge", parallel_from=1).lane_merge.item() == 0.5
    lanes = fresh(parallel="lanes_sequential", parallel_from=1, lane_init=1.1**0.5)
    assert lanes.parallel_resid_lambdas.square().unique().item() == pytest.approx(1.1)
    assert torch.equal(lanes.parallel_post_lambdas, torch.ones(3, 2, 2))
    assert torch.sigmoid(fresh(token_gate=True).blocks[0].dtg_gate_b).item() == pytest.approx(0.8808, abs=1e-4)
    assert [round(initial_lambda(i), 4) for i in (0, 1, 2, 10)] == [0.2, 0.2, 0.3555, 0.7597]
    differential = fresh(attention="differential").blocks[2].attn.diff_lambda
    torch.testing.assert_close(differential, torch.full((4,), 0.35551))
    star = fresh(activation="star_relu").blocks[0].mlp
    assert torch.equal(star.star_scale, torch.ones(64))
    assert not star.star_bias.any()


def test_loop_positions_start_orthogonal_or_normal():
    repeated = {"loop_start": 1, "loop_end": 1, "loop_runs": 3}
    vectors = fresh(loop_pos="orthogonal", **repeated).loop_pos
    torch.testing.assert_close(vectors @ vectors.T, 1e-4 * torch.eye(3), rtol=1e-3, atol=1e-8)
    assert fresh(loop_pos="normal", stack_runs=8).loop_pos.std().item() == pytest.approx(0.01, rel=0.2)


def test_overtone_spectrum_and_phased_mix():
    torch.manual_seed(0)
    embedding = torch.randn(60, 12)
    changed = overtone(embedding)
    before, after = torch.linalg.svdvals(embedding), torch.linalg.svdvals(changed)
    torch.testing.assert_close(after, before[0] * torch.arange(1, 13) ** -0.5)
    left, _, right = torch.linalg.svd(embedding, full_matrices=False)
    core = left.T @ changed @ right.T  # the same singular vectors
    torch.testing.assert_close(core, torch.diag(after), rtol=1e-4, atol=1e-4)
    for i, share in ((0, 0.18243), (5, 0.5), (10, 0.81757)):
        mix = phased_mix(i, 11, 4)
        torch.testing.assert_close(mix, torch.tensor([[share], [1 - share]]).expand(2, 4), rtol=1e-4, atol=1e-5)
    model = fresh(init="overtone")
    assert torch.equal(model.blocks[2].resid_mix, phased_mix(2, 3, 32))
    singular = torch.linalg.svdvals(model.tok_emb.weight.detach())
    torch.testing.assert_close(singular[0] / singular, torch.arange(1, 33) ** 0.5, rtol=1e-3, atol=1e-3)


# hashes


def test_hashes_are_those_of_32_bit_arithmetic():
    torch.manual_seed(0)
    ids = torch.randint(8192, (3, 40))
    for multipliers, rows in ((BIGRAM, 2048), (TRIGRAM, 4096)):
        found = hash_rows(ids, multipliers, rows)
        narrow = ids.int()
        n = len(multipliers)
        for t in range(40):
            if t < n - 1:
                assert found[:, t].eq(rows - 1).all()
                continue
            mixed = torch.zeros(3, dtype=torch.int32)
            for back, multiplier in enumerate(multipliers):
                mixed ^= multiplier * narrow[:, t - back]
            assert torch.equal(found[:, t], (mixed % (rows - 1)).long())
        assert found[:, n - 1 :].max() < rows - 1
    assert hash_rows(ids[:, :1], TRIGRAM, 4096).tolist() == [[4095]] * 3


def test_a_hash_table_learns_only_in_touched_rows():
    model = shaken(bigram=HashConfig(rows=40, dim=8))
    ids, targets = tokens(rows=1)
    model.losses(ids, targets).mean().backward()
    touched = set(hash_rows(ids, BIGRAM, 40).unique().tolist())
    grad = model.bigram.embed.weight.grad
    assert {row for row in range(40) if grad[row].any()} == touched
    assert len(touched) < 40


# boundaries of documents


def test_vector_smear_keeps_to_documents_only_where_it_is_masked():
    torch.manual_seed(0)
    x, ids = torch.randn(1, 6, 8), torch.tensor([[5, 6, 7, BOS, 8, 9]])
    for mask in (True, False):
        smear = VectorSmear(8, 0.0, mask)
        y = smear(x, ids)
        torch.testing.assert_close(y[:, 1], (x[:, 0] + x[:, 1]) / 2)
        torch.testing.assert_close(y[:, 0], x[:, 0] / 2)  # the token before the first is zero
        torch.testing.assert_close(y[:, 3], x[:, 3] if mask else (x[:, 2] + x[:, 3]) / 2)
    early = VectorSmear(8, -3.0, mask=True)(x, ids)  # PR 65
    torch.testing.assert_close(early[:, 1], 0.95257 * x[:, 1] + 0.04743 * x[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("smear", ["window", "vector", "raw_vector"])
def test_a_document_never_sees_the_one_before_it(smear):
    """With value embedding, value residual and merged lanes too; hashed pairs do cross, as published."""
    model = shaken(
        smear=smear, value_residual="learned", value_embed=ValueEmbedConfig(last=2, dim=8), parallel="merge",
        parallel_from=1, attn_gate="per_head",
    )  # fmt: skip
    ids, targets = tokens(rows=1)
    ids[0, 0] = ids[0, 6] = BOS
    segments = Segments(torch.tensor([0, 6, LENGTH], dtype=torch.int32), 10)
    changed = ids.clone()
    changed[0, 1:6] = (ids[0, 1:6] + 7) % (VOCAB - 2) + 2
    before, after = model.losses(ids, targets, segments), model.losses(changed, targets, segments)
    assert not torch.equal(before[0, :6], after[0, :6])
    assert torch.equal(before[0, 6:], after[0, 6:])


# positions


def test_ntk_base_of_the_published_programs():
    """22,082 for n / N = 2 and 16 dimensions."""
    config = ModelConfig(rope_scaling="ntk", rope_factor=2.0)
    frequencies = inverse_frequencies(config, torch.device("cpu"))
    base = float(frequencies[1]) ** -8
    assert base == pytest.approx(22_082, rel=1e-3)
    plain = inverse_frequencies(ModelConfig(), torch.device("cpu"))
    assert frequencies[0] == plain[0] == 1
    assert float(plain[-1] / frequencies[-1]) == pytest.approx(2, rel=1e-4)


def test_yarn_keeps_fast_frequencies_and_stretches_slow_ones():
    frequencies = torch.tensor([1.0, 0.05, 1e-4])
    stretched = interpolate(frequencies, 4.0, 2048)
    assert stretched[0] == 1
    assert float(stretched[2]) == pytest.approx(1e-4 / 4)
    rotations = 2048 * 0.05 / (2 * math.pi)
    keep = (rotations - 1) / 31
    assert float(stretched[1]) == pytest.approx(0.05 * (keep + (1 - keep) / 4), rel=1e-5)
    torch.testing.assert_close(interpolate(frequencies, 1.0, 2048), frequencies)
    assert sharpness(1.0) == 1
    assert sharpness(math.e) == pytest.approx(1.21)


# depth


def test_progressive_recurrence_runs_the_lists_of_pr_1412():
    model = GPT(ModelConfig(dim=32, heads=4, kv_heads=2, rope_dims=4), VOCAB)
    model.prepare(LENGTH)
    order = []
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: order.append(index))
    expected = {
        1: [*range(11)],
        2: [*range(6), 3, 4, 5, *range(6, 11)],
        3: [*range(6), 3, 4, 5, 3, 4, 5, *range(6, 11)],
    }
    for runs, layers in expected.items():
        order.clear()
        model.runs = runs
        model(tokens()[0])
        assert order == layers
        assert model.looped is (runs == 3)
    for on, runs in ((False, 1), (True, 3)):
        model.looped = on
        assert model.runs == runs


def test_a_shared_stack_runs_its_own_u_net_each_time():
    model, order = fresh(layers=4, stack_runs=3, loop_pos="normal"), []
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: order.append(index))
    model(tokens()[0])
    assert order == [0, 1, 2, 3] * 3
    assert model.skip_weights.shape == (2, 32)
    assert model.loop_pos.shape == (3, 32)


# training only


def test_quantile_is_the_interpolated_one():
    torch.manual_seed(0)
    for n in (1, 2, 7, 100, 101):
        values = torch.randn(n)
        for q in (0.0, 0.3, 0.5, 0.99, 1.0):
            torch.testing.assert_close(linear_quantile(values, q), torch.quantile(values, q))


def test_norm_pct_drops_the_largest_tokens_and_their_gradients():
    torch.manual_seed(0)
    f = torch.randn(2, 100, 8, requires_grad=True)
    y = norm_pct_dropout(f, 0.99)
    norms = f.detach().norm(dim=-1).flatten()
    dropped = norms.argsort()[-2:]  # 200 tokens, those at or above the 0.99-quantile
    rows = y.detach().flatten(0, 1)
    assert not rows[dropped].any()
    kept = torch.ones(200, dtype=torch.bool).index_fill(0, dropped, value=False)
    assert torch.equal(rows[kept], f.detach().flatten(0, 1)[kept])
    y.sum().backward()
    assert torch.equal(f.grad.flatten(0, 1), kept[:, None].float().expand(200, 8))


def test_norm_pct_and_further_tokens_equal_the_twin_while_training():
    model = shaken(norm_pct=0.7, multi_token=MultiTokenConfig(heads=2, weight=0.3)).begin_training()
    with torch.no_grad():
        for head in model.mtp_heads:
            head.weight.normal_(std=0.2)
    ids, targets = tokens(rows=1)
    weights = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    expected = Twin(model.config, weights, training=True).losses(ids[0], targets[0], 1, [0])[1].mean()
    expected.backward()
    loss = model.losses(ids, targets).mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert model.mtp_heads[1].weight.grad.any()
    for name, parameter in model.named_parameters():
        wanted = weights[name].grad
        torch.testing.assert_close(
            parameter.grad.double(), wanted, rtol=1e-3, atol=1e-4 * (1 + wanted.abs().max().item())
        )


def test_what_training_adds_is_gone_afterwards():
    model = shaken(norm_pct=0.5, multi_token=MultiTokenConfig(heads=2))
    ids, targets = tokens()
    names, before = list(model.state_dict()), model.losses(ids, targets)
    model.begin_training()
    assert len(model.mtp_heads) == 2
    assert len(list(model.state_dict())) == len(names) + 2
    assert not torch.equal(model.losses(ids, targets), before)
    model.end_training()
    assert list(model.state_dict()) == names
    assert torch.equal(model.losses(ids, targets), before)


def test_heads_for_further_tokens_start_at_chance():
    config = MultiTokenConfig(heads=3, weight=0.2)
    model = fresh(multi_token=config).begin_training()
    ids, targets = tokens()
    with_heads = model.losses(ids, targets).mean().item()
    alone = model.end_training().losses(ids, targets).mean().item()
    assert with_heads - alone == pytest.approx(0.2 * math.log(VOCAB), rel=1e-4)


# matrices


def test_a_block_diagonal_matrix_is_one():
    torch.manual_seed(0)
    layer = BlockDiagonal(12, 6, 3)
    assert not layer(torch.randn(2, 12)).any()  # it writes to the residual
    for block in layer:
        block.weight.data.normal_()
    whole = torch.block_diag(*(block.weight for block in layer))
    x = torch.randn(4, 12)
    torch.testing.assert_close(layer(x), x @ whole.T)


@pytest.mark.parametrize(
    "changes",
    [
        {"value_residual": "gated"}, {"activation": "swiglu"}, {"mlp_rank": 0.5, "mlp_blocks": 4},
        {"attn_gate": "headwise"}, {"bigram": HashConfig(rows=9), "value_embed": ValueEmbedConfig(last=1)},
    ],
    ids=str,
)  # fmt: skip
def test_every_matrix_of_a_block_is_the_map_of_the_input_that_calibration_sees(changes):
    """The module named as the source of a matrix gets, in its last call, what the matrix itself multiplies."""
    model = shaken(**changes)
    sources, seen, multiplied = matrix_inputs(model.config), {}, {}
    for source in set(sources.values()):
        model.get_submodule(source).register_forward_pre_hook(lambda _, args, key=source: seen.update({key: args[0]}))
    for name, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, Linear):
            module.register_forward_pre_hook(lambda _, args, key=f"{name}.weight": multiplied.update({key: args[0]}))
    model(tokens()[0])
    assert set(sources) == {*multiplied, "tok_emb.weight"}
    for name, x in multiplied.items():
        assert torch.equal(seen[sources[name]], x), name
