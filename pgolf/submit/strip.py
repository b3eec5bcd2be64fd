"""What a packed program does not need of one module's source, taken out of its syntax tree.

Comments and docstrings; assertions; annotations that nothing reads; checks of parameters, because those inside a
packed program passed them when it was packed; messages of errors that the environment cannot cause.
"""

import ast
from collections.abc import Iterable

from pgolf.submit.closure import ClosureError, is_type_checking

READS_ANNOTATIONS = frozenset(
    {"constexpr", "custom_op", "infer_schema", "signature", "singledispatch", "triton", "__annotations__"}
)
"""A module that mentions one of these keeps its function annotations: `tl.constexpr` and operator schemas are read
from them at run time."""


def strip(source: str, path: str, *, speaks: bool) -> ast.Module:
    """The tree of a module without the above; `speaks`: its error messages stay.

    Annotations of class attributes stay, because `pgolf.config` builds dataclasses from them. ClosureError for an
    assertion that assigns, which cannot be taken out.
    """
    tree = ast.parse(source, path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node)):
            raise ClosureError(f"{path} line {node.lineno} assigns inside an assertion, which packing removes")
    annotated = not READS_ANNOTATIONS.isdisjoint(_identifiers(tree))
    stripped = _Strip(path, annotated=annotated, speaks=speaks).visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


class _Strip(ast.NodeTransformer):
    def __init__(self, path: str, *, annotated: bool, speaks: bool) -> None:
        self.path, self.annotated, self.speaks, self.owner = path, annotated, speaks, ""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Visit the children; a body that is left empty becomes `pass`."""
        super().generic_visit(node)
        if not isinstance(node, ast.Module) and getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_Assert(self, node: ast.Assert) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if is_type_checking(node):
            return [statement for part in node.orelse for statement in _listed(self.visit(part))]
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        if any(alias.name == "*" for alias in node.names):
            raise ClosureError(f"{self.path} line {node.lineno} imports everything: name what it needs")
        return None if node.module == "__future__" else node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        raise ClosureError(f"{self.path} line {node.lineno} is asynchronous, which packing does not know")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if not self.annotated:
            node.returns = None
        outer, self.owner = self.owner, ""
        self.generic_visit(node)
        self.owner = outer
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        if not self.annotated:
            node.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        outer, self.owner = self.owner, "tuple" if "NamedTuple" in map(_name, node.bases) else "class"
        if _is_frozen(node):
            node.body = [each for each in node.body if not _only_checks(each)]
        self.generic_visit(node)
        self.owner = outer
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Fields keep a type: that of a tuple's says nothing, and of checked choices only that they are text."""
        self.generic_visit(node)
        if self.owner == "tuple":
            node.annotation = ast.Name("int", ast.Load())
        elif self.owner:
            node.annotation = _Unchecked().visit(node.annotation)
        elif node.value is not None:
            return ast.Assign([node.target], node.value)
        else:
            node.annotation = ast.Constant(0)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        call = node.exc
        if self.speaks or not isinstance(call, ast.Call) or not _name(call.func).endswith("Error"):
            return node
        if not call.keywords and all(isinstance(argument, ast.Constant | ast.JoinedStr) for argument in call.args):
            node.exc = call.func
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`vars(x)` as `x.__dict__`: the minifier takes it for a look at local variables and renames nothing."""
        self.generic_visit(node)
        called = node.func.id if isinstance(node.func, ast.Name) else ""
        if called in ("eval", "exec", "globals", "locals") or (called == "vars" and not node.args):
            raise ClosureError(f"{self.path} line {node.lineno} reads names as text, which packing changes")
        if called == "vars":
            return ast.Attribute(node.args[0], "__dict__", ast.Load())
        return node


class _Unchecked(ast.NodeTransformer):
    """`Literal["a", "b"]` becomes `str`."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        choices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        texts = all(isinstance(choice, ast.Constant) and isinstance(choice.value, str) for choice in choices)
        if _name(node.value) == "Literal" and texts:
            return ast.Name("str", ast.Load())
        return self.generic_visit(node)


def _is_frozen(node: ast.ClassDef) -> bool:
    """Whether a class is decorated with `dataclass(frozen=True)`."""
    calls = [each for each in node.decorator_list if isinstance(each, ast.Call) and _name(each.func) == "dataclass"]
    keywords = [keyword for call in calls for keyword in call.keywords if keyword.arg == "frozen"]
    return any(isinstance(keyword.value, ast.Constant) and keyword.value.value for keyword in keywords)


def _only_checks(node: ast.stmt) -> bool:
    """Whether a statement is the `__post_init__` of a frozen class; it can set nothing but by `__setattr__`."""
    return (
        isinstance(node, ast.FunctionDef) and node.name == "__post_init__" and "__setattr__" not in _identifiers(node)
    )


def _identifiers(tree: ast.AST) -> set[str]:
    """Every name, attribute and imported module that the text mentions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found.update(part for module in modules for part in module.split("."))
    return found


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _listed(found: ast.AST | Iterable[ast.AST] | None) -> list[ast.stmt]:
    nodes = [] if found is None else [found] if isinstance(found, ast.AST) else list(found)
    return [node for node in nodes if isinstance(node, ast.stmt)]
