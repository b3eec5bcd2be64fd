"""The README of a submission: its parts, and every claim that a log can confirm."""

import math
import re

from pgolf.audit.folder import Folder
from pgolf.audit.relations import OWN
from pgolf.audit.verdict import Finding, first_few, judge

PARTS = {
    "a table by seed": r"(?mi)^\|.*\bseed",
    "commands": r"(?i)\b(?:torchrun|python3?) .*train_gpt|\btorchrun\b",
    "hardware": r"(?i)[HA][12]00|\b(?:GPU|CPU|hardware)\b",
    "compliance": r"(?i)complian|score[- ]first|\brules\b|issue #?1017",
    "packages": r"(?i)requirements|pip install|pytorch|torch \d",
}
"""What reviewers look for, and by which words."""
STATED = re.compile(r"\b(train_shards|val_tokens)\b[`*]{0,3} ?[:=|] ?[`*]{0,3}(\d[\d,_]{0,15})")
OVERRIDE = re.compile(r"\b([A-Z][A-Z0-9_]{3,40})=([^\s\\;\"'`$]{1,40})")


def check_readme(folder: Folder) -> list[Finding]:
    """Every check of the README; one finding where there is none."""
    if not folder.readme:
        return [judge("readme.parts", None, "there is no README", "the READMEs of accepted records have these parts")]
    return [_parts(folder), _data(folder), _commands(folder), _numbers(folder)]


def _parts(folder: Folder) -> Finding:
    missing = [name for name, pattern in PARTS.items() if not re.search(pattern, folder.readme)]
    text = f"no sign of {first_few(missing)}" if missing else f"{first_few(PARTS, len(PARTS))}"
    return judge("readme.parts", None if missing else True, text, "the READMEs of accepted records have these parts")


def _data(folder: Folder) -> Finding:
    """Shards and targets as stated, against the logs."""
    source = "PR 2130: canonical data in the README, `train_shards: 1499` in the log"
    stated: dict[str, set[int]] = {}
    for key, value in STATED.findall(folder.readme[:400_000]):
        stated.setdefault(key, set()).add(int(re.sub(r"[,_]", "", value)))
    wrong = []
    for key, values in stated.items():
        logged = {value for log in folder.runs if (value := getattr(log, key)) is not None}
        if logged and not logged & values:
            wrong.append(f"{key} {min(values):,}, the logs {min(logged):,}")
    if wrong:
        return judge("readme.data", False, f"the README says {first_few(wrong)}", source)
    text = f"{first_few(stated)} as in the logs" if stated else "it states no shards and no targets"
    return judge("readme.data", True, text, source)


def _commands(folder: Folder) -> Finding:
    """Settings in the commands, against the hyperparameters that the logs print."""
    source = "the dump equals the settings of the README"
    stated: dict[str, set[str]] = {}
    for key, value in OVERRIDE.findall(folder.readme[:400_000]):
        if "/" not in value and key.lower() not in OWN:
            stated.setdefault(key.lower(), set()).add(_plain(value))
    wrong, compared = [], 0
    for key, values in stated.items():
        logged = {_plain(v) for log in folder.runs if log.dumped and (v := log.hyperparameters.get(key)) is not None}
        compared += bool(logged)
        if logged and not logged & values:
            wrong.append(f"{key.upper()}={min(values)}, the logs {min(logged)}")
    if wrong:
        return judge("readme.command", None, f"the README sets {first_few(wrong)}: which command ran?", source)
    text = f"settings of its commands that are those of the logs: {compared}"
    return judge("readme.command", True, text, source)


def _plain(value: str) -> str:
    """One spelling of a value: `True`, `1` and `1.0` are the same switch."""
    value = {"true": "1", "false": "0"}.get(value.lower(), value)
    try:
        return repr(float(value))
    except ValueError:
        return value


def _numbers(folder: Folder) -> Finding:
    """Relation 10: a number of six decimals or more in a table of the README stands in a log or in the claims."""
    source = "PR 2071: claims that no log backed"
    tables = "\n".join(line for line in folder.readme.splitlines() if line.count("|") > 1)
    claimed = dict.fromkeys(re.findall(r"(?<![\d.])\d\.\d{6,8}(?!\d)", tables[:200_000]))
    known = [value for log in folder.logs for r in log.results for value in (r.loss, r.bpb)]
    known += [v for v in (folder.submission or {}).values() if isinstance(v, int | float) and math.isfinite(v)]
    printed = {f"{value:.{digits}f}" for value in known if abs(value) < 1e6 for digits in (6, 7, 8)}
    alone = [text for text in claimed if text not in printed]
    if alone:
        return judge("readme.numbers", None, f"in no log: {first_few(alone)}; see whose they are", source)
    return judge("readme.numbers", True, f"{len(claimed)} full-precision numbers in tables, all in the logs", source)
