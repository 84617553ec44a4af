"""A file of `conf/candidate/`: one model that `textmill choose` may try."""

from __future__ import annotations

from typing import Any

from textmill.config.section import Section


class CandidateConfig(Section):
    """A candidate: the lines that stand in `params.yaml` once it is adopted.

    Attributes:
        title: In words, for tables.
        tasks: The tasks (files of `conf/task/`) that it is tried for; None tries it for every one.
        baseline: Name of one of the task's own baselines; None for a network, which the pipeline trains.
        params: Lines of `params.yaml`, beside those that name data and task.
    """

    title: str
    tasks: list[str] | None = None
    baseline: str | None = None
    params: dict[str, Any] = {}
