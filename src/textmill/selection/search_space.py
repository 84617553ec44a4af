"""The search space of `textmill tune`: files of `conf/tune/`, as distributions of Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from pydantic import ValidationError

from textmill.config.layout import Layout
from textmill.config.sections.candidate import CandidateConfig
from textmill.config.sections.tune import RangeConfig, TuneConfig
from textmill.errors import UserError, did_you_mean
from textmill.selection.candidates import Candidate, compose_candidate

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FOLDER = "tune"
_TRAINED = ("fetch", "prepare", "train")
"""Sections on which a validation metric depends."""


def read_space(layout: Layout, name: str) -> TuneConfig:
    """Read `conf/tune/NAME.yaml`.

    Raises:
        UserError: There is no such file, or it is not valid.
    """
    known = sorted(path.stem for path in (layout.conf / FOLDER).glob("*.yaml"))
    if name not in known:
        fix = f"{did_you_mean(name, known)}conf/{FOLDER}/ has {', '.join(known) or 'no file'}"
        raise UserError(f"no search space {name!r}", where="--space", fix=fix)
    where = f"conf/{FOLDER}/{name}.yaml"
    try:
        return TuneConfig.model_validate(yaml.safe_load((layout.conf / FOLDER / f"{name}.yaml").read_text("utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"not YAML ({' '.join(str(error).split())[:200]})", where=where) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        fix = f"Use the keys {', '.join(TuneConfig.model_fields)}; in space KEY: {{low: 1, high: 9}} or {{choices: []}}"
        raise UserError(f"{key}: {first['msg'].removeprefix('Value error, ')}", where=where, fix=fix) from error


def distributions(config: TuneConfig) -> dict[str, BaseDistribution]:
    """Return the distribution of each key."""
    return {key: _distribution(values) for key, values in config.space.items()}


def _distribution(values: RangeConfig) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if values.choices is not None:
        return CategoricalDistribution(values.choices)
    assert values.low is not None and values.high is not None  # by the section's own check
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
    return FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key as nested lines of `params.yaml`."""
    nested = OmegaConf.create()
    for key, value in values.items():
        OmegaConf.update(nested, key, value)
    plain = OmegaConf.to_container(nested)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def check_space(name: str, config: TuneConfig, layout: Layout, root: Path, params: dict[str, Any]) -> Candidate:
    """Compose the configuration without the space, and with the first and the last value of each key.

    Args:
        name: Name of the file of `conf/tune/`.
        config: Its content.
        layout: The project.
        root: Folder for the temporary copies.
        params: Lines of `params.yaml` that the study starts from.

    Raises:
        UserError: The configuration is not valid with one of the values, or a key does not change the training.
    """
    base = compose_candidate(layout, root, "base", CandidateConfig(title="base", params={}), params, {})
    for key, values in config.space.items():
        ends = [values.choices[0], values.choices[-1]] if values.choices else [values.low, values.high]
        where, trained = f"conf/{FOLDER}/{name}.yaml: {key}", []
        for number, value in enumerate(ends):
            changed = CandidateConfig(title=key, params=settings({key: value}))
            try:
                config_of_end = compose_candidate(layout, root, f"{key} {number}", changed, params, {}).config
            except UserError as error:
                raise UserError(f"does not compose with {value!r} ({error})", where=where) from error
            trained.append(config_of_end.model_dump(include=set(_TRAINED)))
        if trained[0] == trained[1] and ends[0] != ends[1]:
            raise UserError("does not change what is trained", where=where, fix="Name a key that a training reads")
    return base
