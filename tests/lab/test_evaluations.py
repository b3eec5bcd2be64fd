"""Sweeps over evaluations: rows of one artifact, what they gain and what they take."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from one_layer import one_layer

from pgolf.errors import InputError
from pgolf.evaluate.config import CacheConfig, ChunkTTTConfig, EvaluateConfig
from pgolf.evaluate.score import summarize, token_losses, windows_for
from pgolf.lab.evaluations import Text, gains_over_seconds, plan_evaluations, run_evaluations
from pgolf.sweep.grid import read_grid

ROOT = Path(__file__).parents[2]
VOCAB = 24


def grid_of(folder, **document):
    path = folder / "grid.yaml"
    path.write_text(json.dumps(document))
    return read_grid(path)


def test_the_shipped_grid_is_read():
    rows = plan_evaluations(read_grid(ROOT / "grids/ttt.yaml"), ROOT / "params.yaml")
    assert {config.ttt for config in rows.values()} == {"none", "cached", "phased"}
    assert all(config.isolate_documents for config in rows.values())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"cells": {"a": {"train.seconds": 3.0}}}, "row `a` of grid `grid` sets `train.seconds`"),
        ({"cells": {"a": {"evaluate.stride": 64}}, "seeds": [1, 2]}, "have the same weights"),
    ],
)
def test_rows_share_the_artifact(tmp_path, document, message):
    with pytest.raises(InputError, match=message):
        plan_evaluations(grid_of(tmp_path, **document), ROOT / "params.yaml")


def test_rows_are_measured_and_drawn(tmp_path):
    model = one_layer(VOCAB)
    tokens = np.random.default_rng(0).integers(2, VOCAB, 97).astype(np.uint16)
    tokens[::32] = 1
    text = Text(tokens, np.full(97, 3))
    plain = EvaluateConfig(seq_len=16, stride=16, isolate_documents=True, batch_tokens=64)
    sliding = EvaluateConfig(seq_len=16, stride=4, isolate_documents=True, batch_tokens=64)
    wild = dataclasses.replace(plain, ttt="chunk", chunk=ChunkTTTConfig(freeze_blocks=9))
    cached = dataclasses.replace(plain, cache=CacheConfig(sharpness=20.0, bias=1.0))
    before = run_evaluations(model, text, {"cache": cached}, tmp_path / "cache.json")
    rows = {"windows, plain": plain, "windows, sliding": sliding, "wild": wild}
    found = run_evaluations(model, text, rows, tmp_path / "results.json")
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["rows"] == found
    expected = summarize(token_losses(model, tokens, windows_for(tokens, sliding, 4), 64), text.token_bytes[1:])
    assert found[0]["gain_bpb"] == pytest.approx(0.0, abs=1e-9)
    assert before[0]["gain_bpb"] == pytest.approx(kept["plain_bpb"] - before[0]["bpb"]), "plain is without a cache"
    assert abs(before[0]["gain_bpb"]) > 0.01
    assert found[1]["bpb"] == pytest.approx(expected.bpb)
    assert found[1]["gain_bpb"] == pytest.approx(kept["plain_bpb"] - expected.bpb)
    assert found[1]["targets_per_second"] == pytest.approx(96 / found[1]["seconds"])
    assert found[2] == {"name": "wild", "error": found[2]["error"]}
    assert "the model has 1" in found[2]["error"]
    figure = gains_over_seconds(found, "title")
    (line,) = figure.axes[0].get_lines()
    assert line.get_label() == "windows"
    assert sorted(line.get_xdata()) == sorted(row["seconds"] for row in found[:2])
    assert {text.get_text() for text in figure.axes[0].texts} == {"plain", "sliding"}


@pytest.mark.parametrize("name", ["ttt_gains", "ttt_gains_own"])
def test_the_stored_measurements_draw_the_picture_of_the_page(name):
    stored = json.loads((ROOT / f"docs/{name}.json").read_text())
    figure = gains_over_seconds(stored["rows"], "title")
    drawn = [(x, y) for line in figure.axes[0].get_lines() for x, y in line.get_xydata()]
    assert sorted(drawn) == sorted((row["seconds"], row["gain_bpb"]) for row in stored["rows"])
    assert (ROOT / f"docs/{name}.png").stat().st_size < 100_000
    assert f"]({name}.png)" in (ROOT / "docs/results.md").read_text()
