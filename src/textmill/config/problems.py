"""Report configuration errors with their origin: a line of `conf/` or `params.yaml`, or the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationError

from textmill.config.layout import Layout
from textmill.config.schema import PipelineConfig, plugin_class
from textmill.errors import UserError, did_you_mean

Key = tuple[str, ...]

_REFERENCE = re.compile(r"^\$\{(?:oc\.select:)?([A-Za-z0-9_.]+)(?:,[^}]*)?\}$")
_MERGE = "<<"
_KINDS = ("str", "list[str]", "ColumnConfig")
"""What pydantic adds to the place of an error in a value of several kinds."""
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Trace:
    """Finds the origin of a value from the unresolved composition and its choices."""

    layout: Layout
    composed: DictConfig
    choices: Mapping[str, str]
    overrides: Sequence[str]

    def locate(self, key: Key) -> tuple[Key, str]:
        """Return the key as the user wrote it and its origin: `FILE:LINE` or `command line`."""
        for _ in range(8):
            key = follow_reference(self.composed, key) or key
        parents = {".".join(key[:depth]) for depth in range(1, len(key) + 1)}
        if any(override.lstrip("+~").split("=")[0] in parents for override in self.overrides):
            return key, "command line"
        # A missing key has no line: report its section, where the user must add it.
        for known in (key[:depth] for depth in range(len(key), 0, -1)):
            for path, package in self.files():
                if known[: len(package)] == package and (line := find_line(path, known[len(package) :])):
                    return key, f"{path.relative_to(self.layout.root)}:{line}"
        return key, "conf/"

    def files(self) -> Iterator[tuple[Path, Key]]:
        """Yield every composed file and the key of its content, highest precedence first."""
        yield self.layout.params, ()
        groups = sorted(self.choices.items(), key=lambda item: item[0] != "experiment")
        for group, choice in groups:
            path = self.layout.conf / group / f"{choice}.yaml"
            if path.is_file():
                yield path, _package(path, group)
        yield self.layout.conf / "config.yaml", ()


def follow_reference(composed: DictConfig, key: Key) -> Key | None:
    """Resolve the first reference on the way to `key`; return None without one.

    `train.model.dropout` becomes `model.dropout` if `train.model` is `${model}`.
    """
    node: Any = composed
    for depth, part in enumerate(key, start=1):
        if not OmegaConf.is_dict(node) or node._get_node(part) is None:
            return None
        if OmegaConf.is_interpolation(node, part):
            match = _REFERENCE.match(str(node._get_node(part)._value()))
            return (*match[1].split("."), *key[depth:]) if match else None
        node = node._get_node(part)
    return None


def explain(error: ValidationError, sections: Mapping[str, Any], trace: Trace) -> UserError:
    """Convert the first problem of `error` to one line: origin, key, value, allowed values."""
    problem = error.errors()[0]
    if isinstance(problem["input"], dict):  # of several kinds of values, the error of the kind that takes keys
        place = problem["loc"][:-1]
        beside = [each for each in error.errors() if each["loc"][: len(place)] == place]
        kinds = ("string_type", "list_type")
        problem = next(
            (each for each in beside if each["type"] not in kinds or len(each["loc"]) > len(place) + 1), problem
        )
    parts = (str(part) for part in problem["loc"] if part not in _KINDS)
    key = tuple(part for part in parts if not part.startswith(("function-", "is-instance")))
    shown, where = trace.locate(key)
    others = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        allowed = sorted(_allowed_keys(key[:-1], sections))
        fix = f"{did_you_mean(key[-1], allowed)}Allowed here: {', '.join(allowed)}"
        return UserError(f"{'.'.join(shown)}: unknown key{others}", where=where, fix=fix)
    if problem["type"] == "missing":
        return UserError(
            f"{'.'.join(shown)}: required but not set{others}", where=where, fix="Set it in conf/ or params.yaml"
        )
    message = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
    bare = problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float)
    quote = 'Put it into quotes, as in "no" or "1": YAML reads a bare yes, no, true, false or number as such'
    what = f"{'.'.join(shown)} = {problem['input']!r}: {message}{others}"
    return UserError(what, where=where, fix=quote if bare else None)


def require_unique_keys(path: Path, root: Path) -> None:
    """Check that no key stands twice in a mapping of a YAML file: YAML would use the last one in silence.

    Raises:
        UserError: One does; the error has both lines.
        yaml.YAMLError: The file is not YAML.
    """
    nodes = list(yaml.compose_all(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in lines and name != _MERGE:
                    twice = f"the key {name!r} is set twice, here and in line {lines[name]}"
                    where = f"{path.relative_to(root)}:{line}"
                    raise UserError(twice, where=where, fix="Remove one of the two")
                lines[name] = line
                nodes.append(value)


def explain_yaml(error: yaml.YAMLError, path: Path) -> UserError:
    """Convert a YAML syntax error to one line with file and line number."""
    mark = getattr(error, "problem_mark", None)
    file = Path(mark.name) if mark else path
    name = str(file.relative_to(path.parent)) if file.is_relative_to(path.parent) else path.name
    where = f"{name}:{mark.line + 1}" if mark else name
    return UserError(
        f"invalid YAML ({getattr(error, 'problem', error)})", where=where, fix="Check indentation and quotes"
    )


def locate_in_file(path: Path, key: Key, root: Path) -> str:
    """Return `FILE:LINE` of `key` in a YAML file, or the file without a line."""
    line = find_line(path, key)
    return f"{path.relative_to(root)}:{line}" if line else str(path.relative_to(root))


def find_line(path: Path, key: Key) -> int | None:
    """Return the line of `key` in a YAML file, counted from 1, or None."""
    if not path.is_file():
        return None
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line: int | None = None
    for part in key:
        if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
            continue
        if not isinstance(node, yaml.MappingNode):
            # A scalar here (or null, which sets nothing) has no keys below it.
            return None
        entry = next(((name, value) for name, value in node.value if name.value == part), None)
        if entry is None:
            return None
        line, node = entry[0].start_mark.line + 1, entry[1]
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
        return None
    return line


def _package(path: Path, group: str) -> Key:
    match = _PACKAGE.search(path.read_text(encoding="utf-8"))
    package = match[1] if match else group.replace("/", ".")
    return () if package == "_global_" else tuple(package.split("."))


def _allowed_keys(key: Key, sections: Mapping[str, Any]) -> list[str]:
    """Return the allowed keys of the section at `key`."""
    model: type[BaseModel] = PipelineConfig
    value: Any = sections
    for part in key:
        value = value.get(part) if isinstance(value, Mapping) else None
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part not in fields:
            return []
        if isinstance(value, Mapping) and "_target_" in value:
            model = plugin_class(value).Config
            continue
        annotation = fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        models = [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]
        if not models:
            return []
        model = models[0]
    return [field.alias or name for name, field in model.model_fields.items()]
