"""Compose `conf/` and `params.yaml` with Hydra into one validated `PipelineConfig`.

Precedence, low to high: the group files named in `conf/config.yaml`, the experiment file,
`params.yaml`, overrides on the command line. In `params.yaml` a string at a group's name chooses
that group's file (`model: minilm`). Any other value replaces the experiment's; null keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from textmill.config import problems
from textmill.config.layout import Layout
from textmill.config.plugins import packages_in, trust
from textmill.config.schema import (
    PipelineConfig,
    check_margins,
    check_plugins,
    with_prepared_options,
    with_start,
    with_suite_digest,
)
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
    OmegaConf.register_new_resolver("experiment", partial(_experiment, layout), replace=True)
    params = _read_params(layout.params)
    if key := find_literal(params):
        raise _literal_secret(key, problems.locate_in_file(layout.params, key, layout.root))
    groups, values = _choices(params, layout)
    all_overrides = _parse(overrides, groups, layout)
    for group, choice in all_overrides.groups.items():
        _require_choice(layout, group, choice, overrides)
    composed, choices = _compose(layout, all_overrides, values)
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
        config = with_suite_digest(with_start(with_prepared_options(config)), layout.conf / "suites")
    except ValidationError as error:
        raise problems.explain(error, sections, trace) from error
    trust(packages_in(sections))
    return config


def _experiment(layout: Layout, name: str) -> dict[str, Any]:
    """Return `source` and `prepare` of another experiment as `conf/` has it: the value of `${experiment:NAME}`.

    Raises:
        UserError: There is no such experiment.
    """
    _require_choice(layout, "experiment", name, ())
    composed, _ = _compose(layout, _Overrides({"experiment": name}), {})
    plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    return {"source": plain["fetch"]["source"], "prepare": plain["prepare"]}


def _literal_secret(key: Sequence[str], where: str) -> UserError:
    fix = "Put it into an environment variable and write ${secret:NAME} in its place"
    what = "may be" if STORAGE_OPTIONS in key else "contains"
    return UserError(f"{'.'.join(key)}: {what} a password, token or key", where=where, fix=fix)


def section_names() -> list[str]:
    """Return the top-level keys of the resolved configuration."""
    return [field.alias or name for name, field in PipelineConfig.model_fields.items()]


class _Overrides:
    """Overrides of the command line in order, and the groups' choices of it and of params.yaml."""

    def __init__(self, groups: dict[str, str]) -> None:
        self.values: list[Override] = []
        self.groups = groups


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


def _choices(params: Mapping[str, Any], layout: Layout) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the groups' choices of params.yaml, and its other values without nulls, which keep the experiment's."""
    groups = {}
    for key, value in params.items():
        if (layout.conf / str(key)).is_dir() and isinstance(value, str | int | float | date):
            if isinstance(value, bool):
                where = problems.locate_in_file(layout.params, (key,), layout.root)
                raise UserError(f"{key} = {value}: is not a name", where=where, fix="Quote it, as in 'no'")
            groups[str(key)] = str(value)  # YAML reads 2024 as a number
    return groups, _without_nulls({key: value for key, value in params.items() if key not in groups})


def _without_nulls(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): _plain(value) for key, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _without_nulls(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, date | bytes) else value  # YAML reads a date from 2024-01-01


def _parse(command_line: Sequence[str], groups: dict[str, str], layout: Layout) -> _Overrides:
    """Parse overrides; the choices of the command line replace those of params.yaml."""
    parser = OverridesParser.create()
    merged = _Overrides(groups)
    for string in command_line:
        try:
            override = parser.parse_override(string)
            value = override.value()
            if override.is_sweep_override():
                raise HydraException("several values")
        except HydraException as error:
            fix = "Write key=value, as in train.max_epochs=1; quote a value with other signs: 'title=\"Größe, Preis\"'"
            raise UserError(f"cannot read {string!r}", where="command line", fix=fix) from error
        key = override.key_or_group
        if (layout.conf / key).is_dir() and isinstance(value, str | int | float):
            merged.groups[key] = value if isinstance(value, str) else string.partition("=")[2].strip()
        else:
            merged.values.append(override)
    return merged


def _require_choice(layout: Layout, group: str, choice: str, overrides: Sequence[str]) -> None:
    known = sorted(path.stem for path in (layout.conf / group).glob("*.yaml"))
    if choice in known:
        return
    on_command_line = any(override.lstrip("+").startswith(f"{group}=") for override in overrides)
    where = "command line" if on_command_line else problems.locate_in_file(layout.params, (group,), layout.root)
    if unknown := _unknown_to_git(layout, f"{group}/{choice}.yaml"):
        raise unknown
    raise UserError(
        f"{group} = {choice!r}: there is no conf/{group}/{choice}.yaml",
        where=where,
        fix=f"{did_you_mean(choice, known)}Allowed: {', '.join(known)}",
    )


def _unknown_to_git(layout: Layout, name: str) -> UserError | None:
    """Return the error of a file of conf/ that only the project has, not the copy of it that this one is."""
    if (layout.conf / name).is_file() or not (layout.home / "conf" / name).is_file():
        return None
    fix = f"Run `git add conf/{name}` in {layout.home}"
    return UserError("git does not know this file, so a copy of the project lacks it", where=f"conf/{name}", fix=fix)


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


def _compose(layout: Layout, overrides: _Overrides, values: Mapping[str, Any]) -> tuple[DictConfig, dict[str, str]]:
    if not (layout.conf / f"{ROOT_CONFIG}.yaml").is_file():
        raise UserError(f"no {ROOT_CONFIG}.yaml", where=str(layout.conf), fix="Restore it with git")
    for path in layout.conf.rglob("*.yaml"):
        with suppress(yaml.YAMLError, RecursionError):  # reported below, where the file is chosen
            require_bounded(path.read_text(encoding="utf-8"), str(path.relative_to(layout.root)))
    try:
        with initialize_config_dir(config_dir=str(layout.conf), version_base="1.3"):
            chosen = [f"{group}='{choice}'" for group, choice in overrides.groups.items()]
            composed = hydra_compose(ROOT_CONFIG, overrides=chosen, return_hydra_config=True)
        choices = {group: str(name) for group, name in composed.hydra.runtime.choices.items() if name is not None}
        OmegaConf.set_struct(composed, False)
        # Merged, not passed to Hydra: its grammar takes no keys with spaces or dots, and only ASCII
        composed = cast(DictConfig, OmegaConf.merge(composed, values))
        for override in overrides.values:
            _apply(override, composed)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark and "duplicate key" in str(error):
            problems.require_unique_keys(Path(mark.name), layout.root)
        raise problems.explain_yaml(error, layout.conf) from error
    except RecursionError as error:
        raise UserError("a file is nested too deeply", where="conf/") from error
    except (HydraException, OmegaConfBaseException) as error:
        for name in re.findall(r"['\"]([\w./-]+)['\"]", str(error)):
            if unknown := _unknown_to_git(layout, f"{name}.yaml"):
                raise unknown from error
        raise UserError(_first_line(error), where="conf/", fix="Check the defaults lists and the keys there") from error
    del composed["hydra"]
    return composed, choices


def _apply(override: Override, composed: DictConfig) -> None:
    """Set or delete the value of an override; a key that conf/ leaves at the schema's default may be set too."""
    key = override.key_or_group
    if override.is_delete():
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(composed, parent) if parent else composed
        if not OmegaConf.is_dict(node) or last not in node:
            raise UserError(f"~{key}: there is no such key", where="command line", fix="Remove the override")
        del node[last]
    else:
        OmegaConf.update(composed, key, override.value(), merge=True, force_add=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
