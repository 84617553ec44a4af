"""Watch loss and gradient of every step: what is not finite, and spikes."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from textmill.files import write_json

_WINDOW = 128
_FEWEST = 16
"""Norms needed before one can be called a spike; the first steps have the largest anyway."""
_FEWEST_FOR_HUGE = 4
_DEVIATIONS = 6.0
_FACTOR = 3.0
"""Ratio of a spike to the largest recent norm."""
_HUGE = 300.0
"""Ratio to the largest recent norm that is a spike whatever their spread."""
MOST_IN_A_ROW = 10


class Watch:
    """Tells faulty steps from the losses and gradient norms of the recent ones.

    A norm is a spike if the loss is larger than all recent ones, and the norm is several times the largest recent
    one with its logarithm many robust standard deviations (Rousseeuw & Croux 1993) above their median, or many
    times the largest. The first steps count as recent for ever: a network that knows its rows by heart has tiny
    norms, and one hard row is no fault. A faulty step does not join the recent ones.

    Attributes:
        in_a_row: Faulty steps since the last good one.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self._norms: deque[float] = deque(maxlen=_WINDOW)
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._first: list[float] = [0.0, 0.0]  # largest norm and loss before the window was full

    def fault(self, loss: float, norm: float) -> str | None:
        """Return what is wrong with a step of this loss and gradient norm; None for a good one."""
        found = None
        if not math.isfinite(loss):
            found = f"the training loss is {loss}"
        elif not math.isfinite(norm):
            found = f"the gradient norm is {norm}"
        elif self._is_spike(loss, norm):
            ratio = norm / max(*self._norms, self._first[0])
            found = f"the gradient norm is {norm:.3g}, {ratio:.1f} times the largest before"
        if found is None:
            self.in_a_row = 0
            self._norms.append(norm)
            self._losses.append(loss)
            if len(self._norms) < _WINDOW:
                self._first = [max(self._first[0], norm), max(self._first[1], loss)]
        else:
            self.in_a_row += 1
            if self.in_a_row >= MOST_IN_A_ROW and math.isfinite(loss + norm):
                self._norms.clear()  # not a batch but a new level, which must be learned
                self._losses.clear()
                self._first = [0.0, 0.0]
        return found

    def _is_spike(self, loss: float, norm: float) -> bool:
        if len(self._norms) < _FEWEST_FOR_HUGE or loss <= max(*self._losses, self._first[1]):
            return False
        largest = max(*self._norms, self._first[0])
        if norm > _HUGE * largest > 0:
            return True
        if len(self._norms) < _FEWEST or norm <= _FACTOR * largest:
            return False
        logs = [math.log(max(value, 1e-30)) for value in self._norms]
        median = statistics.median(logs)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in logs)
        return math.log(norm) > median + _DEVIATIONS * deviation

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "norms": list(self._norms),
            "losses": list(self._losses),
            "first": self._first,
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._norms.extend(state["norms"])
        self._losses.extend(state["losses"])
        self._first = list(state["first"])
        self.in_a_row = state["in_a_row"]


def write_batches(path: Path, batches: Sequence[Any], facts: dict[str, Any]) -> None:
    """Write the collated batches of a step as JSON, with `facts` about it."""
    tensors = [{name: each.tolist() for name, each in batch.items() if isinstance(each, Tensor)} for batch in batches]
    write_json(path, {**facts, "batches": tensors})
