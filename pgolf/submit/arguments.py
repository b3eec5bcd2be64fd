"""Arguments that no call names are marked positional-only, so that the minifier may shorten them.

A tenth of a packed program are names of arguments. The minifier must keep them, because some call might say
`f(name=value)`; here all calls are known, so it is known who does. It takes the mark away again.
"""

import ast
import re
from collections import defaultdict

HARMLESS = frozenset({"cache", "classmethod", "contextmanager", "no_grad", "property", "staticmethod"})
"""Decorators that pass arguments on as they are; others read their names."""
READ = frozenset({"acc"})
"""Names of arguments that a library looks for in functions that are passed to it: the accumulator of quack-kernels."""
NAMED = "setup_context"
"""What is passed under this name is called with names (`torch.library.register_autograd`)."""
ANY = "**"


def mark_positional(tree: ast.Module) -> None:
    """Mark the arguments of every function up to the first that a call names.

    A function that is only ever called counts the calls under its name, whatever it is called on; `__init__` those
    under the name of its class, if that is only ever called. One that is passed on, looked up as text or called by
    Python and torch (`forward`) counts every keyword of the program, every word of its texts and every field: these are
    what `**` can pass.
    """
    nodes = list(ast.walk(tree))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    named: dict[str, set[str]] = defaultdict(set)
    for call in calls:
        of_type = isinstance(call.func, ast.Call) and _name(call.func.func) == "type"  # type(x)(...) makes any class
        named["__init__" if of_type else _name(call.func)].update(keyword.arg or ANY for keyword in call.keywords)
    texts = (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    fields = {_name(node.target) for node in nodes if isinstance(node, ast.AnnAssign)}
    everything = set[str]().union(*named.values(), words, fields, READ) - {ANY}
    called = {id(call.func) for call in calls}
    passed = {_name(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute) and id(node) not in called}
    known = {_name(call.func) for call in calls} - passed - words
    kept = {_name(keyword.value) for call in calls for keyword in call.keywords if keyword.arg == NAMED}
    makers = {id(part): node.name for node in nodes if isinstance(node, ast.ClassDef) and node.name in known
              for part in node.body if getattr(part, "name", "") == "__init__"}  # fmt: skip
    for node in nodes:
        if isinstance(node, ast.Lambda):
            _mark(node.args, everything)
        elif isinstance(node, ast.FunctionDef) and {_decorator(mark) for mark in node.decorator_list} <= HARMLESS:
            if id(node) in makers:
                _mark(node.args, named[makers[id(node)]] | named["__init__"] | named["__class__"])
                continue
            if node.name in kept:
                continue
            outside = node.name not in known or node.name.startswith("__") or node.name == "forward"
            _mark(node.args, everything if outside else named[node.name])


def _mark(arguments: ast.arguments, named: set[str]) -> None:
    if ANY in named:
        return
    count = next((i for i, each in enumerate(arguments.args) if each.arg in named), len(arguments.args))
    arguments.posonlyargs += arguments.args[:count]
    del arguments.args[:count]


def _decorator(node: ast.expr) -> str:
    return _name(node.func if isinstance(node, ast.Call) else node)


def _name(node: ast.expr) -> str:
    """The last name of an expression: `c` of `a.b.c`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
