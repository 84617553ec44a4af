"""Telling where in `conf/`, `params.yaml` or on the command line a wrong value was written."""

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

REFERENCE = re.compile(r"^\$\{(?:oc\.select:)?([A-Za-z0-9_.]+)(?:,[^}]*)?\}$")
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Trace:
    """What is needed to find the origin of a value: the unresolved composition and its choices."""

    layout: Layout
    composed: DictConfig
    choices: Mapping[str, str]
    overrides: Sequence[str]

    def locate(self, key: Key) -> tuple[Key, str]:
        """The key as a user wrote it, and the place: `FILE:LINE` or `command line`."""
        key = self._follow_references(key)
        dotted = ".".join(key)
        for override in reversed(self.overrides):
            if override.lstrip("+~").split("=")[0] in (dotted, *_parents(key)):
                return key, "command line"
        # A key that is missing stands nowhere: its section is the place to add it.
        for known in (key[:depth] for depth in range(len(key), 0, -1)):
            for path, package in self._files():
                if known[: len(package)] == package and (line := find_line(path, known[len(package) :])):
                    return key, f"{path.relative_to(self.layout.root)}:{line}"
        return key, "conf/"

    def _follow_references(self, key: Key) -> Key:
        """Rewrite `train.model.dropout` to `model.dropout` where `train.model` is `${model}`."""
        for _ in range(8):
            for depth in range(1, len(key) + 1):
                raw = self._raw(key[:depth])
                if raw is not None and (match := REFERENCE.match(raw)):
                    key = (*match[1].split("."), *key[depth:])
                    break
            else:
                break
        return key

    def _raw(self, key: Key) -> str | None:
        node: Any = self.composed
        for part in key[:-1]:
            if not isinstance(node, DictConfig) or part not in node or OmegaConf.is_interpolation(node, part):
                return None
            node = node[part]
        if not isinstance(node, DictConfig) or key[-1] not in node or not OmegaConf.is_interpolation(node, key[-1]):
            return None
        return str(OmegaConf.to_container(node, resolve=False)[key[-1]])  # type: ignore[index, call-overload]

    def _files(self) -> Iterator[tuple[Path, Key]]:
        """Every file that took part and the key under which its content stands; strongest first."""
        yield self.layout.params, ()
        groups = sorted(self.choices.items(), key=lambda item: item[0] != "experiment")
        for group, choice in groups:
            path = self.layout.conf / group / f"{choice}.yaml"
            if path.is_file():
                yield path, _package(path, group)
        yield self.layout.conf / "config.yaml", ()


def explain(error: ValidationError, sections: Mapping[str, Any], trace: Trace) -> UserError:
    """The first problem of `error` as one line: place, key, value, what is allowed."""
    problem = error.errors()[0]
    key = tuple(str(part) for part in problem["loc"])
    while key and key[-1].startswith(("function-", "is-instance")):
        key = key[:-1]
    shown, where = trace.locate(key)
    others = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        allowed = sorted(_allowed_keys(key[:-1], sections))
        fix = f"{did_you_mean(key[-1], allowed)}Allowed here: {', '.join(allowed)}"
        return UserError(f"{'.'.join(shown)}: unknown key{others}", where=where, fix=fix)
    if problem["type"] == "missing":
        return UserError(f"{'.'.join(shown)}: required, but not set{others}", where=where, fix="Set it")
    message = problem["msg"].removeprefix("Input ")
    return UserError(f"{'.'.join(shown)} = {problem['input']!r}: {message}{others}", where=where)


def explain_yaml(error: yaml.YAMLError, path: Path) -> UserError:
    """A YAML syntax error as one line with file and line number."""
    mark = getattr(error, "problem_mark", None)
    file = Path(mark.name) if mark else path
    name = str(file.relative_to(path.parent)) if file.is_relative_to(path.parent) else path.name
    where = f"{name}:{mark.line + 1}" if mark else name
    return UserError(
        f"not valid YAML ({getattr(error, 'problem', error)})", where=where, fix="Mend the indentation or quotes there"
    )


def locate_in_file(path: Path, key: Key, root: Path) -> str:
    """`FILE:LINE` of `key` in a YAML file, or just the file."""
    line = find_line(path, key)
    return f"{path.relative_to(root)}:{line}" if line else str(path.relative_to(root))


def find_line(path: Path, key: Key) -> int | None:
    """The line on which `key` stands in a YAML file, counted from 1; None if it does not."""
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
            # A value written here as a whole (or null, which sets nothing) ends the search.
            return None
        found = [(name, value) for name, value in node.value if name.value == part]
        if not found:
            return None
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
        return None
    return line


def _parents(key: Key) -> list[str]:
    return [".".join(key[:depth]) for depth in range(1, len(key))]


def _package(path: Path, group: str) -> Key:
    match = _PACKAGE.search(path.read_text(encoding="utf-8"))
    package = match[1] if match else group.replace("/", ".")
    return () if package == "_global_" else tuple(package.split("."))


def _allowed_keys(key: Key, sections: Mapping[str, Any]) -> list[str]:
    """The keys that the section at `key` may have."""
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
