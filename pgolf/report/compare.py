"""Two or more configurations, each with its seeds, under the record rule.

Runs with equal parameters but for the seed are one group; the first group is the base, each other one a candidate.
Nats per token compare only on an identical token stream. Where tokenizers differ, a loss goes through the bytes of the
text, which no tokenizer changes: nats per token of the base's stream = BPB ln 2 / rho, with rho = its tokens per byte.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf import artifacts, paths
from pgolf.config import canonical
from pgolf.data.shards import BOS, read_shard
from pgolf.errors import InputError
from pgolf.rules import Rules
from pgolf.runs import MANIFEST, Run, load_run, same_score
from pgolf.submit.leaderboard import RECORDS, Published
from pgolf.submit.significance import Bootstrap, Welch, paired_bootstrap, shifted_welch

SAME_RHO, SAME_TEXT = 1e-6, 1e-3
"""Relative differences: a stream's tokens per byte beyond rounding; the bytes that two ways to count charge to one text
(LUT and sidecar differ by 4e-5, an operator counted as text by 9e-2)."""

STREAM = ("scored_tokens", "scored_bytes")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Runs of one configuration."""

    name: str
    runs: tuple[Run, ...]

    @property
    def scored(self) -> tuple[Run, ...]:
        """The runs that finished."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def rho(self) -> float:
        """Tokens per byte of the stream that its runs scored: BPB ln 2 / loss."""
        return _one_stream(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """A candidate against the base."""

    base: Group
    candidate: Group
    converted: bool
    """Whether the candidate's nats went through bytes."""
    losses: tuple[tuple[float, ...], tuple[float, ...]]
    """Base's and candidate's nats per token of the base's stream, one per seed."""
    per_token: Welch | None
    """None where there are too few runs, or none varies."""
    per_byte: Welch | None
    """The rule's margin read as nats per byte of text, which is the stricter reading."""
    problem: str
    """Why there is no test; empty where there is one."""
    bootstraps: tuple[tuple[str, Bootstrap], ...]
    """Names of two runs with saved losses, and what the resampled documents say."""
    verdict: str

    @property
    def gain(self) -> float:
        """Mean nats per token by which the candidate is better."""
        base, candidate = self.losses
        return math.fsum(base) / len(base) - math.fsum(candidate) / len(candidate)


def find_runs(names: Sequence[str], root: Path = Path()) -> list[Run]:
    """Runs by name: a published record, a submission folder, or what `load_run` knows."""
    found: list[Run] = []
    for name in names:
        if name in RECORDS:
            found += published_runs(name, RECORDS[name])
        elif (claims := Path(name) / "submission.json").is_file():
            found += _claimed_runs(name, artifacts.read_json(claims, "record"))
        else:
            found.append(load_run(name, root))
    return found


def published_runs(name: str, record: Published) -> list[Run]:
    """A record's table as runs, so that it can be the base of a comparison."""
    losses = record.losses()
    return [
        Run(
            name=f"{name} seed {seed}",
            params={"published": name, "train.seed": seed},
            metrics={
                "evaluate": {
                    "val_bpb": bpb,
                    "val_loss": losses[seed],
                    "scored_tokens": record.scored_tokens,
                    "scored_bytes": record.scored_bytes,
                },
                "verify-size": {"bytes_total": record.artifact_bytes[seed]},
            },
            files={},
        )
        for seed, bpb in record.bpb.items()
    ]


def _claimed_runs(name: str, claims: Mapping[str, Any]) -> list[Run]:
    """What submission.json claims per seed, unchecked: `pgolf audit` checks it."""
    rows = claims.get("seed_results")
    if not isinstance(rows, Mapping) or not rows:
        raise InputError(f"{name}/submission.json has no `seed_results`: there is no run to compare")
    return [
        Run(
            name=f"{name} seed {seed}",
            params={"published": name, "train.seed": int(seed)},
            metrics={
                "evaluate": {k: row[k] for k in ("val_loss", "val_bpb", *STREAM) if k in row},
                "verify-size": {"bytes_total": row.get("artifact_bytes")},
            },
            files={},
        )
        for seed, row in rows.items()
    ]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs by parameters but for the seed, in order; a seed that is there already belongs to another version."""
    groups: list[tuple[str, list[Run]]] = []
    for run in runs:
        shared = {key: value for key, value in run.params.items() if key != "train.seed"}
        key = canonical(shared) if shared else run.name
        home = next((g for k, g in groups if k == key and run.seed not in [other.seed for other in g]), None)
        if home is None:
            groups.append((key, [run]))
        else:
            home.append(run)
    return [Group(name=group[0].name, runs=tuple(group)) for _, group in groups]


def against(
    base: Group, candidate: Group, rules: Rules, *, margin: float | None = None, p_value: float | None = None,
    resamples: int = 2000,
) -> Against:  # fmt: skip
    """Compare two groups; `margin` (nats per token) and `p_value` replace those of the rules.

    InputError where a group has no finished run, mixes streams, or scored another text.
    """
    bar = rules.record_margin.value if margin is None else margin
    level = rules.record_p_value.value if p_value is None else p_value
    for group in (base, candidate):
        if not group.scored:
            raise InputError(f"no run of `{group.name}` was scored: nothing to compare")
    converted = not same_stream(base, candidate)
    rho = base.rho
    ours = tuple(run.value("evaluate", "val_loss") for run in base.scored)
    theirs = tuple(_loss_on(run, rho if converted else None) for run in candidate.scored)
    per_token = per_byte = None
    problem = ""
    try:
        per_token = shifted_welch(theirs, ours, bar)
        per_byte = shifted_welch(theirs, ours, bar / rho)
    except InputError as error:
        problem = str(error)
    found = Against(
        base=base, candidate=candidate, converted=converted, losses=(ours, theirs), per_token=per_token,
        per_byte=per_byte, problem=problem, verdict="",
        bootstraps=() if converted else tuple(_bootstraps(base, candidate, resamples)),
    )  # fmt: skip
    return replace(found, verdict=_verdict(found, bar, level, rules.record_seeds.value))


def same_stream(base: Group, candidate: Group) -> bool:
    """Whether both scored the same tokens; InputError where they did not even score the same text."""
    if abs(candidate.rho / base.rho - 1) <= SAME_RHO and _agree("scored_tokens", base, candidate):
        files = [{artifacts.sha256(path) for run in g.runs if (path := run.files.get(paths.TOKENIZER))}
                 for g in (base, candidate)]  # fmt: skip
        if not all(files) or files[0] == files[1]:
            return True
    sizes = [_known(group, "scored_bytes") for group in (base, candidate)]
    if all(sizes) and abs(sizes[1] / sizes[0] - 1) > SAME_TEXT:
        raise InputError(
            f"`{base.name}` was scored on {sizes[0]:,} bytes of text and `{candidate.name}` on {sizes[1]:,}: these are "
            "different texts, or one counts wrong bytes; evaluate both on the same validation documents"
        )
    return False


def differing(runs: Sequence[Run], values: Callable[[Run], Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Keys whose value is not the same in all runs, with the value of each (None where it has none)."""
    tables = [values(run) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, [table.get(key) for table in tables]) for key in keys]
    return [(key, row) for key, row in rows if any(value != row[0] for value in row)]


def _one_stream(group: Group) -> float:
    values = [
        run.value("evaluate", "val_bpb") * math.log(2) / run.value("evaluate", "val_loss") for run in group.scored
    ]
    if max(values) / min(values) - 1 > SAME_RHO:
        raise InputError(f"the runs of `{group.name}` scored different token streams ({values} tokens per byte)")
    return float(values[0])


def _known(group: Group, key: str) -> Any:
    return next((value for run in group.scored if (value := run.metrics["evaluate"].get(key))), None)


def _agree(key: str, base: Group, candidate: Group) -> bool:
    values = {value for group in (base, candidate) if (value := _known(group, key)) is not None}
    return len(values) <= 1


def _loss_on(run: Run, rho: float | None) -> float:
    """Nats per token: as measured, or of a stream with `rho` tokens per byte."""
    if rho is None:
        return float(run.value("evaluate", "val_loss"))
    return float(run.value("evaluate", "val_bpb")) * math.log(2) / rho


def _bootstraps(base: Group, candidate: Group, resamples: int) -> list[tuple[str, Bootstrap]]:
    """Runs with equal seed; where the groups share none, the first of each."""
    usable = [[run for run in g.scored if paths.LOSSES in run.files] for g in (base, candidate)]
    pairs = [(a, b) for a in usable[0] for b in usable[1] if a.seed == b.seed]
    if not pairs and all(usable):
        pairs = [(usable[0][0], usable[1][0])]
    found = []
    for a, b in pairs:
        ours, starts = _saved_losses(a)
        theirs, same = _saved_losses(b)
        if starts is None or same is None or not np.array_equal(starts, same):
            continue
        found.append((f"{b.name} against {a.name}", paired_bootstrap(theirs, ours, starts, resamples=resamples)))
    return found


def _saved_losses(run: Run) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Losses of all targets, and the first target of each document where the score and the tokens are those of them."""
    tensors, meta = artifacts.load(run.files[paths.LOSSES], schema="pgolf.losses", made_by="evaluate")
    losses: NDArray[np.float32] = tensors["losses"].numpy()
    names = sorted(p for p in run.files if p.parent == paths.TOKENS and p.name.startswith("fineweb_val_0"))
    manifest = run.files.get(MANIFEST)
    belongs = manifest is not None and artifacts.sha256(manifest) == meta["inputs"]["manifest"]
    if not names or not belongs or not same_score(run, meta):
        return losses, None
    tokens = np.concatenate([read_shard(run.files[name]) for name in names])
    starts = np.flatnonzero(tokens == BOS) - 1  # target i is token i + 1
    return losses, np.union1d([0], starts[starts > 0])


def _verdict(found: Against, bar: float, level: float, seeds: int) -> str:
    name, base = found.candidate.name, found.base.name
    size = f"{abs(found.gain):.6f} nats per token {'better' if found.gain > 0 else 'worse'} than"
    text = f"`{name}` is {size if found.gain else 'exactly as good as'} `{base}`"
    if found.per_token is None:
        few = "; without a spread over seeds nobody knows whether a retraining would repeat it"
        return f"Cannot tell. {text}{few} ({found.problem})."
    p = found.per_token.p
    shown = f"p = {p:.3g} against a margin of {bar:g} nats"
    count = min(len(values) for values in found.losses)
    if p < level:
        short = "" if count >= seeds else f", but from {count} seeds where {seeds} are usual"
        return f"Passes the record rule{short}: {text}, {shown}, below {level:g}."
    plain = shifted_welch(found.losses[1], found.losses[0], 0.0).p
    if plain < level:
        return f"Better, but no record: {text}; it is really better (p = {plain:.3g} against 0), yet {shown}."
    if plain > 1 - level:
        return f"Worse: {text} (p = {1 - plain:.3g} against 0)."
    return f"Not distinguishable from the base with these seeds: {text}, p = {plain:.3g} against 0 and {shown}."
