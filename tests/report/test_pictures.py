"""What every picture must have: axes with names, text inside the picture, no text over another."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from pgolf.report import plots, scores, sizes, training, weights
from pgolf.report.breakdown import CLASSES, Gain, Part
from pgolf.report.front import Point, sweep_front

RANDOM = np.random.default_rng(0)
NAMES = ["…periments/record-1855-seed-7", "another/folder/of-the-same-run"]
SECONDS = np.cumsum(RANDOM.random(40) * 30)
STREAMS = {"tok_emb": 4_300_123, "mlp.fc": 5_812_345, "mlp.proj": 5_711_223, "attn.c_q": 1_300_000, "scales": 9_000}
KINDS = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")


def runs(count: int, make):
    return {label: make(index) for index, label in enumerate(plots.labels(NAMES[:count]))}


def over_time(*shape: int) -> training.OverTime:
    return training.OverTime(SECONDS, RANDOM.random((len(SECONDS), *shape)) + 0.01)


def parts(names) -> list[Part]:
    return [Part(name, 900.0 + 37 * index, 500, 250) for index, name in enumerate(names)]


def gain(index: int) -> Gain:
    targets = np.arange(1, 41) * 1_000_000
    return Gain(targets, RANDOM.random(40) / 100, RANDOM.random(40) / 50, targets / 1e5, RANDOM.random(40) / 100)


def state(layers: int) -> dict[str, torch.Tensor]:
    return {f"blocks.{layer}.{kind}.weight": torch.randn(16, 16) for layer in range(layers) for kind in KINDS}


LENGTHS = [f"{1 << k}–{2 << k}" for k in range(10)] + ["1k–2k", "2k–4k", "64k–128k"]
PICTURES = {
    "loss": lambda n: training.loss_curves(
        runs(n, lambda i: training.Curve(SECONDS, 9 - np.log(SECONDS + 1), np.ones(40), 200.0 + 90 * i))
    ),
    "gradients": lambda n: training.gradient_norms(runs(n, lambda i: over_time(11 - i))),
    "heads": lambda n: training.heads_over_time(runs(n, lambda i: over_time(11, 8)), "query gain", "Query gains"),
    "one head": lambda n: training.heads_over_time(runs(n, lambda i: over_time(1, 1)), "query gain", "Query gains"),
    "skips": lambda n: training.lines_over_time(runs(n, lambda i: over_time(8)), "skip", "mean gate", "Skips"),
    "smear": lambda n: training.lines_over_time(runs(n, lambda i: over_time(1)), "smear", "share of a token", "Smear"),
    "weights": lambda n: weights.weight_distributions(runs(n, lambda i: weights.histograms(state(11), 1.0))),
    "errors": lambda n: weights.quantization_errors(
        runs(n, lambda i: {**dict.fromkeys(state(11), 1e-3 + i), "tok_emb.weight": 1e-4, "bigram.table.weight": 1e-2})
    ),
    "bytes": lambda n: sizes.bytes_by_stream(runs(n, lambda i: STREAMS)),
    "sources": lambda n: scores.bpb_by_source(runs(n, lambda i: parts(["a source of documents", "b", "c"]))),
    "classes": lambda n: scores.bpb_by_class(runs(n, lambda i: parts(CLASSES))),
    "sizes": lambda n: scores.bpb_by_size(runs(n, lambda i: parts(LENGTHS)), runs(n, lambda i: parts(LENGTHS))),
    "gain": lambda n: scores.ttt_gains(runs(n, gain)),
    "gain by position": lambda n: scores.ttt_gains_by_position(
        runs(n, lambda i: [(name, 0.001 * k) for k, name in enumerate(LENGTHS)])
    ),
    "agreement": lambda n: training.agreement(
        dict.fromkeys(["configured", "bfloat16", "eager", "seed 43", "seed 44"], 9 - np.log(SECONDS + 1)),
        {"bfloat16": [1e-4, 2e-5], "eager": [2e-4, 3e-5]},
        [0.1, 0.02],
        20,
    ),
    "sweep": lambda n: sweep_front([Point(str(k), 1.5e7 + 2e5 * k, 1.2 - 0.01 * k) for k in range(6 * n)], 16_000_000),
}


def shown_texts(figure: Figure) -> list[Text]:
    """Every text that can be seen."""
    FigureCanvasAgg(figure).draw()
    hidden = {
        id(label)
        for axes in figure.axes
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for label in (tick.label1, tick.label2)
        if not min(limits) <= tick.get_loc() <= max(limits)
    }
    texts = [text for text in figure.findobj(Text) if text.get_visible() and id(text) not in hidden]
    return [text for text in texts if text.get_text().strip() and text.get_window_extent().width > 0]


def overlaps(texts: list[Text]) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent(), text.get_rotation()) for text in texts]
    return [
        (a, b)
        for (a, first, turned), (b, second, other) in itertools.combinations(boxes, 2)
        if not (turned % 90 and other % 90)  # slanted labels stand beside each other although their boxes touch
        and first.x0 < second.x1 and second.x0 < first.x1 and first.y0 < second.y1 and second.y0 < first.y1
    ]  # fmt: skip


def named(axes: Axes) -> bool:
    """Whether both directions say what they are: by a label, or by words at the ticks."""

    def says(axis, shared) -> bool:
        words = [tick.get_text() for tick in axis.get_ticklabels()]
        return bool(axis.get_label_text()) or shared or any(any(c.isalpha() for c in word) for word in words)

    x_shared = not axes.get_subplotspec().is_last_row() or bool(axes.figure.get_supxlabel())
    y_shared = not axes.get_subplotspec().is_first_col() or bool(axes.figure.get_supylabel())
    return says(axes.xaxis, x_shared) and says(axes.yaxis, y_shared)


@pytest.mark.parametrize(
    ("name", "count"), [*((name, 2) for name in PICTURES), *((name, 1) for name in ("loss", "heads", "sizes", "gain"))]
)
def test_text_is_inside_readable_and_never_over_other_text(name: str, count: int) -> None:
    figure = PICTURES[name](count)
    texts = shown_texts(figure)
    assert len(texts) > 5
    assert overlaps(texts) == []
    outside = [t.get_text() for t in texts if not _inside(t.get_window_extent(), figure.bbox)]
    assert outside == []
    assert min(text.get_fontsize() for text in texts) >= 6.9, "an exponent is the smallest text"
    assert figure.get_size_inches()[0] == plots.WIDTH
    assert tuple(figure.get_facecolor()[:3]) == (1, 1, 1)
    for axes in figure.axes:
        if axes.get_subplotspec() is not None:
            assert named(axes)
    if count == 2 and name not in ("sweep", "agreement"):
        words = " ".join(text.get_text() for text in texts)
        assert all(run in words for run in NAMES)


def _inside(box, page) -> bool:
    return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.width + 1 and box.y1 <= page.height + 1


def test_the_check_sees_overlap() -> None:
    figure, (axes,) = plots.figure(2.0)
    axes.text(0.5, 0.5, "one")
    axes.text(0.5, 0.5, "two")
    assert ("one", "two") in overlaps(shown_texts(figure))


def test_files_are_stable_and_of_their_kind(tmp_path) -> None:
    for ending, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        first, second = (PICTURES["sweep"](1) for _ in range(2))
        plots.save(first, tmp_path / f"a.{ending}")
        assert (tmp_path / f"a.{ending}").read_bytes().startswith(start)
        assert plots.render(second, ending) == (tmp_path / f"a.{ending}").read_bytes()


def test_two_runs_differ_without_colours() -> None:
    first, second = plots.labels(["a", "b"])
    assert first.color != second.color
    assert first.line != second.line
    assert first.hatch != second.hatch


def test_groups_add_up_to_the_streams() -> None:
    metrics = {"bytes_model": 100, "bytes_attn.c_q": 20, "bytes_mlp.fc": 30, "bytes_tok_emb": 40, "bytes_header": 10,
               "bits_per_weight": 4.0}  # fmt: skip
    found = sizes.streams(metrics)
    assert sum(found.values()) == metrics["bytes_model"]
    assert sizes.groups(found) == {"attention": 20, "MLP": 30, "embedding": 40, "scales and the rest": 10}


def test_histograms_are_densities_in_the_unit() -> None:
    found = state(2)
    scale = weights.unit(found)
    flat = torch.cat([tensor.flatten() for tensor in found.values()])
    assert scale == pytest.approx(float(flat.square().mean().sqrt()), rel=1e-5)
    layers = weights.histograms(found, scale)
    assert {part: len(each) for part, each in layers.items()} == {"attention": 2, "MLP": 2}
    width = weights.BINS[1] - weights.BINS[0]
    for layer in itertools.chain(*layers.values()):
        assert layer.density.sum() * width == pytest.approx(1, abs=0.01)
