"""Which rows stay, and in which split: after ids and duplicates are settled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textmill.config.sections.prepare import PrepareConfig, SplitsConfig
from textmill.data.duplicates import Duplicates, find_exact, find_near, repeated
from textmill.data.intake import SPLIT_CODES, Intake
from textmill.data.minhash import normalise
from textmill.data.prepared import SPLITS
from textmill.data.splitting import assign, assign_groups
from textmill.data.staging import Staging
from textmill.errors import UserError

DROPPED = 255


@dataclass
class Selection:
    """The outcome.

    Attributes:
        split: Index into `SPLITS` of each row, or `DROPPED`; shape (rows,).
        repeated_ids: Rows whose id an earlier row of their split has; shape (rows,).
        duplicates: Rows dropped because they repeat others.
    """

    split: NDArray[np.uint8]
    repeated_ids: NDArray[np.bool_]
    duplicates: Duplicates


def select(config: PrepareConfig, intake: Intake, staging: Staging, text_columns: tuple[str, ...]) -> Selection:
    """Drop rows with repeated ids and duplicates, and cut the splits that the source does not bring.

    Raises:
        UserError: A class has too few rows to be split, or a split would be empty.
    """
    codes = staging.numbers("split").astype(np.uint8)
    again = repeated(staging.numbers("given_id")) if intake.has_ids else np.zeros(staging.rows, bool)
    duplicates = _duplicates(config, intake, staging, codes, ~again, text_columns)
    kept = ~(again | duplicates.exact | duplicates.near)
    split = np.full(staging.rows, DROPPED, np.uint8)
    for index, name in enumerate(SPLITS):
        split[kept & (codes == SPLIT_CODES[name])] = index
    pool_name = "all" if "all" in intake.splits else "train"
    pool = np.flatnonzero(kept & (codes == SPLIT_CODES[pool_name]))
    shares = _shares(config.splits, intake.splits)
    if len(pool) and (shares or pool_name == "all"):
        if config.splits.by == "group":
            names = assign_groups(staging.numbers("group")[pool], shares, config.splits.seed)
        else:
            strata = staging.numbers("stratum")[pool]
            names = assign(staging.numbers("key")[pool], strata, shares, config.splits.seed, intake.classes)
        split[pool] = np.select([names == name for name in SPLITS], list(range(len(SPLITS))))
    for index, name in enumerate(SPLITS):
        if not np.any(split == index):
            raise UserError(
                f"the split {name!r} has no rows", where="prepare.splits", fix="Give more rows, or a file for it"
            )
    return Selection(split, again, duplicates)


def _duplicates(
    config: PrepareConfig,
    intake: Intake,
    staging: Staging,
    codes: NDArray[np.uint8],
    usable: NDArray[np.bool_],
    text_columns: tuple[str, ...],
) -> Duplicates:
    if not config.duplicates.exact:
        usable = np.zeros_like(usable)
    found = find_exact(staging.numbers("key"), staging.numbers("target"), codes, usable)
    if intake.bands:

        def texts(positions: NDArray[np.int64]) -> list[str]:
            table = staging.take(positions, text_columns)
            columns = [table.column(name).to_pylist() for name in text_columns]
            return [normalise("\x1f".join(values)) for values in zip(*columns, strict=True)]

        bands = (staging.numbers(f"band{index}") for index in range(intake.bands))
        options = config.duplicates
        find_near(found, bands, codes, usable, texts, options.threshold, options.shingle)
    return found


def _shares(config: SplitsConfig, brought: list[str]) -> dict[str, float]:
    """The splits to cut off, `test` first, and their shares.

    Raises:
        UserError: A share is 0.
    """
    shares = {name: getattr(config, name) for name in ("test", "validation") if name not in brought}
    for name, share in shares.items():
        if share == 0:
            fix = "Give it a share above 0, or files of its own"
            raise UserError(
                f"the source brings no split {name!r} and its share is 0", where=f"prepare.splits.{name}", fix=fix
            )
    return shares
