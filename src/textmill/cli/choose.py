"""`textmill choose`: which model is worth training on some data."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from textmill.cli.json_output import print_json
from textmill.errors import UserError

if TYPE_CHECKING:
    from textmill.selection.advice import Choice
    from textmill.selection.results import Result

_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_MILLISECONDS = {"ms": 1.0, "s": 1000.0}
_MEGABYTES = {"kb": 1e-3, "mb": 1.0, "gb": 1e3}


def choose(
    data: Annotated[str, typer.Option(help="A file of conf/data/ by name, or a CSV, TSV, JSON Lines or Parquet file.")],
    task: Annotated[str, typer.Option(help="A file of conf/task/ by name.")],
    budget: Annotated[
        str | None, typer.Option(help="Time for the screening, as 90s or 5min. Default: a fifth of training them all.")
    ] = None,
    max_latency: Annotated[str | None, typer.Option(help="For one input, 95th percentile, as 20ms.")] = None,
    max_size: Annotated[str | None, typer.Option(help="On disk, as 100MB.")] = None,
    candidate: Annotated[
        list[str] | None, typer.Option(help="One more: a hub id, or a folder with a model. May be repeated.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this one of conf/candidate/. May be repeated.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The file's column of texts, if not the task's own.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The file's column of labels.")] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Start from the settings of this file of conf/experiment/.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for all candidates, as train.max_epochs=1.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Train every candidate to the end: dear, and sure.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Try the candidates of conf/candidate/ with short trainings, and advise one.

    Successive halving: all train a little, the better half further, and so on. Prints quality, latency,
    size and training time, the Pareto front, the advice, and the lines of params.yaml to adopt it.

    Example: textmill choose --data own.csv --task TASK --max-latency 20ms
    """
    import logging
    import signal
    import sys

    from textmill.config.layout import find_layout
    from textmill.selection.question import Limits, Question

    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # so that its copies are removed
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    limits = Limits(
        _quantity("--budget", budget, _SECONDS),
        _quantity("--max-latency", max_latency, _MILLISECONDS),
        _quantity("--max-size", max_size, _MEGABYTES),
    )
    question = Question(data, task, experiment, text_column, label_column)
    changes = _changes(setting or [])
    layout = find_layout()
    from textmill.stages.imports import quick_imports

    with quick_imports():
        from textmill.selection.choosing import choose as run

    found = run(question, limits, layout, only=only or (), added=candidate or (), changes=changes, whole=whole)
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)


def _quantity(option: str, text: str | None, units: dict[str, float]) -> float | None:
    """A number with a unit, in the first unit of value 1.

    Raises:
        UserError: It is none, or not above zero.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise UserError(f"cannot read {text!r}", where=option, fix=f"Write a number with a unit: {', '.join(units)}")
    return float(match[1]) * units[match[2]]


def _changes(settings: list[str]) -> dict[str, object]:
    from omegaconf import OmegaConf

    for text in settings:
        if "=" not in text:
            raise UserError(f"cannot read {text!r}", where="--set", fix="Write KEY=VALUE, as in train.max_epochs=1")
    plain = OmegaConf.to_container(OmegaConf.from_dotlist(settings))
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _print(found: Choice) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"{found.question.data}, validation split", title_justify="left")
    table.add_column("candidate", overflow="fold")
    for name in (f"{found.metric.replace('_', ' ')} [95 %]", "trained", "expected", "ms", "MB", "training"):
        table.add_column(name, justify="right")
    for result in found.results:
        if result.excluded is None:
            mark = " [bold]*[/bold]" if result.name in found.front else ""
            table.add_row(escape(result.name) + mark, *_cells(result))
    console = Console(highlight=False)
    console.print(table)
    notes = [
        "* on the Pareto front of quality, latency (95th percentile, one input), size and time of the whole training.",
        *(
            f"{result.name} is out: {result.excluded.rstrip('.')}."
            for result in found.results
            if result.excluded is not None
        ),
        "",
        *found.sentences,
    ]
    for note in notes:
        console.print(Padding(escape(note), (0, 0, 0, 2)))
    if found.adopted is not None:
        console.print(f"\n  To adopt [bold]{escape(found.adopted.name)}[/bold], let params.yaml hold:\n")
        for line in found.lines.splitlines():
            console.print(f"    {line}", markup=False, soft_wrap=True)


def _cells(result: Result) -> list[str]:
    quality, served = result.quality, result.served
    return [
        f"{quality.value:.3f} \\[{quality.low:.3f}, {quality.high:.3f}]",
        f"{result.share:.0%}",
        "" if result.expected is None else f"{result.expected:.3f}",
        *([f"{served.latency:.2f}", f"{served.size:.1f}"] if served is not None else ["-", "-"]),
        f"{result.train_seconds:.0f} s",
    ]
