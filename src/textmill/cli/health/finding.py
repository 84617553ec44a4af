"""What a check found, and its repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Finding:
    """Something that is wrong.

    Attributes:
        what: The problem, with the offending value.
        remedy: Instruction that solves it.
        repair: The repair that `--fix` runs; None where only the user can decide.
        outcome: What the repair did, or why it failed; empty before.
    """

    what: str
    remedy: str
    repair: Callable[[], object] | None = None
    outcome: str = ""


@dataclass
class Health:
    """A subject, a summary of its state, and what is wrong."""

    subject: str
    summary: str
    findings: list[Finding] = field(default_factory=list)
