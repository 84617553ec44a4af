"""Invert composing: find the shortest experiment file that composes to given values."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from textmill.config.compose import ROOT_CONFIG, compose, section_names
from textmill.config.layout import Layout
from textmill.config.problems import follow_reference
from textmill.config.schema import PipelineConfig
from textmill.errors import UserError

Key = tuple[str, ...]
Leaves = dict[Key, Any]
"""Values by key; lists and empty mappings are values."""

MACHINE = "runtime"
"""The machine-dependent section, which is not part of an experiment."""

_EXPERIMENT = "experiment"
_PACKAGE = re.compile(r"^# @package (\S+)", re.MULTILINE)
_EXTRA_VALUE_COST = 1000
"""Cost of a composed value that no experiment file can remove, in differing values."""


def experiment_text(layout: Layout, name: str, wanted: Mapping[str, Any], origin: str) -> str:
    """Return the text of `conf/experiment/NAME.yaml` that composes to `wanted`, checked by composing it.

    Choose for each group the file that leaves the fewest values to set. Set a value that several
    sections refer to at its one source. Ignore `params.yaml` and the section `runtime`. The text
    names the `origin` of the values in a comment.

    Raises:
        UserError: No experiment file with this `conf/` composes to these values.
    """
    leaves = flat(_normal(wanted))
    with tempfile.TemporaryDirectory() as folder:
        copy = Layout(Path(folder))
        shutil.copytree(layout.conf, copy.conf)
        title = str(wanted["register"]["name"])
        defaults = _default_choices(copy.conf)
        choices = _choose(copy.conf, defaults, title, leaves)
        values = {("name",): title} | _values(*_compose(copy.conf, choices, title, leaves), leaves)
        overrides = [{f"override /{group}": choice} for group, choice in choices.items() if choice != defaults[group]]
        content: dict[str, Any] = {"defaults": overrides} if overrides else {}
        text = f"# @package _global_\n# {origin}\n" + yaml.safe_dump(
            content | _nested(values), sort_keys=False, allow_unicode=True
        )
        (copy.conf / _EXPERIMENT).mkdir(exist_ok=True)
        (copy.conf / _EXPERIMENT / f"{name}.yaml").write_text(text, encoding="utf-8")
        copy.params.write_text(yaml.safe_dump({_EXPERIMENT: name}), encoding="utf-8")
        composed = flat(sections(compose(copy)))
    if keys := differing(composed, leaves):
        raise UserError(
            f"conf/ cannot compose to these values any more: {'.'.join(keys[0])} would be "
            f"{composed.get(keys[0])!r}, not {leaves.get(keys[0])!r} ({len(keys)} in all)",
            where=f"conf/{_EXPERIMENT}/{name}.yaml",
            fix="Restore conf/ from the run's commit first",
        )
    return text


def overruled(layout: Layout, name: str, wanted: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of values of the experiment `name` that `params.yaml` overrides."""
    composed = flat(sections(compose(layout, [f"{_EXPERIMENT}={name}"])))
    return [".".join(key) for key in differing(composed, flat(_normal(wanted)))]


def sections(config: PipelineConfig) -> dict[str, Any]:
    """Return the resolved sections as plain values, without `runtime`."""
    content: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    content.pop(MACHINE, None)
    return content


def flat(values: Mapping[str, Any], prefix: Key = ()) -> Leaves:
    """Return every value by its key."""
    leaves: Leaves = {}
    for name, value in values.items():
        key = (*prefix, str(name))
        leaves |= flat(value, key) if isinstance(value, Mapping) and value else {key: value}
    return leaves


def differing(one: Leaves, other: Leaves) -> list[Key]:
    """Return the keys whose values differ, or that only one of the two has."""
    nothing = object()
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key, nothing) != other.get(key, nothing)]


def _normal(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections with every default value set, as composing does."""
    known = {key: value for key, value in wanted.items() if key in section_names() and key != MACHINE}
    try:
        return {key: value for key, value in sections(PipelineConfig.model_validate(known)).items() if key in known}
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        fix = "Check out the commit of the run to adopt it"
        raise UserError(f"{key}: {first['msg']}, by the current configuration schema", fix=fix) from error


def _default_choices(conf: Path) -> dict[str, str | None]:
    """Return the groups of `conf/config.yaml` with their default choices."""
    listed = yaml.safe_load((conf / f"{ROOT_CONFIG}.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = {key: choice for entry in listed if isinstance(entry, dict) for key, choice in entry.items()}
    return {group: choice for group, choice in pairs.items() if (conf / group).is_dir() and group != MACHINE}


def _choose(conf: Path, defaults: Mapping[str, str | None], title: str, leaves: Leaves) -> dict[str, str | None]:
    """Choose for each group in turn the file with the lowest cost; prefer the default.

    Composing takes a fifth of a second, so that files whose own values fit worse than the default's are skipped.
    """
    chosen = dict(defaults)
    least = _cost(conf, chosen, title, leaves)
    for group, default in defaults.items():
        counts = {path.stem: _differences(path, group, leaves) for path in sorted((conf / group).glob("*.yaml"))}
        for choice, count in counts.items():
            if choice == default or count == math.inf or (default and count > counts[default]):
                continue
            cost = _cost(conf, chosen | {group: choice}, title, leaves)
            if cost < least:
                least, chosen[group] = cost, choice
    return chosen


def _differences(path: Path, group: str, leaves: Leaves) -> float:
    """Return how many values of a group's file differ from those wanted, infinity where none is in its place.

    A value's place is any key that ends in its own, since sections refer to each other. Another class counts for all.
    """
    text = path.read_text(encoding="utf-8")
    package = match[1] if (match := _PACKAGE.search(text)) else group
    prefix = () if package == "_global_" else tuple(package.replace("_group_", group).split("."))
    count = math.inf
    for key, value in flat(yaml.safe_load(text) or {}, prefix).items():
        if "defaults" in key or (isinstance(value, str) and ("${" in value or value == "???")):
            continue
        if wanted := [other for place, other in leaves.items() if place[-len(key) :] == key]:
            count = 0 if count == math.inf else count
            count += 0 if value in wanted else _EXTRA_VALUE_COST if key[-1] == "_target_" else 1
    return count


def _cost(conf: Path, choices: Mapping[str, str | None], title: str, leaves: Leaves) -> float:
    """Return the number of values that an experiment with these choices must set."""
    try:
        composed, filled = _compose(conf, choices, title, leaves)
        keys = differing(flat(_normal(_plain(composed))), leaves)
    except (HydraException, OmegaConfBaseException, UserError):
        return float("inf")
    wanted_sections = {key[0] for key in leaves}
    extra = sum(key not in leaves and key[0] in wanted_sections for key in keys)
    return len(keys) + len(filled) + _EXTRA_VALUE_COST * extra


def _compose(conf: Path, choices: Mapping[str, str | None], title: str, leaves: Leaves) -> tuple[DictConfig, list[Key]]:
    """Compose `conf/` with these choices, references unresolved; fill missing values from `leaves`."""
    overrides = [f"{group}={choice}" for group, choice in choices.items() if choice is not None]
    with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
        composed = hydra_compose(ROOT_CONFIG, overrides=[*overrides, f"name={json.dumps(title)}"])
    OmegaConf.set_struct(composed, False)
    filled = []
    for dotted in sorted(OmegaConf.missing_keys(composed)):
        key = tuple(dotted.split("."))
        inside = {place[len(key) :]: value for place, value in leaves.items() if place[: len(key)] == key}
        if inside:
            OmegaConf.update(composed, dotted, inside[()] if () in inside else _nested(inside), merge=False)
            filled += [(*key, *rest) for rest in inside]
    return composed, filled


def _plain(composed: DictConfig) -> dict[str, Any]:
    plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    return {name: plain[name] for name in section_names() if name in plain}


def _values(composed: DictConfig, filled: list[Key], leaves: Leaves) -> Leaves:
    """Return the values to set, each at the last source on which all its references agree."""
    current = flat(_normal(_plain(composed)))
    chains = {key: _chain(composed, key) for key in leaves}
    wanted: dict[Key, list[Any]] = {}
    for key, chain in chains.items():
        for source in chain:
            wanted.setdefault(source, []).append(leaves[key])
    values: Leaves = {key: leaves[key] for key in filled}
    for key, value in leaves.items():
        if key not in current or current[key] != value:
            agreed = [source for source in chains[key] if all(other == value for other in wanted[source])]
            values[agreed[-1] if agreed else key] = value
    return values


def _chain(composed: DictConfig, key: Key) -> list[Key]:
    """Return `key` and the keys that it refers to, in order."""
    target = follow_reference(composed, key)
    return [key, *_chain(composed, target)] if target else [key]


def _nested(values: Leaves) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        part = nested
        for name in key[:-1]:
            part = part.setdefault(name, {})
        part[key[-1]] = value
    return nested
