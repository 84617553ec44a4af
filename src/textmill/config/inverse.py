"""The inverse of composing: the shortest experiment file that composes to given values."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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
from textmill.config.problems import REFERENCE
from textmill.config.schema import PipelineConfig
from textmill.errors import UserError

Place = tuple[str, ...]
Leaves = dict[Place, Any]
"""Values by their place; lists and empty mappings are values."""

MACHINE = "runtime"
"""The section that depends on the machine; it is no part of an experiment."""

_EXPERIMENT = "experiment"
_TOO_MUCH = 1000
"""What a value that no experiment file can take away counts, in values that differ."""


def experiment_text(layout: Layout, name: str, wanted: Mapping[str, Any], origin: str) -> str:
    """The text of `conf/experiment/NAME.yaml` that composes to `wanted`, checked by composing it.

    Each group is given the choice that leaves the fewest values to set; a value that reaches
    several sections from one place is set at that place. `params.yaml` is left out of account.

    Args:
        layout: Of the project, whose `conf/` the experiment will stand in.
        name: Of the experiment.
        wanted: The resolved sections; `runtime` is ignored.
        origin: Where they come from, for the comment.

    Raises:
        UserError: No experiment file over this `conf/` composes to these values.
    """
    leaves = flat(_normal(wanted))
    with tempfile.TemporaryDirectory() as folder:
        copy = Layout(Path(folder))
        shutil.copytree(layout.conf, copy.conf)
        title = str(wanted["register"]["name"])
        defaults = _default_choices(copy.conf)
        choices = _choose(copy.conf, defaults, title, leaves)
        composed, filled = _raw(copy.conf, choices, title, leaves)
        values = {("name",): title} | _values(composed, leaves, filled)
        overrides = [{f"override /{group}": choice} for group, choice in choices.items() if choice != defaults[group]]
        content: dict[str, Any] = {"defaults": overrides} if overrides else {}
        text = f"# @package _global_\n# {origin}\n" + yaml.safe_dump(
            content | _nested(values), sort_keys=False, allow_unicode=True
        )
        (copy.conf / _EXPERIMENT).mkdir(exist_ok=True)
        (copy.conf / _EXPERIMENT / f"{name}.yaml").write_text(text, encoding="utf-8")
        copy.params.write_text(yaml.safe_dump({_EXPERIMENT: name}), encoding="utf-8")
        found = flat(sections(compose(copy)))
    if wrong := differing(found, leaves):
        place = ".".join(wrong[0])
        raise UserError(
            f"conf/ cannot compose to these values any more: {place} would be {found.get(wrong[0])!r}, "
            f"not {leaves.get(wrong[0])!r} ({len(wrong)} in all)",
            where=f"conf/{_EXPERIMENT}/{name}.yaml",
            fix="Take over conf/ from the commit of the run first",
        )
    return text


def overruled(layout: Layout, name: str, wanted: Mapping[str, Any]) -> list[str]:
    """Values of the experiment `name` that `params.yaml` would set otherwise, by their dotted names."""
    found = flat(sections(compose(layout, [f"{_EXPERIMENT}={name}"])))
    return [".".join(path) for path in differing(found, flat(_normal(wanted)))]


def sections(config: PipelineConfig) -> dict[str, Any]:
    """The resolved sections as plain values, without that of the machine."""
    content: dict[str, Any] = config.model_dump(mode="json", by_alias=True)
    content.pop(MACHINE, None)
    return content


def flat(values: Mapping[str, Any]) -> Leaves:
    """Every value by its place."""

    def walk(part: Mapping[str, Any], prefix: Place) -> Iterator[tuple[Place, Any]]:
        for key, value in part.items():
            if isinstance(value, Mapping) and value:
                yield from walk(value, (*prefix, str(key)))
            else:
                yield (*prefix, str(key)), value

    return dict(walk(values, ()))


def differing(one: Leaves, other: Leaves) -> list[Place]:
    """The places that hold different values in the two, or a value in one only."""
    nothing = object()
    return [path for path in sorted(one.keys() | other.keys()) if one.get(path, nothing) != other.get(path, nothing)]


def _normal(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with every default written out, as composing gives them."""
    known = {key: value for key, value in wanted.items() if key in section_names() and key != MACHINE}
    try:
        return {key: value for key, value in sections(PipelineConfig.model_validate(known)).items() if key in known}
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        fix = "Check out the commit of the run to adopt it"
        raise UserError(f"{key}: {first['msg']}, by the configuration's present schema", fix=fix) from error


def _default_choices(conf: Path) -> dict[str, str | None]:
    """The groups that `conf/config.yaml` composes, with its own choice of each."""
    listed = yaml.safe_load((conf / f"{ROOT_CONFIG}.yaml").read_text(encoding="utf-8"))["defaults"]
    pairs = {key: choice for entry in listed if isinstance(entry, dict) for key, choice in entry.items()}
    return {group: choice for group, choice in pairs.items() if (conf / group).is_dir() and group != MACHINE}


def _choose(conf: Path, defaults: Mapping[str, str | None], title: str, leaves: Leaves) -> dict[str, str | None]:
    """For each group in turn the choice from which the fewest values differ; the default one among equals."""
    chosen = dict(defaults)
    least = _cost(conf, chosen, title, leaves)
    for group in defaults:
        for choice in sorted(path.stem for path in (conf / group).glob("*.yaml")):
            if choice == defaults[group]:
                continue
            cost = _cost(conf, chosen | {group: choice}, title, leaves)
            if cost < least:
                least, chosen[group] = cost, choice
    return chosen


def _cost(conf: Path, choices: Mapping[str, str | None], title: str, leaves: Leaves) -> float:
    try:
        composed, filled = _raw(conf, choices, title, leaves)
        found = flat(_normal(_plain(composed)))
    except (HydraException, OmegaConfBaseException, UserError):
        return float("inf")
    wrong = differing(found, leaves)
    return len(wrong) + len(filled) + _TOO_MUCH * sum(path not in leaves and path[0] in _tops(leaves) for path in wrong)


def _tops(leaves: Leaves) -> set[str]:
    return {path[0] for path in leaves}


def _raw(conf: Path, choices: Mapping[str, str | None], title: str, leaves: Leaves) -> tuple[DictConfig, list[Place]]:
    """`conf/` composed with these choices, references unresolved; what it leaves open is filled from `leaves`."""
    overrides = [f"{group}={choice}" for group, choice in choices.items() if choice is not None]
    with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
        composed = hydra_compose(ROOT_CONFIG, overrides=[*overrides, f"name={json.dumps(title)}"])
    OmegaConf.set_struct(composed, False)
    filled = []
    for key in sorted(OmegaConf.missing_keys(composed)):
        path = tuple(key.split("."))
        inside = {place[len(path) :]: value for place, value in leaves.items() if place[: len(path)] == path}
        if inside:
            value = inside[()] if () in inside else _nested(inside)
            OmegaConf.update(composed, key, value, merge=False)
            filled += [(*path, *rest) for rest in inside]
    return composed, filled


def _plain(composed: DictConfig) -> dict[str, Any]:
    plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    return {name: plain[name] for name in section_names() if name in plain}


def _values(composed: DictConfig, leaves: Leaves, filled: list[Place]) -> Leaves:
    """What must be set, at the place that it is taken from where all who take it want the same."""
    found = flat(_normal(_plain(composed)))
    chains = {path: _chain(composed, path) for path in leaves}
    wanted: dict[Place, list[Any]] = {}
    for path, chain in chains.items():
        for place in chain:
            wanted.setdefault(place, []).append(leaves[path])
    values: Leaves = {path: leaves[path] for path in filled}
    for path, value in leaves.items():
        if path not in found or found[path] != value:
            agreed = [place for place in chains[path] if all(other == value for other in wanted[place])]
            values[agreed[-1] if agreed else path] = value
    return values


def _chain(composed: DictConfig, path: Place) -> list[Place]:
    """The places that a value is taken from, references followed, the last one last."""
    node: Any = composed
    for depth, key in enumerate(path, start=1):
        if not OmegaConf.is_dict(node) or node._get_node(key) is None:
            break
        if OmegaConf.is_interpolation(node, key):
            match = REFERENCE.match(str(node._get_node(key)._value()))
            return [path, *(_chain(composed, (*match[1].split("."), *path[depth:])) if match else [])]
        node = node._get_node(key)
    return [path]


def _nested(values: Leaves) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        part = nested
        for key in path[:-1]:
            part = part.setdefault(key, {})
        part[path[-1]] = value
    return nested
