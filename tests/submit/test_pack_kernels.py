"""A packed kernel is the one that was written: Triton compiles its text."""

import ast
import builtins
from pathlib import Path
from typing import Any

import torch

from pgolf.sections import load_sections
from pgolf.submit.pack_code import ENTRY, optional_modules, program_sources, program_text

ROOT = Path(__file__).parents[2]

KERNEL = """
import triton
import triton.language as tl
@triton.jit
def _double(values, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    tl.store(values + place, 2 * tl.load(values + place, mask=inside), mask=inside)
    tl.store(values + place + BLOCK + BLOCK + BLOCK, 0, mask=inside)
    for step in range(BLOCK):
        tl.store(values + step, 0)
def double(values):
    for _ in range(1), range(2), range(3), range(4), range(5):
        _double[(1,)](values, len(values), 64)
"""
MAIN = "from prog.kernel import double\ndef main(params):\n    double(params['values'])\n"


def test_kernels_ship_with_a_model_that_has_neither_gates_nor_lanes() -> None:
    params = load_sections(ROOT / "params.yaml").resolved()
    params["model"] |= {"attn_gate": "none", "parallel": "none"}
    params["train"] |= {"kernels": "triton"}
    left_out = optional_modules(params)
    assert {"pgolf.model.gates", "pgolf.model.lanes"} <= left_out
    shipped = program_sources(ENTRY, ROOT, left_out)
    assert "pgolf/train/fused_model.py" in shipped
    assert "pgolf/model/lanes.py" not in shipped


def test_arguments_of_a_kernel_have_no_copies() -> None:
    sources = {"prog/__init__.py": "", "prog/kernel.py": KERNEL, "prog/main.py": MAIN}
    program = program_text(sources, "prog.main")
    signature = program[program.index("(values,count,BLOCK:") :]
    assert signature.count("BLOCK") == KERNEL.count("BLOCK")
    assert "=BLOCK" not in program


def test_the_accumulator_of_an_epilogue_keeps_its_name() -> None:
    """The library that is given the function looks for it."""
    main = "def _square(acc):\n    return acc * acc\ndef main(params):\n    params['give'](_square)\n"
    assert "(acc)" in program_text({"prog/__init__.py": "", "prog/main.py": main}, "prog.main")


def test_an_operator_of_a_packed_program_has_its_gradient() -> None:
    """Torch calls `setup_context` with the names of its arguments."""
    main = """
import torch
@torch.library.custom_op("packed_test::cube", mutates_args=())
def _cube(x: torch.Tensor) -> torch.Tensor:
    return x ** 3
def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
def _gradient(ctx, upstream):
    return 3 * ctx.saved_tensors[0] ** 2 * upstream
_cube.register_autograd(_gradient, setup_context=_save)
def main(params):
    _cube(params["x"]).sum().backward()
"""
    program: dict[str, Any] = {}
    exec(program_text({"prog/__init__.py": "", "prog/main.py": main}, "prog.main"), program)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    program["main"]({"x": x})
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 12.0]


def test_kernels_use_no_builtin() -> None:
    """Packing gives builtins short global names, which Triton does not follow: `tl.range`, not `range`."""
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "pgolf/kernels").glob("*.py")]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    kernels = [node for node in functions if "triton.jit" in map(ast.unparse, node.decorator_list)]
    assert len(kernels) > 3
    for kernel in kernels:
        names = {node.id for node in ast.walk(kernel) if isinstance(node, ast.Name)}
        assert not names & set(vars(builtins)), kernel.name


def test_a_kernel_counts_with_range_itself() -> None:
    sources = {"prog/__init__.py": "", "prog/kernel.py": KERNEL, "prog/main.py": MAIN}
    assert program_text(sources, "prog.main").count("range(") == KERNEL.count("range(")
