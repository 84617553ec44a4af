"""The training loss over the steps, thinned to what a plot can show."""

from __future__ import annotations

from typing import Any

_POINTS = 200


class Curve:
    """Means of the loss over stretches of equal length, about two hundred in a training.

    Attributes:
        rows: The last step of each stretch, its mean `train_loss` and the `learning_rate` there.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._steps_in_a_stretch = 1
        self._sum = 0.0
        self._count = 0

    def begin(self, steps: int) -> None:
        """Training has `steps` optimizer steps in all."""
        self._steps_in_a_stretch = max(1, steps // _POINTS)

    def add(self, step: int, loss: float, learning_rate: float) -> None:
        """Take in the loss of a batch; `step` counts the optimizer's steps so far."""
        self._sum += loss
        self._count += 1
        if step % self._steps_in_a_stretch == 0 and (not self.rows or self.rows[-1]["step"] < step):
            self.rows.append({"step": step, "train_loss": self._sum / self._count, "learning_rate": learning_rate})
            self._sum, self._count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Everything so far."""
        return {"rows": self.rows, "sum": self._sum, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved curve."""
        self.rows = list(state_dict["rows"])
        self._sum, self._count = state_dict["sum"], state_dict["count"]
