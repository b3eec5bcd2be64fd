"""docs/README.md lists every document, and every document that anything links to exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def links(page: Path) -> set[Path]:
    return {(page.parent / target).resolve() for target in LINK.findall(page.read_text("utf-8"))}


def test_the_index_lists_every_document_once() -> None:
    index = ROOT / "docs/README.md"
    documents = {path.resolve() for path in (ROOT / "docs").glob("*.md")} - {index.resolve()}
    assert len(documents) > 4
    assert links(index) == documents
    rows = [line for line in index.read_text("utf-8").splitlines() if line.startswith("| [")]
    assert len(rows) == len(documents)
    assert all(len(row.split("|")[2].strip()) > 20 for row in rows), "a line says what the page is for"


def test_every_link_of_a_document_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    broken = [f"{page.name}: {target}" for page in pages for target in links(page) if not target.exists()]
    assert not broken
