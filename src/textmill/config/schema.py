"""The whole resolved configuration, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from textmill.config.plugins import TARGET, Plugin
from textmill.config.section import Section
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.gate import GateConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.register import RegisterConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import TrainConfig
from textmill.config.types import IS_PLUGIN
from textmill.errors import UserError


class PipelineConfig(Section):
    """The content of `data/resolved.yaml`: one section a stage, and `gate` and `runtime`."""

    fetch: FetchConfig
    prepare: PrepareConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    registration: RegisterConfig = Field(alias="register")
    gate: GateConfig = GateConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    def section(self, stage: str) -> Section:
        """The section of the stage named `stage`."""
        for name, field in type(self).model_fields.items():
            if stage in (name, field.alias):
                section: Section = getattr(self, name)
                return section
        raise KeyError(stage)


def plugin_class(spec: Mapping[str, Any]) -> type[Plugin]:
    """The class that a plugin's options name.

    Raises:
        UserError: It names none, or one that is not there.
    """
    target = spec.get(TARGET)
    if not isinstance(target, str):
        raise UserError("names no class")
    return Plugin.find(target)


def check_plugins(config: PipelineConfig) -> None:
    """Check the options of every plugin against the class that it names.

    Raises:
        pydantic.ValidationError: A class is not there or an option is wrong; with the whole key.
    """
    for name, field in type(config).model_fields.items():
        section = getattr(config, name)
        for key, inner in type(section).model_fields.items():
            if IS_PLUGIN in inner.metadata and (problems := _plugin_problems(getattr(section, key))):
                prefix = (field.alias or name, key)
                lines = [InitErrorDetails(type=kind, loc=(*prefix, *loc), input=value) for kind, loc, value in problems]
                raise ValidationError.from_exception_data("PipelineConfig", lines)


def _plugin_problems(spec: Mapping[str, Any]) -> list[tuple[PydanticCustomError, tuple[int | str, ...], Any]]:
    """What is wrong with a plugin's options: kind with message, place within the options, value."""
    try:
        options = plugin_class(spec).Config.model_validate({key: value for key, value in spec.items() if key != TARGET})
    except UserError as error:
        return [(PydanticCustomError("plugin", "{text}", {"text": error.what}), (TARGET,), spec.get(TARGET))]
    except ValidationError as error:
        return [
            (PydanticCustomError(found["type"], "{text}", {"text": found["msg"]}), found["loc"], found["input"])
            for found in error.errors()
        ]
    for key, field in type(options).model_fields.items():
        if IS_PLUGIN in field.metadata and (inner := getattr(options, key)) is not None:
            return [(kind, (key, *loc), value) for kind, loc, value in _plugin_problems(inner)]
    return []
