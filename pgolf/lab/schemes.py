"""A sweep over quantization schemes: every row from the same weights and Hessians, in one process.

A row is quantized, packed (its size is that of the real streams) and scored in windows that do not overlap. Rows run
side by side in threads: while one is packed on a core, the next one is rounded and scored, on the GPU where there is
one. A row's result lies under the digest of its parameters and inputs (not of the code), so a stopped sweep goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pgolf import artifacts
from pgolf.budget import Clock
from pgolf.config import digest, to_dict
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.lab.workbench import Workbench
from pgolf.model.gpt import matrix_inputs
from pgolf.quant.artifact import model_bytes
from pgolf.quant.calibrate import calibrate
from pgolf.quant.run import Run, run_quantization
from pgolf.quant.sequential import quantize_in_turn
from pgolf.quant.state import restore
from pgolf.quant.summary import fit_metrics, quantize_metrics
from pgolf.sections import Sections
from pgolf.submit.shipped import shipped_code
from pgolf.sweep.grid import Cell, Grid

VARIABLE = ("quantize.", "compress.")
"""What rows may set: the rest is the same for all."""


class SchemeRow(NamedTuple):
    """One scheme, ready to run."""

    cell: Cell
    sections: Sections
    key: str
    in_turn: bool = False
    """Whether each block's Hessians are collected anew, through the blocks quantized before it."""


def plan_schemes(grid: Grid, params: Path, bench: Workbench, in_turn: bool = False) -> list[SchemeRow]:
    """Every row, checked before the first one runs; InputError for what needs another checkpoint or calibration."""
    for cell in grid.cells():
        if cell.seed is not None:
            raise InputError(f"grid `{grid.name}` lists seeds: every row of a sweep of schemes has the same weights")
        for key in cell.values:
            if not key.startswith(VARIABLE):
                raise InputError(
                    f"row `{cell.label}` of grid `{grid.name}` sets `{key}`: rows of a sweep of schemes share weights, "
                    "Hessians and windows; set it in params.yaml or under `base.set`, or use `pgolf sweep train`"
                )
    rows = [(cell, grid.sections(cell, params)) for cell in grid.cells()]
    if any(sections.model != bench.checkpoint.config for _, sections in rows):
        raise InputError(f"grid `{grid.name}` is for another model than the checkpoint here: see its `base`")
    return [SchemeRow(cell, sections, _key(sections, bench, in_turn), in_turn) for cell, sections in rows]


def _key(sections: Sections, bench: Workbench, in_turn: bool) -> str:
    windows = windows_of(sections.evaluate)
    code = to_dict(sections) if sections.quantize.fit.target_bytes is not None else None  # its bytes matter then
    scheme = {"quantize": to_dict(sections.quantize), "codec": sections.compress.codec, "code": code}
    hessians = to_dict(sections.calibrate) if in_turn else bench.hessians_sha256
    inputs = [bench.checkpoint.sha256, hessians, digest(bench.tokens.manifest)]
    return digest([scheme, windows, inputs])[:16]


def windows_of(config: EvaluateConfig) -> dict[str, Any]:
    """What the score of a row depends on."""
    return {name: getattr(config, name) for name in ("seq_len", "isolate_documents", "subset_targets")}


def measure_scheme(row: SchemeRow, bench: Workbench) -> dict[str, Any]:
    """Bytes, score and error of one scheme."""
    checkpoint, sections, clock = bench.checkpoint, row.sections, Clock()
    codec = sections.compress.codec
    with clock.phase("quantize"):
        run = _in_turn(row, bench) if row.in_turn else run_quantization(
            checkpoint.state, bench.hessians, checkpoint.config, sections.quantize, checkpoint.tokenizer, codec,
            lambda: len(shipped_code(sections.resolved(), checkpoint.vocab_size)), device=bench.device,
        )  # fmt: skip
    tensors = run.quantized.tensors
    with clock.phase("compress"):
        size = model_bytes(tensors, checkpoint.config, checkpoint.vocab_size, run.config, checkpoint.tokenizer, codec)
    with clock.phase("evaluate"):
        score = bench.score(restore(tensors), sections.evaluate)
    seconds = {f"{phase}_seconds": clock.seconds(phase) for phase in ("quantize", "compress", "evaluate")}
    result = {"bytes_model": size, "quantized_bpb": score.bpb, "quantized_loss": score.loss}
    return result | quantize_metrics(run.quantized.reports) | fit_metrics(run) | seconds


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
    workers: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """The result of every row, those that are in `folder` already and the others; order of `rows`.

    An InputError of a row becomes its `error`, and the row runs again next time.
    """
    kept = {row.key: _kept(folder, row) for row in rows}
    waiting = list({row.key: row for row in rows if kept[row.key] is None}.values())
    done = 0

    def run(row: SchemeRow) -> None:
        nonlocal done
        try:
            result = {"metrics": measure_scheme(row, bench), "error": ""}
            artifacts.write_json(_path(folder, row), result)
        except InputError as error:
            result = {"metrics": {}, "error": str(error)}
        kept[row.key] = result
        done += 1
        report(done, len(waiting))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, waiting))
    return [{"name": row.cell.name, "key": row.key, "values": dict(row.cell.values), **(kept[row.key] or {})}
            for row in rows]  # fmt: skip


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
