"""How large a submission is: bytes of code and model from logs, claims and files against the cap."""

import ast
import base64
import lzma
import re
import warnings

import python_minifier

from pgolf.audit.folder import Folder
from pgolf.audit.programs import Program, bytes_of, called, entry_of, reachable
from pgolf.audit.verdict import Finding, first_few, judge
from pgolf.rules import Rules

MEBIBYTES = 16 * 1024 * 1024
MINIFIED_BYTES = 256 << 10
"""Longer programs are not minified: it takes seconds."""
MODEL = re.compile(r"(?i)(?:^|/)[^/]*model[^/]*\.(?:pgolf|ptz|br|zst|lzma|xz|zlib|bin|lrz)$")
"""Names of compressed models in submissions."""


def check_sizes(folder: Folder, programs: list[Program], rules: Rules) -> list[Finding]:
    """Bytes of code and model, recomputed from logs and files."""
    entry = entry_of(programs)
    found = [_cap(folder, rules), _sum(folder), *_model(folder), _units(folder, programs, rules)]
    if entry is not None:
        found += [_code(folder, entry, programs), _stub(folder, entry, programs, rules)]
    return found


def _claimed(folder: Folder) -> dict[str, float]:
    """Total bytes by where they stand."""
    sizes: dict[str, float] = {log.name: log.total_bytes for log in folder.runs if log.total_bytes is not None}
    for log in folder.runs:
        if log.model_bytes is not None and log.code_bytes is not None:
            sizes[f"{log.name}, code + model"] = log.model_bytes + log.code_bytes
    claims = folder.submission or {}
    for key in ("bytes_total", "artifact_bytes_max", "artifact_bytes_mean", "artifact_bytes"):
        if isinstance(value := claims.get(key), int | float):
            sizes[f"submission.json {key}"] = value
    per_seed = claims.get("seed_results")
    for seed, result in per_seed.items() if isinstance(per_seed, dict) else ():
        if isinstance(result, dict) and isinstance(value := result.get("artifact_bytes"), int | float):
            sizes[f"submission.json seed {seed[:20]}"] = value
    return sizes


def _cap(folder: Folder, rules: Rules) -> Finding:
    cap, sizes = rules.artifact.value, _claimed(folder)
    if not sizes:
        return judge("size.cap", None, "no log and no submission.json gives a size", rules.artifact.source)
    over = {place: size for place, size in sizes.items() if size > cap}
    where, largest = max((over or sizes).items(), key=lambda item: item[1])
    text = f"{largest:,.0f} bytes in {where}, {abs(cap - largest):,.0f} {'over' if over else 'under'} the cap"
    return judge("size.cap", not over, text, rules.artifact.source)


def _sum(folder: Folder) -> Finding:
    """Relation 2: total = model + code."""
    source = "log lines `Serialized model`, `Code size`, `Total submission size`"
    complete = [log for log in folder.runs if None not in (log.model_bytes, log.code_bytes, log.total_bytes)]
    if not complete:
        return judge("size.sum", None, "no log has all three size lines", source)
    wrong = [
        f"{log.name}: {log.model_bytes:,} + {log.code_bytes:,} is not {log.total_bytes:,}"
        for log in complete
        if log.model_bytes + log.code_bytes != log.total_bytes  # type: ignore[operator]
    ]
    return judge("size.sum", not wrong, first_few(wrong) or "model + code = total", source)


def _model(folder: Folder) -> list[Finding]:
    """Relation 3: a model in the folder has a size that a log gives."""
    models = {entry.path: entry.size for entry in folder.entries if MODEL.search(entry.path)}
    logged = {log.model_bytes for log in folder.runs if log.model_bytes is not None}
    if not models or not logged:
        return []
    wrong = [f"{path}: {size:,} bytes" for path, size in models.items() if size not in logged]
    text = f"{first_few(wrong)}; the logs give {first_few(f'{size:,}' for size in sorted(logged))}"
    text = text if wrong else f"{first_few(models)}: the size that a log gives"
    return [judge("size.model", not wrong, text, "the file is the one that was scored")]


def _units(folder: Folder, programs: list[Program], rules: Rules) -> Finding:
    """A cap of 16 MiB in place of 16 MB."""
    entry = entry_of(programs)
    texts = {p.path: p.text for p in (reachable(programs, entry) if entry else ())} | {"README.md": folder.readme}
    pattern = re.compile(r"\b16 ?MiB\b|\b16[_,]?777[_,]?216\b|\b16 \* 1024 ?(?:\*\* ?2|\* 1024)|\b1 << 24\b")
    places = [f"{path}:{text.count(chr(10), 0, m.start()) + 1}" for path, text in texts.items()
              if (m := pattern.search(text))]  # fmt: skip
    between = [f"{w}: {s:,.0f}" for w, s in _claimed(folder).items() if rules.artifact.value < s <= MEBIBYTES]
    if between:
        text = f"fits 16 MiB, not 16,000,000 bytes: {first_few(between)}"
        return judge("size.units", False, text, rules.artifact.source)
    text = f"16 MiB is named at {first_few(places)}" if places else "no size is given in MiB"
    return judge("size.units", None if places else True, text, rules.artifact.source)


def sizes_of(programs: list[Program]) -> tuple[int, int | None, int]:
    """Bytes of some programs: as they are, minified (None where that fails), and the smaller of both packed."""
    texts = [p.text for p in programs if p.unpacked_from is None]
    raw = b"".join(map(bytes_of, texts))
    small = None
    if len(raw) <= MINIFIED_BYTES:
        try:
            with warnings.catch_warnings(action="ignore"):
                small = "\n".join(python_minifier.minify(t, rename_locals=False) for t in texts).encode()
        except (SyntaxError, ValueError, RecursionError, MemoryError, python_minifier.UnstableMinification):
            small = None
    packed = base64.b85encode(lzma.compress(small or raw, format=lzma.FORMAT_ALONE, preset=6))
    return len(raw), None if small is None else len(small), min(len(packed) + 120, len(raw))


def _code(folder: Folder, entry: Program, programs: list[Program]) -> Finding:
    """Relation 3: the committed program is the one that the logs counted."""
    on_disk = next(e.size for e in folder.entries if e.path == entry.path)
    raw, minified, packed = sizes_of([entry])
    inside = {len(p.text.encode()) for p in programs if p.unpacked_from == entry.path}
    logged = {s for log in folder.runs for s in (log.code_raw_bytes, log.code_bytes) if s is not None}
    text = f"{entry.path}: {on_disk:,} bytes, minified {minified or 0:,}, packed about {packed:,}"
    if not logged:
        return judge("size.code", None, f"{text}; no log gives a code size", "issue 1594")
    right = bool(logged & ({on_disk, raw} | inside))
    text += f"; the logs counted {first_few(f'{size:,}' for size in sorted(logged))}"
    return judge("size.code", right, text, "issue 1594: the log was produced by other code than the committed")


def check_keys(folder: Folder, programs: list[Program]) -> Finding:
    """Issue 1594: hyperparameters that a log prints and the committed program does not know."""
    source = "issue 1594: PR 1493's log of seed 42 had keys of other code; the dump has the program's keys"
    entry = entry_of(programs)
    keys = {key for log in folder.runs if log.dumped for key in log.hyperparameters}
    if entry is None or not keys:
        return judge("log.keys", None if entry is None else True, "no program" if entry is None else "no dump", source)
    text = "\n".join(part.text for part in reachable(programs, entry)).lower()
    unknown = sorted(keys.difference(re.findall(r"\w+", text)))
    if 5 * len(unknown) <= len(keys):
        return judge("log.keys", not unknown, f"not in the program: {first_few(unknown)}" if unknown
                     else f"the program has all {len(keys)} keys of the dump", source)  # fmt: skip
    strange = [key for key in unknown if not all(part in text for part in key.split("_"))]  # names put together
    said = f"not in the program: {first_few(strange)}" if strange else "the dump's names are made of the program's"
    return judge("log.keys", None if strange else True, said, source)


def _stub(folder: Folder, entry: Program, programs: list[Program], rules: Rules) -> Finding:
    """Files beside the entry that it runs are code, whatever was counted (PR 1412)."""
    source = "PR 1412: a stub that runs another file; official README: code + compressed model"
    all_parts = reachable(programs, entry)
    others = sorted({p.path for p in all_parts} - {entry.path})
    runs = any(isinstance(n, ast.Call) and called(n) in ("exec", "run_path", "run_module", "execv", "Popen")
               for p in all_parts if p.path == entry.path for n in p.nodes)  # fmt: skip
    if not others:
        return judge("size.stub", True, f"{entry.path} runs no other file of the folder", source)
    raw, _, packed = sizes_of(all_parts)
    models = [log.model_bytes for log in folder.runs if log.model_bytes is not None]
    how = "runs" if runs else "imports"
    text = f"{entry.path} {how} {first_few(others)}: {raw:,} bytes of code in all, packed about {packed:,}"
    counted = max((log.code_bytes or 0 for log in folder.runs), default=0)
    if not models:
        return judge("size.stub", None, f"{text}; no log gives the model's bytes", source)
    if counted >= packed:
        return judge("size.stub", True, f"{text}; {counted:,} were counted", source)
    over = max(models) + packed - rules.artifact.value
    text += f"; with the model {'over' if over > 0 else 'under'} the cap by {abs(over):,}, {counted:,} were counted"
    return judge("size.stub", False if over > 0 else None, text, source)
