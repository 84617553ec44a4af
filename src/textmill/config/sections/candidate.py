"""A file of `conf/candidate/`: one model for `textmill choose`."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from textmill.config.section import Section
from textmill.config.types import Sha256


class ChatConfig(Section):
    """A chat model that is asked by the wording of the task, and not trained on its data.

    Attributes:
        pretrained: Weights as they come, as `model.pretrained`.
        pretrained_sha256: Their digest, as `model.pretrained_sha256`.
        folder: In place of these an exported chat model, relative to the project.
        examples: Training rows, with their answers, in front of each question.
        rows: Largest number of validation rows, drawn at random, that are asked.
        prompt: Wording of the question, with text columns in braces; None takes that of the task.
    """

    pretrained: str | None = None
    pretrained_sha256: Sha256 | None = None
    folder: str | None = None
    examples: Annotated[int, Field(ge=0)] = 0
    rows: Annotated[int, Field(ge=1)] = 200
    prompt: str | None = None

    @model_validator(mode="after")
    def _names_one_model(self) -> Self:
        if (self.pretrained is None) == (self.folder is None):
            raise ValueError("set either pretrained or folder")
        return self


class CandidateConfig(Section):
    """A candidate: its lines for `params.yaml`.

    Attributes:
        title: Name in tables.
        tasks: Tasks (files of `conf/task/`) to try it for; None tries it for every task.
        baseline: Name of a baseline of the task's evaluator; None for a network that the pipeline trains.
        chat: A chat model to ask, in place of both.
        params: Lines of `params.yaml`, without data and task.
    """

    title: str
    tasks: list[str] | None = None
    baseline: str | None = None
    chat: ChatConfig | None = None
    params: dict[str, Any] = {}
