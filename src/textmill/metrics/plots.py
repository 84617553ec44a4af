"""Plots of the report in one style, drawn without a screen."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from textmill.metrics.bootstrap import Interval
from textmill.metrics.categories import Bins

ACCENT = "#2563eb"
QUIET = "#94a3b8"
INK = "#1f2937"

_DOTS_PER_INCH = 160
_MOST_CELLS = 40
"""Largest number of labels of a confusion matrix; beyond, its cells are too small."""
_NUMBERED_CELLS = 12

_STYLE: Any = {
    "font.size": 9.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "grid.color": "#e2e8f0",
    "legend.frameon": False,
    "text.parse_math": False,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, Any]]:
    """Open a figure of `width` by `height` inches with its axes, in the report's style."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG with a transparent background; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def data_uri(image: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def interval_chart(intervals: Mapping[str, Interval], measure: str, reference: float | None = None) -> Figure:
    """Plot intervals, one a line, the first at the top and in colour.

    Args:
        intervals: Intervals by the label of their line.
        measure: Label of the axis.
        reference: Value of a dashed line through all; None for none.
    """
    names, values = list(intervals), list(intervals.values())
    with drawing(6.4, 0.9 + 0.38 * len(names)) as (figure, axes):
        for row, value in enumerate(values):
            colour = ACCENT if row == 0 else INK
            axes.plot([value.low, value.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
            axes.plot(value.value, row, "o", color=colour, markersize=6.5)
            label = f"{value.value:.3f}"
            axes.annotate(label, (value.value, row), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
        if reference is not None:
            axes.axvline(reference, color=QUIET, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(names)), [_shortened(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.75)
        axes.margins(x=0.08)
        axes.set_xlabel(measure)
        axes.grid(axis="x")
    return figure


def confusion_matrix_plot(matrix: NDArray[np.intp], labels: Sequence[str]) -> Figure | None:
    """Plot true labels by predicted ones, coloured by the share of the true label; None for too many labels."""
    size = len(labels)
    if size > _MOST_CELLS:
        return None
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(3.0 + 0.42 * size, 9.0)
    with drawing(side + 0.6, side) as (figure, axes):
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(*matrix.shape) if size <= _NUMBERED_CELLS else ():
            share = shares[row, column]
            text = f"{matrix[row, column]}\n{share:.0%}"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.55 else INK)
        short = [_shortened(label) for label in labels]
        axes.set_xticks(range(size), short, rotation=0 if size <= 5 else 90)
        axes.set_yticks(range(size), short)
        axes.tick_params(length=0)
        axes.set(xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, format=lambda share, _: f"{share:.0%}")
        bar.outline.set_visible(False)
        bar.set_label("share of the true label")
    return figure


def reliability_plot(bins: Bins) -> Figure:
    """Plot accuracy by confidence, with the share of rows of each bin as bars; `bins` of one draw."""
    rows, confidence, accuracy = bins.rows[0], bins.confidence[0], bins.accuracy[0]
    width = 1 / len(rows)
    centres = (np.arange(len(rows)) + 0.5) * width
    filled = rows > 0
    with drawing(5.2, 4.2) as (figure, axes):
        axes.bar(centres, rows / rows.sum(), 0.92 * width, color="#dbeafe", label="share of rows")
        axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1, label="perfect calibration")
        axes.plot(confidence[filled], accuracy[filled], "o-", color=ACCENT, markersize=5, label="accuracy")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy, share of rows")
        axes.legend(loc="upper left")
        axes.grid(axis="y")
    return figure


def _shortened(text: str, length: int = 34) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def scatter(across: NDArray[np.float64], up: NDArray[np.float64], across_name: str, up_name: str) -> Figure:
    """Plot a point for each pair of values, both of shape (n,)."""
    with drawing(5.2, 3.8) as (figure, axes):
        axes.plot(across, up, "o", color=ACCENT, markersize=2.5, alpha=0.35, markeredgewidth=0)
        axes.set(xlabel=across_name, ylabel=up_name)
        axes.grid(visible=True)
    return figure
