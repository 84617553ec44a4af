"""Exit codes of the commands, besides 0 (success), 1 (error in one line) and 2 (wrong usage, by typer)."""

from __future__ import annotations

REFUSED = 3
"""A check failed: the gate, a digest, a metric, or the champion changed meanwhile."""
INCONCLUSIVE = 4
"""There is too little data to decide; nothing was changed."""
