"""The page of the audit names every check, and no check that does not exist."""

import re
from pathlib import Path

from test_audit_folder import MUTANTS
from test_audit_probe_mutants import CHEATS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/audit.md").read_text()
SOURCE = "\n".join(path.read_text() for path in (ROOT / "pgolf/audit").glob("*.py"))
FAMILIES = (
    "bytes", "c1", "c2", "c3", "c4", "clock", "e3", "files", "leak", "log", "readme", "score", "seeds", "size",
    "static", "submission", "tokenizer", "tokens",
)  # fmt: skip
NAME = rf"(?:{'|'.join(FAMILIES)})\.[a-z_]+"
MADE = set(re.findall(rf'"({NAME})"', SOURCE)) - {"readme.md", "submission.json"}
ROWS = re.findall(r"(?m)^\| (?!violation|mistake|what).*$", PAGE.partition("## What is looked for, row by row")[2])


def test_the_page_and_the_program_name_the_same_checks() -> None:
    named = set(re.findall(rf"`({NAME})`", PAGE)) - {"submission.json"}
    assert named - MADE == set()
    assert MADE - named == set()


def test_every_row_has_a_check_that_some_mutant_tries() -> None:
    tried = {check for _, check, _ in MUTANTS.values()} | set(CHEATS)
    assert len(ROWS) > 45
    for row in ROWS:
        assert set(re.findall(rf"`({NAME})`", row)) & tried, row
