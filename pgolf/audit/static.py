"""Signs of the invalidation catalogue in the text of a program: patterns of its syntax tree, never its behaviour.

A sign that needs a reader is "cannot tell", with file and line. "fail" is kept for forms that are wrong in themselves.
"""

from collections.abc import Callable, Iterator

from pgolf.audit import signs_data, signs_score
from pgolf.audit.programs import Program, entry_of, reachable
from pgolf.audit.signs import Sign
from pgolf.audit.verdict import Finding, first_few, judge

Detector = Callable[[Program], Iterator[Sign]]


def check_static(programs: list[Program]) -> list[Finding]:
    """All detectors over everything that the entry can run; one finding each."""
    entry = entry_of(programs)
    if entry is None:
        return [judge("static.parsed", None, "no train_gpt.py", "static signs are those of a program")]
    parts = reachable(programs, entry)
    broken = [part.path for part in parts if part.tree is None]
    text = f"no Python: {first_few(broken)}" if broken else f"programs read: {len(parts)}, packed ones included"
    found = [judge("static.parsed", not broken, text, "PR 545, PR 1864: a program that cannot run")]
    for check, (detect, source) in DETECTORS.items():
        places = [(part, sign) for part in parts for sign in detect(part)]
        certain = any(sign.certain for _, sign in places)
        shown = [
            f"{part.path}{' (unpacked)' if part.unpacked_from else ''}:{sign.line} {sign.text}"
            for part, sign in sorted(places, key=lambda item: not item[1].certain)
        ]
        right = True if not places else False if certain else None
        found.append(judge(check, right, first_few(shown) or "no sign", source))
    return found


DETECTORS: dict[str, tuple[Detector, str]] = {
    "static.ngram": (signs_score.ngram_cache, "PR 779, PR 886: hashed n-gram caches are closed"),
    "static.slot": (signs_score.slot, "PR 1229, 1240, 1336, 1488: SLOT"),
    "static.ppm": (signs_score.ppm, "issue 1872, PR 1905: does the mixture sum to 1 over tokens?"),
    "static.train_then_score": (signs_score.train_before_score, "issue 402, PR 1376: score first"),
    "static.last_chunk": (signs_score.last_chunk, "a last chunk must not be trained on and reported"),
    "static.calibration": (signs_data.calibration_on_val, "PR 728: calibration on validation data"),
    "static.train_files": (signs_data.validation_as_training, "PR 44: training on validation shards"),
    "static.download": (signs_data.downloads, "PR 466: no network at run time"),
    "static.byte_total": (signs_data.byte_totals, "bytes are counted, not written into a program"),
    "static.byte_table": (signs_data.byte_table, "issue 1719, PR 1734: byte tables"),
    "static.tail": (signs_score.repeated_tail, "PR 401, PR 549, fixed in PR 1218: every target once"),
    "static.oracle": (signs_score.oracle, "PR 659: best of two per token"),
    "static.target_gate": (signs_score.target_gate, "PR 1420, 1437: p must not depend on its own target"),
    "static.smear": (signs_data.smear, "PR 1797, PR 1874: the last token of a document must not enter the next"),
    "static.folded_flag": (signs_data.folded_flag, "PR 401 lineage: late QAT that never switched on"),
    "static.late_epoch": (signs_score.late_epoch, "PR 568, PR 762: the score of a late epoch"),
    "static.double_pass": (signs_score.double_pass, "PR 991: a second pass over scored targets"),
    "static.picked": (signs_score.picked, "PR 401 v2, PR 635: chosen by validation score"),
    "static.warmup": (signs_score.warmup_on_val, "PR 1530: warm-up with steps on validation tokens"),
    "static.late_work": (signs_data.late_work, "PR 401: replay after the clock"),
    "static.lossy": (signs_data.lossy_text, "PR 1578, 1585, 1670: a tokenizer that loses text; issue 1604"),
    "static.sidecar": (signs_data.sidecar_glob, "byte counts read as validation tokens"),
    "static.placeholder": (signs_data.placeholder, "PR 545, PR 1864: a main function that does nothing"),
    "static.truncation": (signs_score.truncation, "PR 640: a subset scored"),
}
