"""Seeded violations: every mutant of one clean submission folder is found by the check that it is for."""

import base64
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from submissions import DIALECTS, PROGRAM, Submission

from pgolf.audit.folder import read_folder
from pgolf.audit.foreign import audit_folder
from pgolf.rules import load_rules
from pgolf.submit.pack_code import pack_code

RULES = load_rules()
Mutate = Callable[[Submission], object]


def audit(folder: Path):
    return audit_folder(folder, RULES)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_clean_folder_has_no_fail(dialect: str, tmp_path: Path) -> None:
    found = audit(Submission.clean(dialect).write(tmp_path / "x"))
    assert not found.failed, [f for f in found.findings if f.verdict == "fail"]
    for check in ("bytes.rho", "tokens.val", "size.cap", "submission.logs", "submission.means", "log.complete"):
        assert found.verdict(check) == "pass", check
    unclear = {f.check for f in found.findings if f.verdict == "cannot tell"}
    assert unclear <= {"seeds.significance", "tokens.documents"}


def runs(**changes: object) -> Mutate:
    """Change every run, and let logs and claims follow."""

    def mutate(made: Submission) -> None:
        for run in made.runs:
            for key, value in changes.items():
                setattr(run, key, value)
        made.refresh()

    return mutate


def one_run(**changes: object) -> Mutate:
    def mutate(made: Submission) -> None:
        for key, value in changes.items():
            setattr(made.runs[1], key, value)
        made.refresh()

    return mutate


def claim(**changes: object) -> Mutate:
    return lambda made: made.claims.update(changes)


def log_line(text: str) -> Mutate:
    """Print a line before the score."""

    def mutate(made: Submission) -> None:
        for lines in made.logs.values():
            lines.insert(-2, text)

    return mutate


def replace_line(old: str, new: str) -> Mutate:
    def mutate(made: Submission) -> None:
        changed = {name: [line.replace(old, new) for line in lines] for name, lines in made.logs.items()}
        assert changed != made.logs
        made.logs = changed

    return mutate


def program(old: str, new: str) -> Mutate:
    def mutate(made: Submission) -> None:
        assert old in made.program
        made.program = made.program.replace(old, new)
        for run in made.runs:
            run.raw = len(made.program.encode())
        made.refresh()

    return mutate


def append(text: str) -> Mutate:
    return program("def windows", text + "\n\ndef windows")


def stop_early(made: Submission) -> None:
    lines = made.logs["train_seed42.log"]
    at = next(i for i, line in enumerate(lines) if "collecting" in line)
    del lines[at + 1 :]


def edited_seed(made: Submission) -> None:
    """The claims are edited so that they agree with each other."""
    results = made.claims["seed_results"]
    results["42"]["val_bpb"] -= 0.002
    made.claims["val_bpb"] = sum(r["val_bpb"] for r in results.values()) / 3
    made.claims.pop("val_bpb_std")


def selected(made: Submission) -> None:
    """A fourth log, of a seed that is worse and does not count."""
    made.logs["train_seed7.log"] = [line.replace("seed: 42", "seed: 7") for line in made.logs["train_seed42.log"]]


def stub(made: Submission) -> None:
    """A small program that runs a large one, which nobody counted."""
    made.files["real.py"] = f'x = "{random.Random(0).randbytes(20_000).hex()}"\n'
    program(PROGRAM, 'exec(open("real.py").read())\n')(made)
    runs(code=400, model=15_990_000)(made)


def other_code(made: Submission) -> None:
    made.program += "\nNEW_FEATURE = True\n"


def drop(name: str) -> Mutate:
    return lambda made: made.files.update({name: None})


def few(made: Submission) -> None:
    del made.runs[2:]
    made.refresh()


def few_but_claimed(made: Submission) -> None:
    few(made)
    made.claims["compliance"]["three_seeds"] = True


def add(**files: str) -> Mutate:
    """Files beside the others; `__` in a name stands for a dot, `_in_` for a slash."""
    named = {name.replace("_in_", "/").replace("__", "."): text for name, text in files.items()}
    return lambda made: made.files.update(named)


def faster(made: Submission) -> None:
    made.claims["seed_results"]["42"]["step_avg_ms"] = 110.0


def after_the_clock(line: str) -> Mutate:
    return replace_line("ema:applying EMA weights", line)


def sentencepiece(*pieces: str, kind: int = 1) -> str:
    """A model file with these pieces, whose bytes are all ASCII."""
    messages = [f"\n{chr(len(text))}{text}\x18{chr(kind)}" for text in pieces]
    return "".join(f"\n{chr(len(message))}{message}" for message in messages)


LUT = runs(bytes=164_594_398)
SPACES = runs(tokens=40_540_160, bytes=176_332_748)
LABELS = runs(tokens=40_540_160, bytes=151_080_891 + 1_346_100)
TTT_FIRST = """
def adapt(model, val_tokens, optimizer, epochs):
    for epoch in range(epochs):
        for batch in val_tokens:
            model.loss(batch).backward()
            optimizer.step()
"""
LATE_EPOCH = """
def adapt_and_score(model, tokens, optimizer, epochs):
    for epoch in range(epochs):
        with torch.no_grad():
            loss = model(tokens)
        model(tokens).backward()
        optimizer.step()
"""
BEST_OF = """
def finish(model, val_tokens, best_bpb):
    for state in candidates:
        bpb = eval_val(model, state, val_tokens)
        if bpb < best_bpb:
            best_state = state
"""
TEMPERATURES = """
def calibrate_temperature(model, val_tokens):
    for temp in (0.9, 1.0, 1.1):
        losses.append(model(val_tokens) / temp)
"""
WARM_UP = """
def compile_warmup(model, optimizer):
    model(val_tokens[:8]).backward()
    optimizer.step()
"""
SIDECAR = 'VAL = "data/fineweb_val_*.bin"\nCOUNTS = "data/fineweb_val_bytes_000000.bin"\n'
MUTANTS: dict[str, tuple[Mutate, str, str]] = {
    # accounting
    "CaseOps counted by the table": (LUT, "bytes.rho", "fail"),
    "space counted twice": (SPACES, "bytes.rho", "fail"),
    "byte pieces by label": (LABELS, "bytes.rho", "fail"),
    "sp8192 with a CaseOps table": (runs(tokens=40_540_160, bytes=165_469_000), "bytes.rho", "fail"),
    "custom metadata, +4.13 %": (runs(bytes=157_319_833), "bytes.rho", "fail"),
    "3,000 bytes too many": (runs(bytes=151_077_499), "bytes.rho", "cannot tell"),
    "10,000 documents scored": (runs(tokens=9_662_464, bytes=32_756_252), "tokens.val", "fail"),
    "whole batches of the diagnostic": (runs(tokens=23_296 * 2048, bytes=150_638_137), "tokens.val", "fail"),
    "subset by a switch": (runs(config={"val_max_tokens": "500000"}), "tokens.val", "fail"),
    "fraction of the documents": (runs(config={"val_doc_fraction": "0.2"}), "tokens.val", "fail"),
    "documents missing": (replace_line("total_docs:50000", "total_docs:49000"), "tokens.documents", "fail"),
    "overlapping documents": (runs(shards=1499), "leak.shards", "fail"),
    "doubled path": (runs(config={"val_files": "./datasets/datasets/x"}), "leak.shards", "cannot tell"),
    "leaked validation": (replace_line("post-ema val_loss:2.3", "post-ema val_loss:2.4 val_bpb:1.09 was:"), "leak.gap",
                          "cannot tell"),
    "byte counts read as tokens": (runs(tokens=95_705_088), "tokens.val", "fail"),
    "adapted to a part": (replace_line("num_phases:1", "num_phases:1 target_tokens:40000000"), "tokens.val", "fail"),
    "validation files as training": (runs(config={"train_files": "./data/fineweb_val_*.bin"}), "leak.train_files",
                                     "fail"),
    "temperature picked": (log_line("temperature_search: best 0.98"), "leak.selection", "cannot tell"),
    "weights picked": (log_line("selected EMA weights, val_bpb 1.1194"), "leak.selection", "cannot tell"),
    "a space without a piece": (add(tok__model=sentencepiece("a", "b")), "tokenizer.pieces", "fail"),
    "byte pieces without their type": (add(tok__model=sentencepiece("a", "<0x41>")), "tokenizer.pieces", "fail"),
    # sizes
    "model of another size": (add(final_model__int6__ptz="x" * 900), "size.model", "fail"),
    "claimed bytes of code": (claim(bytes_code=31_000), "submission.derived", "fail"),
    "over the cap": (runs(model=15_990_000), "size.cap", "fail"),
    "fits 16 MiB only": (runs(model=16_300_000), "size.units", "fail"),
    "total is no sum": (replace_line("Total submission size quantized+pergroup: 15", "Total submission size x: 14"),
                        "size.sum", "fail"),
    "stub over the cap": (stub, "size.stub", "fail"),
    "log of other code": (other_code, "size.code", "fail"),
    # clocks
    "training overrun": (runs(train_ms=602_048, hessian=0.0), "clock.train", "fail"),
    "calibration after the clock": (runs(train_ms=599_592), "clock.train", "fail"),
    "one long score under a short total": (replace_line("eval_time:508800ms", "eval_time:688000ms"), "clock.evaluate",
                                           "fail"),
    "evaluation overrun": (runs(eval_s=688.0), "clock.evaluate", "fail"),
    "steps after the clock": (after_the_clock("4990/20000 train_loss: 2.4 train_time: 10.1m tok/s: 6744435"),
                              "clock.after", "fail"),
    "burst after the clock": (after_the_clock("ttt_burst: 2 epochs, 100 batches"), "clock.after", "cannot tell"),
    # logs and claims
    "a line is missing": (replace_line("Code size (compressed)", "Code"), "log.complete", "cannot tell"),
    "a byte changed": (add(SHA256SUMS="0" * 64 + "  train_gpt.py\n"), "files.sums", "fail"),
    "a module is missing": (append("import lossless_caps\n"), "files.self_contained", "cannot tell"),
    "two folders": (add(other_in_submission__json="{}"), "files.one", "fail"),
    "a team": (claim(github_id=["a", "b"]), "submission.author", "cannot tell"),
    "no date": (claim(date="soon"), "submission.date", "fail"),
    "after the deadline": (claim(date="2026-05-02"), "submission.date", "cannot tell"),
    "another mean of steps": (claim(train_steps_mean=5000), "submission.derived", "fail"),
    "another difference": (claim(delta_vs_leaderboard_bpb=-0.05), "submission.derived", "fail"),
    "faster than the log": (faster, "submission.logs", "fail"),
    "three seeds claimed": (few_but_claimed, "submission.compliance", "fail"),
    "README of other data": (replace_line("train_shards: 80", "train_shards: 79"), "readme.data", "fail"),
    "README of other settings": (runs(config={"embed_bits": "8"}), "readme.command", "cannot tell"),
    "README without parts": (add(README__md="# Ours\n"), "readme.parts", "cannot tell"),
    "log stops early": (stop_early, "log.complete", "fail"),
    "edited submission.json": (edited_seed, "submission.logs", "fail"),
    "edited mean": (claim(val_bpb=1.0591), "submission.means", "fail"),
    "edited deviation": (claim(val_bpb_std=0.0002), "submission.means", "fail"),
    "null field": (claim(val_loss=None), "submission.fields", "fail"),
    "README with another number": (lambda made: made.files.update({"README.md": "| 42 | 1.05800001 |\n"}),
                                   "readme.numbers", "cannot tell"),
    "no submission.json": (drop("submission.json"), "files.required", "fail"),
    "no logs": (lambda made: made.logs.clear(), "files.required", "fail"),
    "denied compliance": (claim(compliance={"no_slot": False}), "submission.compliance", "fail"),
    "selected seeds": (selected, "seeds.selected", "fail"),
    "seven runs, three count": (claim(seed_results_all_runs_disclosure=list("abcdefg")), "seeds.selected",
                                "cannot tell"),
    "mixed configurations": (one_run(config={"matrix_lr": "0.03"}), "seeds.config", "fail"),
    "keys of other code": (one_run(config={"ttt_hash_buckets": "16384"}), "log.keys", "fail"),
    "names of other code": (runs(config={f"quux_{i}": "1" for i in range(9)}), "log.keys", "cannot tell"),
    "mixed code": (one_run(code=32_111), "seeds.code", "fail"),
    "two seeds": (few, "seeds.count", "fail"),
    "margin too small": (claim(comparison_baseline_bpb=1.0635), "seeds.significance", "fail"),
    # the four conditions, as logs show them
    "n-gram cache in the log": (log_line("ngram_eval:order=9 buckets=8388608"), "c2.ngram", "fail"),
    "tilt": (log_line("ngram_tilt:hints total=47851520 gated=628130"), "c1.tilt", "cannot tell"),
    "byte mixture": (log_line("ppm_mix bytes=29365687 mix_bpb=0.994872"), "c2.ppm", "fail"),
    "SLOT in the log": (log_line("slot_eval: steps 16"), "c3.slot", "fail"),
    "epochs before the score": (log_line("ttt_epoch:1/3 loss:1.9512 time:14.5s"), "c3.train_then_score", "fail"),
    "calibrated on validation": (log_line("gptq:calibrating with val data"), "leak.calibration", "fail"),
    "second pass": (log_line("rescoring: 50000 documents"), "c4.passes", "cannot tell"),
    "download in the log": (log_line("Downloading kernels from a hub"), "offline", "fail"),
    # the program's text
    "score of a late epoch": (append(LATE_EPOCH), "static.late_epoch", "cannot tell"),
    "scored twice": (append("def rescore_tail(x):\n    return x\n"), "static.double_pass", "cannot tell"),
    "best weights on validation": (append(BEST_OF), "static.picked", "cannot tell"),
    "temperature on validation": (append(TEMPERATURES), "static.picked", "cannot tell"),
    "warm-up on validation": (append(WARM_UP), "static.warmup", "cannot tell"),
    "replay": (append("def burst(m, kept):\n    m(kept).backward()\n"), "static.late_work", "cannot tell"),
    "lower case": (append("def clean(text):\n    return text.lower()\n"), "static.lossy", "cannot tell"),
    "sidecar in the pattern": (append(SIDECAR), "static.sidecar", "cannot tell"),
    "placeholder": (append("def main():\n    raise NotImplementedError\n"), "static.placeholder", "fail"),
    "train then score": (append(TTT_FIRST), "static.train_then_score", "fail"),
    "cache key with the target": (append("def key(ctx, targets):\n    return ctx ^ (targets * 31)\n"), "static.ngram",
                                  "fail"),
    "SLOT": (append("def eval_slot(m, x):\n    m(x).backward()\n"), "static.slot", "cannot tell"),
    "PPM": (append("def ppm_mixture(x):\n    return x\n"), "static.ppm", "cannot tell"),
    "calibration on validation": (program("model, train_loader", "model, train_loader, val_tokens"),
                                  "static.calibration", "fail"),
    "validation as training": (program("fineweb_train_*", "fineweb_val_*"), "static.train_files", "fail"),
    "download": (append('def get():\n    os.system("wget http://example.org/x")\n'), "static.download", "fail"),
    "byte total": (append("BYTES = 151_078_222\n"), "static.byte_total", "cannot tell"),
    "spaces twice in the table": (
        append("def count(b, has_leading_space, y):\n    return b[y] + has_leading_space[y]\n\n"
               "def table(sp, n):\n    return [sp.is_byte(i) or len(sp.id_to_piece(i)[1:].encode()) + 1 for i in n]\n"),
        "static.byte_table", "fail"),
    "labels in the table": (program("if sp.is_byte(i)", "if False"), "static.byte_table", "fail"),
    "repeated tail windows": (program("0 if start == 0 else length - stride", "max(total - stride, 0)"), "static.tail",
                              "fail"),
    "best of two": (append("def mix(nll_a, nll_b):\n    return torch.minimum(nll_a, nll_b)\n"), "static.oracle",
                    "fail"),
    "gate on the target": (append("def hint(target):\n    return is_boundary(target)\n"), "static.target_gate",
                           "cannot tell"),
    "smear across documents": (program("keep = ids[:, 1:, None] != 1", "keep = 1"), "static.smear", "cannot tell"),
    "folded QAT flag": (append("def late(m):\n    m = torch.compile(m)\n    CastedLinear._qat_enabled = True\n"),
                        "static.folded_flag", "cannot tell"),
    "truncated by default": (append('LIMIT = os.environ.get("VAL_MAX_TOKENS", 500000)\n'), "static.truncation", "fail"),
    "last chunk": (program("        if ci < len(chunks) - 1:", "        if ci:"), "static.last_chunk", "cannot tell"),
    "no Python": (append("def broken(:\n"), "static.parsed", "fail"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("track", "parent", "record"),
    [
        ("track_10min_16mb", "x", True), ("10min_16mb", "non_record", True), ("", "canonical", True),
        ("", "anonymous-non", False), ("track_non_record_16mb", "x", False), ("Non-record", "x", False),
        ("nonrecord", "x", False), ("unlimited_compute", "x", False), ("", "track_non_record_16mb", False),
    ],
)  # fmt: skip
def test_what_asks_for_a_place_among_the_records(track: str, parent: str, record: bool, tmp_path: Path) -> None:
    root = tmp_path / parent / "mine"
    root.mkdir(parents=True)
    (root / "submission.json").write_text(json.dumps({"track": track}))
    assert read_folder(root).record == record


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found_by_its_check(name: str, tmp_path: Path) -> None:
    mutate, check, verdict = MUTANTS[name]
    made = Submission.clean()
    mutate(made)
    found = audit(made.write(tmp_path / "x"))
    assert found.verdict(check) == verdict, [f for f in found.findings if f.check == check]
    assert found.failed or verdict == "cannot tell"
    assert json.dumps(found.to_json())


def test_every_mutant_is_needed_by_a_check_and_most_checks_have_one(tmp_path: Path) -> None:
    clean = {f.check for f in audit(Submission.clean().write(tmp_path / "x")).findings}
    tried = {check for _, check, _ in MUTANTS.values()}
    only_where_there_is_something = {"files.one", "files.sums", "size.model", "tokenizer.pieces"}
    assert tried <= clean | only_where_there_is_something
    assert clean - tried <= {"files.requirements", "files.closed"}


HELPER = (
    TTT_FIRST
    + """
def evaluate(model, val_tokens, optimizer):
    with torch.no_grad():
        total = model.loss(val_tokens)
    adapt(model, val_tokens, optimizer, 2)
    return total
"""
)


def test_a_helper_that_adapts_to_what_its_caller_scored_is_left_to_a_reader(tmp_path: Path) -> None:
    made = Submission.clean()
    append(HELPER)(made)
    assert audit(made.write(tmp_path / "x")).verdict("static.train_then_score") == "cannot tell"


@pytest.mark.parametrize("line", ["slot_enabled:0", "ngram_eval:disabled", "ppm_mix:False", "ngram_cache=0 order=9"])
def test_a_line_that_says_that_something_is_off_is_no_sign(line: str, tmp_path: Path) -> None:
    made = Submission.clean()
    log_line(line)(made)
    assert not audit(made.write(tmp_path / "x")).failed


def test_our_own_packed_program_shows_no_sign(tmp_path: Path) -> None:
    root = tmp_path / "src"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg/__init__.py").write_text("")
    (root / "pkg/main.py").write_text("def main(params):\n" + "".join(f"    x{i} = {i**5}\n" for i in range(400)))
    code = pack_code("pkg.main", root, {}).source
    made = Submission.clean(program="", code=len(code), raw=len(code))
    folder = made.write(tmp_path / "x")
    (folder / "train_gpt.py").write_bytes(code)
    found = audit(folder)
    assert not found.failed, [f for f in found.findings if f.verdict == "fail"]
    assert "programs read: 2" in next(f.evidence for f in found.findings if f.check == "static.parsed")


def test_a_packed_program_is_read_but_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    inner = f"open({str(proof)!r}, 'w')\n" + PROGRAM + TTT_FIRST + "#" * 600
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    blob = base64.b85encode(lzma.compress(inner.encode(), lzma.FORMAT_RAW, filters=filters)).decode()
    packed = f'import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("{blob}"),format=L.FORMAT_RAW))\n'
    made = Submission.clean(program=packed, code=len(packed))
    found = audit(made.write(tmp_path / "x"))
    assert found.verdict("static.train_then_score") == "fail"
    assert found.verdict("size.code") == found.verdict("size.stub") == "pass"
    assert not proof.exists()


def test_losses_of_the_record_give_the_test_of_the_rules(tmp_path: Path) -> None:
    made = Submission.clean()
    folder = made.write(tmp_path / "x")
    losses = [run.loss for run in made.runs]
    for shift, verdict in ((0.05, "pass"), (0.006, "fail")):
        base = [loss + shift for loss in losses]
        assert audit_folder(folder, RULES, base).verdict("seeds.significance") == verdict


def test_a_clock_of_other_hardware_is_left_open(tmp_path: Path) -> None:
    for name, verdict in (("1x CPU x86_64", "cannot tell"), (RULES.reference_hardware.value, "fail")):
        made = Submission.clean(train_ms=700_000, eval_s=700.0)
        log_line(f"hardware: {name}")(made)
        found = audit(made.write(tmp_path / name))
        assert found.verdict("clock.train") == found.verdict("clock.evaluate") == verdict


def test_claims_of_another_line_of_the_log_are_left_to_a_reader(tmp_path: Path) -> None:
    made = Submission.clean("starter")
    for run in made.runs:
        seed = made.claims["seed_results"][str(run.seed)]
        seed.update(val_loss=round(run.loss * 1.002, 8), val_bpb=round(run.bpb * 1.002, 8))
    found = audit(made.write(tmp_path / "x"))
    assert found.verdict("submission.logs") == "cannot tell"


def test_the_overrun_of_one_step_of_the_starter_program_is_left_open(tmp_path: Path) -> None:
    for milliseconds, verdict in ((600_027, "cannot tell"), (600_500, "fail"), (600_000, "pass")):
        made = Submission.clean("starter", train_ms=milliseconds)
        found = audit(made.write(tmp_path / str(milliseconds)))
        assert found.verdict("clock.train") == verdict, milliseconds
