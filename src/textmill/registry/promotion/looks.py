"""Looks at an evaluation set: each comparison of two versions on it, counted in tags of the registered model.

Each verdict, also of a dry run, tells something about the rows. The gate therefore asks more of a later look
(`gate.looks`). A look at an earlier set counts if at least half of the rows of this one were in it, as of data that
grow. Otherwise the count starts at one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from textmill.data.seen import shared_part
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import is_forbidden

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOOK = f"{PREFIX}look."
_DIGITS = 16
_HEX = 8
_SHARED = 0.5


def take_look(
    client: MlflowClient, name: str, digest: str, version: str, opponent: str, sketch: Sequence[int] = ()
) -> int:
    """Count a comparison of two versions on an evaluation set; return its number, from 1.

    The same two versions keep their number, since a repetition gives the same answer. A user who may not
    write gets the next number, which is then not recorded. `sketch` is the result of `data.seen.row_sketch`
    for the rows of the set.
    """
    from mlflow.exceptions import MlflowException

    key = f"{LOOK}{digest[:_DIGITS]}.{version}.{opponent}"
    while True:
        looks = _looks(client.get_registered_model(name).tags, digest, sketch)
        mine, others = looks.pop(key, None), looks.values()
        if mine is not None and mine not in others:
            return mine
        number = 1 + max(others, default=0)  # also if another process took the same number meanwhile
        try:
            client.set_registered_model_tag(
                name, key, f"{number} {''.join(f'{value:08x}' for value in sketch)}".strip()
            )
        except MlflowException as error:
            if not is_forbidden(error):
                raise
            return number


def count_looks(tags: Mapping[str, str]) -> dict[str, int]:
    """Return the number of the last look by the first 16 digits of the evaluation set's digest."""
    counts: dict[str, int] = {}
    for key, value in tags.items():
        if key.startswith(LOOK):
            of = key.removeprefix(LOOK).partition(".")[0]
            counts[of] = max(counts.get(of, 0), int(value.split()[0]))
    return counts


def _looks(tags: Mapping[str, str], digest: str, sketch: Sequence[int]) -> dict[str, int]:
    """Return the numbers of the looks at this set, and at those that had at least half of its rows."""
    looks = {}
    for key, value in tags.items():
        if not key.startswith(LOOK):
            continue
        number, _, digits = value.partition(" ")
        theirs = [int(digits[start : start + _HEX], 16) for start in range(0, len(digits), _HEX)]
        if key.startswith(f"{LOOK}{digest[:_DIGITS]}.") or (theirs and shared_part(sketch, theirs) >= _SHARED):
            looks[key] = int(number)
    return looks
