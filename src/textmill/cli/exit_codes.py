"""How the verbs end, beside 0 (done), 1 (error, told in one line) and typer's own 2 (wrong usage)."""

from __future__ import annotations

REFUSED = 3
"""Asked rightly and denied: the gate failed, the champion changed meanwhile, a digest differs."""
INCONCLUSIVE = 4
"""The evaluation set is too small to tell; nothing was changed."""
