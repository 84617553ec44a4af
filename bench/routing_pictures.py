"""The study's pictures: loss beside the dense model's, and how the experts were used."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench.routing_page import DENSE, DENSE_LONGER, Found, difference, title
from textmill.metrics.plots import ACCENT, INK, QUIET, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_picture(found: Found) -> Figure:
    """Each arm's difference to dense in final validation loss, with its interval and every seed.

    Routers that see what they predict are left out. An interval may run out of the picture.
    """
    compared = [arm for arm in found.outcomes if arm != DENSE and found.looks_ahead.get(arm) != "always"]
    gaps = {arm: gap for arm in compared if (gap := difference(found, arm)) is not None}
    names = sorted(gaps, key=lambda arm: gaps[arm].value)
    dense = found.losses(DENSE)
    seeds = {arm: [loss - dense[seed] for seed, loss in found.losses(arm).items() if seed in dense] for arm in names}
    with drawing(7.2, 1.2 + 0.34 * len(names)) as (figure, axes):
        for row, arm in enumerate(names):
            gap = gaps[arm]
            colour = INK if arm == DENSE_LONGER else ACCENT
            axes.plot([gap.low, gap.high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
            axes.plot(gap.value, row, "o", color=colour, markersize=6)
            axes.plot(seeds[arm], [row] * len(seeds[arm]), "|", color=colour, markersize=11)
        axes.axvline(0, color=INK, linestyle="--", linewidth=1)
        measured = [value for arm in names for value in seeds[arm]]
        room = 0.3 * (max(measured) - min(measured))
        axes.set_xlim(min(measured) - room, max(measured) + room)
        axes.set_yticks(range(len(names)), [title(arm) for arm in names])
        axes.invert_yaxis()
        axes.set_xlabel("validation loss minus that of dense, nats per token; left is better")
        axes.grid(axis="x")
    return figure


def balance_picture(found: Found) -> Figure:
    """The fullest expert against the mean, in training and in validation."""
    peaks = {
        arm: (found.balance(arm, "load_max_over_mean"), found.mean(arm, "final/validation/routing/load_max_over_mean"))
        for arm in found.outcomes
    }
    drawn = {arm: (one, other) for arm, (one, other) in peaks.items() if one is not None and other is not None}
    names = sorted(drawn, key=lambda arm: statistics.fmean(drawn[arm]))
    with drawing(7.2, 1.2 + 0.34 * len(names)) as (figure, axes):
        for row, arm in enumerate(names):
            axes.plot(drawn[arm], [row, row], color=QUIET, linewidth=1.5, zorder=1)
        axes.plot([drawn[arm][0] for arm in names], range(len(names)), "o", color=ACCENT, label="in training")
        axes.plot([drawn[arm][1] for arm in names], range(len(names)), "s", color=INK, label="in validation")
        axes.axvline(1, color=QUIET, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(names)), [title(arm) for arm in names])
        axes.invert_yaxis()
        axes.set_xlabel("load of the fullest expert over the mean load; 1 is perfect balance")
        axes.legend(loc="upper right")
        axes.grid(axis="x")
    return figure
