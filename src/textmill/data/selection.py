"""Select the rows that stay and assign them to splits, after repeated ids and duplicates are dropped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textmill.config.sections.prepare import PrepareConfig, SplitsConfig
from textmill.data.duplicates import Duplicates, find_exact, find_near, find_repeated
from textmill.data.first_pass import SPLIT_CODES, FirstPassResult
from textmill.data.minhash import normalise
from textmill.data.prepared import SPLITS
from textmill.data.splitting import assign_groups, assign_splits
from textmill.data.staging import Staging
from textmill.errors import UserError

DROPPED = 255


@dataclass
class Selection:
    """The split of each row and the rows that are dropped; all of shape (rows,).

    Attributes:
        split: Index into `SPLITS`, or `DROPPED`.
        repeated_ids: Rows whose id an earlier row of their split has.
        duplicates: Rows dropped as duplicates.
    """

    split: NDArray[np.uint8]
    repeated_ids: NDArray[np.bool_]
    duplicates: Duplicates


def select(
    config: PrepareConfig, first_pass: FirstPassResult, staging: Staging, text_columns: tuple[str, ...]
) -> Selection:
    """Drop rows with repeated ids and duplicates, and cut the splits that the source does not provide.

    Raises:
        UserError: A class has too few rows to be split, or a split would be empty.
    """
    codes = staging.numbers("split").astype(np.uint8)
    again = find_repeated(staging.numbers("source_id")) if first_pass.has_ids else np.zeros(staging.rows, bool)
    duplicates = _duplicates(config, first_pass, staging, codes, ~again, text_columns)
    kept = ~(again | duplicates.exact | duplicates.near)
    split = np.full(staging.rows, DROPPED, np.uint8)
    for index, name in enumerate(SPLITS):
        split[kept & (codes == SPLIT_CODES[name])] = index
    pool_name = "all" if "all" in first_pass.splits else "train"
    pool = np.flatnonzero(kept & (codes == SPLIT_CODES[pool_name]))
    shares = _shares(config.splits, first_pass.splits)
    if len(pool) and (shares or pool_name == "all"):
        if config.splits.by == "group":
            names = assign_groups(staging.numbers("group")[pool], shares, config.splits.seed)
        else:
            strata = staging.numbers("stratum")[pool]
            names = assign_splits(staging.numbers("key")[pool], strata, shares, config.splits.seed, first_pass.classes)
        split[pool] = np.select([names == name for name in SPLITS], list(range(len(SPLITS))))
    for index, name in enumerate(SPLITS):
        if not np.any(split == index):
            fix = "Provide more rows, or a file for this split"
            raise UserError(f"the split {name!r} has no rows", where="prepare.splits", fix=fix)
    return Selection(split, again, duplicates)


def _duplicates(
    config: PrepareConfig,
    first_pass: FirstPassResult,
    staging: Staging,
    codes: NDArray[np.uint8],
    usable: NDArray[np.bool_],
    text_columns: tuple[str, ...],
) -> Duplicates:
    if not config.duplicates.exact:
        usable = np.zeros_like(usable)
    duplicates = find_exact(staging.numbers("key"), staging.numbers("target"), codes, usable)
    if first_pass.bands:

        def texts(positions: NDArray[np.int64]) -> list[str]:
            table = staging.take(positions, text_columns)
            columns = [table.column(name).to_pylist() for name in text_columns]
            return [normalise("\x1f".join(values)) for values in zip(*columns, strict=True)]

        bands = (staging.numbers(f"band{index}") for index in range(first_pass.bands))
        options = config.duplicates
        find_near(duplicates, bands, codes, usable, texts, options.threshold, options.shingle)
    return duplicates


def _shares(config: SplitsConfig, provided: list[str]) -> dict[str, float]:
    """Return the splits to cut, `test` first, and their shares."""
    shares = {name: getattr(config, name) for name in ("test", "validation") if name not in provided}
    for name, share in shares.items():
        if share == 0:
            message = f"the source has no split {name!r} and its share is 0"
            fix = "Set a share above 0, or provide files for the split"
            raise UserError(message, where=f"prepare.splits.{name}", fix=fix)
    return shares
