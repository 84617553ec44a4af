"""Describe in words how two sets of parameters, code and packages differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_ABSENT = object()
_LONGEST = 60


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    Attributes:
        kind: `parameter`, `function`, `package`, `data`, `output`, `stage` or `other`.
        name: Dotted key, module and definition, distribution, path or stage.
        text: The whole difference in words.
        old: The value before; None where there is none.
        new: The value now; None where there is none.
    """

    kind: str
    name: str
    text: str
    old: Any = None
    new: Any = None


def parameters(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[Difference]:
    """Yield the keys whose values differ, with both values."""
    before, after = dict(_flat(old, prefix)), dict(_flat(new, prefix))
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if one != other:
            values = (None if value is _ABSENT else value for value in (one, other))
            yield Difference("parameter", key, f"{key} {_shown(one)} → {_shown(other)}", *values)


def code(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    """Yield the definitions and packages that differ between two `StageCode.parts()`."""
    for key, (one, other) in _pairs(old["definitions"], new["definitions"]):
        name = key.replace(":", ".").rstrip(".")
        how = "is new here" if one is None else "is not used any more" if other is None else "changed"
        yield Difference("function", name, f"{name} {how}", one, other)
    for name, (one, other) in _pairs(old["packages"], new["packages"]):
        text = f"package {name} {one or '(not imported)'} → {other or '(not imported)'}"
        yield Difference("package", name, text, one, other)


def _pairs(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, tuple[str | None, str | None]]]:
    # What changed comes before what is new or gone for it
    names = sorted(old.keys() | new.keys(), key=lambda name: (not (name in old and name in new), name))
    return ((name, (old.get(name), new.get(name))) for name in names if old.get(name) != new.get(name))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, name)
        else:
            yield name, value


def _shown(value: Any) -> str:
    text = "(absent)" if value is _ABSENT else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
