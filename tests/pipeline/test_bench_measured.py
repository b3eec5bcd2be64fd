"""`pgolf bench train` and `pgolf bench ranks`: one process, and two, on a CPU measure what they say."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import call
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pgolf import paths
from pgolf.bench.ranks_command import processes
from pgolf.cli import app
from pgolf.errors import InputError

MODEL = {
    "layers": 3, "dim": 16, "heads": 2, "kv_heads": 1, "mlp_mult": 1.0, "rope_dims": 4, "loop_start": 1, "loop_end": 1,
    "loop_runs": 2, "parallel_from": 2, "xsa_layers": 1,
}  # fmt: skip
BATCH = 64


@pytest.fixture
def folder(mini_run: Path, tmp_path: Path) -> Path:
    """Tokens of the shared run, and a smaller model."""
    (tmp_path / paths.TOKENS).parent.mkdir()
    (tmp_path / paths.TOKENS).symlink_to(mini_run / paths.TOKENS)
    yaml = YAML()
    params = yaml.load((mini_run / paths.PARAMS).read_text())
    params["model"].update(MODEL)
    params["train"].update(seq_len=16, micro_tokens=BATCH // 2, batch_tokens=BATCH)
    yaml.dump(params, tmp_path / paths.PARAMS)
    return tmp_path


def test_a_step_is_measured_in_tables_and_a_file(folder: Path) -> None:
    printed = call("pgolf", "bench", "train", "--steps", "1", "--out", "found.json", cwd=folder)
    found = json.loads((folder / "found.json").read_text())
    measured = found["ways"]["eager"]
    assert [phase["looped"] for phase in measured["phases"]] == [False, True]
    assert all(phase["tokens_per_second"] > 0 for phase in measured["phases"])
    assert sum(kernel["share"] for kernel in measured["kernels"]) == pytest.approx(1)
    for words in ("tokens/s", "between kernels", "matrix product", measured["kernels"][0]["name"]):
        assert words in printed


def test_one_and_two_processes_are_compared_in_a_table_and_a_file(folder: Path) -> None:
    printed = call("pgolf", "bench", "ranks", "--ranks", "2", "--steps", "1", "--out", "found.json", cwd=folder)
    found = json.loads((folder / "found.json").read_text())
    assert found["hardware"].startswith("2x CPU")
    assert found["configured"] == {"kernels": "plain", "matmul": "bfloat16", "graphs": False}
    rows = found["rows"]
    kinds = [(row["ranks"], row["batch_tokens"], row["recurrence"]) for row in rows]
    assert kinds == [(*way, on) for way in ((1, BATCH), (2, BATCH), (2, 2 * BATCH)) for on in (False, True)]
    alone = {row["recurrence"]: row["tokens_per_second"] for row in rows if row["ranks"] == 1}
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["batch_tokens"] / row["milliseconds"])
        assert row["factor"] == pytest.approx(row["tokens_per_second"] / alone[row["recurrence"]])
        talk = row["communication"]
        assert 0 <= talk["hidden"] <= talk["milliseconds"]
        assert (talk["milliseconds"] > 0) == (row["ranks"] > 1)
        assert talk["waiting"] >= 0
        assert talk["milliseconds"] + talk["waiting"] < 10 * row["milliseconds"], "of one step, in milliseconds"
    lines = [line.strip("│ ").split("│") for line in printed.splitlines() if line.startswith("│")]
    for cells, row in itertools.zip_longest(lines, rows):
        assert [cell.strip() for cell in cells][:3] == [
            str(row["ranks"]), str(row["batch_tokens"]), "on" if row["recurrence"] else "off",
        ]  # fmt: skip
        assert float(cells[5]) == pytest.approx(row["factor"], abs=6e-4)
    assert printed.count("compiling, recurrence on") == 1, "the first process alone speaks"


@pytest.mark.parametrize(
    ("asked", "gpus", "says"),
    [
        (None, 1, "1 GPU can be seen here and scaling takes two"),
        (None, 0, "0 GPUs can be seen"),
        (4, 2, "--ranks is 4, but 2 GPUs"),
    ],
)
def test_too_few_gpus_are_counted(asked: int | None, gpus: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        processes(asked, gpus)


@pytest.mark.parametrize(("asked", "gpus", "count"), [(None, 4, 4), (2, 4, 2), (2, 0, 2)])
def test_every_gpu_is_taken_unless_fewer_are_asked_for(asked: int | None, gpus: int, count: int) -> None:
    assert processes(asked, gpus) == count


def test_one_gpu_is_an_error_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    done = CliRunner().invoke(app, ["bench", "ranks"])
    assert done.exit_code == 2
    assert CliRunner().invoke(app, ["bench", "ranks", "--ranks", "1"]).exit_code == 2
    done = CliRunner().invoke(app, ["bench", "ranks", "--ranks", "2"], env={"RANK": "0"})
    assert done.exit_code == 2
    assert "torchrun has started them already" in " ".join(done.output.split())
