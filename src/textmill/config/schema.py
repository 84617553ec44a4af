"""The schema of the whole resolved configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from textmill.config.plugins import TARGET, Plugin
from textmill.config.section import Section
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.gate import LARGEST_LOSS, GateConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.register import RegisterConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import TrainConfig
from textmill.config.types import IS_PLUGIN
from textmill.errors import UserError
from textmill.files import sha256_folder

START_SOURCE = "textmill.registry.lineage.start.StartSource"


class PipelineConfig(Section):
    """The content of `data/resolved.yaml`: one section for each stage, and `gate` and `runtime`."""

    fetch: FetchConfig
    prepare: PrepareConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    registration: RegisterConfig = Field(alias="register")
    gate: GateConfig = GateConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    def section(self, stage: str) -> Section:
        """Return the section of a stage by the stage's name."""
        for name, field in type(self).model_fields.items():
            if stage in (name, field.alias):
                section: Section = getattr(self, name)
                return section
        raise KeyError(stage)


def plugin_class(spec: Mapping[str, Any]) -> type[Plugin]:
    """Import the class that a plugin's options name.

    Raises:
        UserError: The options name no class, or the class does not exist.
    """
    target = spec.get(TARGET)
    if not isinstance(target, str):
        raise UserError(f"{TARGET} must be the dotted path of a class")
    return Plugin.find(target)


def check_plugins(config: PipelineConfig) -> None:
    """Validate the options of every plugin with the class that they name.

    Raises:
        pydantic.ValidationError: A class does not exist or an option is invalid; with the full key.
    """
    for name, field in type(config).model_fields.items():
        section = getattr(config, name)
        for key, inner in type(section).model_fields.items():
            spec = getattr(section, key) if IS_PLUGIN in inner.metadata else None
            if spec is not None and (problems := _plugin_problems(spec)):
                prefix = (field.alias or name, key)
                lines = [InitErrorDetails(type=kind, loc=(*prefix, *loc), input=value) for kind, loc, value in problems]
                raise ValidationError.from_exception_data("PipelineConfig", lines)


def with_prepared_options(config: PipelineConfig) -> PipelineConfig:
    """Return the configuration with those options of `prepare.task` that decide what is prepared.

    A change of another one, as of a term of the loss, then does not rerun the stage.
    """
    task: Any = plugin_class(config.prepare.task)
    options = {key: value for key, value in config.prepare.task.items() if key != TARGET}
    spec = {TARGET: config.prepare.task[TARGET], **task.prepared_options(options)}
    return config.model_copy(update={"prepare": config.prepare.model_copy(update={"task": spec})})


def with_start(config: PipelineConfig) -> PipelineConfig:
    """Return the configuration with the source of `train.start`: `fetch` notes which version that alias is then."""
    source = None
    if (alias := config.train.start) is not None:
        source = {TARGET: START_SOURCE, "model": f"{config.registration.name}@{alias}"}
    return config.model_copy(update={"fetch": config.fetch.model_copy(update={"start": source})})


def with_suite_digest(config: PipelineConfig, folder: Path) -> PipelineConfig:
    """Return the configuration with the digest of the suite that `evaluate` runs, so that its change reruns the stage.

    Raises:
        UserError: `folder`, which holds the suites, has none of this name.
    """
    name = config.evaluate.suite
    if name is None:
        return config
    if not (folder / name / "suite.yaml").is_file():
        fix = "Write a task or group file of lm-evaluation-harness there; docs/suites.md shows one"
        raise UserError(f"no conf/suites/{name}/suite.yaml", where="evaluate.suite", fix=fix)
    changed = config.evaluate.model_copy(update={"suite_sha256": sha256_folder(folder / name)})
    return config.model_copy(update={"evaluate": changed})


def check_margins(config: PipelineConfig) -> None:
    """Check that the gate's margins are within half the range of the metric: a larger one hardly ever fails.

    Raises:
        pydantic.ValidationError: A margin is larger; with the full key.
    """
    task = plugin_class(config.evaluate.task)
    if task.__module__.partition(".")[0] != __name__.partition(".")[0]:
        return  # another package's metric may have another range under the same name
    gate = config.gate
    metric = gate.difference.metric or getattr(task, "main_metric", None)
    largest = LARGEST_LOSS.get(str(metric))
    for key, margin in (("difference", gate.difference.margin), ("slices", gate.slices.margin)):
        if largest is not None and margin > largest / 2:
            text = f"a model can hardly lose more than {largest / 2:g} of {metric}; a smaller margin can fail"
            problem = InitErrorDetails(
                type=PydanticCustomError("margin", "{text}", {"text": text}), loc=("gate", key, "margin"), input=margin
            )
            raise ValidationError.from_exception_data("PipelineConfig", [problem])


def _plugin_problems(spec: Mapping[str, Any]) -> list[tuple[PydanticCustomError, tuple[int | str, ...], Any]]:
    """Return the problems of a plugin's options: type with message, key within the options, value."""
    try:
        options = plugin_class(spec).Config.model_validate({key: value for key, value in spec.items() if key != TARGET})
    except UserError as error:
        return [(PydanticCustomError("plugin", "{text}", {"text": error.what}), (TARGET,), spec.get(TARGET))]
    except ValidationError as error:
        return [
            (PydanticCustomError(problem["type"], "{text}", {"text": problem["msg"]}), problem["loc"], problem["input"])
            for problem in error.errors()
        ]
    for key, field in type(options).model_fields.items():
        if IS_PLUGIN in field.metadata and (inner := getattr(options, key)) is not None:
            return [(kind, (key, *loc), value) for kind, loc, value in _plugin_problems(inner)]
    return []
