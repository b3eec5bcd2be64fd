import pytest

from pgolf.config import build
from pgolf.errors import InputError
from pgolf.train.config import AdamConfig, MuonConfig, TrainConfig


def test_defaults_are_those_of_pr_1493():
    """The column of the hyper-parameter table of PR 1493."""
    config = TrainConfig()
    assert (config.seed, config.steps, config.seconds, config.reserve_seconds) == (42, None, 600, 12)
    assert (config.batches, config.seq_len, config.batch_tokens, config.micro_batches) == ("rows", 2048, 786_432, 8)
    muon = config.muon
    assert (muon.lr, muon.weight_decay, muon.row_norm) == (0.022, 0.095, True)
    assert (muon.momentum, muon.momentum_start, muon.momentum_warmup) == (0.99, 0.92, 1500)
    assert (muon.newton_schulz, muon.ns_steps) == ("standard", 5)
    assert (config.embed, config.scalar) == (AdamConfig(lr=0.03, weight_decay=0.085), AdamConfig())
    assert (config.scalar.lr, config.scalar.weight_decay, config.beta1, config.beta2) == (0.02, 0.02, 0.9, 0.95)
    assert (config.grad_clip, config.warmdown, config.lr_floor) == (0.3, 0.72, 0)
    assert (config.ema, config.loop_at) == (0.9965, 0.35)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": 10}, "`steps` is 10 and `seconds` is 600"),
        ({"seconds": None}, "`steps` is None and `seconds` is None"),
        ({"steps": 0, "seconds": None}, "`steps` is 0"),
        ({"steps": -5, "seconds": None}, "`steps` is -5"),
        ({"seconds": 12.0}, "`seconds` 12.0 must exceed `reserve_seconds` 12.0"),
        ({"seconds": -5.0}, "`seconds`"),
        ({"reserve_seconds": -1.0}, "`reserve_seconds` is -1"),
        ({"checkpoint_seconds": -1.0}, "`checkpoint_seconds` is -1"),
        ({"seq_len": 0}, "`seq_len` is 0"),
        ({"batch_tokens": -4}, "`batch_tokens` is -4"),
        ({"micro_tokens": 0}, "`micro_tokens` is 0"),
        ({"grad_clip": 0.0}, "`grad_clip` is 0"),
        ({"trace_every": 0}, "`trace_every` is 0"),
        ({"beta1": 1.0}, "`beta1` is 1"),
        ({"beta2": 1.5}, "`beta2` is 1.5"),
        ({"ema": -0.1}, "`ema` is -0.1"),
        ({"warmdown": 1.1}, "`warmdown` is 1.1"),
        ({"lr_floor": 2.0}, "`lr_floor` is 2"),
        ({"loop_at": -0.5}, "`loop_at` is -0.5"),
        ({"batch_tokens": 100_000}, "`batch_tokens` 100000 must be a multiple of `micro_tokens` 98304"),
        ({"seq_len": 1000}, "`micro_tokens` 98304 must be a multiple of `seq_len` 1000"),
    ],
    ids=str,
)
def test_refuses_by_name(values, named):
    with pytest.raises(InputError, match=named):
        TrainConfig(**values)


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("muon", {"lr": -0.1}, "`lr` is -0.1"),
        ("muon", {"weight_decay": -1.0}, "`weight_decay` is -1"),
        ("muon", {"momentum": 1.0}, "`momentum` is 1"),
        ("muon", {"momentum_start": -0.1}, "`momentum_start` is -0.1"),
        ("muon", {"momentum_warmup": -1}, "`momentum_warmup` is -1"),
        ("muon", {"ns_steps": -1}, "`ns_steps` is -1"),
        ("muon", {"newton_schulz": "cubic"}, "`train.muon.newton_schulz` is 'cubic'"),
        ("embed", {"lr": -1.0}, "`lr` is -1"),
        ("scalar", {"weight_decay": -0.1}, "`weight_decay` is -0.1"),
    ],
    ids=str,
)
def test_nested_groups_refuse_by_name_and_section(section, values, named):
    with pytest.raises(InputError, match=named) as error:
        build(TrainConfig, {section: values}, "train")
    assert f"train.{section}" in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 1, "seconds": None},
        {"steps": 5, "seconds": None, "reserve_seconds": 1e9},
        {"seconds": 12.5},
        {"reserve_seconds": 0.0},
        {"checkpoint_seconds": 0.0},
        {"warmdown": 0.0},
        {"warmdown": 1.0, "lr_floor": 1.0},
        {"ema": 0.0},
        {"loop_at": 0.0},
        {"batches": "packed", "seq_len": 1000},
        {"muon": MuonConfig(momentum_warmup=0, momentum=0.0, momentum_start=0.0, lr=0.0)},
    ],
    ids=str,
)
def test_accepts_the_limits(values):
    config = TrainConfig(**values)
    assert all(getattr(config, name) == value for name, value in values.items())
