"""What a sweep says of its rows: the score it judges by, columns, curves and titles; results are made up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pgolf.sections import load_sections
from pgolf.sweep import summary
from pgolf.sweep.grid import Grid
from pgolf.sweep.plots import Point
from pgolf.sweep.rows import Result, Row
from pgolf.sweep.summary import COLUMNS, PACKED_COLUMNS, effects, frontier, rows_table, score_name, write_summary

PARAMS = Path(__file__).parents[2] / "params.yaml"
GRID = Grid(
    name="bits", shared={}, rows={},
    factors={
        "depth": {"flat": {}, "deep": {"model.layers": 12}},
        "bits": {"six": {}, "four": {"quantize.mlp.bits": 4}},
    },
)  # fmt: skip
SCORES = {("flat", "six"): (1.30, 900), ("flat", "four"): (1.40, 600), ("deep", "six"): (1.20, 1500)}
SCORES["deep", "four"] = (1.32, 1100)


def results(grid=GRID, packed=True, steps=(1000, 1000)):
    """A result per cell: the score before quantization is 1, so that the two cannot be taken for each other."""
    sections, found = load_sections(PARAMS), []
    for index, cell in enumerate(grid.cells()):
        bpb, size = SCORES[tuple(cell.levels.values())]
        own = replace(sections, train=replace(sections.train, steps=steps[index % 2]))
        more = {"quantized_bpb": bpb, "bytes_model": size} if packed else {}
        metrics = {"bpb": 1.0, "tokens_per_second": 5.0, "peak_memory_bytes": 2e9, "parameters": 7, **more}
        found.append(Result(Row(cell, own, f"t{index // 2}", f"k{index}", packed), metrics, ""))
    return found


def test_packed_rows_are_judged_by_what_would_be_shipped(tmp_path):
    found = results()
    assert (score_name(found), score_name(results(packed=False))) == ("quantized_bpb", "bpb")
    answers = effects(GRID, found)
    assert {effect.name: round(effect.value, 6) for effect in answers} == {
        "depth=deep": -0.09, "bits=four": 0.11, "depth=deep x bits=four": 0.01
    }  # fmt: skip
    written = write_summary(tmp_path, GRID, found, answers)
    assert sorted(path.name for path in written) == [
        "effects.png", "effects.svg", "frontier.png", "frontier.svg", "results.json"
    ]  # fmt: skip
    assert all(path.stat().st_size for path in written)
    report = json.loads((tmp_path / "results.json").read_text())
    assert (report["score"], [row["metrics"]["bytes_model"] for row in report["rows"]]) == (
        "quantized_bpb", [900, 600, 1500, 1100]
    )  # fmt: skip


def test_a_failed_row_is_no_point_of_its_curve():
    found = results()
    found[1] = Result(found[1].row, {}, "diverged")
    assert frontier(GRID, found) == {
        "depth=flat": [Point(900, 1.30)], "depth=deep": [Point(1500, 1.20), Point(1100, 1.32)]
    }  # fmt: skip
    assert frontier(GRID, results(packed=False)) == {}


def test_a_curve_has_the_name_of_what_its_training_varies():
    """Seeds are trainings of their own; where only bits vary a curve has the row's name."""
    seeded = replace(GRID, seeds=(1, 2))
    assert list(frontier(seeded, results(seeded))) == [f"depth={d} @{s}" for d in ("flat", "deep") for s in (1, 2)]
    named = Grid(name="named", shared={}, factors={}, rows={"a": {}, "b": {"quantize.mlp.bits": 4}})
    (first, second, *_) = results()
    rows = [
        result._replace(row=result.row._replace(cell=cell))
        for result, cell in zip((first, second), named.cells(), strict=True)
    ]
    assert list(frontier(named, rows)) == ["a", "b"]


def test_packed_columns_follow_the_others():
    seeded = replace(GRID, seeds=(1, 2))
    found = results(seeded)
    other = found[1].metrics | {"bpb": 1.2, "quantized_bpb": 1.5, "bytes_model": 1000}
    found[1] = found[1]._replace(metrics=other)
    found[2:4] = [result._replace(metrics={}, error="diverged") for result in found[2:4]]
    columns, lines = rows_table(found)
    assert columns == (*COLUMNS, *PACKED_COLUMNS)
    assert lines[0] == ("depth=flat bits=six", 2, "1.1000", "0.1414", 5, "2.0", 7, "1.4000", 950)
    assert lines[1] == ("depth=flat bits=four", 0, *["-"] * 7)
    assert rows_table(results(packed=False))[0] == COLUMNS


@pytest.mark.parametrize(("steps", "said"), [((1000, 1000), "1,000 steps"), ((1000, 250), "250 to 1,000 steps")])
def test_the_title_has_the_steps_of_all_rows(tmp_path, monkeypatch, steps, said):
    titles = []
    monkeypatch.setattr(summary, "effects_picture", lambda path, found, title: titles.append(title) or [])
    monkeypatch.setattr(summary, "frontier_picture", lambda path, curves, cap, title: titles.append(title) or [])
    found = results(steps=steps)
    write_summary(tmp_path, GRID, found, effects(GRID, found))
    assert titles == [f"Effects of switches in bits ({said})", f"Size against score in bits ({said})"]
