"""The rule snapshot says what the official text says, and every entry names its source."""

import dataclasses
import re
from pathlib import Path

import pytest

from pgolf.errors import InputError
from pgolf.rules import RULES, load_rules


def test_the_official_numbers() -> None:
    rules = load_rules()
    assert rules.artifact.value == 16_000_000
    assert rules.artifact.value != 16 * 2**20
    assert (rules.train_clock.value, rules.evaluation_clock.value) == (600.0, 600.0)
    assert rules.reference_hardware.value == "8x NVIDIA H100 80GB HBM3"
    assert (rules.record_margin.value, rules.record_p_value.value) == (0.005, 0.01)
    assert rules.record_margin.unit.startswith("nats")
    assert rules.validation_documents.value == 50_000
    assert rules.deadline.value.startswith("2026-05-01")


def test_every_entry_names_unit_and_source() -> None:
    rules = load_rules()
    for field in dataclasses.fields(rules):
        entry = getattr(rules, field.name)
        for part in entry if isinstance(entry, tuple) else [entry]:
            if dataclasses.is_dataclass(part):
                assert re.search(r"README|PR \d|issue \d|practice", part.source), part
                assert getattr(part, "unit", "-"), part
    for note in rules.practice:
        assert note.date is None or re.fullmatch(r"2026-\d\d-\d\d", note.date)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value: 16000000", "value: 16e6", r"rules\.artifact\.value.*whole number"),
        ("record_margin:", "record_margins:", "did you mean `record_margin`"),
        ("unit: bytes", "units: bytes", r"rules\.artifact\.units.*did you mean `unit`"),
        ("practice:", "practice: [", "rules.yaml"),
    ],
)
def test_a_broken_snapshot_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = RULES.read_text()
    assert old in text
    path = tmp_path / "rules.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_rules(path)
