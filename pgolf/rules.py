"""The rule snapshot: caps, clocks, the record bar and dated practice, each with its source, from `rules.yaml`.

The rules of the challenge moved while it ran and the audit must say which ones it applied, so they are data with a
version, not constants in code. Read with ruamel, the parser that DVC uses; outside the runtime closure.
"""

from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pgolf.config import build
from pgolf.errors import InputError

RULES = Path(__file__).with_name("rules.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A whole-number limit."""

    value: int
    unit: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A real-valued limit."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A limit that is not a number."""

    value: str
    unit: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice:
    """What reviewers did, beside the text of the rules."""

    date: str | None
    """ISO date, None where the threads give none."""
    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """One version of the rules; every entry names unit and source."""

    version: int
    """Raised with every change of rules.yaml."""
    snapshot: str
    """Date and commit of the repository that the entries were read from."""
    artifact: Count
    """Packed code + compressed model, bytes."""
    train_clock: Amount
    """Training and calibration, seconds."""
    evaluation_clock: Amount
    """Decoding and scoring, seconds, in addition to training."""
    reference_hardware: Text
    """The only hardware on which the clocks are judged, as metrics spell it."""
    record_margin: Amount
    """By how much a record must beat the last one, nats per token."""
    record_p_value: Amount
    """Largest p of the one-sided test against the margin."""
    record_seeds: Count
    """Runs behind a record."""
    validation_documents: Count
    """Documents that must be scored."""
    deadline: Text
    """Last moment for a pull request."""
    practice: tuple[Practice, ...]
    """Dated rulings and habits."""


def load_rules(path: Path = RULES) -> Rules:
    """Read the snapshot; InputError names the file and the entry that is missing, unknown or mistyped."""
    try:
        return build(Rules, YAML(typ="safe", pure=True).load(path.read_text("utf-8")), "rules")
    except YAMLError as error:
        raise InputError(f"{path.name} is not valid YAML: {error}") from None
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
