"""Signs of a score that was not earned: what a program does with validation tokens before and while it scores."""

import ast
import re
from collections.abc import Iterator

from pgolf.audit.programs import Program, called
from pgolf.audit.signs import TARGET, VALIDATION, Sign, calls, names_in, over_epochs, strings, without_gradient


def ngram_cache(program: Program) -> Iterator[Sign]:
    """`key = context_hash ^ target * prime`: a lookup that needs the token it predicts."""
    for node in program.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
            for side in (node.left, node.right):
                product = [n for n in ast.walk(side) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult)]
                if any(TARGET.search(name) for part in product for name in names_in(part)):
                    yield Sign(node.lineno, True, "the target is part of the key")
        if isinstance(node, ast.FunctionDef) and re.search(r"(?i)ngram.*(?:cache|eval|mix)", node.name):
            yield Sign(node.lineno, False, f"`{node.name}`")


def slot(program: Program) -> Iterator[Sign]:
    """SLOT: a vector fitted to a window and then used to score the same window."""
    for function in program.functions():
        if re.search(r"(?i)(?:^|_)slot(?:_|$)", function.name) and calls(function, "backward", "step"):
            yield Sign(function.lineno, False, f"`{function.name}` optimises")


def ppm(program: Program) -> Iterator[Sign]:
    """PPM mixtures over bytes."""
    for function in program.functions():
        if re.search(r"(?i)(?:^|_)ppmd?(?:_|$)", function.name):
            yield Sign(function.lineno, False, f"`{function.name}`")


def train_before_score(program: Program) -> Iterator[Sign]:
    """A function that gets validation tokens and takes a step before it has scored anything."""
    functions = program.functions()
    for function in functions:
        arguments = [argument.arg for argument in function.args.args + function.args.kwonlyargs]
        inside = names_in(function)
        loads = any(re.match(r"val_(?:tok|data|load)", name) for name in inside)
        alone = loads and not any("train_" in name for name in inside)  # a main function reads both
        if not alone and not any(VALIDATION.search(name) for name in arguments):
            continue
        steps = [call.lineno for call in calls(function, "backward")]
        scores = without_gradient(function)
        if not steps or (scores and min(scores) < min(steps)):
            continue
        epochs = over_epochs(function)
        around = any(loop.lineno < min(steps) <= (loop.end_lineno or 0) for loop in epochs)
        # A helper that adapts to what its caller has scored is in order: who calls it decides.
        around &= not any(calls(caller, function.name) and without_gradient(caller) for caller in functions)
        text = f"`{function.name}` steps on validation tokens before it scores"
        yield Sign(function.lineno, around, text + (", in epochs" if around else ""))


def last_chunk(program: Program) -> Iterator[Sign]:
    """Adaptation by chunks without a guard for the last one."""
    for function in program.functions():
        if "ttt" in function.name.lower() and calls(function, "backward"):
            text = ast.dump(function)
            if "chunk" in text and not re.search(r"(?i)last|op=Sub\(\), right=Constant\(value=1\)", text):
                yield Sign(function.lineno, False, f"`{function.name}` has no guard for its last chunk")


def repeated_tail(program: Program) -> Iterator[Sign]:
    """`max(wlen - stride, 0)`: the last windows rescore the last targets."""
    for call in program.calls("max"):
        zero = any(isinstance(a, ast.Constant) and a.value == 0 for a in call.args)
        minus = any(
            isinstance(a, ast.BinOp) and isinstance(a.op, ast.Sub) and any("stride" in n for n in names_in(a.right))
            for a in call.args
        )
        if zero and minus:
            yield Sign(call.lineno, True, "windows at the end score their last `stride` targets again")


def oracle(program: Program) -> Iterator[Sign]:
    """The smaller of two losses of the same target."""
    for call in program.calls("minimum", "fmin"):
        if len(call.args) == 2 and all(re.search(r"(?i)nll|loss", " ".join(names_in(a))) for a in call.args):
            yield Sign(call.lineno, True, "chosen after the target is known")


def target_gate(program: Program) -> Iterator[Sign]:
    """A predictor gate that asks something of the target."""
    for function in program.functions():
        if re.search(r"(?i)hint|tilt|gate|predict|mix", function.name):
            for call in ast.walk(function):
                asks = isinstance(call, ast.Call) and re.search(r"(?i)is_(?:boundary|word|space)", called(call))
                if asks and any(TARGET.search(name) for a in call.args for name in names_in(a)):  # type: ignore[attr-defined]
                    yield Sign(call.lineno, False, f"`{called(call)}` gets the target")  # type: ignore[attr-defined,arg-type]


def truncation(program: Program) -> Iterator[Sign]:
    """A default that scores the beginning of the validation set."""
    for call in program.calls("get", "getenv"):
        if len(call.args) == 2 and any(re.match(r"VAL_MAX_|VAL_LIMIT|EVAL_MAX_", text) for text in strings(call)):
            default = call.args[1]
            if isinstance(default, ast.Constant) and str(default.value) not in ("0", "-1", "None", ""):
                yield Sign(call.lineno, True, f"{strings(call)[0]} is {default.value!r} by default")


def double_pass(program: Program) -> Iterator[Sign]:
    """A function that scores again what had its score."""
    for function in program.functions():
        if re.search(r"(?i)re_?score|(?:second|two|double|multi)_?pass", function.name):
            yield Sign(function.lineno, False, f"`{function.name}`: which of its losses is reported?")


def late_epoch(program: Program) -> Iterator[Sign]:
    """A score taken anew in every epoch of adaptation: the last one has seen its targets."""
    for function in program.functions():
        for loop in over_epochs(function):
            scored, stepped = without_gradient(loop), [call.lineno for call in calls(loop, "backward")]
            if scored and stepped and names_in(loop) & {"cross_entropy", "losses", "nll", "loss"}:
                yield Sign(loop.lineno, False, f"`{function.name}` scores within its epochs: which epoch is reported?")


def picked(program: Program) -> Iterator[Sign]:
    """Weights or a temperature chosen by validation score."""
    for function in program.functions():
        names = names_in(function)
        if not any(VALIDATION.search(name) or "bpb" in name for name in names):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.For) and any(
                re.search(r"(?i)^temp(?:erature)?s?(?:_|$)", n) for n in names_in(node.target)
            ):
                yield Sign(node.lineno, False, f"`{function.name}` tries temperatures: on which tokens?")
            if isinstance(node, ast.If) and isinstance(node.test, ast.Compare):
                kept = {n for inner in node.body if isinstance(inner, ast.Assign) for n in names_in(inner)}
                chosen = sorted(n for n in kept if re.match(r"best_(?:state|sd|weights|params|model|ckpt|name)", n))
                if chosen and any(re.search(r"bpb|val", n) for n in names_in(node.test)):
                    yield Sign(node.lineno, False, f"`{chosen[0]}` is chosen by a score: on which tokens?")


def warmup_on_val(program: Program) -> Iterator[Sign]:
    """Compile warm-up that takes steps on real validation tokens."""
    for function in program.functions():
        if "warm" not in function.name.lower() or not calls(function, "backward", "step"):
            continue
        mentioned = sorted(name for name in names_in(function) if re.match(r"val_(?:tok|data|load)", name))
        if mentioned:
            yield Sign(function.lineno, False, f"`{function.name}` steps on {', '.join(mentioned)}")
