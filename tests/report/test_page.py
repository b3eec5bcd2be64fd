"""The page: complete, well-formed, self-contained, true to the text; and what it says where something is missing."""

import html
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_run import SOURCES, TEXTS, make_run
from typer.testing import CliRunner

from pgolf import paths
from pgolf.cli import app
from pgolf.errors import InputError
from pgolf.report import heatmap
from pgolf.report.command import _short
from pgolf.report.material import Material
from pgolf.report.page import _headline
from pgolf.report.pictures import PICTURES
from pgolf.runs import load_run

VOID = {"meta", "link", "br"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two runs: `a` has gates and test-time training, `b` has neither."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "a")
    make_run(root / "b", seed=1, ttt=False, gates=False)
    return root


@pytest.fixture(scope="module")
def both(folder: Path) -> str:
    return written(folder, "a", "--beside", "b")


def material(folder: Path) -> Material:
    return Material(load_run(str(folder)), folder / "val.jsonl")


@pytest.fixture(scope="module")
def run(folder: Path) -> Material:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loaded = load_run("a")
        return Material(
            replace(loaded, files={k: v.absolute() for k, v in loaded.files.items()}), folder / "a/val.jsonl"
        )


def written(folder: Path, *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(app, ["report", *arguments, "--out", "page.html"])
    assert result.exit_code == 0, result.output
    return (folder / "page.html").read_text("utf-8")


class Walk(HTMLParser):
    """Checks that tags nest, and gathers what the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.references = [], [], []
        self.tags = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._note(attributes)

    def handle_startendtag(self, tag, attributes) -> None:
        self._note(attributes)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def _note(self, attributes) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src", "action", "data"):
                self.references.append(value)
            assert not name.startswith("on"), "a script in an attribute"


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(both: str) -> None:
    walk = Walk(both)
    assert "script" not in walk.tags
    assert len(walk.ids) == len(set(walk.ids)), "pictures use the same id"
    assert walk.references
    inner = [name for name in walk.references if not name.startswith("data:")]
    assert {name[0] for name in inner} == {"#"}
    assert {name.removeprefix("#") for name in inner} <= set(walk.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", both)) <= set(walk.ids)
    assert re.findall(r"url\((?!#)[^)]*\)|@import", both) == []


def test_it_has_every_picture_and_says_which_run_has_it_alone(both: str) -> None:
    figures = dict(re.findall(r'<figure id="([\w-]+)">.*?<figcaption>(.*?)</figcaption>', both, re.S))
    missing = {"mlp-gates"}  # neither run has such gates
    assert set(figures) == {picture.name for picture in PICTURES} - missing
    alone = {name for name, caption in figures.items() if "Only a has what it needs" in caption}
    assert alone == {"attention-gates", "token-gates", "smear", "ttt-gain", "ttt-gain-by-position"}
    (reason,) = re.findall(r"<li>(mlp-gates: .*?)</li>", both)
    assert "has no `mlp_gate` in its trace" in reason


def test_figures_and_differing_parameters_stand_side_by_side(both: str) -> None:
    rows = re.findall(r"<tr><td>(.*?)</td><td class=n>(.*?)</td><td class=n>(.*?)</td></tr>", both)
    table = {label: values for label, *values in rows}
    assert table["bits per byte of the artifact"] == ["2.2500", "2.2500"]
    assert table["parameters"] == ["1,000", "1,000"]
    assert table["train.seed"] == ["0", "1"]


def test_the_text_of_documents_is_readable_and_whole(run: Material) -> None:
    for number, text in enumerate(TEXTS[:4]):
        shown = heatmap.document(run.scored, run.processor, number)
        words = html.unescape(re.sub(r"<[^>]*>", "", shown)).replace("↵\n", "\n").replace("·", "")
        assert words == text.replace("\n", " ").strip()  # the tokenizer's normalisation has no line feeds
        bits = [float(value) for value in re.findall(r": ([\d.]+) bits\"", shown)]
        target = run.scored.documents == number
        target[np.flatnonzero(target)[0]] = not number  # its BOS, which only the first document does not have
        assert bits == pytest.approx(run.scored.bits[target], abs=0.005)


def test_long_documents_are_cut_and_say_so(run: Material, monkeypatch) -> None:
    monkeypatch.setattr(heatmap, "LONGEST", 10)
    shown = heatmap.document(run.scored, run.processor, 0)
    assert shown.count("<span") == 10
    assert re.search(r"… \d+ more tokens", shown)


def test_shades_follow_the_bits() -> None:
    assert [heatmap.shade(bits) for bits in (0, 0.9, 1.1, 8, 16, 99, float("nan"))] == [0, 0, 1, 4, 8, 8, 8]
    assert len(set(heatmap.SHADES)) == heatmap.STEPS == len(heatmap.SHADES)


def test_sources_come_from_the_documents(run: Material, tmp_path: Path) -> None:
    assert run.sources == SOURCES
    lines = (run.documents).read_text().splitlines()
    for text, message in (
        ("\n".join(lines[1:]), "does not hold the 6 documents that `a` scored"),
        ("\n".join([*lines, lines[0]]), "does not hold the 6 documents"),
        ("\n".join([*lines[1:], '{"text": "x"}']), "name no `source`"),
    ):
        (tmp_path / "val.jsonl").write_text(text)
        with pytest.raises(InputError, match=message):
            _ = Material(run.run, tmp_path / "val.jsonl").sources
    for path, message in ((tmp_path / "none.jsonl", "is missing"), (None, "not made from a file of documents")):
        with pytest.raises(InputError, match=message):
            _ = Material(run.run, path).sources


def test_the_clock_of_an_evaluation_comes_from_its_documents(run: Material, folder: Path, tmp_path: Path) -> None:
    count = len(run.scored.losses)
    assert run.clock.tolist() == [3.0] * (count - 5) + [5.0] * 5
    assert material(folder / "b").clock is None, "nobody noted it"
    shutil.copytree(folder / "a", tmp_path / "other")
    (tmp_path / "other" / paths.PACE).write_text('{"documents": {"targets": [7], "seconds": [1.0]}}')
    with pytest.raises(InputError, match="evaluate again"):
        _ = material(tmp_path / "other").clock


def test_losses_of_other_tokens_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a", tmp_path / "other")
    (tmp_path / "other" / paths.TOKENS / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="not those that were scored"):
        _ = material(tmp_path / "other").scored
    metrics = folder / "a" / paths.metrics("evaluate")
    (tmp_path / "other" / paths.metrics("evaluate")).write_text('{"artifact_sha256": "0", ' + metrics.read_text()[1:])
    with pytest.raises(InputError, match="not those of its score"):
        _ = material(tmp_path / "other").scored


@pytest.mark.parametrize(("arguments", "message"), [
    (["a", "--beside", "a"], "shows one run twice"),
    (["a", "--document", "99"], "document 99 is not there: `a` scored documents 0 to 5"),
    (["c"], "`c` is no folder, and git knows no revision"),
    (["a", "--sweep", "a/metrics/train.json"], "has no rows with bytes"),
])  # fmt: skip
def test_mistakes_end_in_one_message(folder: Path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, ["report", *arguments, "--out", "nothing.html"])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not Path("nothing.html").exists()


def test_a_run_with_only_metrics_still_has_a_page(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "a/metrics", tmp_path / "bare/metrics")
    page = written(tmp_path, "bare")
    assert '<figure id="bytes">' in page
    assert page.count("<figure") == 1
    told = [name for names in re.findall(r"<li>([\w, -]+): ", page) for name in names.split(", ")]
    assert sorted(told) == sorted(picture.name for picture in PICTURES if picture.name != "bytes")
    Walk(page)


def test_a_damaged_file_costs_only_its_pictures(folder: Path, tmp_path: Path, monkeypatch) -> None:
    cheap = [picture for picture in PICTURES if picture.name in ("loss", "weights")]
    monkeypatch.setattr("pgolf.report.pictures.PICTURES", cheap)
    shutil.copytree(folder / "a", tmp_path / "hurt")
    trace = tmp_path / "hurt" / paths.TRACE
    trace.write_bytes(trace.read_bytes()[:100])
    page = written(tmp_path, "hurt")
    assert '<figure id="weights">' in page
    assert '<figure id="loss">' not in page
    assert "trace.safetensors is damaged" in page


def test_names_in_legends_keep_their_ends() -> None:
    assert _short("workspace") == "workspace"
    assert _short("a/very/long/path/to/experiments/seed-7") == "…/path/to/experiments/seed-7"


def browser() -> str:
    """A Chromium, or a skip that says so."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no browser here: `apt-get install chromium` lets this test open the page")
    return found


def test_a_browser_opens_the_page_offline_without_a_word(folder: Path, both: str, tmp_path: Path) -> None:
    from matplotlib.image import imread

    command = browser()
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(both, "utf-8")
    done = subprocess.run(
        [command, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=960,3000", f"--screenshot={picture}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == []
    pixels = imread(picture)[:, :, :3]
    assert pixels.shape[:2] == (3000, 960)
    assert (pixels[0] == 1).all(), "the background is light"
    bands = [(pixels[top : top + 600] < 0.9).any(axis=2).mean() for top in range(0, 3000, 600)]
    assert min(bands) > 0.005, "a part of the page is empty"


def test_the_browser_test_sees_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><script>console.error('seen')</script>")
    done = subprocess.run(
        [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" in done.stderr


def test_the_gain_of_a_cache_alone_is_shown():
    def headline(**params):
        run = SimpleNamespace(metrics={"evaluate": {"ttt_gain_bpb": 0.0123}}, params=params)
        return _headline({"run": SimpleNamespace(run=run)})

    assert "0.0123" in headline(**{"evaluate.ttt": "none", "evaluate.cache.sharpness": 90.0})
    assert "0.0123" in headline(**{"evaluate.ttt": "lora", "evaluate.cache.sharpness": 0.0})
    assert "0.0123" not in headline(**{"evaluate.ttt": "none", "evaluate.cache.sharpness": 0.0})
    assert "0.0123" not in headline(**{"evaluate.ttt": "none"}), "a run of before there was one"
