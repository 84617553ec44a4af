"""What is asked of `textmill choose`, as lines of `params.yaml` that name data and task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textmill.config.layout import Layout
from textmill.config.sections.prepare import ReadConfig
from textmill.data.reading import TABLE_ENDINGS, MissingColumnError, is_table, read_rows
from textmill.errors import UserError, did_you_mean

_OWN_FILE = "file"


@dataclass(frozen=True)
class Limits:
    """What a candidate may cost; None sets no limit.

    Attributes:
        budget: Seconds for the whole screening.
        latency: Milliseconds for one input, 95th percentile.
        size: Megabytes on disk.
    """

    budget: float | None = None
    latency: float | None = None
    size: float | None = None


@dataclass(frozen=True)
class Question:
    """Data, task, and where the settings start from.

    Attributes:
        data: A file of `conf/data/` by name, or a data file.
        task: A file of `conf/task/`, by name.
        experiment: A file of `conf/experiment/` to start from; None for none.
        text_column: The data file's column for the task's first column of text.
        label_column: The data file's column for the task's first target.
    """

    data: str
    task: str
    experiment: str | None = None
    text_column: str | None = None
    label_column: str | None = None

    @property
    def name(self) -> str:
        """Of the data, as models are named."""
        return Path(self.data).stem.replace("_", "-").replace(" ", "-").lower()


def question_lines(question: Question, layout: Layout) -> dict[str, Any]:
    """The lines of `params.yaml` that say what is asked.

    Raises:
        UserError: There is no such data, task or experiment, or the file lacks a column.
    """
    _require(layout, "task", question.task)
    if question.experiment is not None:
        _require(layout, "experiment", question.experiment)
    lines: dict[str, Any] = {"experiment": question.experiment, "name": question.name}
    if (layout.conf / "data" / f"{question.data}.yaml").is_file():
        if question.text_column or question.label_column:
            fix = "Set prepare.read.columns there, or give --data a file"
            raise UserError("columns are named by the entry itself", where=f"conf/data/{question.data}.yaml", fix=fix)
        lines["data"] = question.data
    else:
        lines |= _file_lines(question, layout)
    lines["task"] = question.task
    if question.experiment is None and (layout.conf / "evaluate" / f"{question.task}.yaml").is_file():
        lines["evaluate"] = question.task
    return lines


def _require(layout: Layout, group: str, name: str) -> None:
    known = sorted(path.stem for path in (layout.conf / group).glob("*.yaml"))
    if name not in known:
        fix = f"{did_you_mean(name, known)}Known: {', '.join(known)}"
        raise UserError(f"no {group} {name!r}", where=f"--{group}", fix=fix)


def _file_lines(question: Question, layout: Layout) -> dict[str, Any]:
    path = Path(question.data).expanduser()
    if not path.suffix:
        _require(layout, "data", question.data)
    if not is_table(path):
        fix = f"Give one that ends in {', '.join(TABLE_ENDINGS)}"
        raise UserError("no kind of file that is read", where=question.data, fix=fix)
    if not path.is_file():
        raise UserError("no such file", where=question.data, fix="Give a file, or the name of one in conf/data/")
    absolute = path.resolve()
    inside = absolute.is_relative_to(layout.root)
    return {
        "data": _OWN_FILE,
        "fetch": {"source": {"files": {"all": str(absolute.relative_to(layout.root) if inside else absolute)}}},
        "prepare": {"read": {"columns": _columns(question, path, layout)}},
    }


def _columns(question: Question, path: Path, layout: Layout) -> dict[str, str]:
    """Task column -> column of the file: as asked, else the one of the same name."""
    task = _task_class(layout, question.task)
    texts, targets = list(task.text_columns), list(task.target_columns)
    wanted = {name: name for name in (*texts, *targets)}
    for option, names in ((question.text_column, texts), (question.label_column, targets)):
        if option is not None and names:
            wanted[names[0]] = option
    try:
        next(read_rows(path, str(path), ReadConfig(columns=dict(wanted)), list(wanted.values())))
    except MissingColumnError as error:
        fix = "Name it by --text-column or --label-column"
        raise UserError(error.what, where=error.where, fix=fix) from error
    return wanted


def _task_class(layout: Layout, name: str) -> Any:
    import yaml

    from textmill.config.plugins import TARGET
    from textmill.tasks.base import Task

    options = yaml.safe_load((layout.conf / "task" / f"{name}.yaml").read_text(encoding="utf-8"))
    return Task.find(str(options[TARGET]))
