"""`pgolf audit`: the run in the working folder, one artifact, or a submission folder of somebody else."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import pgolf
from pgolf import artifacts, paths
from pgolf.audit import probes
from pgolf.audit.accounting import check_code, check_gates, check_overlap, check_score
from pgolf.audit.denominator import check_bytes, check_roundtrip
from pgolf.audit.foreign import audit_folder
from pgolf.audit.ours import CONTEXT, LENGTH, answer, charge, probe_model, probe_scores
from pgolf.audit.published import audit_preset
from pgolf.audit.verdict import Audit, Finding, judge
from pgolf.data.shards import BOS
from pgolf.data.tokenizer import load_tokenizer
from pgolf.data.tokens import CHECKED_TOKENS, open_tokens
from pgolf.device import hardware_name
from pgolf.errors import InputError
from pgolf.quant.artifact import decode_model
from pgolf.rules import Rules
from pgolf.sections import load_sections

Report = Callable[[str], None]
CPU = torch.device("cpu")


def audit(path: Path | None, params: Path, rules: Rules, base: Sequence[float], report: Report) -> Audit:
    """Judge what `path` names; None is the run in the working folder."""
    if path is None:
        return audit_run(params, rules, report)
    if path.suffix == ".yaml":
        return audit_preset(path, rules)
    return audit_artifact(path, rules, report) if path.is_file() else audit_folder(path, rules, base)


def audit_run(params: Path, rules: Rules, report: Report = lambda text: None) -> Audit:
    """Accounts and probes of a finished run; InputError names the stage that has not run."""
    sections = load_sections(params)
    losses, meta = artifacts.load(paths.LOSSES, schema="pgolf.losses", made_by="evaluate")
    found = losses["losses"].numpy()
    artifacts.require(paths.TOKENS / "manifest.json", "tokenize")
    report("hashes, lengths, byte table")
    source = "manifest of the tokens; PR 2071: tokens, byte counts and tokenizer that do not belong together"
    try:
        tokens = open_tokens(paths.TOKENS, paths.TOKENIZER)
    except InputError as error:  # here that is the finding, and nothing after it would mean anything
        return _audit(Path.cwd().name, "run", rules, [judge("tokens.files", False, str(error), source)])
    large = tokens.train_tokens > CHECKED_TOKENS
    text = f"hashes, lengths, sidecar and documents agree{', training shards by length only' * large}"
    checked, processor = [judge("tokens.files", True, text, source)], load_tokenizer(paths.TOKENIZER)
    checked += check_bytes(tokens, processor, sections.data.val)
    checked.append(check_roundtrip(tokens, processor, sections.data.val))
    report("documents of validation in training")
    checked += [check_overlap(tokens.val, tokens.train), *check_score(found, tokens, meta["inputs"])]
    checked += [*check_gates(rules), check_code(Path(pgolf.__file__).parents[1])]
    report("probes")
    model, header = decode_model(artifacts.require(paths.ARTIFACT, "compress").read_bytes(), CPU, torch.float32)
    hardware = artifacts.read_json(paths.metrics("evaluate"), "evaluate").get("hardware")
    comparable = hardware == hardware_name(CPU)
    checked += probe_model(
        model, tokens.val, sections.evaluate, header["vocab_size"], lambda text: report(f"probes, {text}")
    )
    updates = losses["updates"].numpy()
    checked += probe_scores(model, tokens.val, sections.evaluate, found, updates, comparable)
    return _audit(Path.cwd().name, "run", rules, checked)


def audit_artifact(path: Path, rules: Rules, report: Report = lambda text: None) -> Audit:
    """Size and conditions of a shipped model alone, on random tokens; InputError where it is none."""
    model, header = decode_model(path.read_bytes(), CPU, torch.float32)
    size, cap, vocab = path.stat().st_size, rules.artifact.value, int(header["vocab_size"])
    text = f"{size:,} bytes of the model alone, {abs(cap - size):,} {'over' if size > cap else 'left for code'}"
    stream = np.random.default_rng(0).integers(BOS + 1, vocab, 2 * LENGTH + 1).astype(np.uint16)
    stream[0] = stream[LENGTH] = BOS
    found = [
        judge("size.cap", size <= cap, text, rules.artifact.source),
        probes.future_tokens(
            lambda row: charge(model, row[None])[0], stream, vocab, [1, LENGTH, len(stream) - 3], report=report
        ),
        probes.gradients(model, stream, [0, LENGTH, 2 * LENGTH - 2]),
        probes.distribution(lambda i, t: answer(model, i, t), [stream[:CONTEXT]], vocab, report=report),
    ]
    return _audit(path.name, "artifact", rules, found)


def _audit(subject: str, kind: str, rules: Rules, findings: Sequence[Finding]) -> Audit:
    about = f"version {rules.version}, {rules.snapshot}"
    return Audit(subject=subject, kind=kind, rules=about, findings=tuple(findings))  # type: ignore[arg-type]
