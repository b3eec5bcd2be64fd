"""Signs in a program's data, byte counts, model and quantizer, and in what it is."""

import ast
import re
from collections.abc import Iterator

from pgolf.audit.programs import Program, called, dotted
from pgolf.audit.signs import Sign, calls, names_in, strings

NETWORK = {
    "hf_hub_download", "snapshot_download", "urlretrieve", "urlopen", "get_kernel", "load_state_dict_from_url",
    "create_connection",
}  # fmt: skip
NETWORK_MODULES = {"requests", "urllib.request", "huggingface_hub", "httpx", "aiohttp", "kernels"}
SHELL_DOWNLOADS = re.compile(r"(?i)\b(?:curl|wget|pip3? install|git clone|huggingface-cli|apt(?:-get)? install)\b")
BYTE_TOTALS = range(140_000_000, 180_000_001)


def calibration_on_val(program: Program) -> Iterator[Sign]:
    """Hessians from validation tokens."""
    for function in program.functions():
        mentioned = sorted(name for name in names_in(function) if re.match(r"val_(?:tok|files|data|load)", name))
        if mentioned and re.search(r"(?i)hessian|calib", function.name):
            yield Sign(function.lineno, True, f"`{function.name}` reads {', '.join(mentioned)}")
        for call in calls(function, "collect_hessians", "gptq_calibrate", "calibrate"):
            if mentioned := sorted(name for name in names_in(call) if re.match(r"val_(?:tok|files|data)", name)):
                yield Sign(call.lineno, True, f"`{called(call)}` gets {', '.join(mentioned)}")


def validation_as_training(program: Program) -> Iterator[Sign]:
    """A glob of training files that matches validation shards."""
    for node in program.nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not any("train" in dotted(t).lower() and "file" in dotted(t).lower() for t in targets):
                continue
            for text in strings(node.value):
                if re.search(r"fineweb_(?:val|\*)", text):
                    yield Sign(node.lineno, True, f"training files are `{text[:60]}`")


def downloads(program: Program) -> Iterator[Sign]:
    """Network at run time."""
    for node in program.nodes:
        if isinstance(node, ast.Import):
            hits = {alias.name for alias in node.names} & NETWORK_MODULES
        elif isinstance(node, ast.ImportFrom):
            hits = {node.module or ""} & NETWORK_MODULES
        elif isinstance(node, ast.Call):
            hits = {called(node)} & NETWORK
            command = " ".join(strings(node))
            if called(node) in ("system", "run", "check_call", "check_output", "Popen", "call", "popen"):
                hits |= set(SHELL_DOWNLOADS.findall(command))
        else:
            continue
        if hits:
            yield Sign(node.lineno, isinstance(node, ast.Call), f"`{', '.join(sorted(hits))}`")


def byte_totals(program: Program) -> Iterator[Sign]:
    """A denominator written down instead of counted."""
    for node in program.nodes:
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value in BYTE_TOTALS:
            yield Sign(node.lineno, False, f"the constant {node.value:,}")


def byte_table(program: Program) -> Iterator[Sign]:
    """The byte table: spaces counted twice, byte pieces counted by their label."""
    again = [
        node.lineno for node in program.nodes
        if isinstance(node, ast.AugAssign | ast.BinOp) and isinstance(node.op, ast.Add)
        and "leading_space" in " ".join(names_in(node))
    ]  # fmt: skip
    for function in program.functions():
        if not calls(function, "id_to_piece"):
            continue
        if not calls(function, "is_byte", "IsByte") and calls(function, "encode"):
            yield Sign(function.lineno, True, f"`{function.name}` knows no byte pieces: <0xXX> counts 6 bytes")
        for node in ast.walk(function):
            plus_one = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and calls(node, "encode")
            if plus_one and isinstance(node.right, ast.Constant) and node.right.value == 1 and again:  # type: ignore[attr-defined]
                yield Sign(node.lineno, True, f"a space is counted here and on line {again[0]}")  # type: ignore[attr-defined]


def smear(program: Program) -> Iterator[Sign]:
    """The previous token's embedding added to a document's first."""
    for function in program.functions():
        names = names_in(function) | {function.name}
        if not any("smear" in name.lower() for name in names):
            continue
        shifted = [
            node for node in ast.walk(function)
            if isinstance(node, ast.Slice) and node.lower is None and isinstance(node.upper, ast.UnaryOp)
        ]  # fmt: skip
        masked = any("bos" in name.lower() or "mask" in name.lower() for name in names) or any(
            isinstance(node, ast.Compare) and "ids" in " ".join(names_in(node)) for node in ast.walk(function)
        )
        if shifted and not masked:
            yield Sign(shifted[0].upper.lineno, False, f"`{function.name}` has no mask at document starts")  # type: ignore[union-attr]


def folded_flag(program: Program) -> Iterator[Sign]:
    """A class attribute that switches QAT on after the graph was compiled with it off."""
    if program.tree is None or not calls(program.tree, "compile"):
        return
    for node in program.nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is True:
            for target in node.targets:
                owner, _, name = dotted(target).rpartition(".")
                if "qat" in name.lower() and owner[:1].isupper():
                    yield Sign(node.lineno, False, f"`{owner}.{name}` may be folded into the compiled graph")


def lossy_text(program: Program) -> Iterator[Sign]:
    """Text folded to lower case on its way to the tokenizer, with no operator that brings the case back."""
    if re.search(r"(?i)\\ue00[0-4]|0xe00[0-4]|[\ue000-\ue004]|lossless", program.text):
        return
    for call in program.calls("lower", "casefold"):
        owner = call.func.value if isinstance(call.func, ast.Attribute) else call
        if not call.args and any(re.search(r"(?i)^(?:text|doc|line|raw|content|sentence)", n) for n in names_in(owner)):
            yield Sign(call.lineno, False, f"`{called(call)}` of text: can the tokens be decoded to it?")


def sidecar_glob(program: Program) -> Iterator[Sign]:
    """A pattern of validation shards that also matches their byte counts."""
    texts = {node: node.value for node in program.nodes if isinstance(node, ast.Constant) and type(node.value) is str}
    left_out = any(
        isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.NotIn) and "bytes" in " ".join(strings(node))
        for node in program.nodes
    )
    if left_out or not any(re.search(r"_bytes(?:_|$)", text) for text in texts.values()):
        return
    for node, text in texts.items():
        if re.search(r"fineweb_val_\*", text):
            yield Sign(node.lineno, False, f"`{text[:60]}` matches byte counts too")


def placeholder(program: Program) -> Iterator[Sign]:
    """A main function without a body."""
    for function in program.functions():
        idle = [node for node in function.body if _idle(node)]
        if function.name == "main" and len(idle) == len(function.body):
            yield Sign(function.lineno, True, "`main` does nothing")


def _idle(node: ast.stmt) -> bool:
    """A docstring, `...`, `pass`, an error, or a line of output."""
    if isinstance(node, ast.Expr):
        said = isinstance(node.value, ast.Call) and called(node.value) == "print"
        return said or isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Pass | ast.Raise)


def late_work(program: Program) -> Iterator[Sign]:
    """Training after the training loop: replay bursts."""
    for function in program.functions():
        if re.search(r"(?i)burst|replay", function.name) and calls(function, "backward"):
            yield Sign(function.lineno, False, f"`{function.name}`: is its time charged?")
