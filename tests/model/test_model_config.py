import pytest

from pgolf.errors import InputError
from pgolf.model.config import ModelConfig


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
    ],
    ids=str,
)
def test_accepts_the_limits(values):
    config = ModelConfig(**values)
    assert all(getattr(config, name) == value for name, value in values.items())


def test_virtual_layers_are_bounded_in_all():
    """Factors that are fine alone must not multiply into hours of work for a reader of a foreign file."""
    assert ModelConfig(layers=32, loop_start=0, loop_end=31, loop_runs=8).loop_runs == 8
    with pytest.raises(InputError, match="virtual layers"):
        ModelConfig(layers=32, loop_start=0, loop_end=31, loop_runs=9)
