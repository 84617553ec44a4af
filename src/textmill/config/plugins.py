"""Plugins: a class named in the configuration by `_target_`, with options of its own.

Tasks, sources, models and routers are plugins, so that adding one takes a new file with the
class and a new `conf/` file that names it, inside this package or outside it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from pydantic import ValidationError

from textmill.config.section import Section
from textmill.errors import UserError

TARGET = "_target_"
_MOVED = {"textmill.data.sources.": "textmill.fetching.sources."}
"""Where classes are now that configurations of earlier versions name elsewhere."""


class Plugin:
    """Base of all plugins. `Config` declares the options; an instance holds them checked."""

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


def moved(target: str) -> str:
    """Return where a class is now that an earlier version named at the dotted path `target`."""
    for old, new in _MOVED.items():
        target = new + target.removeprefix(old) if target.startswith(old) else target
    return target


PluginT = TypeVar("PluginT", bound=Plugin)


def find(target: str, expected: type[PluginT]) -> type[PluginT]:
    """Import the class at the dotted path `target`.

    Raises:
        UserError: There is no such module or class, or it is no `expected`.
    """
    target = moved(target)
    module_name, _, class_name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import the class {target!r} ({error})", where=TARGET) from error
    if not (isinstance(found, type) and issubclass(found, expected)):
        raise UserError(f"{target!r} is no {expected.__name__}", where=TARGET)
    return found


def build(spec: Mapping[str, Any], expected: type[PluginT]) -> PluginT:
    """Build the plugin that `spec` names.

    Args:
        spec: Options with the class's dotted path under `_target_`.
        expected: The kind of plugin wanted.

    Raises:
        UserError: The class is missing or of another kind, or an option is wrong.
    """
    options = dict(spec)
    target = options.pop(TARGET, None)
    if not isinstance(target, str):
        raise UserError(f"no {TARGET} in {options!r}", fix=f"Name the class under {TARGET}")
    try:
        return find(target, expected).from_options(**options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{target}: {key} = {first['input']!r}: {first['msg']}") from error
