"""What detectors of static signs share: a sign, and what to ask of a syntax tree."""

import ast
import re
from typing import NamedTuple

from pgolf.audit.programs import called

TARGET = re.compile(r"(?i)(?:^|_)(?:tgts?|targets?|next_?tok\w*|y)(?:$|_)")
VALIDATION = re.compile(r"(?i)(?:^|_)val(?:_|$)|validation")


class Sign(NamedTuple):
    """One place in a program."""

    line: int
    certain: bool
    """Wrong in itself."""
    text: str


def names_in(node: ast.AST) -> set[str]:
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


def calls(node: ast.AST, *names: str) -> list[ast.Call]:
    """Calls below a node of something whose name ends so."""
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.Call) and called(inner) in names]


def strings(node: ast.AST) -> list[str]:
    """Text constants below a node."""
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def without_gradient(node: ast.AST) -> list[int]:
    """Lines on which a block without gradients begins, as scoring does."""
    return [
        inner.lineno
        for inner in ast.walk(node)
        if isinstance(inner, ast.With)
        and any(part in ast.dump(item.context_expr) for item in inner.items for part in ("no_grad", "inference_mode"))
    ]


def over_epochs(node: ast.AST) -> list[ast.For]:
    """Loops below a node that count epochs."""
    return [
        loop
        for loop in ast.walk(node)
        if isinstance(loop, ast.For) and any("epoch" in n.lower() for n in names_in(loop.iter) | names_in(loop.target))
    ]
