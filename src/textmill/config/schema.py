"""The whole resolved configuration, checked once."""

from __future__ import annotations

from pydantic import Field

from textmill.config.section import Section
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.register import RegisterConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import TrainConfig


class PipelineConfig(Section):
    """The content of `data/resolved.yaml`: one section a stage, and `runtime`."""

    fetch: FetchConfig
    prepare: PrepareConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    registration: RegisterConfig = Field(alias="register")
    runtime: RuntimeConfig = RuntimeConfig()
