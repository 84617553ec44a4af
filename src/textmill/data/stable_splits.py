"""Assign rows to splits so that rows added later move no old one: by a hash of the row, of its group, or by time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from textmill.data.prepared import SPLITS
from textmill.data.splitting import require_rows, shuffled
from textmill.errors import UserError

_OWN_GROUP = np.uint64(0xD6E8FEB86659FD93)
"""Keeps the hash of a row without a group apart from the hash of a group of the same name."""
_MILLISECONDS_FROM = 1e11
"""Numbers above are Unix times in milliseconds: as seconds they lie beyond the year 5000."""
_SHORTEST_NUMBER = 9
"""Digits of a Unix time; shorter numbers are dates such as 2026 or 20261127."""


def assign_stable(
    keys: NDArray[np.uint64],
    strata: NDArray[np.uint64],
    shares: Mapping[str, float],
    seed: int,
    names: Mapping[int, str],
) -> NDArray[np.uint8]:
    """Assign each row by its own hash alone; the arguments are those of `splitting.assign_splits`.

    A row goes to the split whose share its hash, a number from 0 to 1, falls into. No other row matters, so
    that rows may be added in any number and order. The sizes of splits and classes vary by chance.

    A class that lacks a split by chance gets the row whose hash is nearest to that split's share. It
    returns to its own split when the class has a row of that split.

    Raises:
        UserError: A class has fewer rows than there are splits.
    """
    position = shuffled(keys, seed).astype(np.float64) / 2.0**64
    bounds = np.cumsum(list(shares.values()))
    order = [*shares, "train"]
    split = np.searchsorted(bounds, position, side="right")
    classes, stratum = np.unique(strata, return_inverse=True)
    counts = np.zeros((len(classes), len(order)), np.int64)
    np.add.at(counts, (stratum, split), 1)
    for number in np.flatnonzero((counts == 0).any(axis=1)):
        rows = np.flatnonzero(stratum == number)
        require_rows(len(rows), names.get(int(classes[number]), "?"), shares)
        for missing in np.flatnonzero(counts[number] == 0):
            crowded = rows[split[rows] == counts[number].argmax()]
            distance = np.abs(position[crowded] - (0.0 if missing < len(bounds) else 1.0))
            counts[number, [split[crowded[0]], missing]] += (-1, 1)
            split[crowded[distance.argmin()]] = missing
    return np.array([SPLITS.index(name) for name in order], np.uint8)[split]


def assign_times(times: NDArray[np.uint64], shares: Mapping[str, float]) -> NDArray[np.uint8]:
    """Assign the newest rows to the first split named, the rows before them to the next, and the oldest to `train`.

    Rows of one time are never divided. A split has at least the rows of one time.

    Raises:
        UserError: There are fewer different times than splits.
    """
    different, begins = np.unique(np.sort(times), return_index=True)
    if len(different) <= len(shares):
        message = f"the rows have {len(different)} different time(s), too few for {len(shares) + 1} splits"
        raise UserError(message, where="prepare.splits.time", fix="Choose another column, or split by content")
    result = np.full(len(times), SPLITS.index("train"), np.uint8)
    end, last = len(times), len(different)
    for waiting, (split, share) in zip(range(len(shares))[::-1], shares.items(), strict=True):
        possible = begins[waiting + 1 : last]
        cut = int(np.abs(possible - (end - len(times) * share)).argmin()) + waiting + 1
        latest = different[last] if last < len(different) else None
        inside = times >= different[cut]
        result[inside if latest is None else inside & (times < latest)] = SPLITS.index(split)
        end, last = int(begins[cut]), cut
    return result


def group_hashes(
    hashed: NDArray[np.uint64], keys: NDArray[np.uint64], values: Sequence[str | None]
) -> NDArray[np.uint64]:
    """Return the hash of each row's group; a row without a group is one of its own, by its key."""
    missing = np.array([not value for value in values], bool)
    return np.where(missing, keys ^ _OWN_GROUP, hashed)


def check_time(value: str | None) -> None:
    """Check the time of a row. One in the future, mostly an error, would stay the newest row of all for long.

    Raises:
        ValueError: The value is missing, is not a time, or is more than a day ahead, which no zone explains.
    """
    from datetime import UTC, datetime, timedelta

    if parse_time(value) > parse_time((datetime.now(UTC) + timedelta(days=1)).isoformat()):
        raise ValueError(f"is in the future: {str(value)[:40]!r}")


def parse_time(value: str | None) -> int:
    """Return a time as microseconds since the year 1: ISO 8601 (UTC without a zone), or a Unix time.

    Raises:
        ValueError: The value is missing or is not a time.
    """
    from datetime import UTC, datetime, timedelta

    start = datetime(1, 1, 1, tzinfo=UTC)
    text = (value or "").strip()
    if not text:
        raise ValueError("is missing, and splits.by is time")
    try:
        number = float(text) if len(text.partition(".")[0].lstrip("-")) >= _SHORTEST_NUMBER else math.nan
    except ValueError:
        number = math.nan
    try:
        if math.isfinite(number):
            seconds = number / 1000 if abs(number) > _MILLISECONDS_FROM else number
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
        else:
            moment = datetime.fromisoformat(f"{text}-01-01" if text.isdigit() and len(text) == 4 else text)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - start
    except (ValueError, OverflowError):
        raise ValueError(f"is not a date or time: {text[:40]!r}") from None
    return max(0, since // timedelta(microseconds=1))
