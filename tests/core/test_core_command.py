"""What a person sees: help, one message per mistake, exit codes."""

import io
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

import pgolf.console
from pgolf.cli import STAGES, app
from pgolf.console import handled, progress, table
from pgolf.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the committed params and presets."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def pgolf_command(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def printed(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(pgolf.console, "console", Console(file=stream, width=200, highlight=False))
    return stream.getvalue


def refused(result, *texts):
    assert result.exit_code == 2, result.output
    assert result.output.count("error:") == 1, result.output
    assert "Traceback" not in result.output
    for text in texts:
        assert text in result.output
    return True


def test_help_lists_every_stage(folder):
    result = pgolf_command("--help")
    assert result.exit_code == 0
    words = result.output.split()
    assert all(name in words for name in STAGES)
    assert all(name in words for name in ("run", "plan", "preset"))


def test_chain_is_in_the_order_of_the_design():
    chain = [name for name in STAGES if name not in ("score", "report")]
    assert chain == ["tokenize", "train", "calibrate", "quantize", "compress", "evaluate", "verify-size"]


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "report"])  # that command makes a page
def test_every_stage_has_help_and_a_params_option(folder, stage):
    result = pgolf_command(stage, "--help")
    assert result.exit_code == 0
    assert "--params" in result.output


@pytest.mark.parametrize(("arguments", "texts"), [
    (["run", "--from", "nonsense"], ["--from is `nonsense`, which is not a stage", "tokenize"]),
    (["run", "--to", "nonsense"], ["--to is `nonsense`, which is not a stage"]),
    (["run", "--from", "evaluate", "--to", "train"], ["--from evaluate comes after --to train: swap them"]),
    (["preset", "use", "nonsense"], ["`nonsense` is not a preset", "mini", "record-1493"]),
    (["preset", "use", "record-1394"], ["did you mean `record-1493`?"]),
    (["run", "--params", "other.yaml"], ["other.yaml is missing"]),
    (["quantize"], ["is missing: run `pgolf train` first"]),
    (["evaluate"], ["is missing: run `pgolf compress` first"]),
    (["unpack"], ["is missing: run `pgolf compress` first"]),
    (["run", "--params", "presets"], ["presets"]),
])  # fmt: skip
def test_mistakes_end_in_one_message_and_exit_code_2(folder, arguments, texts):
    assert refused(pgolf_command(*arguments), *texts)


WITH_PARAMS = [*([name] for name in STAGES if name not in ("report", "verify-size")), ["run"], ["plan"]]


@pytest.mark.parametrize("arguments", [*WITH_PARAMS, ["preset", "use", "mini"]])
def test_missing_params_file_is_named(folder, arguments):
    (folder / "params.yaml").unlink()
    assert refused(pgolf_command(*arguments), "params.yaml is missing")


@pytest.mark.parametrize("arguments", [["train"], ["run"], ["plan"], ["preset", "use", "mini"]])
def test_mistyped_key_is_named_with_a_suggestion(folder, arguments):
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("  grad_clip:", "  grad_clp:"))
    assert refused(pgolf_command(*arguments), "`train.grad_clp` is not a parameter; did you mean `grad_clip`?")
    assert [entry.name for entry in folder.iterdir() if entry.name.startswith(".")] == []


def test_a_run_checks_the_whole_file_before_its_first_stage(folder):
    path = folder / "params.yaml"
    path.write_text(re.sub(r"cap_bytes: \d+", "cap_bytes: lots", path.read_text()))
    assert refused(pgolf_command("run"), "`verify_size.cap_bytes` is 'lots'")
    assert not (folder / "artifacts").exists()


def test_presets_are_listed_with_what_they_are(folder, monkeypatch):
    monkeypatch.setattr(pgolf.console.console, "width", 140)
    result = pgolf_command("preset", "list")
    assert result.exit_code == 0
    assert "record-1493" in result.output
    assert "1.0810 BPB" in result.output


def test_preset_is_written_into_params(folder):
    result = pgolf_command("preset", "use", "record-1493", "mini")
    assert result.exit_code == 0
    text = (folder / "params.yaml").read_text()
    assert "rope_dims: 8" in text
    assert "momentum_warmup: 1500" in text


def test_plan_shows_the_published_parameters(folder):
    assert pgolf_command("preset", "use", "record-1493").exit_code == 0
    result = pgolf_command("plan")
    assert result.exit_code == 0
    assert "35,944,536" in result.output
    assert "16,000,000" in result.output


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab[]/\\:=# ", max_size=10))
def test_messages_are_shown_as_they_are(text):
    stream, kept = io.StringIO(), pgolf.console.console
    pgolf.console.console = Console(file=stream, width=200)
    try:
        with pytest.raises(typer.Exit):
            handled(raising(InputError(f"<{text}>")))()
        table("t", ("a",), [(f"<{text}>",)])
    finally:
        pgolf.console.console = kept
    assert stream.getvalue().count(f"<{text}>") == 2


def raising(error):
    def command():
        raise error

    return command


def test_long_messages_are_one_line(printed):
    with pytest.raises(typer.Exit):
        handled(raising(InputError("x " * 300)))()
    with pytest.raises(typer.Exit):
        handled(raising(FileNotFoundError(2, "No such file", "y" * 500)))()
    assert [line[:6] for line in printed().splitlines()] == ["error:", "error:"]


@pytest.mark.parametrize("error", [InputError("bad"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_a_user_can_meet_becomes_exit_code_2(printed, error):
    with pytest.raises(typer.Exit) as caught:
        handled(raising(error))()
    assert caught.value.exit_code == 2
    assert len(printed()) > 0


@pytest.mark.parametrize("error", [AssertionError("ours"), ValueError("ours"), OSError("no file, no number")])
def test_our_own_faults_show_their_traceback_and_exit_with_3(printed, error):
    with pytest.raises(typer.Exit) as caught:
        handled(raising(error))()
    assert caught.value.exit_code == 3
    text = printed()
    assert "Traceback" in text
    assert f"{type(error).__name__}: {error}" in text


def test_too_little_memory_on_the_gpu_names_what_to_lower(printed):
    with pytest.raises(typer.Exit) as caught:
        handled(raising(torch.OutOfMemoryError("CUDA out of memory")))()
    assert caught.value.exit_code == 2
    assert "train.micro_tokens" in printed()


def test_exit_code_of_a_gate_passes_through():
    with pytest.raises(typer.Exit) as caught:
        handled(raising(typer.Exit(1)))()
    assert caught.value.exit_code == 1


def test_terminated_command_ends_like_an_interrupted_one(printed):
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def command():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    with pytest.raises(typer.Exit) as caught:
        handled(command)()
    assert caught.value.exit_code == 2
    assert cleaned
    assert "interrupted" in printed()
    assert signal.getsignal(signal.SIGTERM) == before


def test_result_of_a_command_is_kept():
    assert handled(lambda: 7)() == 7


def test_progress_says_when_a_stage_is_done_and_nothing_when_it_failed(printed):
    with progress("train") as show:
        show.count("steps")(1, 0)
    assert "train: done in" in printed()
    with pytest.raises(InputError), progress("quantize"):
        raise InputError("bad")
    assert "quantize: done" not in printed()


def test_a_table_in_a_file_is_not_cut_to_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(pgolf.console, "console", Console(file=stream, width=80))
    table("t", [f"column {index}" for index in range(9)], [["0.123456789"] * 9])
    assert stream.getvalue().count("0.123456789") == 9


def test_tables_group_thousands(printed):
    table("sizes", ("stream", "bytes"), [("a", 1234567), ("b", 8)])
    assert "1,234,567" in printed()
