"""How the verbs end, beside 0 (done) and typer's own 2 (wrong usage)."""

from __future__ import annotations

ERROR = 1
"""Something is missing, broken or out of reach; one line on stderr says what."""
REFUSED = 3
"""Asked rightly and denied: the gate failed, the champion changed meanwhile, a digest differs."""
INCONCLUSIVE = 4
"""The evaluation set is too small to tell; nothing was changed."""
