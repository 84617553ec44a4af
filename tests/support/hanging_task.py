"""A task whose model hangs on some texts, if its state says so."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from textmill.metrics.base import Outputs
from textmill.tasks.base import State
from textmill.tasks.text_classification import TextClassification

SECONDS = 3600.0


class HangingClassification(TextClassification):
    """Text classification that answers texts with the word "hang" after an hour."""

    def answers(
        self,
        outputs: Outputs,
        rows: Mapping[str, Sequence[Any]],
        raw: Mapping[str, Sequence[Any]],
        state: State,
    ) -> list[dict[str, Any]]:
        """Return the answers of the class above."""
        if state.get("hangs") and any("hang" in text for text in raw["text"]):
            time.sleep(SECONDS)
        return super().answers(outputs, rows, raw, state)
