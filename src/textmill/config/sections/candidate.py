"""A file of `conf/candidate/`: one model for `textmill choose`."""

from __future__ import annotations

from typing import Any

from textmill.config.section import Section


class CandidateConfig(Section):
    """A candidate: its lines for `params.yaml`.

    Attributes:
        title: Name in tables.
        tasks: Tasks (files of `conf/task/`) to try it for; None tries it for every task.
        baseline: Name of a baseline of the task's evaluator; None for a network that the pipeline trains.
        params: Lines of `params.yaml`, without data and task.
    """

    title: str
    tasks: list[str] | None = None
    baseline: str | None = None
    params: dict[str, Any] = {}
