"""The whole resolved configuration, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from textmill.config.plugins import TARGET, Plugin, find
from textmill.config.section import Section
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.register import RegisterConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import TrainConfig
from textmill.config.types import PluginSpec
from textmill.errors import UserError


class PipelineConfig(Section):
    """The content of `data/resolved.yaml`: one section a stage, and `runtime`."""

    fetch: FetchConfig
    prepare: PrepareConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    registration: RegisterConfig = Field(alias="register")
    runtime: RuntimeConfig = RuntimeConfig()

    def section(self, stage: str) -> Section:
        """The section of the stage named `stage`."""
        for name, field in type(self).model_fields.items():
            if stage in (name, field.alias):
                return getattr(self, name)  # type: ignore[no-any-return]
        raise KeyError(stage)


def plugin_class(spec: Mapping[str, Any]) -> type[Plugin]:
    """The class that a plugin's options name."""
    target = spec.get(TARGET)
    if not isinstance(target, str):
        raise UserError(f"no class named in {dict(spec)!r}", where=TARGET, fix=f"Name the class under {TARGET}")
    return find(target, Plugin)


def check_plugins(config: PipelineConfig) -> None:
    """Check the options of every plugin against the class that it names.

    Raises:
        pydantic.ValidationError: With the whole key of the wrong option.
        UserError: A class is not there.
    """
    for name, field in type(config).model_fields.items():
        section = getattr(config, name)
        for key, inner in type(section).model_fields.items():
            spec = getattr(section, key)
            if inner.annotation is not PluginSpec or TARGET not in spec:
                continue
            options = {option: value for option, value in spec.items() if option != TARGET}
            try:
                plugin_class(spec).Config.model_validate(options)
            except ValidationError as error:
                prefix = (field.alias or name, key)
                lines = [
                    InitErrorDetails(
                        type=PydanticCustomError(problem["type"], problem["msg"].replace("{", "{{").replace("}", "}}")),  # type: ignore[arg-type]
                        loc=(*prefix, *problem["loc"]),
                        input=problem["input"],
                    )
                    for problem in error.errors()
                ]
                raise ValidationError.from_exception_data("PipelineConfig", lines) from error
