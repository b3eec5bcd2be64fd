"""`pgolf`: every stage as a command, the whole chain, and commands about a run."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf import __version__, paths, run_commands
from pgolf.audit.command import audit
from pgolf.bench.ranks_command import bench_ranks
from pgolf.bench.train_command import bench_agree, bench_train
from pgolf.console import console, handled, table
from pgolf.doctor import doctor
from pgolf.errors import InputError
from pgolf.lab.cache_command import sweep_cache
from pgolf.lab.command import diagnose, sweep_quantize
from pgolf.lab.evaluate_command import sweep_evaluate
from pgolf.lab.prequant_command import prequant
from pgolf.lab.temperature import sweep_temperature
from pgolf.report.command import report
from pgolf.sweep.command import sweep_train

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
checkpoint = typer.Typer(no_args_is_help=True, help="A checkpoint as a few small files, and back.")
app.add_typer(checkpoint, name="checkpoint")
bench = typer.Typer(no_args_is_help=True, help="Measurements on this machine.")
app.add_typer(bench, name="bench")
sweep = typer.Typer(no_args_is_help=True, help="A grid of parameters, row by row, and what its switches do.")
app.add_typer(sweep, name="sweep")
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
    if _name != "report":  # the stage draws pictures, the command of that name makes a page of them
        app.command(_name, help=_help, rich_help_panel="Stages")(handled(_stage_command(_name)))
for _command in (run_commands.compare, run_commands.record, run_commands.keep, run_commands.restore):
    app.command(rich_help_panel="Runs")(handled(_command))
app.command("audit", rich_help_panel="Runs")(handled(audit))
app.command("diagnose", rich_help_panel="Runs")(handled(diagnose))
app.command("prequant", rich_help_panel="Runs")(handled(prequant))
app.command("report", rich_help_panel="Runs")(handled(report))
app.command("doctor")(handled(doctor))
sweep.command("train")(handled(sweep_train))
sweep.command("quantize")(handled(sweep_quantize))
sweep.command("evaluate")(handled(sweep_evaluate))
sweep.command("temperature")(handled(sweep_temperature))
sweep.command("cache")(handled(sweep_cache))
bench.command("train")(handled(bench_train))
bench.command("agree")(handled(bench_agree))
bench.command("ranks")(handled(bench_ranks))


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


@app.command()
@handled
def parameters(
    word: Annotated[str, typer.Argument(help="Part of a key, as `muon.lr`; without it, all as a page.")] = "",
) -> None:
    """Say what the keys of params.yaml mean, with types and defaults."""
    from pgolf.reference import excerpt, page

    typer.echo(excerpt(word) if word else page(), nl=False)


@app.command(rich_help_panel="Data")
@handled
def fetch(
    name: Annotated[str | None, typer.Argument(help="What to fetch; without it, the list.")] = None,
    train_shards: Annotated[
        int | None, typer.Option(help="First N training shards, 100M tokens each (default 80); validation is whole.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Target folder (default data/published/NAME).")] = None,
    repo: Annotated[str | None, typer.Option(help="Another dataset repository, OWNER/NAME.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the repository.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be downloaded.")] = False,
) -> None:
    """Fetch a published export of the challenge's FineWeb: shards, tokenizer, byte sidecar; verified, resumable."""
    from pgolf.console import progress
    from pgolf.data.catalogue import CATALOGUE
    from pgolf.data.fetch import complete, download, next_step, plan_fetch, summary

    if name is None:
        table("published", ("name", "repository"), [(key, source.repo) for key, source in CATALOGUE.items()])
        return
    with progress("fetch") as show:
        plan = plan_fetch(
            name, to or paths.PUBLISHED / name,
            train_shards=train_shards, repo=repo, revision=revision, progress=show.gigabytes,
        )  # fmt: skip
    title = f"{plan.name} of {plan.repo} at {plan.revision[:12]}, into {plan.folder}"
    table(title, ("", "files", "GB", "here", "GB to download"), summary(plan))
    if dry_run:
        return
    with progress("fetch") as show:
        download(plan, show.gigabytes)
        rows = complete(plan)
    table("verified", ("", ""), rows)
    console.print(next_step(plan), soft_wrap=True, markup=False)


@preset.command("list")
@handled
def preset_list() -> None:
    """Show the presets and what each is."""
    from pgolf.presets import expected_verdict, preset_files

    rows = [
        (name, path.read_text().splitlines()[0].removeprefix("# "), expected_verdict(path) or "-")
        for name, path in preset_files().items()
    ]
    table("presets", ("preset", "what it is", "what an audit finds"), rows)


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


@bench.command("attention")
@handled
def bench_attention(
    tokens: Annotated[int, typer.Option(help="Tokens of a row of packed documents.", min=64)] = 98_304,
    longest: Annotated[int, typer.Option(help="Longest document, and length of the dense rows.", min=64)] = 2048,
    repeats: Annotated[int, typer.Option(help="Timed calls; the median is shown.", min=1)] = 20,
) -> None:
    """Milliseconds of every attention back end that is present, for 8 query and 4 KV heads of 64."""
    import torch

    from pgolf.bench.attention import DTYPE, HEAD_DIM, attention_timings
    from pgolf.device import hardware_name, pick_device
    from pgolf.model.attention import present

    device, _ = pick_device()
    if device.type != "cuda":
        console.print(
            f"attention: {', '.join(present(device, DTYPE, HEAD_DIM))}; without a CUDA device nothing is timed"
        )
        return
    timings = attention_timings(device, tokens, longest, repeats)
    slowest = {timing.rows: timing.both for timing in sorted(timings, key=lambda timing: timing.both)}
    rows = [
        (t.rows, t.backend, round(t.forward, 3), round(t.both, 3), round(slowest[t.rows] / t.both, 2)) for t in timings
    ]
    columns = ("rows", "back end", "forward ms", "forward and backward ms", "times the slowest")
    table(f"attention, {tokens:,} tokens, torch {torch.__version__}, {hardware_name(device)}", columns, rows)


@app.command(rich_help_panel="Runs")
@handled
def adopt(
    file: Annotated[Path, typer.Argument(help="Safetensors or a torch state dict, also as .br or .zst.")],
    params: ParamsOption = paths.PARAMS,
    preset: Annotated[
        str | None, typer.Option(help="Published system that the file is of, written into the parameters as well.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace the adopted file if it exists.")] = False,
) -> None:
    """Take published weights instead of training (`train.adopt`); codes become the artifact of `quantize`."""
    from pgolf.adopt import adopt as take

    done = take(file, params, preset=preset, force=force)
    rows: list[tuple[str, Any]] = [("weights", done.weights)]
    if done.scheme:
        grids = {"embedding": done.scheme.embed, "attention": done.scheme.attn, "MLP": done.scheme.mlp}
        rows += [(f"{name}: bits, k", f"{grid.bits}, {grid.k_sigma:g}") for name, grid in grids.items()]
        rows += [
            ("int8 gates", "yes" if done.scheme.gate_int8 else "no"),
            ("low-rank corrections", done.scheme.lqer.top_k),
        ]
    table(str(done.target), ("", "value"), [*rows, ("next", done.next_command)])


@checkpoint.command("split")
@handled
def checkpoint_split(
    file: Annotated[Path, typer.Argument(help="A checkpoint, as `train` writes it.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the parts.")],
) -> None:
    """Write a checkpoint as files of at most 16 MiB; its matrices are rounded to bfloat16."""
    from pgolf.checkpoint_parts import split_checkpoint

    written = split_checkpoint(file, folder)
    table(str(folder), ("part", "bytes"), [(path.name, path.stat().st_size) for path in written])


@checkpoint.command("join")
@handled
def checkpoint_join(
    folder: Annotated[Path, typer.Argument(help="Folder of `pgolf checkpoint split`.")],
    file: Annotated[Path, typer.Argument(help="Where to write the checkpoint.")],
    force: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Put the parts together again, after checking each one."""
    from pgolf.checkpoint_parts import join_checkpoint

    _refuse_existing(file, force)
    join_checkpoint(folder, file)
    console.print(f"{file}: weights rounded to bfloat16, as in the parts", soft_wrap=True, markup=False)


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise InputError(f"{path} exists: move it away, or replace it with --force")


@bench.command("codec")
@handled
def bench_codec_command(
    file: Annotated[Path, typer.Argument(help="Quantized weights, ours or published.")] = paths.QUANTIZED,
    heads: Annotated[int, typer.Option(help="Query heads of the model, for predictions between heads.")] = 0,
    picture: Annotated[Path, typer.Option(help="Where to draw the sizes.")] = Path("scratch/codec.png"),
) -> None:
    """Bytes, bits per element and seconds of every codec on one quantized file."""
    from pgolf import artifacts
    from pgolf.bench.codec import bench_codec, relative, totals
    from pgolf.console import progress
    from pgolf.report import plots
    from pgolf.report.sizes import bytes_by_codec

    with progress("bench codec") as show:
        results = bench_codec(artifacts.require(file, "quantize"), heads, show)
    percent = relative([*results, *totals(results)])
    rows = [
        (r.group, r.codec, r.raw, r.packed, f"{8 * r.packed / max(r.symbols, 1):.4f}", f"{r.encode_seconds:.2f}",
         f"{r.decode_seconds:.2f}")
        for r in [*sorted(results, key=lambda r: (list(percent).index(r.group), r.packed)), *totals(results)]
    ]  # fmt: skip
    table("codecs", ("stream", "codec", "raw bytes", "bytes", "bits", "encode s", "decode s"), rows)
    plots.save(bytes_by_codec(percent), picture)
    console.print(f"picture: {picture}")


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
