"""Plugins: classes that the configuration names by `_target_`, with their own options.

Tasks, sources, models and routers are plugins. To add one, write a file with the class, inside or
outside this package, and a file in `conf/` that names it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from textmill.config.section import Section
from textmill.errors import UserError

TARGET = "_target_"
_MOVED = {"textmill.data.sources.": "textmill.fetching.sources."}
"""Old and new module prefixes: configurations written before 26 November 2026 must load."""

TRUSTED = "TEXTMILL_PLUGINS"
"""Environment variable with the packages, separated by commas, whose classes a model's folder may name."""
_trusted = {"textmill"}


class Plugin:
    """Base of all plugins. `Config` declares the options; `config` has their validated values."""

    Config: ClassVar[type[Section]] = Section

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Check `options` against `Config` and build the plugin.

        Raises:
            pydantic.ValidationError: An option is unknown, missing or out of range.
        """
        return cls(cls.Config.model_validate(options))

    @classmethod
    def find(cls, target: str) -> type[Self]:
        """Import the class at the dotted path `target`.

        Raises:
            UserError: The class does not exist, or is not a subclass of this one.
        """
        found: type[Self] = import_class(target, cls)
        return found

    @classmethod
    def build(cls, spec: Mapping[str, Any]) -> Self:
        """Build the plugin that `spec` names.

        Args:
            spec: Options with the class's dotted path under `_target_`.

        Raises:
            UserError: The class does not exist or is not a subclass of this one, or an option is wrong.
        """
        options = dict(spec)
        target = options.pop(TARGET, None)
        if not isinstance(target, str):
            raise UserError(f"no {TARGET} in {options!r}", fix=f"Name the class under {TARGET}")
        try:
            return cls.find(target).from_options(**options)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{target}: {key} = {first['input']!r}: {first['msg']}") from error


def trust(packages: Iterable[str]) -> None:
    """Let folders of models name classes of these packages: the project's own, and those of a verified version."""
    _trusted.update(packages)


def trusting_environment() -> dict[str, str]:
    """Return the environment of a process that is to trust the same packages."""
    return {**os.environ, TRUSTED: ",".join({os.environ.get(TRUSTED, ""), *_trusted})}


def packages_in(values: Any) -> Iterator[str]:
    """Yield the package of every class that plain values name by `_target_`, also in nested ones."""
    if isinstance(values, Mapping):
        if isinstance(target := values.get(TARGET), str):
            yield renamed(target).partition(".")[0]
        values = values.values()
    elif not isinstance(values, list):
        return
    for value in values:
        yield from packages_in(value)


def require_trusted(values: Any, where: str) -> None:
    """Check the packages that a model's folder names, before one of them is imported: an import runs code.

    Raises:
        UserError: A package is neither Textmill's, nor named by the project's configuration or $TEXTMILL_PLUGINS.
    """
    chosen = {name.strip() for name in os.environ.get(TRUSTED, "").split(",")}
    for package in packages_in(values):
        if package not in _trusted | chosen:
            fix = f"If you trust the package and the model, set {TRUSTED}={package}"
            raise UserError(f"names a class of the package {package!r}, whose code would run", where=where, fix=fix)


def renamed(target: str) -> str:
    """Return the path of the class today, for projects and versions older than the class's place."""
    for old, new in _MOVED.items():
        target = new + target.removeprefix(old) if target.startswith(old) else target
    return target


def import_class(target: str, kind: Any) -> Any:
    """Import the class at the dotted path `target`.

    Raises:
        UserError: The class does not exist, or is not a subclass of `kind`.
    """
    target = renamed(target)
    module_name, _, class_name = target.rpartition(".")
    try:
        named = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import the class {target!r} ({error})", where=TARGET) from error
    if not (isinstance(named, type) and issubclass(named, kind)):
        raise UserError(f"{target!r} is not a {kind.__name__}", where=TARGET)
    return named
