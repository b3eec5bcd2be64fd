"""Late QAT with full GPTQ is allowed and warned of; with rounding to nearest, what it trains for, it is not."""

import warnings
from pathlib import Path

import pytest

from pgolf.preflight import preflight
from pgolf.presets import apply_preset

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("below", "method", "warned"), [(0.15, "gptq", True), (0.15, "rtn", False), (0.0, "gptq", False)]
)
def test_qat_is_warned_of_where_gptq_follows(tmp_path, below, method, warned):
    params = tmp_path / "params.yaml"
    params.write_bytes((ROOT / "params.yaml").read_bytes())
    apply_preset(params, also={"train": {"qat": {"below": below}}, "quantize": {"method": method}})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        preflight(params, 512)
    assert [str(w.message)[:11] for w in caught if "full GPTQ" in " ".join(str(w.message).split())] == (
        ["`train.qat`"] if warned else []
    )
