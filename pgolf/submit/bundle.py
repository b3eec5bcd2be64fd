"""Many modules as one: imports between them and the repeated ones of packages are a tenth of a packed program.

Modules follow each other in the order in which Python would load them. What they define gets a name of its own in the
one namespace, `import` statements between them vanish, `module.name` becomes the name, and definitions that nothing
reaches are dropped. Only names are changed, by Python's rules of scope: what cannot be followed that way is refused.
"""

import ast
import builtins
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pgolf.submit.arguments import mark_positional
from pgolf.submit.closure import ClosureError
from pgolf.submit.methods import shorten_private
from pgolf.submit.reach import binds, cut_unreachable, reached, undefined
from pgolf.submit.strip import strip

SPEAKING = frozenset({"pgolf.data.shards"})
"""Beside the entry the modules whose errors somebody can cause who only runs the program: those that read files."""

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (ast.FunctionDef, ast.Lambda, *COMPREHENSIONS)


class Target(NamedTuple):
    """What an import between modules names: a module, or something in it."""

    module: str
    name: str = ""


@dataclass(slots=True)
class Module:
    """One module and what its names stand for."""

    name: str
    tree: ast.Module
    package: str
    own: set[str] = field(default_factory=set)
    """Names that it defines."""
    packages: dict[str, str] = field(default_factory=dict)
    """Name -> the import statement of an external package that binds it."""
    imported: dict[str, Target] = field(default_factory=dict)
    rebound: set[str] = field(default_factory=set)
    """Own names that functions assign."""


def bundle(sources: Mapping[str, str], entry: str, exclude: Collection[str] = ()) -> str:
    """The program as one module with a `main`, its names not yet shortened; `sources`: path -> text of a closure.

    `exclude`: functions, as `module.name`, that are left out beside the modules that `sources` does not have. To import
    what is left out is an ImportError where it happens.

    ClosureError for what has no equivalent in one namespace: a module used as an object, a name that is rebound after
    another module imported it, names as text.
    """
    names = {path: path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in sources}
    modules = {}
    for path, text in sources.items():
        name = names[path]
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        modules[name] = Module(name, strip(text, path, speaks=name == entry or name in SPEAKING), package)
    top = {name.partition(".")[0] for name in modules}
    for module in modules.values():
        _collect(module, modules, top)
    unique = _unique_names(modules, entry)
    packages: dict[str, ast.stmt] = {}
    body: list[ast.stmt] = []
    left_out: set[str] = set()
    for module in _in_order(modules, entry):
        for bound, statement in module.packages.items():
            packages.setdefault(f"{statement}:{bound}", _import(statement, unique[statement, bound]))
        renamer = _Renamer(module, modules, unique, top, exclude)
        body += renamer.rename()
        left_out |= renamer.left_out
    tree = ast.Module([*packages.values(), *body], [])
    cut_unreachable(tree)
    tree.body = reached(tree.body, "main")
    mark_positional(tree)
    shorten_private(tree)
    program = ast.unparse(ast.fix_missing_locations(tree))
    if missing := undefined(program) - left_out:
        raise ClosureError(f"nothing in one module would define {', '.join(sorted(missing))}")
    return program


def absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that a `from` import names."""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1] if node.level else []
    return ".".join([*base, *([node.module] if node.module else [])])


def _collect(module: Module, modules: Mapping[str, Module], top: set[str]) -> None:
    """Fill in what the names of a module stand for."""
    direct = {id(statement) for statement in module.tree.body}
    for node in ast.walk(module.tree):
        module.rebound.update(node.names if isinstance(node, ast.Global) else ())
    for node in _scope(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                if alias.name.partition(".")[0] in top:
                    raise ClosureError(f"`{module.name}` imports `{alias.name}`: write `from ... import` instead")
                _bind(module, node, alias, bound, direct)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, module.package)
            for alias in node.names:
                bound = alias.asname or alias.name
                if source.partition(".")[0] in top:
                    module.imported[bound] = _target(source, alias, modules)
                else:
                    _bind(module, node, alias, bound, direct)
        else:
            module.own.update(binds(node))
    if both := module.own & {*module.imported, *module.packages}:
        raise ClosureError(f"`{module.name}` imports and assigns `{min(both)}`: use two names")


def _target(source: str, alias: ast.alias, modules: Mapping[str, Module]) -> Target:
    whole = f"{source}.{alias.name}"
    return Target(whole) if whole in modules else Target(source, alias.name)


def _bind(module: Module, node: ast.Import | ast.ImportFrom, alias: ast.alias, bound: str, direct: set[int]) -> None:
    """An import of an external package: moved to the front, unless it stands under a condition."""
    if id(node) not in direct:
        module.own.add(bound)
        return
    statement = f"import {alias.name}" if isinstance(node, ast.Import) else f"from {node.module} import {alias.name}"
    module.packages[bound] = statement + (f" as {alias.asname}" if alias.asname else "")


def _import(statement: str, name: str) -> ast.stmt:
    """The statement, binding `name`."""
    (node,) = ast.parse(statement).body
    assert isinstance(node, ast.Import | ast.ImportFrom)
    (alias,) = node.names
    _call(alias, name)
    return node


def _call(alias: ast.alias, name: str) -> None:
    """Let an import bind `name`; ClosureError for `import a.b`, which binds `a`."""
    if (alias.asname or alias.name.partition(".")[0]) == name:
        return
    if "." in alias.name and not alias.asname:
        raise ClosureError(f"`import {alias.name}` binds a name that means something else elsewhere: add `as`")
    alias.asname = name


def _unique_names(modules: Mapping[str, Module], entry: str) -> dict[tuple[str, str], str]:
    """(module or import statement, name) -> its name in the bundle; the entry's names come first."""
    nodes = [node for module in modules.values() for node in ast.walk(module.tree)]
    outer = {id(node) for module in modules.values() for node in _scope(module.tree)}
    local = {name for node in nodes if id(node) not in outer for name in binds(node)}  # these would hide it
    local |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    taken = local | {node.id for node in nodes if isinstance(node, ast.Name)}
    given: dict[str, tuple[str, str]] = {"main": (entry, "main")}
    unique: dict[tuple[str, str], str] = {(entry, "main"): "main"}
    for module in sorted(modules.values(), key=lambda module: module.name != entry):
        keys = [*((statement, name) for name, statement in module.packages.items()),
                *((module.name, name) for name in sorted(module.own))]  # fmt: skip
        for owner, name in keys:
            if (owner, name) in unique:
                continue
            new, count = name, 0
            while new in given or hasattr(builtins, new) or new in (taken if count else local):
                count += 1
                new = f"{name}_{count}"
            unique[owner, name] = new
            given[new] = (owner, name)
    return unique


def _in_order(modules: Mapping[str, Module], entry: str) -> Iterator[Module]:
    """Every module after those that it imports while it is loaded."""
    seen: set[str] = set()

    def visit(name: str) -> Iterator[Module]:
        if name in seen or name not in modules:
            return
        seen.add(name)
        for target in modules[name].imported.values():
            yield from visit(target.module)
        yield modules[name]

    for name in (entry, *modules):
        yield from visit(name)


class _Renamer(ast.NodeTransformer):
    """Gives the global names of one module their names in the bundle."""

    def __init__(
        self, module: Module, modules: Mapping[str, Module], unique: Mapping[tuple[str, str], str], top: set[str],
        exclude: Collection[str],
    ) -> None:  # fmt: skip
        self.module, self.modules, self.unique, self.top, self.exclude = module, modules, unique, top, exclude
        self.left_out: set[str] = set()
        self.globals: dict[str, str | Target | None] = {name: unique[module.name, name] for name in module.own}
        self.globals |= {name: unique[statement, name] for name, statement in module.packages.items()}
        self.globals |= {name: self.resolve(target) for name, target in module.imported.items()}
        if missing := [target for name, target in module.imported.items() if self.globals[name] is None]:
            raise ClosureError(f"`{module.name}` imports `{'.'.join(missing[0])}`, which is not in the closure")
        self.scopes: list[tuple[ast.AST, dict[str, str | Target | None]]] = [(module.tree, self.globals)]

    def rename(self) -> list[ast.stmt]:
        """The module's statements but its imports of packages."""
        kept = [each for each in self.module.tree.body if not isinstance(each, ast.Import)]
        kept = [each for each in kept if not isinstance(each, ast.ImportFrom) or self.is_ours(each)]
        self.module.tree.body = kept
        self.visit(self.module.tree)
        return self.module.tree.body

    def is_ours(self, node: ast.ImportFrom) -> bool:
        return absolute(node, self.module.package).partition(".")[0] in self.top

    def resolve(self, target: Target) -> str | Target | None:
        """The name in the bundle of what is imported; a module stays a target, None where it is left out."""
        if not target.name:
            return target
        source = self.modules.get(target.module)
        if source is None or f"{target.module}.{target.name}" in self.exclude:
            return None
        if target.name in source.own:
            if target.name in source.rebound:
                raise ClosureError(f"`{target.name}` of `{source.name}` is rebound: `{self.module.name}` misses that")
            return self.unique[source.name, target.name]
        if target.name in source.packages:
            return self.unique[source.packages[target.name], target.name]
        if target.name in source.imported:
            return self.resolve(source.imported[target.name])
        return None

    def look_up(self, name: str) -> str | Target | None:
        """What a name stands for here; None where it is local or a builtin."""
        for depth, (node, names) in enumerate(reversed(self.scopes)):
            if name in names and (not depth or not isinstance(node, ast.ClassDef)):
                return names[name]
        return None

    def renamed(self, name: str) -> str:
        found = self.look_up(name)
        if isinstance(found, Target):
            raise ClosureError(f"`{self.module.name}` uses the module `{found.module}` as an object: import its names")
        return found or name

    def binding(self, name: str) -> str:
        """The new name of something that is bound here: members of classes keep theirs."""
        return name if isinstance(self.scopes[-1][0], ast.ClassDef) else self.renamed(name)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.renamed(node.id) if isinstance(node.ctx, ast.Load) else self.binding(node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        found = self.look_up(node.value.id) if isinstance(node.value, ast.Name) else None
        if isinstance(found, Target) and isinstance(node.ctx, ast.Load):
            whole = f"{found.module}.{node.attr}"
            if whole not in self.modules:
                resolved = self.resolve(Target(found.module, node.attr))
                assert isinstance(resolved, str), f"{self.module.name} uses {whole}, which does not exist"
                return ast.Name(resolved, ast.Load())
        return self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> ast.AST:
        node.names = [str(self.globals.get(name) or name) for name in node.names]
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = node.name and self.renamed(node.name)
        return self.generic_visit(node)

    def visit_alias(self, node: ast.alias) -> ast.AST:
        bound = node.asname or node.name.partition(".")[0]
        _call(node, self.renamed(bound))
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if not self.is_ours(node):
            return self.generic_visit(node)
        source = absolute(node, self.module.package)
        meant = {a.asname or a.name: self.resolve(_target(source, a, self.modules)) for a in node.names}
        if None in meant.values():
            self.left_out |= {*meant}
            return ast.parse("raise ImportError").body[0]  # its parameters do not reach it: no message
        local = {name: str(value) for name, value in meant.items() if self.look_up(name) is None}  # assigned here too
        return ast.parse(f"{', '.join(local)} = {', '.join(local.values())}").body[0] if local else ast.Pass()

    def defaults(self, arguments: ast.arguments) -> None:
        """Default values are evaluated outside of the function."""
        arguments.defaults = [self.visit(each) for each in arguments.defaults]
        arguments.kw_defaults = [each and self.visit(each) for each in arguments.kw_defaults]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name = self.binding(node.name)
        node.decorator_list = [self.visit(each) for each in node.decorator_list]
        self.defaults(node.args)
        for argument in _arguments(node.args):
            argument.annotation = argument.annotation and self.visit(argument.annotation)
        node.returns = node.returns and self.visit(node.returns)
        self.scopes.append((node, self.locals(node)))
        node.body = [self.visit(each) for each in node.body]
        self.scopes.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Members are bound one after the other: `size = size` reads the global name."""
        node.name = self.binding(node.name)
        node.decorator_list = [self.visit(each) for each in node.decorator_list]
        node.bases = [self.visit(each) for each in node.bases]
        node.keywords = [self.visit(each) for each in node.keywords]
        bound: dict[str, str | Target | None] = {}
        self.scopes.append((node, bound))
        for index, each in enumerate(node.body):
            node.body[index] = self.visit(each)
            bound |= dict.fromkeys(name for inner in _scope(ast.Module([each], [])) for name in binds(inner))
        self.scopes.pop()
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.defaults(node.args)
        self.scopes.append((node, self.locals(node)))
        node.body = self.visit(node.body)
        self.scopes.pop()
        return node

    def _comprehension(self, node: ast.expr) -> ast.AST:
        self.scopes.append((node, self.locals(node)))
        self.generic_visit(node)
        self.scopes.pop()
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def locals(self, node: ast.AST) -> dict[str, str | Target | None]:
        """The names that a scope binds: local ones, and those of imports between modules."""
        found: dict[str, str | Target | None] = {}
        imported: dict[str, str | Target | None] = {}
        declared: set[str] = set()
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            found |= dict.fromkeys(argument.arg for argument in _arguments(node.args))
        if isinstance(node, COMPREHENSIONS):  # an assignment expression inside binds outside
            targets = [inner for part in node.generators for inner in ast.walk(part.target)]
            return dict.fromkeys(name for inner in targets for name in binds(inner))
        for inner in _scope(node):
            if isinstance(inner, ast.Global | ast.Nonlocal):
                declared.update(inner.names)
            elif isinstance(inner, ast.ImportFrom) and self.is_ours(inner):
                source = absolute(inner, self.module.package)
                named = {a.asname or a.name: _target(source, a, self.modules) for a in inner.names}
                imported |= {name: self.resolve(target) for name, target in named.items()}
            else:
                found |= dict.fromkeys(binds(inner))
        return {name: value for name, value in (imported | found).items() if name not in declared}


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    extra = [each for each in (arguments.vararg, arguments.kwarg) if each]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]


def _scope(owner: ast.AST) -> Iterator[ast.AST]:
    """The nodes that belong to a scope; of the scopes inside only the definition itself."""
    waiting = list(ast.iter_child_nodes(owner))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (*SCOPES, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)
        elif not isinstance(node, ast.ClassDef | ast.FunctionDef):  # an assignment expression reaches out of these
            waiting += [inner for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
