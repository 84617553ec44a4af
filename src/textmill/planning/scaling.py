"""Loss of a larger training, and its learning rate, from smaller ones of the same recipe.

L(C, r) = E + A C^-a + q (ln r - ln r*(C))², with r*(C) = r0 C^-b for C operations and a learning rate r: a power law
above the entropy E (Hoffmann et al. 2022), and a parabola in the logarithm of the learning rate. A few trainings do not
decide six unknowns. So they have priors: E is the entropy of text in bits per byte, 0.6 to 1.3 for English (Shannon
1951); the exponent `a` is that of fits of large runs, within a factor of about 2.7; and `b` is near 0, since the best
learning rate of Muon hardly moves with the width (Jordan et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.errors import UserError
from textmill.planning.optimal import BESIROGLU

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

NOISE = 0.01
"""Relative standard deviation of a loss about the law: half of it from the seed, the rest from shapes that differ."""
_EXPONENT = BESIROGLU.alpha * BESIROGLU.beta / (BESIROGLU.alpha + BESIROGLU.beta)
_ENTROPY = 0.9  # bits per byte, the middle of Shannon's bounds
_SPREADS = {"E": 0.4, "A": 1.5, "a": 0.5, "r0": np.log(4.0), "q": 1.0, "b": 0.05}
_CURVATURE = 0.02  # share of the loss that a factor e in the learning rate costs
_DRAWS = 200
_FEWEST = 3


@dataclass(frozen=True)
class Point:
    """A training.

    Attributes:
        name: Its run.
        flops: Floating-point operations.
        loss: Its best validation, such as bits per byte.
        rate: Peak learning rate.
    """

    name: str
    flops: float
    loss: float
    rate: float


@dataclass(frozen=True)
class Prediction:
    """A training that was not run.

    Attributes:
        flops: Its operations.
        loss: Expected loss at the best learning rate.
        loss_low: Lower end of its 95 % interval.
        loss_high: Upper end.
        rate: Expected best learning rate.
        rate_low: Lower end of its 95 % interval.
        rate_high: Upper end.
    """

    flops: float
    loss: float
    loss_low: float
    loss_high: float
    rate: float
    rate_low: float
    rate_high: float


class Scaling:
    """The law that fits some trainings, and 200 others that fit them as well within noise and priors.

    The draws come from fits to randomly shifted losses and priors (Bardsley et al. 2014, randomize-then-optimize).

    Raises:
        UserError: There are fewer than three trainings, or all have about the same number of operations.
    """

    def __init__(self, points: Sequence[Point], seed: int = 0) -> None:
        self.points = sorted(points, key=lambda point: point.flops)
        if len(points) < _FEWEST or self.points[-1].flops < 2 * self.points[0].flops:
            fix = "Track trainings of different size, such as five over a factor of ten in operations"
            raise UserError(f"{len(points)} trainings do not show how the loss falls", fix=fix)
        self._flops = np.array([point.flops for point in self.points])
        self._losses = np.array([point.loss for point in self.points])
        self._rates = np.log([point.rate for point in self.points])
        self._unit = float(np.exp(np.log(self._flops).mean()))
        best = self._losses.min()
        # E, A, a, r0, q by their logarithms, and b.
        rate = self._rates[self._losses.argmin()]
        self._centre = np.array(
            [np.log(_ENTROPY), np.log(0.5 * best), np.log(_EXPONENT), rate, np.log(_CURVATURE * best), 0.0]
        )
        self._spread = np.array(list(_SPREADS.values()))
        self._fit = self._solve(self._losses, self._centre, self._centre)
        draw = np.random.default_rng(seed)
        self._draws = [
            self._solve(
                self._losses * (1 + NOISE * draw.standard_normal(len(self._losses))),
                self._centre + self._spread * draw.standard_normal(len(self._centre)),
                self._fit,
            )
            for _ in range(_DRAWS)
        ]

    def predict(self, flops: float) -> Prediction:
        """Predict a training of so many operations at its best learning rate."""
        every = np.array([self._at(draw, flops) for draw in self._draws])
        (loss_low, rate_low), (loss_high, rate_high) = np.quantile(every, [0.025, 0.975], axis=0)
        loss, rate = self._at(self._fit, flops)
        return Prediction(
            flops, loss, float(loss_low), float(loss_high),
            float(np.exp(rate)), float(np.exp(rate_low)), float(np.exp(rate_high)),
        )  # fmt: skip

    def fitted(self) -> list[float]:
        """Return the law's loss of each training, in the order of `points`."""
        return [float(value) for value in self._losses_of(self._fit)]

    def plot(self, flops: float, metric: str) -> Figure:
        """Draw the loss over the operations up to `flops`, with the 95 % interval."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        grid = np.geomspace(self._flops[0], flops, 60)
        curve = [self.predict(each) for each in grid]
        axes.fill_between(grid, [p.loss_low for p in curve], [p.loss_high for p in curve], alpha=0.2, label="95 %")
        axes.plot(grid, [p.loss for p in curve], label="at the best learning rate")
        axes.scatter(self._flops, self._losses, label="trainings", zorder=3)
        axes.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel=metric.replace("_", " "))
        axes.legend()
        return figure

    def _losses_of(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = np.log(self._flops / self._unit)
        offset = self._rates - (values[3] - values[5] * scaled)
        law = np.exp(values[0]) + np.exp(values[1] - np.exp(values[2]) * scaled)
        return np.asarray(law + np.exp(values[4]) * offset**2, dtype=np.float64)

    def _at(self, values: NDArray[np.float64], flops: float) -> tuple[float, float]:
        scaled = np.log(flops / self._unit)
        loss = np.exp(values[0]) + np.exp(values[1] - np.exp(values[2]) * scaled)
        return float(loss), float(values[3] - values[5] * scaled)

    def _solve(self, losses: NDArray[np.float64], centre: Any, start: Any) -> NDArray[np.float64]:
        from scipy.optimize import least_squares

        def residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate(
                [(self._losses_of(values) - losses) / (NOISE * losses), (values - centre) / self._spread]
            )

        found: NDArray[np.float64] = least_squares(residuals, start).x
        return found
