"""One self-contained page about a run, or two side by side: no script, no font, no picture from elsewhere."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from pgolf.config import canonical
from pgolf.errors import InputError
from pgolf.report import heatmap
from pgolf.report.breakdown import document_bpb
from pgolf.report.compare import differing
from pgolf.report.comparison_text import cell
from pgolf.report.front import Point, pareto_front, sweep_front
from pgolf.report.material import Material
from pgolf.report.pictures import Missing, draw_all
from pgolf.report.plots import inline_svg, labels

HEADLINE = (
    ("bits per byte of the artifact", "evaluate", "val_bpb", "{:.4f}"),
    ("nats per token", "evaluate", "val_loss", "{:.4f}"),
    ("bits per byte, plain windows", "evaluate", "quantized_bpb", "{:.4f}"),
    ("bits per byte before quantization", "score", "prequant_bpb", "{:.4f}"),
    ("gain of test-time training and cache", "evaluate", "ttt_gain_bpb", "{:.4f}"),
    ("bytes: code", "verify-size", "bytes_code", "{:,}"),
    ("bytes: model", "verify-size", "bytes_model", "{:,}"),
    ("bytes: both", "verify-size", "bytes_total", "{:,}"),
    ("bytes left under the cap", "verify-size", "margin_bytes", "{:,}"),
    ("parameters", "train", "parameters", "{:,}"),
    ("training steps", "train", "steps", "{:,}"),
    ("training tokens", "train", "tokens", "{:,}"),
    ("seconds of training", "train", "train_seconds", "{:,.1f}"),
    ("seconds of evaluation", "evaluate", "eval_seconds", "{:,.1f}"),
    ("hardware", "train", "hardware", "{}"),
    ("trained on validation tokens, not valid for records", "train", "trained_on_validation", "{}"),
    ("size", "verify-size", "size_verdict", "{}"),
    ("every target scored once", "verify-size", "scored_once_verdict", "{}"),
    ("training clock", "verify-size", "training_clock_verdict", "{}"),
    ("evaluation clock", "verify-size", "evaluation_clock_verdict", "{}"),
)
"""Row of the first table, stage, metric, form."""

LEAD = (
    "What a run of pgolf leaves behind: a language model that was trained, quantized, packed into a file and scored on "
    "text that it had not seen. Bits per byte (BPB) are the bits that the model needs for that text over the text's "
    "bytes: fewer are better."
)
VERDICTS = (
    "The last rows are verdicts by the rules of the challenge. Its clocks are those of its own hardware: seconds on "
    "any other are not comparable."
)
TEXTS = (
    "Validation documents, every token coloured by its bits; point at one to read them. Tokens that the model expected "
    "are white. Unless documents were asked for, these are the easiest, the middle and the hardest of the longer half."
)

STYLE = """
:root{color-scheme:light}
body{background:#fff;color:#1a1a1a;font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
max-width:880px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem;margin-bottom:.2rem}h2{font-size:1.3rem;margin-top:2.4rem;border-bottom:1px solid #ddd}
h3{font-size:1rem;margin-bottom:.3rem}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .8rem;border-bottom:1px solid #e4e4e4;text-align:left}
th:not(:first-child){text-align:right}
td.n{text-align:right;font-variant-numeric:tabular-nums}thead th{border-bottom:2px solid #888}
figure{margin:1.4rem 0}figure svg{width:100%;height:auto;display:block}figcaption,.note{color:#555;font-size:.9rem}
figcaption{margin-top:.5rem}
.tokens{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;font-size:.95rem}.tokens span{border-radius:2px}
.scale span{padding:.1rem .45rem;border:1px solid #ddd}.beside{display:grid;grid-template-columns:1fr 1fr;gap:1.5rem}
nav a{margin-right:1rem}.scroll{overflow-x:auto}li{margin:.2rem 0}
"""


def page(materials: Mapping[str, Material], documents: Sequence[int] = (), sweep: Sequence[str] = ()) -> str:
    """The whole page of runs by name; `documents` to show as text (default: three), `sweep`: blocks about one."""
    runs = dict(zip(labels(list(materials)), materials.values(), strict=True))
    texts = _texts(materials, documents)  # first: a document that is not there is said before anything is drawn
    sections: dict[str, list[str]] = {"Result": [_headline(materials), *_differences(materials)]}
    missing = []
    for drawn in draw_all(runs):
        if isinstance(drawn, Missing):
            missing.append(drawn)
        else:
            picture, figure = drawn
            sections.setdefault(picture.section, []).append(_figure(picture.name, picture.caption, figure))
    if sweep:
        sections["Sweep"] = list(sweep)
    sections["Text"] = texts
    sections["Parameters"] = [_parameters(materials)]
    if missing:
        sections["Not shown"] = [_reasons(missing)]
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "".join(f'<h2 id="{_anchor(name)}">{name}</h2>{"".join(blocks)}' for name, blocks in sections.items())
    heading = _escape(" beside ".join(materials))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>pgolf: {heading}</title><style>{STYLE}{heatmap.styles()}</style></head>"
        f"<body><h1>{heading}</h1><p>{LEAD}</p><nav>{links}</nav>{body}</body></html>\n"
    )


def _headline(runs: Mapping[str, Material]) -> str:
    rows = []
    for label, stage, key, form in HEADLINE:
        values = [run.run.metrics.get(stage, {}).get(key) for run in runs.values()]
        if key == "ttt_gain_bpb":  # 0 where there is none: nothing to read
            found = [run.run.params for run in runs.values()]
            trained = [p.get("evaluate.ttt") != "none" or p.get("evaluate.cache.sharpness", 0) > 0 for p in found]
            values = [value if ttt else None for value, ttt in zip(values, trained, strict=True)]
        if any(value is not None for value in values):
            rows.append([label, *("-" if v is None else v if isinstance(v, str) else form.format(v) for v in values)])
    judged = any("verify-size" in run.run.metrics for run in runs.values())
    return _table(["", *runs], rows) + (f"<p class=note>{VERDICTS}</p>" if judged else "")


def _reasons(missing: Sequence[Missing]) -> str:
    """Why pictures could not be drawn, each reason once."""
    pictures: dict[str, list[str]] = {}
    for each in missing:
        pictures.setdefault(each.reason, []).append(each.picture.name)
    items = [f"<li>{_escape(', '.join(names))}: {_escape(reason)}</li>" for reason, names in pictures.items()]
    return f"<ul>{''.join(items)}</ul>"


def _differences(runs: Mapping[str, Material]) -> list[str]:
    """Parameters that two runs do not share."""
    if len(runs) < 2:
        return []
    rows = differing([run.run for run in runs.values()], lambda run: run.params)
    shown = [[key, *map(cell, values)] for key, values in rows]
    return ["<h3>Parameters that differ</h3>", _table(["parameter", *runs], shown) if shown else "<p>None.</p>"]


def sweep_blocks(points: Sequence[Point], cap: int) -> list[str]:
    """The Pareto front of a sweep as a picture, and its rows as a table."""
    caption = "Rows that no other row beats in both bytes and score are numbered by size."
    rows = [
        [f"{number}: {point.label}", f"{point.bytes:,.0f}", f"{point.bpb:.4f}"]
        for number, point in enumerate(pareto_front(points), 1)
    ]
    return [_figure("sweep-front", caption, sweep_front(points, cap)), _table(["row", "bytes", "bits per byte"], rows)]


def _figure(name: str, caption: str, figure: Figure) -> str:
    drawn = inline_svg(figure, name, name.replace("-", " "))
    return f'<figure id="{name}">{drawn}<figcaption>{_escape(caption)}</figcaption></figure>'


def _texts(runs: Mapping[str, Material], documents: Sequence[int]) -> list[str]:
    """The heat maps: the same documents of both runs side by side where both scored the same documents."""
    blocks, chosen = [f"<p class=note>{TEXTS}</p>", heatmap.scale()], list(documents)
    for_each: list[dict[int, str]] = []
    for name, run in runs.items():
        try:
            scores = document_bpb(run.scored)
            if not chosen:
                chosen = heatmap.choose(run.scored)
            if wrong := [number for number in chosen if not 0 <= number < len(scores)]:
                raise InputError(f"document {wrong[0]} is not there: `{name}` scored documents 0 to {len(scores) - 1}")
            for_each.append(
                {
                    number: f"<div><h3>Document {number} in {_escape(name)}: {scores[number]:.3f} bits per byte</h3>"
                    f"{heatmap.document(run.scored, run.processor, number)}</div>"
                    for number in chosen
                }
            )
        except InputError as error:
            if documents:
                raise
            blocks.append(f"<p>{_escape(str(error))}</p>")
    beside = "beside" if len(for_each) > 1 else ""
    for number in chosen:
        blocks.append(f"<div class='{beside}'>{''.join(texts[number] for texts in for_each)}</div>")
    return blocks


def _parameters(runs: Mapping[str, Material]) -> str:
    """Every parameter of every run, folded away."""
    keys = dict.fromkeys(key for run in runs.values() for key in run.run.params)
    rows = [[key, *(canonical(run.run.params.get(key)) for run in runs.values())] for key in keys]
    return f"<details><summary>All {len(rows)} parameters</summary>{_table(['parameter', *runs], rows)}</details>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><td>{_escape(row[0])}</td>{''.join(f'<td class=n>{_escape(value)}</td>' for value in row[1:])}</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _anchor(name: str) -> str:
    return f"about-{name.lower().replace(' ', '-')}"
