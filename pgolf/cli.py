"""`pgolf`: every stage as a command, the whole chain, and commands about a run."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf import __version__, paths
from pgolf.console import console, handled, table
from pgolf.errors import InputError

STAGES = {
    "tokenize": "Documents to token shards, byte sidecar and manifest.",
    "train": "Tokens to averaged weights, on the training clock; goes on after an interruption.",
    "score": "The weights before quantization on the validation set.",
    "calibrate": "Hessians of every weight matrix, charged to the training clock.",
    "quantize": "GPTQ from stored Hessians: no forward pass, no retraining.",
    "compress": "Codes to the shipped container.",
    "evaluate": "The shipped container on the validation set, every target once.",
    "report": "Pictures and curves of the run.",
    "verify-size": "Bytes and clocks against the rules; exit 1 when a gate fails.",
}
"""The chain in order, the same functions that dvc.yaml runs. They are imported when they run: help comes at once."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Parameter Golf as a staged pipeline: the best language model in 16,000,000 bytes.",
)
preset = typer.Typer(no_args_is_help=True, help="Published systems and overlays over params.yaml.")
app.add_typer(preset, name="preset")
ParamsOption = Annotated[Path, typer.Option(help="Parameter file.")]


def stage_function(name: str) -> Callable[..., None]:
    """The function of a stage, from its module in `stages`."""
    identifier = name.replace("-", "_")
    function: Callable[..., None] = getattr(importlib.import_module(f"stages.{identifier}"), identifier)
    return function


def _stage_command(name: str) -> Callable[..., None]:
    def command(params: ParamsOption = paths.PARAMS) -> None:
        stage_function(name)(params=params)

    command.__name__ = name
    return command


for _name, _help in STAGES.items():
    app.command(_name, help=_help, rich_help_panel="Stages")(handled(_stage_command(_name)))


@app.command(rich_help_panel="Runs")
@handled
def run(
    start: Annotated[str, typer.Option("--from", help="First stage.")] = "tokenize",
    end: Annotated[str, typer.Option("--to", help="Last stage.")] = "verify-size",
    params: ParamsOption = paths.PARAMS,
) -> None:
    """Run the chain without DVC and without git."""
    order = list(STAGES)
    for option, name in (("--from", start), ("--to", end)):
        if name not in STAGES:
            raise InputError(f"{option} is `{name}`, which is not a stage (known: {', '.join(order)})")
    chosen = order[order.index(start) : order.index(end) + 1]
    if not chosen:
        raise InputError(f"--from {start} comes after --to {end}: swap them")
    from pgolf.sections import load_sections

    load_sections(params)
    for name in chosen:
        stage_function(name)(params=params)


@app.command(rich_help_panel="Runs")
@handled
def plan(
    params: ParamsOption = paths.PARAMS,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Training speed for a wall-clock budget; default: the last run's here.")
    ] = None,
) -> None:
    """Predict parameters, FLOPs, steps and bytes before anything is trained, and check what a run needs."""
    from pgolf import artifacts
    from pgolf.preflight import preflight
    from pgolf.sections import load_sections

    last: dict[str, Any] = {}
    if tokens_per_second is None and paths.metrics("train").exists():
        last = artifacts.read_json(paths.metrics("train"), "train")
    vocab_size = load_sections(params).tokenize.vocab_size
    prediction = preflight(params, vocab_size, tokens_per_second)
    if last.get("parameters") == prediction.parameters:  # the speed of another model says nothing
        prediction = preflight(params, vocab_size, last.get("tokens_per_second"))
    plain, looped = prediction.forward_flops
    rows: list[tuple[str, Any]] = [
        ("parameters", f"{prediction.parameters:,}"),
        ("forward MFLOP per token, recurrence off / on", f"{plain / 1e6:.2f} / {looped / 1e6:.2f}"),
        ("steps", "by wall-clock: give --tokens-per-second" if prediction.steps is None else f"{prediction.steps:,}"),
        ("training tokens", "-" if prediction.tokens is None else f"{prediction.tokens:,}"),
        ("training TFLOP", "-" if prediction.train_flops is None else f"{prediction.train_flops / 1e12:,.1f}"),
        ("model bytes (rate model)", f"{prediction.bytes_model:,}"),
        ("cap", f"{prediction.bytes_cap:,}"),
    ]
    table("plan", ("", "value"), rows)


@preset.command("list")
@handled
def preset_list() -> None:
    """Show the presets and what each is."""
    from pgolf.presets import preset_files

    rows = [(name, path.read_text().splitlines()[0].removeprefix("# ")) for name, path in preset_files().items()]
    table("presets", ("preset", "what it is"), rows)


@preset.command("use")
@handled
def preset_use(
    names: Annotated[list[str], typer.Argument(help="One preset, then overlays, applied in order.")],
    params: ParamsOption = paths.PARAMS,
) -> None:
    """Write the keys of presets into params.yaml; comments and other keys stay."""
    from pgolf.presets import apply_preset

    for name, changed in apply_preset(params, *names).items():
        console.print(f"{name}: {changed} keys changed in {params}")


@app.command(rich_help_panel="Runs")
@handled
def unpack(
    artifact: Annotated[Path, typer.Argument(help="A model.pgolf file.")] = paths.ARTIFACT,
    out: Annotated[Path, typer.Argument(help="Where to write the dequantized weights.")] = Path("model.safetensors"),
) -> None:
    """Decode an artifact into an ordinary safetensors file of dequantized weights."""
    import torch

    from pgolf import artifacts
    from pgolf.quant.artifact import decode_model

    model, header = decode_model(
        artifacts.require(artifact, "compress").read_bytes(), torch.device("cpu"), torch.float32
    )
    provenance = {"artifact": artifacts.sha256(artifact)}
    artifacts.save(
        out, model.state_dict(), schema="pgolf.dequantized", stage="unpack", params=header, inputs=provenance
    )


def _version(show: bool) -> None:
    if show:
        console.print(f"pgolf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `pgolf` command."""
    app()
