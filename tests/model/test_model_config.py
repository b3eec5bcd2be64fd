import pytest

from pgolf.errors import InputError
from pgolf.model.config import HashConfig, ModelConfig, MultiTokenConfig, ValueEmbedConfig


def test_defaults_are_those_of_pr_1493():
    """The column of the hyper-parameter table of PR 1493."""
    config = ModelConfig()
    assert (config.layers, config.dim, config.heads, config.kv_heads) == (11, 512, 8, 4)
    assert (config.mlp_mult, config.leaky_slope, config.mlp_hidden) == (4, 0.5, 2048)
    assert (config.rope_dims, config.rope_base, config.qk_gain, config.head_dim) == (16, 1e4, 5.25, 64)
    assert (config.xsa_layers, config.ln_scale, config.parallel_from) == (11, True, 7)
    assert (config.loop_start, config.loop_end, config.loop_runs) == (3, 5, 3)
    assert (config.softcap, config.embed_std) == (30, 0.005)


POSITIVE = ("layers", "dim", "heads", "kv_heads", "mlp_mult", "rope_base", "loop_runs", "softcap", "embed_std")


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", POSITIVE)
def test_refuses_what_must_be_positive(name, value):
    with pytest.raises(InputError, match=f"`{name}` is {value}"):
        ModelConfig(**{name: value})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"dim": 500}, "`dim` 500"),
        ({"heads": 6, "dim": 510}, "`kv_heads` 4"),
        ({"kv_heads": 16}, "`kv_heads` 16"),
        ({"rope_dims": 15}, "`rope_dims` 15"),
        ({"rope_dims": 66}, "`rope_dims` 66"),
        ({"rope_dims": -2}, "`rope_dims` -2"),
        ({"xsa_layers": 12}, "`xsa_layers` 12"),
        ({"xsa_layers": -1}, "`xsa_layers` -1"),
        ({"loop_start": 6}, "`loop_start` 6"),
        ({"loop_end": 11}, "`loop_end` 11"),
        ({"loop_start": -1}, "`loop_start` -1"),
        ({"parallel_from": 12}, "`parallel_from` 12"),
        ({"parallel_from": -1}, "`parallel_from` -1"),
        ({"parallel": "lanes", "parallel_from": 5}, "beyond `loop_end` 5"),
        ({"parallel": "lanes", "parallel_from": 4, "loop_runs": 1}, "in the decoder"),
        ({"gate_window": 513}, "`gate_window` 513"),
        ({"parallel": "merge", "parallel_from": 5}, "`parallel: merge`"),
        ({"parallel": "lanes_sequential", "parallel_from": 5}, "`parallel: lanes_sequential`"),
        ({"value_embed": ValueEmbedConfig(last=12)}, "`value_embed.last` 12"),
        ({"mlp_rank": 0.001}, "`mlp_rank` 0.001"),
        ({"mlp_rank": 1.5}, "`mlp_rank` is 1.5"),
        ({"norm_pct": -0.1}, "`norm_pct` is -0.1"),
        ({"value_residual_alpha": 1.1}, "`value_residual_alpha` is 1.1"),
        ({"mlp_blocks": 3}, "`mlp_blocks` 3 must divide"),
        ({"rope_scaling": "ntk", "rope_factor": 0.5}, "`rope_factor` 0.5"),
        ({"rope_scaling": "yarn", "rope_factor": 2.0, "rope_dims": 2}, "`rope_dims` 2"),
        ({"attention": "differential", "dim": 24, "heads": 8, "rope_dims": 2, "mlp_mult": 1.0}, "halves heads"),
        ({"stack_runs": 2}, "`loop_runs` and `stack_runs`"),
        ({"loop_runs": 1, "loop_pos": "normal"}, "`loop_pos` marks repeats"),
        ({"loop_runs": 1, "stack_runs": 30}, "330 virtual layers"),
        ({"norm": "hybrid"}, "set `parallel: none`"),
        ({"norm": "hybrid", "parallel": "none", "token_gate": True}, "`token_gate: false`"),
        ({"token_gate": True, "parallel": "lanes", "parallel_from": 8}, "`token_gate` gates"),
        ({"attn_gate": "dense", "attn_gate_query": True}, "`attn_gate_query` belongs to"),
        ({"gate_window": 0}, "`gate_window` is 0"),
    ],
    ids=str,
)
def test_refuses_by_name(values, named):
    with pytest.raises(InputError, match=named):
        ModelConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_dims": 0},
        {"rope_dims": 64},
        {"xsa_layers": 0},
        {"parallel_from": None},
        {"parallel_from": 0},
        {"parallel_from": 11},
        {"loop_runs": 1, "loop_start": 99, "loop_end": 0},
        {"loop_start": 0, "loop_end": 10},
        {"loop_start": 5, "loop_end": 5},
        {"kv_heads": 8},
        {"kv_heads": 1},
        {"leaky_slope": 0.0},
        {"parallel": "none", "parallel_from": 99},
        {"norm": "hybrid", "parallel": "none"},
        {"norm": "hybrid", "parallel_from": 11},
        {"token_gate": True},
        {"mlp_rank": 0.75, "mlp_blocks": 8},
        {"value_embed": ValueEmbedConfig(last=11)},
        {"loop_runs": 1, "stack_runs": 23, "loop_pos": "orthogonal"},
    ],
    ids=str,
)
def test_accepts_the_limits(values):
    config = ModelConfig(**values)
    assert all(getattr(config, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        (HashConfig, {"rows": 1}, "`rows` is 1"),
        (HashConfig, {"rows": -5}, "`rows` is -5"),
        (HashConfig, {"rows": 2**21}, "`rows` is 2097152"),
        (HashConfig, {"dim": 0}, "`dim` is 0"),
        (ValueEmbedConfig, {"last": -1}, "`last` is -1"),
        (ValueEmbedConfig, {"dim": 10**6}, "`dim` is 1000000"),
        (MultiTokenConfig, {"heads": -1}, "`heads` is -1"),
        (MultiTokenConfig, {"heads": 65}, "`heads` is 65"),
    ],
    ids=str,
)
def test_the_parts_refuse_by_name(section, values, named):
    with pytest.raises(InputError, match=named):
        section(**values)


@pytest.mark.parametrize(("mult", "hidden"), [(4.0, 1360), (3.0, 1024), (3.5, 1192)])
def test_gated_activations_take_two_thirds(mult, hidden):
    assert ModelConfig(mlp_mult=mult, activation="swiglu").mlp_hidden == hidden
    assert abs(hidden - 2 / 3 * mult * 512) < 8


def test_virtual_layers_are_bounded_in_all():
    """Factors that are fine alone must not multiply into hours of work for a reader of a foreign file."""
    assert ModelConfig(layers=32, loop_start=0, loop_end=31, loop_runs=8).loop_runs == 8
    with pytest.raises(InputError, match="virtual layers"):
        ModelConfig(layers=32, loop_start=0, loop_end=31, loop_runs=9)
