"""Compose `conf/` and `params.yaml` with Hydra into one validated `PipelineConfig`.

Precedence, low to high: the group files named in `conf/config.yaml`, the experiment file,
`params.yaml`, overrides on the command line. In `params.yaml` a string at a group's name chooses
that group's file (`model: minilm`). Any other value replaces the experiment's; null keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from textmill.config import problems
from textmill.config.layout import Layout
from textmill.config.plugins import packages_in, trust
from textmill.config.schema import PipelineConfig, check_margins, check_plugins
from textmill.config.secrets import STORAGE_OPTIONS, find_literal, keep_references
from textmill.config.yaml_limits import require_bounded
from textmill.errors import UserError, did_you_mean

ROOT_CONFIG = "config"


def compose(layout: Layout, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Compose and validate the configuration.

    Args:
        layout: The project, with `conf/` and `params.yaml`.
        overrides: Hydra overrides from the command line, such as `train.max_epochs=1`.

    Raises:
        UserError: A file, key or value is invalid; the text has file, line, key, value and allowed values.
    """
    keep_references()
    params = _read_params(layout.params)
    if key := find_literal(params):
        raise _literal_secret(key, problems.locate_in_file(layout.params, key, layout.root))
    all_overrides = _merge(list(_from_params(params, layout.conf)), list(overrides), layout)
    for group, choice in all_overrides.groups.items():
        _require_choice(layout, group, choice, overrides)
    composed, choices = _compose(layout, all_overrides.strings)
    trace = problems.Trace(layout, composed, choices, list(overrides))
    for path, _ in trace.files():
        if path != layout.params:
            problems.require_unique_keys(path, layout.root)
    try:
        plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise UserError(
            _first_line(error), where="conf/", fix="Set the key it names, in conf/ or params.yaml"
        ) from error
    _require_known_keys(layout, plain, params)
    sections = {name: plain[name] for name in section_names() if name in plain}
    if key := find_literal(sections):
        raise _literal_secret(*trace.locate(key))
    try:
        config = PipelineConfig.model_validate(sections)
        check_plugins(config)
        check_margins(config)
    except ValidationError as error:
        raise problems.explain(error, sections, trace) from error
    trust(packages_in(sections))
    return config


def _literal_secret(key: Sequence[str], where: str) -> UserError:
    fix = "Put it into an environment variable and write ${secret:NAME} in its place"
    what = "may be" if STORAGE_OPTIONS in key else "contains"
    return UserError(f"{'.'.join(key)}: {what} a password, token or key", where=where, fix=fix)


def section_names() -> list[str]:
    """Return the top-level keys of the resolved configuration."""
    return [field.alias or name for name, field in PipelineConfig.model_fields.items()]


class _Overrides:
    """Hydra overrides in order, and their group choices."""

    def __init__(self) -> None:
        self.strings: list[str] = []
        self.groups: dict[str, str] = {}


def _read_params(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        require_bounded(text, path.name)
        if text:
            problems.require_unique_keys(path, path.parent)
        params = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise problems.explain_yaml(error, path) from error
    except RecursionError as error:
        raise UserError("nested too deeply", where=path.name) from error
    if params is not None and not isinstance(params, dict):
        raise UserError("must hold keys with values", where=path.name)
    return params or {}


def _from_params(params: Mapping[str, Any], conf: Path) -> Iterator[str]:
    for key, value in params.items():
        if isinstance(value, str) and (conf / key).is_dir():
            yield f"{key}={value}"
        else:
            yield from _value_overrides((str(key),), value)


def _value_overrides(path: tuple[str, ...], value: Any) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _value_overrides((*path, str(key)), inner)
    else:
        # Forced (`++`): keys that conf/ leaves at the schema's default may be set here too.
        yield f"++{'.'.join(path)}={json.dumps(value, default=str)}"  # YAML reads a date from 2024-01-01


def _merge(params: list[str], command_line: list[str], layout: Layout) -> _Overrides:
    """Merge overrides; the command line replaces choices of params.yaml, Hydra uses the last value of a key."""
    parser = OverridesParser.create()
    merged = _Overrides()
    parsed: list[tuple[str, Any]] = []
    for strings, where in ((params, layout.params.name), (command_line, "command line")):
        for string in strings:
            try:
                parsed.append((string, parser.parse_override(string)))
            except HydraException as error:
                raise UserError(
                    f"cannot read {string!r}", where=where, fix="Write key=value, as in train.max_epochs=1"
                ) from error
    for string, override in parsed:
        key = override.key_or_group
        if (layout.conf / key).is_dir() and isinstance(override.value(), str):
            merged.groups[key] = override.value()
        else:
            # Forced, so that a key which conf/ leaves at its default can be set; the schema
            # refuses those it does not know, with a better message than Hydra's.
            plain = override.is_add() or override.is_delete() or override.is_force_add()
            merged.strings.append(string if plain else f"++{string}")
    merged.strings[:0] = [f"{group}={choice}" for group, choice in merged.groups.items()]
    return merged


def _require_choice(layout: Layout, group: str, choice: str, overrides: Sequence[str]) -> None:
    known = sorted(path.stem for path in (layout.conf / group).glob("*.yaml"))
    if choice in known:
        return
    on_command_line = any(override.lstrip("+").startswith(f"{group}=") for override in overrides)
    where = "command line" if on_command_line else problems.locate_in_file(layout.params, (group,), layout.root)
    raise UserError(
        f"{group} = {choice!r}: there is no conf/{group}/{choice}.yaml",
        where=where,
        fix=f"{did_you_mean(choice, known)}Allowed: {', '.join(known)}",
    )


def _require_known_keys(layout: Layout, composed: Any, params: Mapping[str, Any]) -> None:
    """Reject a top-level key that is not a section, a group or a key of `conf/config.yaml`."""
    root = yaml.safe_load((layout.conf / f"{ROOT_CONFIG}.yaml").read_text(encoding="utf-8"))
    groups = [path.name for path in layout.conf.iterdir() if path.is_dir()]
    known = {*section_names(), *groups, *root}
    for key in set(composed) - known:
        where = (
            problems.locate_in_file(layout.params, (key,), layout.root) if key in params else "command line or conf/"
        )
        fix = f"{did_you_mean(key, sorted(known))}Allowed here: {', '.join(sorted(known - {'defaults'}))}"
        raise UserError(f"{key}: unknown key", where=where, fix=fix)


def _compose(layout: Layout, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    if not (layout.conf / f"{ROOT_CONFIG}.yaml").is_file():
        raise UserError(f"no {ROOT_CONFIG}.yaml", where=str(layout.conf), fix="Restore it with git")
    for path in layout.conf.rglob("*.yaml"):
        with suppress(yaml.YAMLError, RecursionError):  # reported below, where the file is chosen
            require_bounded(path.read_text(encoding="utf-8"), str(path.relative_to(layout.root)))
    try:
        with initialize_config_dir(config_dir=str(layout.conf), version_base="1.3"):
            composed = hydra_compose(ROOT_CONFIG, overrides=overrides, return_hydra_config=True)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark and "duplicate key" in str(error):
            problems.require_unique_keys(Path(mark.name), layout.root)
        raise problems.explain_yaml(error, layout.conf) from error
    except RecursionError as error:
        raise UserError("a file is nested too deeply", where="conf/") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_line(error), where="conf/", fix="Check the defaults lists and the keys there") from error
    choices = {group: str(choice) for group, choice in composed.hydra.runtime.choices.items() if choice is not None}
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return composed, choices


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
