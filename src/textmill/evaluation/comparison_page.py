"""Compare two models: tables for the terminal, and an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from textmill.evaluation.gate import Costs
from textmill.evaluation.measurements import words
from textmill.evaluation.report import Table, render_page, shown
from textmill.metrics.bootstrap import Interval
from textmill.metrics.plots import data_uri, interval_chart, png

_TEMPLATE = "comparison.html.jinja"
_COSTS = {"latency": "latency of one row, p95, ms", "memory": "memory, MB", "size": "size of the graph, MB"}
_DIGEST_CHARACTERS = 12

Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class Part:
    """A table with its heading, and the text shown when it has no rows."""

    title: str
    table: Table
    empty: str


def parts_of(
    names: Sequence[str],
    metrics: Mapping[str, tuple[Interval | None, Interval | None]],
    differences: Mapping[str, Interval],
    higher_is_better: Mapping[str, bool],
    costs: Sequence[Costs],
    digests: Mapping[str, Pair],
    params: Mapping[str, Pair],
) -> list[Part]:
    """Return the tables of metrics, costs, data and parameters; `differences` are the second model minus the first."""
    gains = _gains(differences, higher_is_better)
    arrows = {name: " ↑" if up else " ↓" for name, up in higher_is_better.items()}
    rows = [
        [
            f"{words(name)}{arrows.get(name, '')}",
            *(shown(interval) if interval else "-" for interval in pair),
            _signed(gains[name]) if name in gains else "-",
        ]
        for name, pair in metrics.items()
    ]
    cost_rows = []
    for name, label in _COSTS.items() if costs else ():
        first, second = (float(getattr(cost, name)) for cost in costs)
        cost_rows.append([label, f"{first:.2f}", f"{second:.2f}", f"{second / first:.2f}"])
    digest_rows = [
        [name, *(_text(value)[:_DIGEST_CHARACTERS] for value in pair), "same" if pair[0] == pair[1] else "differs"]
        for name, pair in digests.items()
    ]
    numbers = [False, True, True, True]
    return [
        Part("Metrics", Table(["", *names, "gain"], rows, numbers), "Neither run logged a metric."),
        Part("Costs", Table(["", *names, "ratio"], cost_rows, numbers), "Only versions have measured costs."),
        Part("Data", Table(["", *names, ""], digest_rows, [False] * 4), "Neither run recorded its data."),
        Part(
            "Parameters that differ",
            Table(["", *names], [[name, *map(_text, pair)] for name, pair in params.items()], [False] * 3),
            "All parameters are equal.",
        ),
    ]


def render_comparison(
    names: Sequence[str],
    how: str,
    parts: Sequence[Part],
    metrics: Mapping[str, tuple[Interval | None, Interval | None]],
    differences: Mapping[str, Interval],
    higher_is_better: Mapping[str, bool],
) -> str:
    """Return the HTML page with embedded style and plots."""
    plots = []
    if differences:
        gains = {words(name): gain for name, gain in _gains(differences, higher_is_better).items()}
        plots.append(("gains with intervals", data_uri(png(interval_chart(gains, "gain", reference=0.0)))))
        main = next(iter(differences))
        both = {name: interval for name, interval in zip(names, metrics[main], strict=True) if interval is not None}
        plots.append((words(main), data_uri(png(interval_chart(both, words(main))))))
    return render_page(_TEMPLATE, names=list(names), how=how, parts=list(parts), plots=plots)


def _gains(differences: Mapping[str, Interval], higher_is_better: Mapping[str, bool]) -> dict[str, Interval]:
    """Return the differences, positive where the second model is better."""
    return {
        name: interval.as_gain(higher_is_better=higher_is_better.get(name, True))
        for name, interval in differences.items()
    }


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _text(value: str | None) -> str:
    return "-" if value is None else value
