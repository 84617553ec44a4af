"""The training loss over the steps, reduced to the resolution of a plot."""

from __future__ import annotations

from typing import Any

_POINTS = 200


class Curve:
    """Mean losses over intervals of equal length, about two hundred in a training.

    Attributes:
        rows: Last step of each interval, its mean `train_loss` and the `learning_rate` at the step.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._interval = 1
        self._sum = 0.0
        self._count = 0

    def begin(self, steps: int) -> None:
        """Set the total number of optimizer steps."""
        self._interval = max(1, steps // _POINTS)

    def add(self, step: int, loss: float, learning_rate: float) -> None:
        """Add the loss of a batch; `step` counts the optimizer's steps so far."""
        self._sum += loss
        self._count += 1
        if step % self._interval == 0 and (not self.rows or self.rows[-1]["step"] < step):
            self.rows.append({"step": step, "train_loss": self._sum / self._count, "learning_rate": learning_rate})
            self._sum, self._count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"rows": self.rows, "sum": self._sum, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.rows = list(state_dict["rows"])
        self._sum, self._count = state_dict["sum"], state_dict["count"]
