"""Read the source of one module: its definitions, a digest of each, and the names that each one uses.

The text is parsed and never run. Comments, docstrings, formatting and the order of imports do not count.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

BODY = ""
"""Name of the definition that stands for the statements of a module that define nothing."""

_FILE = re.compile(r"[\w.-][\w./-]{,99}\.\w+")
_IGNORED = frozenset({"ctx", "type_comment", "kind", "lineno", "end_lineno", "col_offset", "end_col_offset"})
_PLAIN_DECORATORS = {
    *("property", "cached_property", "setter", "classmethod", "staticmethod", "abstractmethod", "override", "overload"),
    *("cache", "lru_cache", "contextmanager", "no_grad", "inference_mode", "wraps", "singledispatch"),
    *("dataclass", "runtime_checkable", "total_ordering", "final", "unique"),
}
_CLOSED_BASES = {
    *("object", "Exception", "ValueError", "RuntimeError", "abc.ABC", "enum.Enum", "enum.StrEnum", "enum.IntEnum"),
    *("typing.Protocol", "typing.Generic", "typing.NamedTuple", "typing.TypedDict"),
}
_BY_NAME = frozenset({"getattr", "hasattr", "setattr", "attrgetter", "methodcaller"})

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Scope = _Function | ast.Lambda
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def read_facts(text: str | bytes, package: str = "") -> dict[str, Any]:
    """Return the facts of a module, whose relative imports start from `package`, as plain JSON values.

    Returns:
        `defines`: name -> {`digest`, `refers` (absolute dotted names, `.name` of this module, or
        `!module` that is imported for what it does), `types` (the same of names that say what a value
        is), `attributes`, `files`}; methods as `Class.method`.
        `imports`: name -> absolute dotted name. `classes`: name -> {`bases` (but those that call no
        method by name), `methods`, `kept` (methods that Python or a decorator's library calls),
        `constants` (class attributes that are strings)}.

    Raises:
        SyntaxError: The text is not Python.
    """
    module = _Module(ast.parse(text), package)
    return {"imports": module.imports, "defines": module.defines(), "classes": module.classes()}


class _Module:
    def __init__(self, tree: ast.Module, package: str) -> None:
        self.package = package
        self.nodes: dict[str, list[ast.AST]] = {BODY: []}
        self.imports: dict[str, str] = {}
        self.in_body: set[str] = set()
        self._runs: list[tuple[str, str]] = []
        self.effects: set[str] = set()  # what counts with the body though no statement of it has the name
        for node in tree.body:
            self._take(node)
        once = {name: nodes[0] for name, nodes in self.nodes.items() if len(nodes) == 1}
        self._classes = {name: node for name, node in once.items() if isinstance(node, ast.ClassDef)}
        texts = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}  # as in `__all__`
        named = texts | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self.effects |= {f"!{runs}" for runs in _not_standard(runs for name, runs in self._runs if name not in named)}

    def _take(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self._import(node)
        elif names := _defined_names(node):
            for name in names:
                self.nodes.setdefault(name, []).append(node)
            if not all(map(_is_plain, getattr(node, "decorator_list", []))):
                self.effects.add(f".{names[0]}")  # its decorator may put it into a registry
        elif _is_skipped(node):
            for other in getattr(node, "orelse", []):
                self._take(other)
        elif not _is_text(node):
            self.nodes[BODY].append(node)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    self._import(inner)
                else:
                    self.in_body |= set(_stored(inner))

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name, dotted, runs in _bindings(node, self.package):
            self._runs.append((name, runs))
            if name == "*":
                self.effects.add(dotted.removesuffix(".*"))
            elif self.imports.setdefault(name, dotted) != dotted:  # which of them is known when it runs
                self.effects |= {self.imports[name], dotted}

    def defines(self) -> dict[str, Any]:
        found = {}
        for name, nodes in self.nodes.items():
            if node := self._classes.get(name):
                assert isinstance(node, ast.ClassDef)
                methods = [inner for inner in node.body if isinstance(inner, _Function)]
                found[name] = _Walk(self, [node], without=methods).result()
                for method in methods:
                    same = [inner for inner in methods if inner.name == method.name]
                    found[f"{name}.{method.name}"] = _Walk(self, same).result()
            elif nodes or self.effects:
                found[name] = _Walk(self, nodes).result()
        return found

    def classes(self) -> dict[str, Any]:
        found = {}
        for name, node in self._classes.items():
            assert isinstance(node, ast.ClassDef)
            methods = [inner for inner in node.body if isinstance(inner, _Function)]
            named = {inner.id for part in node.body for inner in _names_outside_methods(part)}
            kept = [each.name for each in methods if _is_kept(each) or each.name in named]
            bases = [self.dotted(base) or "?" for base in node.bases]
            constants = {
                target.id: part.value.value
                for part in node.body
                if isinstance(part, ast.Assign | ast.AnnAssign) and isinstance(part.value, ast.Constant)
                for target in (part.targets if isinstance(part, ast.Assign) else [part.target])
                if isinstance(target, ast.Name) and isinstance(part.value.value, str)
            }
            found[name] = {
                "bases": [base for base in bases if base not in _CLOSED_BASES],
                "methods": sorted({each.name for each in methods}),
                "kept": sorted(set(kept)),
                "constants": constants,
            }
        return found

    def dotted(self, node: ast.AST) -> str | None:
        """The dotted name of an expression such as `package.Class[Item]`; None of any other."""
        if isinstance(node, ast.Subscript):
            return self.dotted(node.value)
        if isinstance(node, ast.Attribute):
            before = self.dotted(node.value)
            return f"{before}.{node.attr}" if before else None
        return [*self.meanings(node.id, {}), node.id][0] if isinstance(node, ast.Name) else None

    def meanings(self, name: str, local: dict[str, str]) -> list[str]:
        """What a free name may refer to: a dotted name, `.name` of this module, nothing for a built-in one."""
        if name in local:
            return [local[name]]
        here = [f".{name}"] if name in self.nodes and name != BODY else [f".{BODY}"] if name in self.in_body else []
        return ([self.imports[name]] if name in self.imports else []) + here


class _Walk:
    """One pass over a definition: its canonical text, and the names in it."""

    def __init__(self, module: _Module, nodes: Iterable[ast.AST], without: Iterable[ast.AST] = ()) -> None:
        self._module = module
        self._without = set(map(id, without))
        self._local: dict[str, str] = {}
        self._refers: set[str] = set(module.effects) if nodes is module.nodes[BODY] else set()
        self._meanings: set[str] = set()
        self._around: dict[int, frozenset[str]] = {}
        self._types: set[str] = set()
        self._in_type: set[int] = set()
        self._attributes: set[str] = set()
        self._files: set[str] = set()
        self._text: list[str] = []
        self._roots: set[int] = set()
        elsewhere = {id(inner) for part in without for inner in ast.walk(part)}
        for node in nodes:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import | ast.ImportFrom) and id(inner) not in elsewhere:
                    for name, dotted, runs in _bindings(inner, module.package):
                        known = self._local.setdefault(name, dotted)
                        self._refers |= {f"!{runs}"} | ({known, dotted} if known != dotted else set())
        for node in nodes:
            self._visit(node, frozenset())

    def result(self) -> dict[str, Any]:
        content = "\n".join(["".join(self._text), *sorted(self._refers | self._meanings), *sorted(self._types)])
        return {
            "digest": hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32],
            "refers": _not_standard(self._refers),
            "types": _not_standard(self._types),
            "attributes": sorted(self._attributes),
            "files": sorted(self._files),
        }

    def _visit(self, node: Any, hidden: frozenset[str]) -> None:
        hidden = self._around.get(id(node), hidden)
        if isinstance(node, list):
            self._text.append("[")
            for item in node:
                self._visit(item, hidden)
            self._text.append("]")
        elif not isinstance(node, ast.AST):
            self._text.append(f"{node!r},")
        elif not (id(node) in self._without or isinstance(node, ast.Import | ast.ImportFrom) or _is_text(node)):
            self._note(node, hidden)
            self._around |= {id(part): hidden for part in _outside(node)}
            if isinstance(node, _Scope):
                hidden = hidden | _locals(node) - self._local.keys()
            elif isinstance(node, _Comprehension):
                hidden = hidden | {name for part in node.generators for name in _all_stored(part.target)}
            self._text.append(f"{type(node).__name__}(")
            for field in node._fields:
                value = getattr(node, field, None)
                if field not in _IGNORED and (isinstance(node, ast.Constant) or value not in (None, [])):
                    self._text.append(f"{field}=")
                    self._visit(value, hidden)
            self._text.append(")")

    def _note(self, node: ast.AST, hidden: frozenset[str]) -> None:
        for part in _types_in(node, in_function=bool(hidden)):
            self._in_type |= {id(inner) for inner in ast.walk(part)} if part else set()
        self._attributes |= set(getattr(node, "kwd_attrs", ()))  # of a class in `case`
        if isinstance(node, ast.Attribute):
            self._attributes.add(node.attr)
            if id(node) in self._roots:
                self._roots.add(id(node.value))
                return
            parts: list[str] = []
            inner: ast.AST = node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                self._roots.add(id(node.value))
                self._refer(inner, hidden, list(reversed(parts)))
        elif isinstance(node, ast.Name) and id(node) not in self._roots:
            self._refer(node, hidden, [])
        elif isinstance(node, ast.Call) and _last_name(node.func) in _BY_NAME:
            texts = [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
            self._attributes |= set(".".join(texts).split("."))
        elif isinstance(node, ast.Call) and _last_name(node.func) == "import_module":
            names = [str(each.value) for each in node.args if isinstance(each, ast.Constant)]
            self._refers |= {f"{self._module.package}{name}" if name.startswith(".") else name for name in names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _FILE.fullmatch(node.value):
            self._files.add(node.value)

    def _refer(self, node: ast.Name, hidden: frozenset[str], chain: list[str]) -> None:
        for meaning in () if node.id in hidden else self._module.meanings(node.id, self._local):
            found = self._types if id(node) in self._in_type else self._refers
            found.add(meaning if meaning.startswith(".") else ".".join([meaning, *chain]))
            self._meanings.add(f"{node.id} is {meaning}")


def _not_standard(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.lstrip("!").split(".")[0] not in sys.stdlib_module_names)


def _types_in(node: ast.AST, in_function: bool) -> list[ast.AST | None]:
    """The parts of a node that say what a value is and make none: annotations, and the types in `isinstance`."""
    if isinstance(node, ast.Call):
        name = _last_name(node.func)
        return [*node.args[1:]] if name in ("isinstance", "issubclass") else [*node.args[:1]] if name == "cast" else []
    if isinstance(node, _Function):
        return [node.returns]
    if isinstance(node, ast.arg) or (isinstance(node, ast.AnnAssign) and in_function):
        return [node.annotation]
    return [node.type] if isinstance(node, ast.ExceptHandler) else []


def _outside(node: ast.AST) -> list[ast.AST]:
    """The parts of a scope that do not see its own names."""
    if isinstance(node, _Scope):
        return [*node.args.defaults, *filter(None, node.args.kw_defaults), *getattr(node, "decorator_list", [])]
    return [node.generators[0].iter] if isinstance(node, _Comprehension) else []


def _bindings(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, str, str]]:
    """Yield each name that an import binds, what it refers to, and what is imported."""
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            around = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            dotted = ".".join([*around, *filter(None, [node.module]), alias.name])
            yield alias.asname or alias.name, dotted, dotted
        elif alias.asname:
            yield alias.asname, alias.name, alias.name
        else:
            top = alias.name.split(".")[0]
            yield top, top, alias.name


def _defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, _Function | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    elif sys.version_info >= (3, 12) and isinstance(node, ast.TypeAlias):
        targets = [node.name]
    else:
        return []
    names = [list(_all_stored(target)) for target in targets]
    is_plain = all(names) and not any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node))
    return [name for group in names for name in group] if is_plain else []


def _stored(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, _Function | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name


def _all_stored(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        yield from _stored(inner)


def _locals(scope: _Scope) -> frozenset[str]:
    """The names that a function binds itself; those of functions and comprehensions inside it are theirs."""
    found = {argument.arg for argument in ast.walk(scope.args) if isinstance(argument, ast.arg)}
    outside: set[str] = set()
    waiting: list[ast.AST] = list(scope.body) if isinstance(scope.body, list) else [scope.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Global | ast.Nonlocal):
            outside |= set(node.names)
        found |= set(_stored(node))
        if not isinstance(node, _Scope | ast.ClassDef | _Comprehension):
            waiting += ast.iter_child_nodes(node)
    return frozenset(found - outside)


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a docstring, or a string below an attribute that describes it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_skipped(node: ast.stmt) -> bool:
    """Whether a statement is what only type checkers or `python -m` run."""
    if not isinstance(node, ast.If):
        return isinstance(node, ast.Pass)
    is_main = isinstance(node.test, ast.Compare) and _last_name(node.test.left) == "__name__"
    return is_main or _last_name(node.test) == "TYPE_CHECKING"


def _is_kept(method: _Function) -> bool:
    """Whether somebody else than our code calls a method: Python by its name, a library by its decorator."""
    return method.name[0] == method.name[-1] == "_" or not all(map(_is_plain, method.decorator_list))


def _is_plain(decorator: ast.expr) -> bool:
    return _last_name(decorator.func if isinstance(decorator, ast.Call) else decorator) in _PLAIN_DECORATORS


def _last_name(node: ast.AST) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)


def _names_outside_methods(part: ast.stmt) -> Iterator[ast.Name]:
    if not isinstance(part, _Function):
        yield from (inner for inner in ast.walk(part) if isinstance(inner, ast.Name))
