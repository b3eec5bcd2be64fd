"""Every command of docs/guide.md, in its order, on a tiny run; and what the page says about them."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ENV, ROOT
from projects import as_project

PAGE = (ROOT / "docs/guide.md").read_text("utf-8")


def ran(printed: str) -> list[str]:
    """Stages that DVC ran or would run."""
    return re.findall(r"Running stage '([\w-]+)'", printed)


@pytest.fixture(scope="module")
def printed(mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Command -> what it printed; the first one that fails ends the script and the test."""
    folder = as_project(mini_run, tmp_path_factory.mktemp("guide") / "project")
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    script = "set -eo pipefail\n" + "".join(f"echo '@@ {line}'\n{line}\n" for line in lines)
    identity = {
        f"GIT_{who}_{key}": "test@example.invalid" for who in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={**ENV, **identity, "PWD": os.fspath(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=570,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    parts = re.split(r"^@@ (.*)\n", done.stdout, flags=re.MULTILINE)[1:]
    assert [line.strip() for line in parts[::2]] == [line.strip() for line in lines]
    return {line.partition("  #")[0].strip(): text for line, text in zip(parts[::2], parts[1::2], strict=True)}


def test_the_page_has_what_it_promises() -> None:
    for command in (
        "dvc repro ", "dvc exp run -n finer -S quantize", "dvc repro --dry --downstream quantize", "--queue",
        "dvc exp show", "dvc params diff", "dvc plots diff", "dvc push", "dvc pull", "pgolf adopt", "pgolf keep",
        "pgolf restore",
    ):  # fmt: skip
        assert command in PAGE, command


def test_each_command_does_what_the_page_says(printed: dict[str, str]) -> None:
    def of(start: str) -> str:
        return next(text for line, text in printed.items() if line.startswith(start))

    assert ran(of("dvc exp run -n finer")) == ["quantize", "compress", "evaluate"]
    assert "quantize.mlp.k_sigma" in of("dvc params diff")
    assert "quantized_bpb" in of("dvc metrics diff")
    assert "**Cannot tell." in of("pgolf compare")
    assert "dvc_plots" in of("dvc plots diff")
    assert not ran(of("dvc exp apply"))
    assert "train" in ran(of("dvc repro --dry"))
    downstream = of("dvc repro --dry --downstream")
    assert "'quantize'" in downstream
    assert not any(f"'{stage}'" in downstream for stage in ("tokenize", "train", "calibrate"))
    assert {"train", "tokenize"} & {*ran(of("dvc repro --dry --downstream"))} == set()
    assert ran(of("dvc exp run --run-all")) == ["train", "score"] * 2
    assert "finer" in of("dvc exp show")
    assert not ran(of("dvc repro --allow-missing"))
    assert "train_seed42.log" in of("pgolf keep")
    assert "finer-mlp" in of("pgolf restore")
    assert "train_seed42.log" in of("pgolf restore finer-mlp")
    assert ran(of("dvc repro train")) == ["train"]
