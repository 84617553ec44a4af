"""Render drift as one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from textmill.evaluation.drift import Drift, Measure, Shares
from textmill.evaluation.report import Table, render_page
from textmill.metrics.plots import ACCENT, QUIET, data_uri, drawing, png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from textmill.evaluation.drift_over_time import Look

_TEMPLATE = "drift.html.jinja"
_OUTPUTS = "Raw outputs"


def render_drift(drift: Drift, title: str, file: str, skipped: int) -> str:
    """Return the HTML page with embedded style and plots; `title` is the version's name."""
    plots = {shares.subject.capitalize(): _bars(shares) for shares in drift.shares}
    if drift.outputs is not None:
        plots[_OUTPUTS] = _clouds(*drift.outputs)
    return render_page(
        _TEMPLATE,
        title=title,
        file=file,
        skipped=skipped,
        drift=drift,
        measures=_measures_table(drift),
        words_table=Table(
            ["word", "occurrences"], [[word, f"{count:,}"] for word, count in drift.new_words.items()], [False, True]
        ),
        plots=[(name, data_uri(png(figure))) for name, figure in plots.items()],
    )


def render_over_time(looks: Sequence[Look], title: str, by: str, skipped: int) -> str:
    """Return the HTML page of captured requests: each measure over time beside its limit."""
    series: dict[tuple[str, str], list[tuple[Look, Measure]]] = {}
    for look in looks:
        for measure in look.drift.measures:
            series.setdefault((measure.subject, measure.name), []).append((look, measure))
    rows = [
        [f"{look.start:%Y-%m-%d %H:%M}", f"{look.requests:,}", f"{look.drift.rows:,}", look.drift.verdict, flagged]
        for look in reversed(looks)
        for flagged in [", ".join(f"{each.subject}: {each.name}" for each in look.drift.measures if each.flagged)]
    ]
    return render_page(
        "drift_over_time.html.jinja",
        title=title,
        by=by,
        skipped=skipped,
        newest=looks[-1],
        measures=_measures_table(looks[-1].drift),
        looks=Table(
            [f"{by} (UTC)", "rows", "judged with", "verdict", "measures"], rows, [False, True, True, False, False]
        ),
        plots=[
            (f"{subject.capitalize()}: {name}", data_uri(png(_line(points))))
            for (subject, name), points in series.items()
        ],
    )


def _line(points: Sequence[tuple[Look, Measure]]) -> Figure:
    """Plot the effect of one measure over time, its limit, and its alarms."""
    times = [look.start for look, _ in points]
    effects = [measure.effect for _, measure in points]
    alarms = [place for place, (look, each) in enumerate(points) if each.flagged and look.drift.verdict == "drift"]
    with drawing(6.4, 2.6) as (figure, axes):
        axes.plot(times, effects, color=ACCENT, marker=".", linewidth=1.2, label="effect")
        axes.axhline(points[-1][1].limit, color=QUIET, linestyle="--", label="limit")
        if alarms:
            chosen = [times[place] for place in alarms], [effects[place] for place in alarms]
            axes.scatter(*chosen, color="#dc2626", zorder=3, label="alarm")
        axes.set_ylabel(points[-1][1].name)
        axes.grid(axis="y")
        axes.legend()
        figure.autofmt_xdate()
    return figure


def _measures_table(drift: Drift) -> Table:
    rows = [
        [
            measure.subject,
            measure.name,
            f"{measure.effect:.3f}",
            f"{measure.limit:g}",
            f"{measure.p_value:.2g}",
            "drift" if measure.flagged else "",
            measure.words,
        ]
        for measure in drift.measures
    ]
    head = ["of", "measure", "effect", "limit", "p", "", "meaning"]
    return Table(head, rows, [False, False, True, True, True, False, False])


def _bars(shares: Shares) -> Figure:
    """Plot the share of rows in each bin, training beside new."""
    places = np.arange(len(shares.bins))
    with drawing(6.4, 3.2) as (figure, axes):
        axes.bar(places - 0.2, shares.reference, 0.4, color=QUIET, label="training")
        axes.bar(places + 0.2, shares.new, 0.4, color=ACCENT, label="new")
        names = [name if len(name) <= 18 else f"{name[:17]}…" for name in shares.bins]
        axes.set_xticks(
            places, names, rotation=0 if len(names) <= 5 else 60, ha="center" if len(names) <= 5 else "right"
        )
        axes.set_ylabel("share of rows")
        axes.legend()
        axes.grid(axis="y")
    return figure


def _clouds(reference: NDArray[np.float64], new: NDArray[np.float64]) -> Figure:
    """Plot both sets of outputs on the first two principal components of the reference."""
    centre = reference.mean(axis=0)
    spread = np.where(reference.std(axis=0) > 0, reference.std(axis=0), 1.0)
    components = np.linalg.svd((reference - centre) / spread, full_matrices=False)[2][:2]
    new = new[np.random.default_rng(0).permutation(len(new))[: len(reference)]]
    with drawing(6.4, 4.2) as (figure, axes):
        for rows, colour, label in ((reference, QUIET, "held-out"), (new, ACCENT, "new")):
            points = (rows - centre) / spread @ components.T
            second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
            axes.scatter(points[:, 0], second, s=9, color=colour, alpha=0.55, linewidths=0, label=label)
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second")
        axes.legend()
    return figure
