"""Output of `--json`."""

from __future__ import annotations

from typing import Any


def print_json(document: Any) -> None:
    """Print one JSON document; NaN and infinity become null."""
    from pydantic_core import to_json

    print(to_json(document, indent=2, inf_nan_mode="null").decode(), flush=True)
