"""Logs of the published programs, in all their dialects, as one typed record.

The starter program and its first descendants print `step:K/N`, `final_int8_zlib_roundtrip_exact`, `legal_ttt_exact`;
from PR 1394 on a hyperparameter dump, `quantized_ttt` and, with PR 1855, `quantized_ttt_phased`. A log is somebody
else's: it is read line by line, long lines are cut, and nothing in it is believed before it is compared.
"""

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LINES = 60_000
"""Further lines are not read: published logs have up to 10,000, the program's text inside."""
PAIRS = 1_000
"""Hyperparameters of one log."""
LINE_CHARS = 2_000
"""Longer lines are cut."""
LOG_BYTES = 4 << 20
"""Larger logs are read so far; published ones, with the program's text inside, have up to 0.5 MB."""

NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line that gives a score."""

    name: str
    """As printed: `quantized_ttt_phased`, `final_int6_sliding_window_exact`."""
    loss: float
    bpb: float
    digits: int
    """Decimals of the BPB."""
    seconds: float | None
    line: int

    @property
    def diagnostic(self) -> bool:
        """Whether it is a score on the way: before quantization, or over whole batches only."""
        return bool(re.match(r"(?i)diagnostic|pre-quant|prequant|unquantized|post_ema", self.name))


@dataclass(slots=True, kw_only=True)
class RunLog:
    """What one log says; None where it does not."""

    name: str
    seed: int | None = None
    hardware: str | None = None
    """As `pgolf record` writes it; the published programs print none."""
    hyperparameters: dict[str, str] = field(default_factory=dict)
    """The dump; in the first dialect the `key:value` pairs printed before the first step."""
    dumped: int | None = None
    """Last line of the dump; None where there is none."""
    train_shards: int | None = None
    val_tokens: int | None = None
    documents: int | None = None
    target_tokens: int | None = None
    """Targets that adaptation scored."""
    effective_ms: float | None = None
    train_ms: float | None = None
    steps: int | None = None
    stopped: int | None = None
    """Line on which the clock stopped training."""
    late_step: int | None = None
    """Line of a step after that."""
    hessian_seconds: float | None = None
    calibrates: int | None = None
    """Line on which calibration is announced."""
    code_bytes: int | None = None
    """Code as it is counted: compressed where that is printed."""
    code_raw_bytes: int | None = None
    model_bytes: int | None = None
    total_bytes: int | None = None
    eval_seconds: float | None = None
    """`total_eval_time`."""
    results: list[Result] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    """Chunks of each phase of global test-time training."""
    signs: dict[str, list[int]] = field(default_factory=dict)
    """Name of a suspect line -> line numbers, a few."""
    lines: int = 0
    cut: int = 0
    """Lines that were longer than LINE_CHARS."""
    whole: bool = True
    """Whether the log was read to its end."""
    damaged: int = 0
    """Characters that are in no encoding."""

    @property
    def scores(self) -> list[Result]:
        """Scores of the quantized model, in order."""
        return [result for result in self.results if not result.diagnostic]

    @property
    def final(self) -> Result | None:
        """The score of the run: the last one, in full precision where there is one."""
        return next((r for r in reversed(self.scores) if r.digits >= 6), next(reversed(self.scores), None))

    @property
    def before(self) -> Result | None:
        """The score before quantization."""
        return next((r for r in self.results if r.diagnostic and re.search("pre-?quant|post_ema", r.name)), None)

    @property
    def quantized(self) -> Result | None:
        """The score of the quantized model before adaptation, in plain windows."""
        return next((r for r in self.results if r.name in ("quantized", "diagnostic quantized")), None)


RESULT = re.compile(
    rf"^([A-Za-z][\w+:\- ]{{0,79}}?) +val_loss[:=] ?{NUMBER} +val_bpb[:=] ?{NUMBER}"
    rf"(?:.{{0,200}}?\b(?:eval_time|t|elapsed)[:=] ?{NUMBER}(ms|s)\b)?"
)
FIELDS: dict[str, re.Pattern[str]] = {
    "train_shards": re.compile(r"^(?:train_loader:.{0,200} )?train_shards: ?(\d{1,9})\b"),
    "val_tokens": re.compile(r"^(?:val_tokens: ?|val_loader:.{0,400} tokens:)(\d{1,12})\b"),
    "documents": re.compile(r"^(?:ttt_\w{1,20}: total_docs|val_documents): ?(\d{1,9})\b"),
    "seed": re.compile(r"^ *seed: ?(\d{1,12})\b"),
    "effective_ms": re.compile(rf"^gptq:reserving .{{0,40}}effective={NUMBER}ms"),
    "hessian_seconds": re.compile(rf"(?i)^gptq:(?:collected|calibrated) \d{{1,9}} (?:hessians|layers) in {NUMBER} ?s"),
    "code_raw_bytes": re.compile(r"^Code size \(uncompressed\): (\d{1,12})\b"),
    "code_bytes": re.compile(r"^Code size(?: \(compressed\))?: (\d{1,12})\b"),
    "model_bytes": re.compile(r"^Serialized model (?:quantized\+\S{1,40}|int\d\S{0,40}): (\d{1,12})\b"),
    "total_bytes": re.compile(r"^Total submission size\S{0,2} ?[^:]{0,60}: (\d{1,12})\b"),
    "eval_seconds": re.compile(rf"^total_eval_time: ?{NUMBER}s"),
}
STOPPED = re.compile(rf"^stopping_early: .{{0,60}}train_time: ?{NUMBER}ms,? step: ?(\d{{1,9}})\b")
STEP = re.compile(rf"^step:(\d{{1,9}})/\d{{1,9}} .{{0,120}}train_time:{NUMBER}ms")
FIRST_STEP = re.compile(r"^(?:warmup_)?step: ?\d|^\d{1,9}/\d{1,9} (?:train|val)_loss")
DUMPED = re.compile(r"^  ([a-z]\w{0,80}): ?(.*)$")
PAIR = re.compile(r"\b([a-z]\w{1,60})[:=]([^\s:=]{1,200})")
HARDWARE = re.compile(r"^hardware: ?(\S.{0,80})")
TARGET_TOKENS = re.compile(r"^ttt_\w{1,20}: .{0,200}\btarget_tokens:(\d{1,12})\b")
LATE_STEP = re.compile(r"^(?:step:)?(\d{1,9})/\d{1,9} train_loss")
CHUNK = re.compile(r"^tttg: c(\d{1,6})/(\d{1,6}) ")
PRINTED_BEFORE_STEPS = re.compile(r"^(?:nohup|W\d|\[|logs/|warmup|loop_warmup|seed:)")

SIGNS: dict[str, re.Pattern[str]] = {
    "ngram": re.compile(r"(?i)^ngram_(?:eval|cache)|^\w{0,60}_ngram\d{0,2}(?:_exact)? val_loss"),
    "tilt": re.compile(r"(?i)^ngram_tilt:"),
    "ppm": re.compile(r"(?i)^ppm(?:_mix|d?:)"),
    "slot": re.compile(r"(?i)^(?:final_|eval_)?slot(?:_\w{1,40})?[: ]"),
    "train_then_score": re.compile(r"(?i)^ttt_epoch:|^(?:prequant_ttt|pre-?quant[ _]ttt|preq_ttt)\b"),
    "calibration_on_val": re.compile(
        r"(?i)^(?:gptq|calib\w{0,20})\b.{0,80}\b(?:val|validation)[ _](?:data|tokens|set)"
    ),
    "second_pass": re.compile(r"(?i)^(?:re-?scor\w{0,9}|(?:second|two)[_ ]pass\w{0,20})[: ]"),
    "picked": re.compile(
        r"(?i)^(?:best_?temp\w{0,20}|temp(?:erature)?[_ ](?:search|sweep|calib)\w{0,20}|(?:picked|selected|chose)\b"
        r".{0,60}\b(?:raw|live|ema|swa|averaged?) )"
    ),
    "doubled_path": re.compile(r"datasets/datasets"),
    "download": re.compile(r"(?i)^(?:downloading|fetching \d+ files)\b"),
}


LATE_WORK = re.compile(r"(?i)^(?:ttt_)?(?:burst|replay|polish|fine-?tune)\w{0,20}\b")
"""Training under another name; a sign only after the clock has stopped."""

PROGRAM_BEGINS = re.compile(r"^(?:import \w|from [\w.]+ import |#!/)")
PROGRAM_ENDS = re.compile(r"^={20,}$|^(?:Running (?:Py|py)|warmup_step)")
"""A log holds the text of its program, up to a rule; what is in it was not printed by the run."""

SWITCHED_OFF = re.compile(r"(?i)^[\w.\-]{1,60}[:=] ?(?:enabled[:=] ?)?(?:0|false|off|disabled|none)\b(?![.:/])")
"""A line that says that something is not done: `slot_enabled:0`."""


def read_log(path: Path) -> RunLog:
    """Parse one log."""
    log, header, program = RunLog(name=path.name), True, False
    for number, (line, cut) in enumerate(_lines(path, log), 1):
        if number > LINES:
            log.whole = False
            break
        log.lines = number
        log.cut += cut
        log.damaged += line.count("�")
        header = header and not FIRST_STEP.match(line)
        program = _in_program(line, program)
        if not program:
            _take(log, line, number, header)
    return log


def _in_program(line: str, before: bool) -> bool:
    """Whether a line belongs to the program's text that logs begin with, given the line before it."""
    if not before:
        return bool(PROGRAM_BEGINS.match(line))
    return not (PROGRAM_ENDS.match(line) or any(pattern.match(line) for pattern in FIELDS.values()))


def _lines(path: Path, log: RunLog) -> Iterator[tuple[str, bool]]:
    """Lines without their ends, at most LINE_CHARS of each, and whether more was there."""
    with path.open("rb") as file:
        data = file.read(LOG_BYTES + 1)
    log.whole = len(data) <= LOG_BYTES
    marks = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig"}
    encoding = next((name for mark, name in marks.items() if data.startswith(mark)), "utf-8")
    with io.TextIOWrapper(io.BytesIO(data[:LOG_BYTES]), encoding, errors="replace") as text:
        while line := text.readline(LINE_CHARS):
            end, cut = line, False
            while end and not end.endswith("\n") and (end := text.readline(LOG_BYTES)):
                cut = cut or end != "\n"
            yield line.rstrip("\r\n"), cut


def _take(log: RunLog, line: str, number: int, header: bool) -> None:
    for name, pattern in () if SWITCHED_OFF.match(line) else SIGNS.items():
        if pattern.search(line) and len(places := log.signs.setdefault(name, [])) < 4:
            places.append(number)
    if header and len(log.hyperparameters) < PAIRS:
        _take_settings(log, line, number)
    for name, pattern in FIELDS.items():
        if match := pattern.match(line):
            value = float(match[1])
            setattr(log, name, value if name.endswith(("_ms", "_seconds")) else int(value))
            break
    if match := HARDWARE.match(line):
        log.hardware = match[1].strip()
    if re.match(r"(?i)^gptq:(?:collecting|calibrating)", line):
        log.calibrates = number
    _take_step(log, line, number)
    if match := TARGET_TOKENS.match(line):
        log.target_tokens = int(match[1])
    if match := CHUNK.match(line):
        if match[1] == "1" and len(log.chunks) < 64:
            log.chunks.append(int(match[2]))
    elif (match := RESULT.match(line)) and not match[1].startswith("step"):
        seconds = None if match[4] is None else float(match[4]) / (1000 if match[5] == "ms" else 1)
        digits = len(match[3].partition(".")[2])
        result = Result(
            name=match[1], loss=float(match[2]), bpb=float(match[3]), digits=digits, seconds=seconds, line=number
        )
        log.results = [*log.results[-200:], result]


def _take_settings(log: RunLog, line: str, number: int) -> None:
    """A line of the dump, which has no other lines between; without a dump the pairs of a line."""
    if (found := DUMPED.match(line)) and log.dumped in (None, number - 1):
        log.dumped = number
        log.hyperparameters.setdefault(found[1], found[2].strip()[:200])
    elif log.dumped is None and not PRINTED_BEFORE_STEPS.match(line):
        for key, value in PAIR.findall(line):
            log.hyperparameters.setdefault(key, value)


def _take_step(log: RunLog, line: str, number: int) -> None:
    """Steps and training time, and what goes on after the clock has stopped."""
    if log.stopped is not None:
        if LATE_WORK.match(line):
            log.signs.setdefault("late_work", []).append(number)
        match = LATE_STEP.match(line)
        if match and log.late_step is None and int(match[1]) > (log.steps or 0):
            log.late_step = number
    match = STOPPED.match(line) or STEP.match(line)
    if match and line.startswith("stopping"):
        log.train_ms, log.steps, log.stopped = float(match[1]), int(match[2]), number
    elif match:
        log.train_ms, log.steps = float(match[2]), int(match[1])
