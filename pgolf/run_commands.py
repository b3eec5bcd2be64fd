"""The commands of `pgolf` about finished runs: `compare`, `record`, `keep` and `restore`."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgolf.console import console, progress, table
from pgolf.errors import InputError

if TYPE_CHECKING:
    from pgolf.keep import Kept
    from pgolf.runs import Run


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Folders, revisions, DVC experiments, `workspace`, submission folders, PR1855; the first is the base."
        ),
    ],
    margin: Annotated[float | None, typer.Option(help="Nats per token to win by (default: the rule).")] = None,
    p_value: Annotated[float | None, typer.Option(help="Largest p of a record (default: the rule).")] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap draws over documents.", min=100)] = 2000,
) -> None:
    """Compare configurations with their seeds under the record rule, every number in full precision."""
    from pgolf.report.compare import against, find_runs, grouped
    from pgolf.report.comparison_text import comparison_text
    from pgolf.rules import load_rules

    others = _experiments(runs)
    groups, rules = grouped(find_runs(runs)), load_rules()
    results = [
        against(groups[0], group, rules, margin=margin, p_value=p_value, resamples=resamples) for group in groups[1:]
    ]
    typer.echo(comparison_text(groups, results, rules, others), nl=False)


def record(
    out: Annotated[Path, typer.Argument(help="New folder for the submission.")],
    runs: Annotated[list[str], typer.Argument(help="Runs as in `compare`, one per seed.")],
    author: Annotated[str, typer.Option(help="Your name.")],
    github_id: Annotated[str, typer.Option(help="Your GitHub account.")],
    name: Annotated[str, typer.Option(help="Title.")],
    blurb: Annotated[str, typer.Option(help="What is new, in one paragraph.")],
    date: Annotated[str, typer.Option(help="ISO date (default: today).")] = "",
    track: Annotated[str, typer.Option(help="Track of the challenge.")] = "track_non_record_16mb",
    baseline: Annotated[str, typer.Option(help="Published record to compare with.")] = "PR1855",
    also: Annotated[
        list[str] | None, typer.Option(help="Another run that was made, for disclosure; DVC experiments are found.")
    ] = None,
) -> None:
    """Write a submission folder: README, claims, logs, code, tokenizer and artifacts, all from finished runs."""
    from pgolf.rules import load_rules
    from pgolf.runs import load_run
    from pgolf.submit import leaderboard
    from pgolf.submit.claims import About
    from pgolf.submit.record import record as write

    about = About(
        author=author, github_id=github_id, name=name, blurb=blurb, track=track,
        date=date or datetime.datetime.now(datetime.UTC).date().isoformat(),
    )  # fmt: skip
    base, rules = leaderboard.record(baseline), load_rules()
    named = list(dict.fromkeys(also or []))
    made = [*map(load_run, named), *_experiments(named)]
    fields = write(out, [load_run(run) for run in runs], about, base, rules, also=made)
    keys = ("val_bpb", "val_bpb_std", "val_loss", "bytes_total", "significance")
    table(str(out), ("", "value"), [(key, fields[key]) for key in keys])


def _experiments(without: list[str]) -> "list[Run]":
    """The DVC experiments but these; one that cannot be read is named and left out."""
    from pgolf.runs import experiments, load_run

    found = []
    for name in experiments():
        try:
            found += [load_run(name)] if name not in without else []
        except InputError as error:
            console.print(f"left out: {error}", soft_wrap=True, markup=False)
    return found


RemoteOption = Annotated[str | None, typer.Option(help="DVC remote of the artifacts (default: the project's).")]
PublishOption = Annotated[str | None, typer.Option(help="Git remote of the tags (default: origin, if there is one).")]


def keep(
    name: Annotated[str, typer.Argument(help="What to call the result.")],
    remote: RemoteOption = None,
    publish: PublishOption = None,
) -> None:
    """Store the committed run for good: a git tag with its log, and its artifacts in a DVC remote."""
    from pgolf.keep import keep as store

    with progress("keep"):
        done = store(name, remote, publish)
    table(f"kept as {done.tag.removeprefix('refs/tags/')}", ("", "value"), _rows(done))


def restore(
    name: Annotated[str | None, typer.Argument(help="A kept result; without it, the list.")] = None,
    remote: RemoteOption = None,
    publish: PublishOption = None,
    code: Annotated[bool, typer.Option("--code", help="Check out its whole commit, on no branch.")] = False,
) -> None:
    """Bring a kept result back: parameters, lock file, metrics and artifacts; the code only with --code."""
    from pgolf.keep import kept
    from pgolf.keep import restore as bring

    if name is None:
        table("kept", ("name",), [(each,) for each in kept(publish)])
        return
    with progress("restore"):
        done = bring(name, remote, publish, code=code)
    table(f"restored {name}", ("", "value"), _rows(done))


def _rows(done: "Kept") -> list[tuple[str, str]]:
    left_out = ", ".join(done.left_out) or "nothing"
    published = [("published to", done.published)] if done.published else []
    return [("commit", done.commit), *published, ("artifacts", str(len(done.artifacts))), ("log", done.log),
            ("not in the remote, `dvc repro` writes it again", left_out)]  # fmt: skip
