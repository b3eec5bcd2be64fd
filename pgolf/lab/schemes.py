"""A sweep over quantization schemes: every row from the same weights, in one process.

Rows are quantized and scored (in windows that do not overlap) one after another, on the GPU where there is one, and
encoded in processes beside it: a row's size is that of the real streams. Rows of one calibration share its Hessians. A
row's result lies under the digest of its parameters and inputs (not of the code), so a stopped sweep goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pgolf import artifacts
from pgolf.budget import Clock
from pgolf.config import digest, to_dict
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.lab import encoding
from pgolf.lab.workbench import Workbench
from pgolf.model.gpt import matrix_inputs
from pgolf.quant.calibrate import calibrate
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.run import Run, run_quantization
from pgolf.quant.sequential import quantize_in_turn
from pgolf.quant.state import restore
from pgolf.quant.summary import fit_metrics, quantize_metrics
from pgolf.sections import Sections
from pgolf.submit.shipped import shipped_code
from pgolf.sweep.grid import Cell, Grid

VARIABLE = ("calibrate.", "quantize.", "compress.")
"""What rows may set: the rest is the same for all."""
Results = list[dict[str, Any]]
Hessians = dict[CalibrateConfig, Mapping[str, Tensor]]
"""Those that rows have asked for so far."""


class SchemeRow(NamedTuple):
    """One scheme, ready to run."""

    cell: Cell
    sections: Sections
    key: str
    in_turn: bool = False
    """Whether each block's Hessians are collected anew, through the blocks quantized before it."""


def plan_schemes(grid: Grid, params: Path, bench: Workbench, in_turn: bool = False) -> list[SchemeRow]:
    """Every row, checked before the first one runs; InputError for what needs another checkpoint."""
    for cell in grid.cells():
        for key in cell.values:
            if not key.startswith(VARIABLE):
                raise InputError(
                    f"row `{cell.label}` of grid `{grid.name}` sets `{key}`: rows of a sweep of schemes share weights "
                    "and windows; set it in params.yaml or under `base.set`, or use `pgolf sweep train`"
                )
    rows = grid.resolved(params)
    if any(sections.model != bench.checkpoint.config for _, sections in rows):
        raise InputError(f"grid `{grid.name}` is for another model than the checkpoint here: see its `base`")
    return [SchemeRow(cell, sections, _key(sections, bench, in_turn), in_turn) for cell, sections in rows]


def _key(sections: Sections, bench: Workbench, in_turn: bool) -> str:
    code = to_dict(sections) if sections.quantize.fit.target_bytes is not None else None  # its bytes matter then
    scheme = {"quantize": to_dict(sections.quantize), "codec": sections.compress.codec, "code": code}
    hessians = {"calibrate": to_dict(sections.calibrate), "in_turn": in_turn}
    inputs = [bench.checkpoint.sha256, digest(bench.tokens.manifest)]
    return digest([scheme, hessians, windows_of(sections.evaluate), inputs])[:16]


def windows_of(config: EvaluateConfig) -> dict[str, Any]:
    """What the score of a row depends on."""
    return {name: getattr(config, name) for name in ("seq_len", "isolate_documents", "subset_targets")}


class Rounded(NamedTuple):
    """A row whose size is not known yet."""

    run: Run
    metrics: dict[str, Any]


def round_and_score(row: SchemeRow, bench: Workbench, hessians: Hessians) -> Rounded:
    """Score and error of one scheme; `hessians` keeps those that are collected for it."""
    checkpoint, sections, clock = bench.checkpoint, row.sections, Clock()
    if not row.in_turn and sections.calibrate not in hessians:
        hessians[sections.calibrate] = bench.hessians_of(sections.calibrate)
    with clock.phase("quantize"):
        run = _in_turn(row, bench) if row.in_turn else run_quantization(
            checkpoint.state, hessians[sections.calibrate], checkpoint.config, sections.quantize, checkpoint.tokenizer,
            sections.compress.codec, lambda: len(shipped_code(sections.resolved(), checkpoint.vocab_size)),
            device=bench.device,
        )  # fmt: skip
    with clock.phase("evaluate"):
        score = bench.score(restore(run.quantized.tensors), sections.evaluate)
    seconds = {f"{phase}_seconds": clock.seconds(phase) for phase in ("quantize", "evaluate")}
    result = {"quantized_bpb": score.bpb, "quantized_loss": score.loss}
    return Rounded(run, result | quantize_metrics(run.quantized.reports) | fit_metrics(run) | seconds)


def encode(row: SchemeRow, done: Rounded, bench: Workbench, pool: Executor) -> Future[encoding.Size]:
    """Begin to encode a row."""
    checkpoint, tensors = bench.checkpoint, done.run.quantized.tensors
    model, vocab_size, tokenizer = checkpoint.config, checkpoint.vocab_size, checkpoint.tokenizer
    return encoding.submit(pool, tensors, model, vocab_size, done.run.config, tokenizer, row.sections.compress.codec)


def _in_turn(row: SchemeRow, bench: Workbench) -> Run:
    """The scheme with Hessians through quantized blocks, of as much text as `calibrate` says."""
    scheme, sources = row.sections.quantize, matrix_inputs(bench.checkpoint.config)

    def hessians_of(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return calibrate(bench.model(state), row.sections.calibrate, bench.tokens.train)

    return Run(quantize_in_turn(bench.checkpoint.state, sources, scheme, hessians_of, bench.device), scheme, {})


def run_schemes(
    rows: Sequence[SchemeRow],
    bench: Workbench,
    folder: Path,
    pool: Executor,
    report: Callable[[Results], None] = lambda results: None,
) -> Results:
    """The result of every row, those that are in `folder` already and the others; order of `rows`.

    `pool` encodes. `report` gets the results so far, at the beginning and after every row. An InputError of a row
    becomes its `error`, and the row runs again next time.
    """
    kept = {row.key: _kept(folder, row) for row in rows}
    waiting = list({row.key: row for row in rows if kept[row.key] is None}.values())
    hessians: Hessians = {}
    encoded: dict[Future[encoding.Size], tuple[SchemeRow, Rounded]] = {}

    def finish(row: SchemeRow, metrics: dict[str, Any], error: str = "") -> None:
        kept[row.key] = found = {"metrics": metrics, "error": error}
        if not error:
            artifacts.write_json(_path(folder, row), found)
        report(_results(rows, kept))

    def collect(future: Future[encoding.Size]) -> None:
        row, done = encoded.pop(future)
        try:
            finish(row, encoding.result(future) | done.metrics)
        except InputError as error:
            finish(row, {}, str(error))

    report(_results(rows, kept))
    for row in waiting:
        try:
            done = round_and_score(row, bench, hessians)
            encoded[encode(row, done, bench, pool)] = row, done
        except InputError as error:
            finish(row, {}, str(error))
        for future in wait(encoded, timeout=0).done:
            collect(future)
    for future in as_completed(list(encoded)):
        collect(future)
    return _results(rows, kept)


def _results(rows: Sequence[SchemeRow], kept: Mapping[str, dict[str, Any] | None]) -> Results:
    """Those of the rows that are done."""
    return [
        {"name": row.cell.name, "seed": row.cell.seed, "key": row.key, "values": dict(row.cell.values), **found}
        for row in rows
        if (found := kept[row.key]) is not None
    ]


def reference(row: SchemeRow, bench: Workbench, folder: Path) -> Mapping[str, float]:
    """Score before quantization in the windows of `row`; kept like a row."""
    key = digest([windows_of(row.sections.evaluate), bench.checkpoint.sha256, digest(bench.tokens.manifest)])[:16]
    path = folder / "rows" / f"{key}.json"
    if not path.exists():
        score = bench.score(bench.checkpoint.state, replace(row.sections.evaluate, ttt="none"))
        artifacts.write_json(path, {"prequant_bpb": score.bpb, "prequant_loss": score.loss})
    found: Mapping[str, float] = artifacts.read_json(path, "sweep quantize")
    return found


def _path(folder: Path, row: SchemeRow) -> Path:
    return folder / "rows" / f"{row.key}.json"


def _kept(folder: Path, row: SchemeRow) -> dict[str, Any] | None:
    path = _path(folder, row)
    found: dict[str, Any] | None = artifacts.read_json(path, "sweep quantize") if path.exists() else None
    return found
