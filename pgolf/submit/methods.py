"""Methods with a leading underscore get short names: the minifier leaves those of attributes as they are."""

import ast
import itertools
import re
import string
from collections.abc import Iterator


def shorten_private(tree: ast.Module) -> None:
    """Rename the private methods of classes that inherit nothing, where each use is `self.name`.

    Not those that a text mentions, and not to what any attribute is called: names are the same for all classes.
    """
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    kept = {node.attr for node in attributes if not (isinstance(node.value, ast.Name) and node.value.id == "self")}
    kept |= {method.name for each in classes if each.bases for method in _methods(each)}
    kept |= {word for text in texts for word in re.findall(r"\w+", text)}
    bodies = [part for each in classes for part in each.body if not isinstance(part, ast.FunctionDef)]
    kept |= {node.id for part in bodies for node in ast.walk(part) if isinstance(node, ast.Name)}
    methods = [method for each in classes for method in _methods(each) if method.name not in kept]
    private = sorted({method.name for method in methods if re.match("_[^_]", method.name)})
    taken = kept | {node.attr for node in attributes} | {method.name for each in classes for method in _methods(each)}
    names = dict(zip(private, (name for name in _short() if name not in taken), strict=False))
    for node in attributes:
        node.attr = names.get(node.attr, node.attr)
    for method in methods:
        method.name = names.get(method.name, method.name)


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [part for part in node.body if isinstance(part, ast.FunctionDef)]


def _short() -> Iterator[str]:
    """a, b, ... z, aa, ab, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))
