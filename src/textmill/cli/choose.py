"""`textmill choose`: recommend the model to train for a data set."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from typer import Option

from textmill.cli.output import AsJson, print_json, print_table
from textmill.errors import UserError

if TYPE_CHECKING:
    from textmill.selection.recommendation import Recommendation
    from textmill.selection.results import Result

_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_MILLISECONDS = {"ms": 1.0, "s": 1000.0}
_MEGABYTES = {"kb": 1e-3, "mb": 1.0, "gb": 1e3}


def choose(
    data: Annotated[str, Option(help="Name of a file in conf/data/, or a CSV, TSV, JSON Lines or Parquet file.")],
    task: Annotated[str, Option(help="Name of a file in conf/task/.")],
    budget: Annotated[
        str | None, Option(help="Time for all trials, such as 90s or 5min. Default: 20 % of training all candidates.")
    ] = None,
    max_latency: Annotated[
        str | None, Option(help="Maximum latency for one input (95th percentile), such as 20ms.")
    ] = None,
    max_size: Annotated[str | None, Option(help="Maximum size on disk, such as 100MB.")] = None,
    candidate: Annotated[
        list[str] | None, Option(help="Add a candidate: hub id, or folder with a model. Repeatable.")
    ] = None,
    only: Annotated[list[str] | None, Option(help="Try only this file of conf/candidate/. Repeatable.")] = None,
    text_column: Annotated[str | None, Option(help="Text column of the file. Default: the task's column.")] = None,
    label_column: Annotated[str | None, Option(help="Label column of the file. Default: the task's column.")] = None,
    experiment: Annotated[str | None, Option(help="Start from the settings of conf/experiment/NAME.yaml.")] = None,
    setting: Annotated[
        list[str] | None, Option("--set", help="KEY=VALUE for all candidates, such as train.max_epochs=1. Repeatable.")
    ] = None,
    whole: Annotated[bool, Option("--whole", help="Train every candidate to completion (slow, exact).")] = False,
    as_json: AsJson = False,
) -> None:
    """Run short trials of the candidates in conf/candidate/ and recommend one.

    Successive halving: train all briefly, the better half longer, and so on. Print quality, latency,
    size, training time, the Pareto front, and the params.yaml that adopts the recommended model.

    Example: textmill choose --data own.csv --task TASK --max-latency 20ms
    """
    import logging
    import signal
    import sys

    from textmill.config.layout import find_layout
    from textmill.selection.problem import Limits, Problem

    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # an exit removes the workspace
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    limits = Limits(
        quantity("--budget", budget, _SECONDS),
        quantity("--max-latency", max_latency, _MILLISECONDS),
        quantity("--max-size", max_size, _MEGABYTES),
    )
    problem = Problem(data, task, experiment, text_column, label_column)
    changes = changes_of(setting or [], "--set")
    layout = find_layout()
    from textmill.stages.imports import quick_imports

    with quick_imports():
        from textmill.selection.choose import choose as run

    result = run(problem, limits, layout, only=only or (), added=candidate or (), changes=changes, whole=whole)
    if as_json:
        print_json(result.as_dict())
    else:
        _print(result)


def quantity(option: str, text: str | None, units: dict[str, float]) -> float | None:
    """Parse a number above zero with a unit; return it in the unit of value 1."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text.lower())
    if match is None or match[2] not in units or float(match[1]) == 0:
        raise UserError(f"cannot read {text!r}", where=option, fix=f"Write a number with a unit: {', '.join(units)}")
    return float(match[1]) * units[match[2]]


def changes_of(settings: list[str], where: str) -> dict[str, object]:
    """Parse KEY=VALUE texts into nested settings; `where` is the option."""
    from omegaconf import OmegaConf

    for text in settings:
        if "=" not in text:
            raise UserError(f"cannot read {text!r}", where=where, fix="Write KEY=VALUE, as in train.max_epochs=1")
    plain = OmegaConf.to_container(OmegaConf.from_dotlist(settings))
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _print(recommendation: Recommendation) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.text import Text

    metric = f"{recommendation.metric.replace('_', ' ')} [95 %]"
    rows = [
        [Text.assemble(result.name, (" *" if result.name in recommendation.front else "", "bold")), *_cells(result)]
        for result in recommendation.results
        if result.excluded is None
    ]
    columns = ("candidate", metric, "trained", "expected", "ms", "MB", "training")
    print_table(columns, rows, title=f"{recommendation.problem.data}, validation split", numeric=range(1, 7))
    console = Console(highlight=False)
    notes = [
        "* on the Pareto front of quality, latency (95th percentile, one input), size and full training time.",
        *(
            f"{result.name} is excluded: {result.excluded.rstrip('.')}."
            for result in recommendation.results
            if result.excluded is not None
        ),
        "",
        *recommendation.sentences,
    ]
    for note in notes:
        console.print(Padding(escape(note), (0, 0, 0, 2)))
    if recommendation.adopted is not None:
        console.print(f"\n  To adopt [bold]{escape(recommendation.adopted.name)}[/bold], replace params.yaml by:\n")
        for line in recommendation.params_yaml.splitlines():
            console.print(f"    {line}", markup=False, soft_wrap=True)


def _cells(result: Result) -> list[str]:
    quality, serving = result.quality, result.serving
    return [
        f"{quality.value:.3f} [{quality.low:.3f}, {quality.high:.3f}]",
        f"{result.share:.0%}",
        "" if result.expected is None else f"{result.expected:.3f}",
        *([f"{serving.latency:.2f}", f"{serving.size:.1f}"] if serving is not None else ["-", "-"]),
        f"{result.train_seconds:.0f} s",
    ]
