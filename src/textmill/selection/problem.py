"""The problem that `textmill choose` solves: data and task, as settings of `params.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill.config.layout import Layout
from textmill.config.sections.prepare import ReadConfig
from textmill.data.formats import TABLE_ENDINGS, is_table
from textmill.data.reading import MissingColumnError, read_rows
from textmill.errors import UserError, did_you_mean

_OWN_FILE = "file"


@dataclass(frozen=True)
class Limits:
    """Limits of the screening and of a candidate; None sets no limit.

    Attributes:
        budget: Seconds for the whole screening.
        latency: Milliseconds for one input, 95th percentile.
        size: Megabytes on disk.
    """

    budget: float | None = None
    latency: float | None = None
    size: float | None = None


@dataclass(frozen=True)
class Problem:
    """Data, task, and the experiment that the settings start from.

    Attributes:
        data: Name of a file of `conf/data/`, or path of a data file.
        task: Name of a file of `conf/task/`.
        experiment: Name of a file of `conf/experiment/` to start from, or None.
        text_column: The data file's column for the task's first text column.
        label_column: The data file's column for the task's first target column.
    """

    data: str
    task: str
    experiment: str | None = None
    text_column: str | None = None
    label_column: str | None = None

    @property
    def name(self) -> str:
        """Name of the registered model, derived from the data."""
        return Path(self.data).stem.replace("_", "-").replace(" ", "-").lower()


def problem_params(problem: Problem, layout: Layout) -> dict[str, Any]:
    """Return the settings of `params.yaml` that select data and task.

    Raises:
        UserError: Data, task or experiment does not exist, or the file lacks a column.
    """
    _require(layout, "task", problem.task)
    if problem.experiment is not None:
        _require(layout, "experiment", problem.experiment)
    params: dict[str, Any] = {"experiment": problem.experiment, "name": problem.name}
    if (layout.conf / "data" / f"{problem.data}.yaml").is_file():
        if problem.text_column or problem.label_column:
            fix = "Set prepare.read.columns there, or give --data a file"
            where = f"conf/data/{problem.data}.yaml"
            raise UserError("this file names the columns, not --text-column or --label-column", where=where, fix=fix)
        params["data"] = problem.data
    else:
        params |= _file_params(problem, layout)
    params["task"] = problem.task
    if problem.experiment is None and (layout.conf / "evaluate" / f"{problem.task}.yaml").is_file():
        params["evaluate"] = problem.task
    return params


def _require(layout: Layout, group: str, name: str) -> None:
    known = sorted(path.stem for path in (layout.conf / group).glob("*.yaml"))
    if name not in known:
        fix = f"{did_you_mean(name, known)}Known: {', '.join(known)}"
        raise UserError(f"no {group} {name!r}", where=f"--{group}", fix=fix)


def _file_params(problem: Problem, layout: Layout) -> dict[str, Any]:
    path = Path(problem.data).expanduser()
    if not path.suffix:
        _require(layout, "data", problem.data)
    if not is_table(path):
        raise UserError(
            "unsupported file type", where=problem.data, fix=f"Use a file that ends in {', '.join(TABLE_ENDINGS)}"
        )
    if not path.is_file():
        raise UserError("no such file", where=problem.data, fix="Give a file, or the name of one in conf/data/")
    absolute = path.resolve()
    inside = absolute.is_relative_to(layout.root)
    return {
        "data": _OWN_FILE,
        "fetch": {"source": {"files": {"all": str(absolute.relative_to(layout.root) if inside else absolute)}}},
        "prepare": {"read": {"columns": _columns(problem, path, layout)}},
    }


def _columns(problem: Problem, path: Path, layout: Layout) -> dict[str, str]:
    """Map each task column to the file's column: the one given by the user, else the one of the same name."""
    task = _task_class(layout, problem.task)
    texts, targets = list(task.text_columns), list(task.target_columns)
    columns = {name: name for name in (*texts, *targets)}
    for option, names in ((problem.text_column, texts), (problem.label_column, targets)):
        if option is not None and names:
            columns[names[0]] = option
    try:
        next(read_rows(path, str(path), ReadConfig(columns=dict(columns)), list(columns.values())))
    except MissingColumnError as error:
        fix = "Name it by --text-column or --label-column"
        raise UserError(error.what, where=error.where, fix=fix) from error
    return columns


def _task_class(layout: Layout, name: str) -> Any:
    import yaml

    from textmill.config.plugins import TARGET
    from textmill.tasks.base import Task

    options = yaml.safe_load((layout.conf / "task" / f"{name}.yaml").read_text(encoding="utf-8"))
    return Task.find(str(options[TARGET]))
