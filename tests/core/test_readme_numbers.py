"""The numbers on the front page are those of the committed run."""

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def committed(stage: str) -> dict[str, float]:
    """The metrics in git: a run on another processor rounds differently and leaves other ones in the folder."""
    return json.loads(subprocess.check_output(["git", "show", f"HEAD:metrics/{stage}.json"], cwd=ROOT))


def latest(stage: str) -> dict[str, float]:
    """The metrics of the last run here."""
    return json.loads((ROOT / "metrics" / f"{stage}.json").read_text())


def test_the_readme_shows_the_committed_metrics():
    text = (ROOT / "README.md").read_text().replace("*", "")
    rows = {name.strip(): value.strip() for name, value in re.findall(r"^\| ([^|]+)\| ([^|]+)\|$", text, re.M)}
    score, final, size = committed("score"), committed("evaluate"), committed("verify-size")
    assert rows["parameters"] == f"{committed('train')['parameters']:,}"
    assert rows["validation BPB before quantization"] == f"{score['prequant_bpb']:.3f}"
    assert rows["validation BPB quantized, plain windows"] == f"{final['quantized_bpb']:.3f}"
    assert rows["validation BPB of the artifact"] == f"{final['val_bpb']:.3f}"
    assert rows["bytes: code + model"] == f"{size['bytes_code']:,} + {size['bytes_model']:,}"


def test_the_run_keeps_what_the_first_release_promises():
    """Below what xz needs for the same text (2.63), below xz primed with the training text (2.15), gap under 0.02."""
    score, final = latest("score"), latest("evaluate")
    assert final["val_bpb"] < 2.15
    assert final["quantized_bpb"] - score["prequant_bpb"] < 0.02
