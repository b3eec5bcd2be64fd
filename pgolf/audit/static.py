"""Signs of the invalidation catalogue in the text of a program: patterns of its syntax tree, never its behaviour.

A sign that needs a reader is "cannot tell", with file and line. "fail" is kept for forms that are wrong in themselves.
"""

import ast
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pgolf.audit.programs import Program, called, dotted, entry_of, reachable
from pgolf.audit.verdict import Finding, first_few, judge


class Sign(NamedTuple):
    """One place in a program."""

    line: int
    certain: bool
    """Wrong in itself."""
    text: str


Detector = Callable[[Program], Iterator[Sign]]
TARGET = re.compile(r"(?i)(?:^|_)(?:tgts?|targets?|next_?tok\w*|y)(?:$|_)")
VALIDATION = re.compile(r"(?i)(?:^|_)val(?:_|$)|validation")
NETWORK = {
    "hf_hub_download", "snapshot_download", "urlretrieve", "urlopen", "get_kernel", "load_state_dict_from_url",
    "create_connection",
}  # fmt: skip
NETWORK_MODULES = {"requests", "urllib.request", "huggingface_hub", "httpx", "aiohttp", "kernels"}
SHELL_DOWNLOADS = re.compile(r"(?i)\b(?:curl|wget|pip3? install|git clone|huggingface-cli|apt(?:-get)? install)\b")
BYTE_TOTALS = range(140_000_000, 180_000_001)


def check_static(programs: list[Program]) -> list[Finding]:
    """All detectors over everything that the entry can run; one finding each."""
    entry = entry_of(programs)
    if entry is None:
        return [judge("static.parsed", None, "no train_gpt.py", "E.5: static signs")]
    parts = reachable(programs, entry)
    broken = [part.path for part in parts if part.tree is None]
    text = f"no Python: {first_few(broken)}" if broken else f"{len(parts)} texts, packed ones included"
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


def _functions(program: Program) -> list[ast.FunctionDef]:
    return [node for node in program.nodes() if isinstance(node, ast.FunctionDef)]


def _names(node: ast.AST) -> set[str]:
    """Every identifier below a node."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            found.add(inner.id)
        elif isinstance(inner, ast.Attribute):
            found.add(inner.attr)
        elif isinstance(inner, ast.arg):
            found.add(inner.arg)
    return found


def _calls(node: ast.AST, *names: str) -> list[ast.Call]:
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.Call) and called(inner) in names]


def ngram_cache(program: Program) -> Iterator[Sign]:
    """`key = context_hash ^ target * prime`: a lookup that needs the token it predicts."""
    for node in program.nodes():
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
            for side in (node.left, node.right):
                product = [n for n in ast.walk(side) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult)]
                if any(TARGET.search(name) for part in product for name in _names(part)):
                    yield Sign(node.lineno, True, "the target is part of the key")
        if isinstance(node, ast.FunctionDef) and re.search(r"(?i)ngram.*(?:cache|eval|mix)", node.name):
            yield Sign(node.lineno, False, f"`{node.name}`")


def slot(program: Program) -> Iterator[Sign]:
    """SLOT: a vector fitted to a window and then used to score the same window."""
    for function in _functions(program):
        if re.search(r"(?i)(?:^|_)slot(?:_|$)", function.name) and _calls(function, "backward", "step"):
            yield Sign(function.lineno, False, f"`{function.name}` optimises")


def ppm(program: Program) -> Iterator[Sign]:
    """PPM mixtures over bytes."""
    for function in _functions(program):
        if re.search(r"(?i)(?:^|_)ppmd?(?:_|$)", function.name):
            yield Sign(function.lineno, False, f"`{function.name}`")


def _without_gradient(function: ast.FunctionDef) -> list[int]:
    """Lines on which a block without gradients begins, as scoring does."""
    return [
        node.lineno
        for node in ast.walk(function)
        if isinstance(node, ast.With)
        and any(part in ast.dump(item.context_expr) for item in node.items for part in ("no_grad", "inference_mode"))
    ]


def train_before_score(program: Program) -> Iterator[Sign]:
    """A function that gets validation tokens and takes a step before it has scored anything."""
    functions = _functions(program)
    for function in functions:
        arguments = [argument.arg for argument in function.args.args + function.args.kwonlyargs]
        if not any(VALIDATION.search(name) for name in arguments):
            continue
        steps = [call.lineno for call in _calls(function, "backward")]
        scores = _without_gradient(function)
        if not steps or (scores and min(scores) < min(steps)):
            continue
        epochs = [
            loop for loop in ast.walk(function)
            if isinstance(loop, ast.For) and any("epoch" in n.lower() for n in _names(loop.iter) | _names(loop.target))
        ]  # fmt: skip
        around = any(loop.lineno < min(steps) <= (loop.end_lineno or 0) for loop in epochs)
        # A helper that adapts to what its caller has scored is in order: who calls it decides.
        around &= not any(_calls(caller, function.name) and _without_gradient(caller) for caller in functions)
        text = f"`{function.name}` steps on validation tokens before it scores"
        yield Sign(function.lineno, around, text + (", in epochs" if around else ""))


def last_chunk(program: Program) -> Iterator[Sign]:
    """Adaptation by chunks without a guard for the last one."""
    for function in _functions(program):
        if "ttt" in function.name.lower() and _calls(function, "backward"):
            text = ast.dump(function)
            if "chunk" in text and not re.search(r"(?i)last|op=Sub\(\), right=Constant\(value=1\)", text):
                yield Sign(function.lineno, False, f"`{function.name}` has no guard for its last chunk")


def calibration_on_val(program: Program) -> Iterator[Sign]:
    """Hessians from validation tokens."""
    for function in _functions(program):
        mentioned = sorted(name for name in _names(function) if re.match(r"val_(?:tok|files|data|load)", name))
        if mentioned and re.search(r"(?i)hessian|calib", function.name):
            yield Sign(function.lineno, True, f"`{function.name}` reads {', '.join(mentioned)}")
        for call in _calls(function, "collect_hessians", "gptq_calibrate", "calibrate"):
            if mentioned := sorted(name for name in _names(call) if re.match(r"val_(?:tok|files|data)", name)):
                yield Sign(call.lineno, True, f"`{called(call)}` gets {', '.join(mentioned)}")


def validation_as_training(program: Program) -> Iterator[Sign]:
    """A glob of training files that matches validation shards."""
    for node in program.nodes():
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not any("train" in dotted(t).lower() and "file" in dotted(t).lower() for t in targets):
                continue
            for text in _strings(node.value):
                if re.search(r"fineweb_(?:val|\*)", text):
                    yield Sign(node.lineno, True, f"training files are `{text[:60]}`")


def _strings(node: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def downloads(program: Program) -> Iterator[Sign]:
    """Network at run time."""
    for node in program.nodes():
        if isinstance(node, ast.Import):
            hits = {alias.name for alias in node.names} & NETWORK_MODULES
        elif isinstance(node, ast.ImportFrom):
            hits = {node.module or ""} & NETWORK_MODULES
        elif isinstance(node, ast.Call):
            hits = {called(node)} & NETWORK
            command = " ".join(_strings(node))
            if called(node) in ("system", "run", "check_call", "check_output", "Popen", "call", "popen"):
                hits |= set(SHELL_DOWNLOADS.findall(command))
        else:
            continue
        if hits:
            yield Sign(node.lineno, isinstance(node, ast.Call), f"`{', '.join(sorted(hits))}`")


def byte_totals(program: Program) -> Iterator[Sign]:
    """A denominator written down instead of counted."""
    for node in program.nodes():
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value in BYTE_TOTALS:
            yield Sign(node.lineno, False, f"the constant {node.value:,}")


def byte_table(program: Program) -> Iterator[Sign]:
    """The byte table: spaces counted twice, byte pieces counted by their label."""
    again = [
        node.lineno for node in program.nodes()
        if isinstance(node, ast.AugAssign | ast.BinOp) and isinstance(node.op, ast.Add)
        and "leading_space" in " ".join(_names(node))
    ]  # fmt: skip
    for function in _functions(program):
        if not _calls(function, "id_to_piece"):
            continue
        if not _calls(function, "is_byte", "IsByte") and _calls(function, "encode"):
            yield Sign(function.lineno, True, f"`{function.name}` knows no byte pieces: <0xXX> counts 6 bytes")
        for node in ast.walk(function):
            plus_one = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and _calls(node, "encode")
            if plus_one and isinstance(node.right, ast.Constant) and node.right.value == 1 and again:  # type: ignore[attr-defined]
                yield Sign(node.lineno, True, f"a space is counted here and on line {again[0]}")  # type: ignore[attr-defined]


def repeated_tail(program: Program) -> Iterator[Sign]:
    """`max(wlen - stride, 0)`: the last windows rescore the last targets."""
    for call in _calls(program.tree, "max") if program.tree else []:
        zero = any(isinstance(a, ast.Constant) and a.value == 0 for a in call.args)
        minus = any(
            isinstance(a, ast.BinOp) and isinstance(a.op, ast.Sub) and any("stride" in n for n in _names(a.right))
            for a in call.args
        )
        if zero and minus:
            yield Sign(call.lineno, True, "windows at the end score their last `stride` targets again")


def oracle(program: Program) -> Iterator[Sign]:
    """The smaller of two losses of the same target."""
    for call in _calls(program.tree, "minimum", "fmin") if program.tree else []:
        if len(call.args) == 2 and all(re.search(r"(?i)nll|loss", " ".join(_names(a))) for a in call.args):
            yield Sign(call.lineno, True, "chosen after the target is known")


def target_gate(program: Program) -> Iterator[Sign]:
    """A predictor gate that asks something of the target."""
    for function in _functions(program):
        if re.search(r"(?i)hint|tilt|gate|predict|mix", function.name):
            for call in ast.walk(function):
                asks = isinstance(call, ast.Call) and re.search(r"(?i)is_(?:boundary|word|space)", called(call))
                if asks and any(TARGET.search(name) for a in call.args for name in _names(a)):  # type: ignore[attr-defined]
                    yield Sign(call.lineno, False, f"`{called(call)}` gets the target")  # type: ignore[attr-defined,arg-type]


def smear(program: Program) -> Iterator[Sign]:
    """The previous token's embedding added to a document's first."""
    for function in _functions(program):
        names = _names(function) | {function.name}
        if not any("smear" in name.lower() for name in names):
            continue
        shifted = [
            node for node in ast.walk(function)
            if isinstance(node, ast.Slice) and node.lower is None and isinstance(node.upper, ast.UnaryOp)
        ]  # fmt: skip
        masked = any("bos" in name.lower() or "mask" in name.lower() for name in names) or any(
            isinstance(node, ast.Compare) and "ids" in " ".join(_names(node)) for node in ast.walk(function)
        )
        if shifted and not masked:
            yield Sign(shifted[0].upper.lineno, False, f"`{function.name}` has no mask at document starts")  # type: ignore[union-attr]


def folded_flag(program: Program) -> Iterator[Sign]:
    """A class attribute that switches QAT on after the graph was compiled with it off."""
    if program.tree is None or not _calls(program.tree, "compile"):
        return
    for node in program.nodes():
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is True:
            for target in node.targets:
                owner, _, name = dotted(target).rpartition(".")
                if "qat" in name.lower() and owner[:1].isupper():
                    yield Sign(node.lineno, False, f"`{owner}.{name}` may be folded into the compiled graph")


def truncation(program: Program) -> Iterator[Sign]:
    """A default that scores the beginning of the validation set."""
    for call in _calls(program.tree, "get", "getenv") if program.tree else []:
        if len(call.args) == 2 and any(re.match(r"VAL_MAX_|VAL_LIMIT|EVAL_MAX_", text) for text in _strings(call)):
            default = call.args[1]
            if isinstance(default, ast.Constant) and str(default.value) not in ("0", "-1", "None", ""):
                yield Sign(call.lineno, True, f"{_strings(call)[0]} is {default.value!r} by default")


DETECTORS: dict[str, tuple[Detector, str]] = {
    "static.ngram": (ngram_cache, "PR 779, PR 886: hashed n-gram caches are closed"),
    "static.slot": (slot, "PR 1229, 1240, 1336, 1488: SLOT"),
    "static.ppm": (ppm, "issue 1872, PR 1905: does the mixture sum to 1 over tokens?"),
    "static.train_then_score": (train_before_score, "issue 402, PR 1376: score first"),
    "static.last_chunk": (last_chunk, "a chunk that is never scored again must not be trained on and reported"),
    "static.calibration": (calibration_on_val, "PR 728: calibration on validation data"),
    "static.train_files": (validation_as_training, "PR 44: training on validation shards"),
    "static.download": (downloads, "PR 466: no network at run time"),
    "static.byte_total": (byte_totals, "E.2: no hard-coded bytes"),
    "static.byte_table": (byte_table, "issue 1719, PR 1734: byte tables"),
    "static.tail": (repeated_tail, "PR 401, PR 549, fixed in PR 1218: every target once"),
    "static.oracle": (oracle, "PR 659: best of two per token"),
    "static.target_gate": (target_gate, "PR 1420, 1437: p must not depend on its own target"),
    "static.smear": (smear, "PR 1797, PR 1874: the last token of a document must not enter the next"),
    "static.folded_flag": (folded_flag, "PR 401 lineage: late QAT that never switched on"),
    "static.truncation": (truncation, "PR 640: a subset scored"),
}
