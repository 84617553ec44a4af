"""Digest the code that a stage can reach; DVC and checkpoints depend on the digest in place of files.

From a stage's `main` and the classes that its configuration names, definitions are followed by the
names they use. A class counts with its methods that reached code names; with all of them where a
base is a library's, which may call any. Installed packages are not followed: their pin in
`constraints.txt` counts. Nothing is imported and nothing runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from textmill.config import code_facts
from textmill.config.code_facts import BODY, read_facts
from textmill.config.layout import Layout
from textmill.config.plugins import TARGET, renamed
from textmill.files import atomic_write, read_optional

STAGES = ("fetch", "prepare", "train", "evaluate", "export", "register")
EVALUATOR = "evaluator"
"""The attribute in which a task's class names the class that measures it, by its dotted path."""

_NOT_FOLLOWED = (
    "textmill.config.code",
    "textmill.config.differences",
    "textmill.planning",
    "textmill.training.footprint",
)
"""Modules that say what a result depends on or what it costs, and do not change it; with those whose names begin so."""

_MEASURING = ("evaluate", "export", "register")
_KEPT_MODULES = 800
_KEPT_STAGES = 200
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)\s*==\s*([^\s;#]+)", re.MULTILINE)
_ATTRIBUTE = re.compile(r"\.([A-Za-z_]\w*)")
_QUOTED = re.compile(r"""["']([\w.-][\w./-]*\.\w+)["']""")


@dataclass(frozen=True)
class StageCode:
    """The code of a stage.

    Attributes:
        definitions: `module:name` -> digest; `module:` stands for statements that define nothing,
            `module:file.name` for a file in its folder.
        packages: Installed packages that the code imports -> their pin.
    """

    definitions: dict[str, str]
    packages: dict[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(self.parts(), sort_keys=True).encode()).hexdigest()

    def parts(self) -> dict[str, dict[str, str]]:
        """The same as plain values."""
        return {"definitions": self.definitions, "packages": self.packages}


class Code:
    """The source that stages may reach: this package and others that are not installed from an index.

    Args:
        layout: Of the project, for `constraints.txt` and the store of facts; None for neither.
    """

    def __init__(self, layout: Layout | None) -> None:
        self._store = layout.state / "code" if layout else None
        pins = layout.root / "constraints.txt" if layout else None
        self._constraints = pins.read_text(encoding="utf-8", errors="replace") if pins and pins.is_file() else ""
        self._known: dict[str, Any] = read_optional(self._store / "facts.json") if self._store else {}
        self._used: dict[str, Any] = {}
        self._reader = Path(code_facts.__file__).read_bytes()  # stored facts are of one reader
        self._sources: dict[str, Path | None] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._roots: dict[str, Path | None] = {}

    def stages(self, sections: Mapping[str, Any]) -> dict[str, StageCode]:
        """Return the code of every stage, and keep what was read for the next time.

        Args:
            sections: The resolved configuration as plain values.
        """
        found = {stage: self.stage(stage, sections) for stage in STAGES}
        self.save(found.values())
        return found

    def stage(self, stage: str, sections: Mapping[str, Any]) -> StageCode:
        """Return the code of one stage; `sections` must hold its section, and for `register` that of `export`."""
        named = sections[stage], sections["export"] if stage == "register" else None
        targets = [renamed(target) for target in _targets(named)]
        task = (sections[stage].get("task") or {}).get(TARGET) if stage in _MEASURING else None
        if task and (evaluator := self._constant(renamed(task), EVALUATOR)):
            targets.append(evaluator)
        return _Reach(self).of([f"textmill.stages.{stage}.main", *targets])

    def save(self, stages: Iterable[StageCode]) -> None:
        """Keep the facts of modules, and the parts of each stage's code by its digest, on this machine."""
        if self._store is None:
            return
        facts = self._store / "facts.json"
        if self._used.keys() - self._known.keys() or not facts.is_file():
            kept = {key: value for key, value in self._known.items() if key not in self._used} | self._used
            atomic_write(facts, json.dumps(dict(list(kept.items())[-_KEPT_MODULES:])))
        for stage in stages:
            path = self._store / f"{stage.digest}.json"
            if not path.is_file():
                atomic_write(path, json.dumps(stage.parts(), sort_keys=True))
        parts = sorted(self._store.glob("?" * 64 + ".json"), key=lambda path: path.stat().st_mtime)
        for old in parts[:-_KEPT_STAGES]:
            old.unlink(missing_ok=True)

    # -- modules ----------------------------------------------------------------------------------

    def source(self, module: str) -> Path | None:
        """Return the file of a module whose code is followed, or None."""
        if module not in self._sources:
            top, *inner = module.split(".")
            base = self._root(top)
            found = None
            if base is not None and base.is_dir() and all(inner):
                package = base.joinpath(*inner)
                choices = [package / "__init__.py"] + ([package.with_suffix(".py")] if inner else [])
                found = next((path for path in choices if path.is_file()), None)
            elif base is not None and not inner:
                found = base
            self._sources[module] = found
        return self._sources[module]

    def facts(self, module: str) -> dict[str, Any]:
        """Return the facts of a followed module; those of a text that is not Python are empty."""
        if module not in self._facts:
            source = self.source(module)
            assert source is not None
            text = source.read_bytes()
            package = self.package(module)
            key = hashlib.sha256(self._reader + package.encode() + b"\n" + text).hexdigest()
            facts = self._used.get(key) or self._known.get(key)
            if facts is None:
                facts = {"imports": {}, "defines": {}, "classes": {}}
                with suppress(SyntaxError, ValueError):
                    facts = read_facts(text, package)
            self._facts[module] = self._used[key] = facts
        return self._facts[module]

    def package(self, module: str) -> str:
        """Return the package in whose folder the file of a followed module is."""
        return module if (self.source(module) or Path()).name == "__init__.py" else module.rpartition(".")[0]

    def find(self, dotted: str, passed: frozenset[str] = frozenset()) -> tuple[str, str | None] | None:
        """Return the followed module and the definition in it that a dotted name means; None for neither.

        The definition is None where the name means the whole module.
        """
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            module = ".".join(parts[:length])
            if self.source(module) is None:
                continue
            if length == len(parts):
                return module, None
            name, facts = parts[length], self.facts(module)
            if name not in facts["defines"] and name in facts["imports"] and dotted not in passed:
                return self.find(".".join([facts["imports"][name], *parts[length + 1 :]]), passed | {dotted})
            return module, next((each for each in (name, "__getattr__") if each in facts["defines"]), BODY)
        return None

    def bases(self, module: str, name: str) -> Iterator[tuple[str, str] | None]:
        """Yield the bases of a class that are followed, and None for each that is not."""
        for base in self.facts(module)["classes"][name]["bases"]:
            found = self.find(module + base if base.startswith(".") else base)
            if found is not None and found[1] in self.facts(found[0])["classes"]:
                yield found[0], str(found[1])
            else:
                yield None

    def registers(self, module: str, name: str) -> bool:
        """Whether a base of a class is told of every class below it."""
        bases = [base for base in self.bases(module, name) if base is not None]
        told = (("__init_subclass__" in self.facts(base)["classes"][each]["methods"]) for base, each in bases)
        return any(told) or any(self.registers(*base) for base in bases)

    def _constant(self, target: str, attribute: str) -> str | None:
        """The string that a class or a base of it sets as an attribute."""
        found = self.find(target)
        waiting = [found] if found and found[1] in self.facts(found[0])["classes"] else []
        for module, name in waiting:
            if value := self.facts(module)["classes"][str(name)]["constants"].get(attribute):
                return str(value)
            waiting += [base for base in self.bases(module, str(name)) if base is not None]
        return None

    def _root(self, top: str) -> Path | None:
        """The folder or file of a top-level package whose code is followed."""
        if top not in self._roots:
            spec = None
            if top not in sys.stdlib_module_names:
                with suppress(ImportError, ValueError):
                    spec = importlib.util.find_spec(top)
            places = list(spec.submodule_search_locations or []) if spec else []
            origin = Path(places[0] if places else str(spec.origin)) if spec and (places or spec.has_location) else None
            is_installed = origin is not None and {"site-packages", "dist-packages"} & set(origin.parts)
            is_source = origin is not None and (origin.is_dir() or origin.suffix == ".py")
            self._roots[top] = origin if is_source and (top == "textmill" or not is_installed) else None
        return self._roots[top]

    # -- packages ---------------------------------------------------------------------------------

    def pins(self, packages: Iterable[str]) -> dict[str, str]:
        """Return distribution -> pin of import names; those that `constraints.txt` does not name have none."""
        found = {}
        for package in packages:
            for name in [package] if _plain(package) in self._pins else self._distributions.get(package, [package]):
                found[_plain(name)] = self._pins.get(_plain(name), "not pinned")
        return found

    @cached_property
    def _pins(self) -> dict[str, str]:
        return {_plain(name): version for name, version in _PIN.findall(self._constraints)}

    @cached_property
    def _distributions(self) -> Mapping[str, list[str]]:
        """Import name -> distributions: slow to ask for, so kept for as long as the pins are the same."""
        key = "packages " + hashlib.sha256(self._constraints.encode()).hexdigest()
        if key not in self._known:
            names = metadata.packages_distributions()
            self._used[key] = {name: sorted(set(names[name])) for name in names if _plain(name) not in self._pins}
        else:
            self._used[key] = self._known[key]
        return dict(self._used[key])


class _Reach:
    """One walk from roots over all that they use."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._definitions: dict[str, str] = {}
        self._packages: set[str] = set()
        self._attributes: set[str] = set()
        self._dormant: dict[str, list[tuple[str, str]]] = {}
        self._waiting: list[tuple[str, str]] = []
        self._seen: set[str] = set()

    def of(self, roots: Iterable[str]) -> StageCode:
        for root in roots:
            self._refer(root)
            module, name = self._code.find(root) or ("", "")
            # Its caller makes its arguments: what they are is said nowhere else
            for dotted in self._code.facts(module)["defines"][str(name)]["types"] if name else ():
                self._refer(dotted)
        while self._waiting:
            self._reach(*self._waiting.pop())
        return StageCode(dict(sorted(self._definitions.items())), dict(sorted(self._code.pins(self._packages).items())))

    def _refer(self, dotted: str) -> None:
        if dotted in self._seen:
            return
        self._seen.add(dotted)
        name = dotted.removeprefix("!")
        found = self._code.find(name) if not name.startswith(_NOT_FOLLOWED) else (name, BODY)
        if found is None:
            top = name.split(".")[0]
            self._packages |= {top} - sys.stdlib_module_names - {"", "textmill"}
        elif found[0].startswith(_NOT_FOLLOWED):
            return
        elif found[1] is None and not dotted.startswith("!"):
            self._waiting += [(found[0], each) for each in self._code.facts(found[0])["defines"]]
            self._enter(found[0])
        else:
            self._waiting.append((found[0], BODY if dotted.startswith("!") else found[1] or BODY))

    def _enter(self, module: str) -> None:
        """The statements that run when a module is imported, and the packages around it."""
        if f"enter {module}" not in self._seen:
            self._seen.add(f"enter {module}")
            if self._code.source(module) is not None:  # a folder without `__init__.py` runs nothing
                self._waiting.append((module, BODY))
                classes = self._code.facts(module)["classes"]
                self._waiting += [(module, name) for name in classes if self._code.registers(module, name)]
            if "." in module:
                self._enter(module.rpartition(".")[0])

    def _reach(self, module: str, name: str) -> None:
        self._enter(module)
        key = f"{module}:{name}"
        facts = self._code.facts(module)
        definition = facts["defines"].get(name)
        if definition is None or key in self._definitions:
            return
        self._definitions[key] = definition["digest"]
        for dotted in definition["refers"]:
            if dotted.startswith("."):
                self._waiting.append((module, dotted[1:]))
            else:
                self._refer(dotted)
        self._call(definition["attributes"])
        for file in definition["files"]:
            self._read_file(module, file)
        if name in facts["classes"]:
            self._reach_methods(module, name, all_of_them=self._is_open(module, name))

    def _call(self, attributes: Iterable[str]) -> None:
        """Wake the methods of these names in all classes that are reached."""
        for attribute in set(attributes) - self._attributes:
            self._attributes.add(attribute)
            self._waiting += self._dormant.pop(attribute, [])

    def _reach_methods(self, module: str, name: str, *, all_of_them: bool) -> None:
        facts = self._code.facts(module)["classes"][name]
        for method in facts["methods"]:
            if all_of_them or method in facts["kept"] or method in self._attributes:
                self._waiting.append((module, f"{name}.{method}"))
            else:
                self._dormant.setdefault(method, []).append((module, f"{name}.{method}"))
        for base in self._code.bases(module, name) if all_of_them else ():
            if base is not None:
                self._reach_methods(*base, all_of_them=True)

    def _is_open(self, module: str, name: str) -> bool:
        """Whether a base is a library's, which may call any method of the class."""
        return any(base is None or self._is_open(*base) for base in self._code.bases(module, name))

    def _read_file(self, module: str, file: str) -> None:
        source = self._code.source(module)
        assert source is not None
        path = source.parent / file
        package = self._code.package(module)
        key = f"{package or module}:{file}"
        if key in self._seen or not path.is_file():
            return
        self._seen.add(key)
        if path.suffix == ".py":
            self._refer(f"{package}.{path.stem}".lstrip("."))
            return
        content = path.read_bytes()
        self._definitions[key] = hashlib.sha256(content).hexdigest()[:32]
        text = content.decode("utf-8", "replace")
        self._call(_ATTRIBUTE.findall(text))  # a template may call a method
        for other in _QUOTED.findall(text):
            self._read_file(module, other)


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == TARGET and isinstance(inner, str):
                yield inner
            yield from _targets(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _targets(inner)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
