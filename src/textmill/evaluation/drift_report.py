"""Render drift as one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from textmill.evaluation.drift import Drift, Shares
from textmill.evaluation.report import Table, render_page
from textmill.metrics.plots import ACCENT, QUIET, data_uri, drawing, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
