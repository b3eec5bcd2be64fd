"""A grid file becomes the rows it declares, or one message that names the mistake."""

from pathlib import Path

import pytest

from pgolf.config import to_dict
from pgolf.errors import InputError
from pgolf.sections import load_sections
from pgolf.sweep.grid import read_grid

ROOT = Path(__file__).parents[2]
PARAMS, PRESETS = ROOT / "params.yaml", ROOT / "presets"
FACTORIAL = """
base:
  preset: record-1855
  overlays: [bench]
  set: {train.steps: 250, train.seconds: null, train.loop_further_at: []}
factors:
  smear: {on: {}, off: {model.smear: none}}
  gate: {sparse: {}, none: {model.attn_gate: none}, dense: {model.attn_gate: dense, model.gate_window: 16}}
seeds: [42, 43]
"""


def grid_of(tmp_path, text):
    path = tmp_path / "example.yaml"
    path.write_text(text)
    return read_grid(path)


def test_a_factorial_is_every_combination_with_every_seed(tmp_path):
    cells = grid_of(tmp_path, FACTORIAL).cells()
    assert [cell.label for cell in cells[:4]] == [
        "smear=on gate=sparse @42", "smear=on gate=sparse @43", "smear=on gate=none @42", "smear=on gate=none @43",
    ]  # fmt: skip
    assert len(cells) == 2 * 3 * 2 == len({cell.label for cell in cells})
    assert dict(cells[-1].levels) == {"smear": "off", "gate": "dense"}
    assert dict(cells[-1].values) == {"model.smear": "none", "model.attn_gate": "dense", "model.gate_window": 16}


def test_a_row_is_params_then_presets_then_shared_values_then_its_own(tmp_path):
    grid = grid_of(tmp_path, FACTORIAL)
    before = PARAMS.read_bytes()
    sections = grid.sections(grid.cells()[-1], PARAMS, PRESETS)
    assert (sections.train.steps, sections.train.seconds, sections.train.seed) == (250, None, 43)
    assert (sections.train.batch_tokens, sections.train.muon.momentum_warmup) == (196_608, 300)  # the overlay's
    assert (sections.model.layers, sections.model.smear, sections.model.attn_gate) == (11, "none", "dense")
    assert sections.data == load_sections(PARAMS).data
    assert grid.resolved(PARAMS, PRESETS)[-1] == (grid.cells()[-1], sections)
    assert PARAMS.read_bytes() == before


def test_without_a_base_a_row_is_the_params_file_with_its_values(tmp_path):
    grid = grid_of(tmp_path, "cells: {plain: {}, wide: {model.mlp_mult: 4.0}}")
    (_, plain), (_, wide) = ((cell, to_dict(sections)) for cell, sections in grid.resolved(PARAMS))
    assert plain == to_dict(load_sections(PARAMS))
    assert wide.pop("model") == plain.pop("model") | {"mlp_mult": 4.0}
    assert wide == plain
    assert [cell.seed for cell in grid.cells()] == [None, None]


def test_the_base_of_an_ablation_may_have_more_seeds(tmp_path):
    cells = grid_of(tmp_path, "cells: {base: {}, off: {model.smear: none}}\nseeds: [1]\nbase_seeds: [1, 2]").cells()
    assert [(cell.name, cell.seed) for cell in cells] == [("base", 1), ("base", 2), ("off", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cells: {a: {}}\nfactor: {}", "unknown key `factor`; did you mean `factors`"),
        ("base: {presets: x}\ncells: {a: {}}", "`base` has the unknown key `presets`; did you mean `preset`"),
        ("cells: {a: {}}\nfactors: {}", "either `factors` or `cells`"),
        ("seeds: [1]", "either `factors` or `cells`"),
        ("cells: {}", "no rows"),
        ("cells: {a: {model.smaer: none}}", "cell `a`: `model.smaer` is not a parameter; did you mean `smear`"),
        ("cells: {a: {train.muon: 1}}", "cell `a`: `train.muon` is a group of parameters; name one"),
        ("cells: {a: {train.steps.now: 1}}", "`train.steps.now` is not a parameter; it ends before `.now`"),
        ("base: {set: {nothing: 1}}\ncells: {a: {}}", "`base.set`: `nothing` is not a parameter"),
        ("cells: {a: {}, a: {}}", "not valid YAML"),
        ("cells: {a: {train.seed: 1}}", "list seeds under `seeds`"),
        ("cells: {a: {}}\nseeds: [1, 1]", "`seeds` is .* different whole numbers"),
        ("cells: {a: {}}\nseeds: [x]", "`seeds` is .* different whole numbers"),
        ("cells: {a: {}}\nbase_seeds: [1]", "`base_seeds` but no row `base`"),
        ("factors: {a: {on: {}}}", "factor `a` has fewer than two levels"),
        ("factors: {a: [1]}", "factor `a` must be a mapping"),
        (
            "factors: {a: {x: {}, y: {model.dim: 1}}, b: {x: {}, y: {model.dim: 2}}}",
            "factor `b` sets `model.dim`, which factor `a` sets as well",
        ),
    ],
)
def test_a_mistake_is_one_message(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        grid_of(tmp_path, text)


def test_a_wrong_value_names_its_row(tmp_path):
    grid = grid_of(tmp_path, "cells: {good: {}, bad: {model.smear: somewhat}}")
    good, bad = grid.cells()
    grid.sections(good, PARAMS)
    with pytest.raises(InputError, match=r"row `bad` of grid `example`: `model.smear` is 'somewhat'"):
        grid.sections(bad, PARAMS)
    with pytest.raises(InputError, match=r"`nobody` is not a preset"):
        grid_of(tmp_path, "base: {preset: nobody}\ncells: {a: {}}").sections(good, PARAMS, PRESETS)
    with pytest.raises(InputError, match=r"does not exist"):
        read_grid(tmp_path / "absent.yaml")


def test_seeds_may_be_those_of_another_parameter(tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text("cells: {plain: {}}\nseeds: [5]")
    grid = read_grid(path, "calibrate.seed")
    ((cell, sections),) = grid.resolved(PARAMS)
    assert (cell.label, sections.calibrate.seed) == ("plain @5", 5)
    assert sections.train == load_sections(PARAMS).train
    assert grid.values(cell) == {"calibrate.seed": 5}
    path.write_text("cells: {plain: {calibrate.seed: 5}}")
    with pytest.raises(InputError, match="list seeds under `seeds`"):
        read_grid(path, "calibrate.seed")


@pytest.mark.parametrize("path", sorted((ROOT / "grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_grid_is_valid_to_its_last_row(path):
    grid = read_grid(path)
    assert path.read_text().startswith("# "), "the first line says what it asks"
    resolved = [to_dict(sections) for _, sections in grid.resolved(PARAMS, PRESETS)]
    assert len(resolved) > 1
    assert all(resolved.count(row) == 1 for row in resolved), "two rows are the same"
