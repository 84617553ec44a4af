"""Looks at an evaluation set: each comparison of two versions on it, counted in tags of the registered model.

Each verdict, also of a dry run, tells something about the rows. The gate therefore asks more of a later look
(`gate.looks`). A new evaluation set has another digest, so that its count starts at one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import is_forbidden

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOOK = f"{PREFIX}look."
_DIGITS = 16


def take_look(client: MlflowClient, name: str, digest: str, version: str, opponent: str) -> int:
    """Count a comparison of two versions on an evaluation set; return its number, from 1.

    The same two versions keep their number, since a repetition gives the same answer. A user who may not
    write gets the next number, which is then not recorded.
    """
    from mlflow.exceptions import MlflowException

    key = f"{LOOK}{digest[:_DIGITS]}.{version}.{opponent}"
    while True:
        looks = _looks(client.get_registered_model(name).tags, digest)
        mine, others = looks.pop(key, None), looks.values()
        if mine is not None and mine not in others:
            return mine
        number = 1 + max(others, default=0)  # also if another process took the same number meanwhile
        try:
            client.set_registered_model_tag(name, key, str(number))
        except MlflowException as error:
            if not is_forbidden(error):
                raise
            return number


def count_looks(tags: Mapping[str, str]) -> dict[str, int]:
    """Return the number of looks by the first 16 digits of the evaluation set's digest."""
    return dict(Counter(key.removeprefix(LOOK).partition(".")[0] for key in tags if key.startswith(LOOK)))


def _looks(tags: Mapping[str, str], digest: str) -> dict[str, int]:
    return {key: int(value) for key, value in tags.items() if key.startswith(f"{LOOK}{digest[:_DIGITS]}.")}
