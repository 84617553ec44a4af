"""What the tests of faults share: a small form for CI, a nightly one, and a record of what was measured.

`make faults` sets TEXTMILL_NIGHTLY and TEXTMILL_FAULTS_REPORT and writes docs/reliability.md from the records.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def rounds(small: int, nightly: int) -> int:
    """Return how often to repeat: `small` in CI, `nightly` under `make faults`."""
    return nightly if os.environ.get("TEXTMILL_NIGHTLY") else small


def record(fault: str, *, seen: str, kept: str, measured: str, **numbers: Any) -> None:
    """Add a row to the table of docs/reliability.md, if `make faults` asks for it.

    Args:
        fault: Number in the list of faults and its name: "1 SIGKILL of the trainer".
        seen: What the user sees: the line that was printed, or the behaviour.
        kept: What is kept.
        measured: The numbers as a short phrase; every one of them was measured in this run.
        numbers: The same numbers by name, for tools.
    """
    if path := os.environ.get("TEXTMILL_FAULTS_REPORT"):
        row = {"fault": fault, "seen": seen, "kept": kept, "measured": measured, "numbers": numbers}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
