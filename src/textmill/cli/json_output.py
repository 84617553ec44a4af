"""What `--json` prints."""

from __future__ import annotations

from typing import Any


def print_json(document: Any) -> None:
    """Print one JSON document; a number that is none (NaN, infinity) is null, as JSON has no word for it."""
    from pydantic_core import to_json

    print(to_json(document, indent=2, inf_nan_mode="null").decode(), flush=True)
