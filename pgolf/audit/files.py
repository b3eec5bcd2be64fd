"""What a submission folder holds: the files of the published format, checksums, and what its program needs."""

import ast
import re
import sys
from pathlib import PurePosixPath

from pgolf.audit.folder import TEXT_BYTES, Folder, read_text
from pgolf.audit.programs import Program, entry_of, reachable
from pgolf.audit.signs import strings
from pgolf.audit.tokenizer_file import check_tokenizers
from pgolf.audit.verdict import Finding, first_few, judge
from pgolf.submit.record import SUMS, changed_files

RULE = "submission folders: README, submission.json, train_gpt.py, one full log a seed"
SUMMED_BYTES = 256 << 20
"""Folders with more are not hashed."""
PACKAGES = frozenset(
    {
        "apex", "bitsandbytes", "brotli", "constriction", "datasets", "einops", "flash_attn", "flash_attn_interface",
        "huggingface_hub", "kernels", "liger_kernel", "numba", "numpy", "python_minifier", "safetensors", "scipy",
        "sentencepiece", "tiktoken", "tokenizers", "torch", "torchvision", "tqdm", "transformer_engine", "transformers",
        "triton", "xformers", "zstandard",
    }
)  # fmt: skip
"""Imports that need no line in requirements.txt to be known."""


def check_files(folder: Folder, texts: list[Program]) -> list[Finding]:
    """The files that a reviewer needs, and those that nobody should open."""
    present = {name: folder.named(name) for name in ("submission.json", "train_gpt.py")}
    missing = [name for name, found in present.items() if not found]
    missing += [] if folder.readme else ["README.md"]
    missing += [] if folder.logs else ["a log"]
    found = [
        judge("files.required", not missing, f"missing: {', '.join(missing)}" if missing else "all there", RULE),
        _requirements(folder),
        _self_contained(folder, texts),
        _closed(folder),
        *_sums(folder),
        *check_tokenizers(folder),
    ]
    submissions = len(folder.named("submission.json"))
    if submissions > 1:
        found.append(judge("files.one", False, f"{submissions} files submission.json: one folder each", "PR 1143"))
    return found


def _requirements(folder: Folder) -> Finding:
    there = bool(folder.named("requirements.txt"))
    text = "there" if there else "there is none: compare the imports of train_gpt.py with the README"
    return judge("files.requirements", there or None, text, "official README: list packages in requirements.txt")


def _closed(folder: Folder) -> Finding:
    """Links, archives, pickles: named, not followed, not opened."""
    odd = [] if folder.complete else ["more entries than were listed"]
    odd += [f"{entry.path} ({entry.kind})" for entry in folder.entries if entry.kind != "file"]
    odd += [f"{path} (not read)" for path in folder.unread]
    damaged = [log.name for log in folder.logs if log.damaged or log.cut or not log.whole]
    odd += [f"{name} (cut lines or damaged text)" for name in damaged]
    text = f"not opened or read in part: {first_few(odd, 8)}" if odd else "everything is plain text or data"
    return judge("files.closed", None if odd else True, text, "nothing of a submission is run, unpickled or followed")


def _self_contained(folder: Folder, texts: list[Program]) -> Finding:
    """Every import of the entry is in the folder, in requirements.txt, in the standard library, or well known."""
    source = "PR 545, PR 1864: a program that breaks in its folder"
    entry = entry_of(texts)
    if entry is None:
        return judge("files.self_contained", None, "no train_gpt.py", source)
    known = {part.removesuffix(".py") for e in folder.entries for part in PurePosixPath(e.path).parts}
    required = [read_text(folder.root, e, TEXT_BYTES) for e in folder.named("requirements.txt") if e.kind == "file"]
    listed = re.findall(r"(?m)^(?:# optional: )?([A-Za-z0-9][\w.-]*)", "\n".join(required))
    known |= {name.lower().replace("-", "_") for name in listed} | PACKAGES | sys.stdlib_module_names
    missing: dict[str, str] = {}
    for part in reachable(texts, entry):
        if any(inner.unpacked_from == part.path for inner in texts):  # it writes what it unpacks to a file of its own
            known |= {text.removesuffix(".py") for n in part.nodes for text in strings(n) if text.endswith(".py")}
        for node in part.nodes:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in (name.partition(".")[0] for name in names):
                if name not in known and name.lower() not in known:
                    missing.setdefault(name, f"{name} ({part.path}:{node.lineno})")  # type: ignore[attr-defined]
    if missing:
        return judge("files.self_contained", None, f"nothing here provides {first_few(missing.values())}", source)
    return judge("files.self_contained", True, "every import is in the folder or named as a package", source)


def _sums(folder: Folder) -> list[Finding]:
    """The checksums that `pgolf record` writes."""
    source = "SHA256SUMS: every file but itself"
    if not any(entry.path == SUMS and entry.kind == "file" for entry in folder.entries):
        named = SUMS in folder.readme
        return [judge("files.sums", False, f"the README names {SUMS}, which is not there", source)] if named else []
    size = sum(entry.size for entry in folder.entries)
    if size > SUMMED_BYTES or not folder.complete:
        return [judge("files.sums", None, f"{size:,} bytes: too much to hash, run `sha256sum -c {SUMS}`", source)]
    changed = changed_files(folder.root)
    text = f"changed, missing or added: {first_few(changed)}" if changed else f"{len(folder.entries) - 1} files agree"
    return [judge("files.sums", not changed, text, source)]
