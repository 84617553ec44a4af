"""Select the rows that stay and assign them to splits, after repeated ids and duplicates are dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from textmill.config.sections.prepare import PrepareConfig, SplitsConfig
from textmill.data.chunks import SPLIT_CODES
from textmill.data.decontamination import contaminated
from textmill.data.duplicates import Duplicates, NearIndex, NearRows, find_exact, find_near, find_repeated
from textmill.data.first_pass import FirstPassResult
from textmill.data.mixture import left_out
from textmill.data.parallel import Engine
from textmill.data.passages import Chunks, PassageSearch, find_passages
from textmill.data.prepared import SPLITS
from textmill.data.seen import find_seen
from textmill.data.shingles import Prefixes, ShingleCounts, batches, normalise_all, prefixes, shingle_hashes
from textmill.data.splitting import assign_groups, assign_splits
from textmill.data.stable_splits import assign_stable, assign_times
from textmill.data.staging import Staging
from textmill.errors import UserError
from textmill.tasks.abilities import CutsExamples

if TYPE_CHECKING:
    from textmill.tasks.base import Task

DROPPED = 255

_Numbered = tuple[NDArray[np.int64], list[str]]
"""Numbers of rows, and their texts."""


@dataclass
class Selection:
    """The split of each row and the rows that are dropped; all of shape (rows,).

    Attributes:
        split: Index into `SPLITS`, or `DROPPED`.
        repeated_ids: Rows whose id an earlier row of their split has.
        duplicates: Rows dropped as duplicates.
        overlapping: Rows that share a passage with a split that is evaluated, or with held-out texts: `DROPPED`, or
            the index of that split in `SPLITS`, or behind these the index in `prepare.decontaminate`. The index after
            all of them: test rows that the version to start from has seen.
        left_out: Rows that the mixture leaves out.
    """

    split: NDArray[np.uint8]
    repeated_ids: NDArray[np.bool_]
    duplicates: Duplicates
    overlapping: NDArray[np.uint8]
    left_out: NDArray[np.bool_]


def select(
    config: PrepareConfig,
    task: Task,
    first_pass: FirstPassResult,
    staging: Staging,
    raw: Path,
    engine: Engine | None = None,
    seen: Path | None = None,
) -> Selection:
    """Drop rows with repeated ids and duplicates, cut the splits that the source lacks, drop overlapping rows, mix.

    Held-out texts are in the folder `raw`; `seen` is the record of the version that the training starts from, if any:
    a test row that it has is dropped.

    Raises:
        UserError: A class has too few rows to be split, or a split would be empty.
    """
    codes = staging.numbers("split").astype(np.uint8)
    again = find_repeated(staging.numbers("source_id")) if first_pass.has_ids else np.zeros(staging.rows, bool)
    duplicates = _duplicates(config, first_pass, staging, codes, ~again, task.text_columns, engine)
    kept = ~(again | duplicates.exact | duplicates.near)
    split = np.full(staging.rows, DROPPED, np.uint8)
    for index, name in enumerate(SPLITS):
        split[kept & (codes == SPLIT_CODES[name])] = index
    pool_name = "all" if "all" in first_pass.splits else "train"
    pool = kept & (codes == SPLIT_CODES[pool_name])
    shares = _shares(config.splits, first_pass.splits)
    if pool.any() and (shares or pool_name == "all"):
        split[pool] = _assign(config.splits, first_pass, staging, pool, shares)
    overlapping = _overlapping(config.duplicates.passage_words, task, staging, split, engine)
    train = SPLITS.index("train")
    columns = (*task.text_columns, *task.text_target_columns)
    for number, held_out in enumerate(config.decontaminate):
        rows = _rows_of((split == train) & (overlapping == DROPPED), staging, columns)
        overlapping[contaminated(held_out, raw, rows, engine)] = len(SPLITS) + number
    if seen is not None and config.duplicates.passage_words is not None and not isinstance(task, CutsExamples):
        for positions, texts in _rows_of(split == SPLITS.index("test"), staging, task.text_columns)():
            overlapping[positions[find_seen(seen, texts)]] = len(SPLITS) + len(config.decontaminate)
    split[overlapping != DROPPED] = DROPPED
    for index, name in enumerate(SPLITS):
        if not np.any(split == index):
            if np.any(overlapping != DROPPED):
                fix = "Provide other rows, or set prepare.duplicates.passage_words: null"
                raise UserError(f"all rows of the split {name!r} share a passage with evaluation rows", fix=fix)
            fix = "Provide more rows, or a file for this split"
            raise UserError(f"the split {name!r} has no rows", where="prepare.splits", fix=fix)
        if task.needs_different_targets and len(np.unique(staging.numbers("target")[split == index])) == 1:
            what = f"all rows of the split {name!r} have the same {task.target_columns[0]}: there is no correlation"
            raise UserError(what, where=f"fetch.source.files.{name}", fix="Provide rows with different ones")
    excess = np.zeros(staging.rows, bool)
    if config.mixture is not None:
        pool = np.flatnonzero(split == train)
        source, characters, key = (staging.numbers(name)[pool] for name in ("source", "characters", "key"))
        excess[pool] = left_out(config.mixture, first_pass.sources, source, characters, key, config.splits.seed)
        split[excess] = DROPPED
    return Selection(split, again, duplicates, overlapping, excess)


def _assign(
    config: SplitsConfig,
    first_pass: FirstPassResult,
    staging: Staging,
    pool: NDArray[np.bool_],
    shares: dict[str, float],
) -> NDArray[np.uint8]:
    """Return the split of each row of the pool."""
    if config.by == "time":
        return assign_times(staging.numbers("time")[pool], shares)
    if config.by == "group":
        assign = assign_stable if config.method == "stable" else assign_splits
        return assign_groups(staging.numbers("group")[pool], shares, config.seed, assign)
    keys, strata, classes = staging.numbers("key"), staging.numbers("stratum"), first_pass.classes
    if config.method == "stable":
        return assign_stable(keys[pool], strata[pool], shares, config.seed, classes)
    return assign_splits(keys, strata, shares, config.seed, classes, pool)[pool]


def _duplicates(
    config: PrepareConfig,
    first_pass: FirstPassResult,
    staging: Staging,
    codes: NDArray[np.uint8],
    usable: NDArray[np.bool_],
    text_columns: tuple[str, ...],
    engine: Engine | None,
) -> Duplicates:
    if not config.duplicates.exact:
        usable = np.zeros_like(usable)
    duplicates = find_exact(staging.numbers("key"), staging.numbers("target"), codes, usable)
    options = config.duplicates
    if options.near and options.exact:
        shingle, threshold = options.shingle, options.threshold
        engine = engine or Engine(workers=1)

        def index(positions: NDArray[np.int64]) -> NearIndex:
            """Index rows by their rare shingles; these are counted before."""

            def shingles_of(part: _Numbered) -> list[NDArray[np.uint32]]:
                return [shingle_hashes(texts[some], shingle)[0] for texts in [part[1]] for some in batches(texts)]

            def prefixes_of(part: _Numbered) -> list[tuple[NDArray[np.int64], Prefixes]]:
                rows, texts = part
                return [(rows[some], prefixes(texts[some], shingle, counts, threshold)) for some in batches(texts)]

            counts = ShingleCounts()
            for found in engine.map(shingles_of, _texts_at(positions, staging, text_columns)):
                for hashes in found:
                    counts.add(hashes)
            made = NearIndex(staging.folder, len(positions), counts, threshold)
            for parts in engine.map(prefixes_of, _texts_at(positions, staging, text_columns)):
                made.add(parts)
            return made

        sizes, sketches = np.zeros(0, np.int32), np.zeros(0, np.uint64)
        if first_pass.signatures is not None:
            sizes, sketches = staging.numbers("shingles").astype(np.int32), staging.numbers("sketch")
        rows = NearRows(usable & ~duplicates.exact, sizes, sketches, first_pass.signatures, index)

        def texts(positions: NDArray[np.int64]) -> list[str]:
            return normalised(staging.take(positions, text_columns))

        find_near(duplicates, rows, codes, texts, threshold, shingle)
    return duplicates


def _texts_at(positions: NDArray[np.int64], staging: Staging, text_columns: tuple[str, ...]) -> Iterator[_Numbered]:
    """Yield the normalised texts of rows at ascending positions, and their places among these, chunk by chunk."""
    for start, chunk in staging.chunks(text_columns):
        first, last = np.searchsorted(positions, [start, start + chunk.num_rows])
        if first < last:
            yield np.arange(first, last), normalised(chunk.take(pa.array(positions[first:last] - start)))


def _overlapping(
    words: int | None, task: Task, staging: Staging, split: NDArray[np.uint8], engine: Engine | None
) -> NDArray[np.uint8]:
    """Return for each row the evaluated split that it shares a passage with, or `DROPPED`; the test split first."""
    result = np.full(len(split), DROPPED, np.uint8)
    if words is None or isinstance(task, CutsExamples):  # one quotation is no reason to drop a whole book
        return result

    engine = engine or Engine(workers=1)
    names = [name for name in ("test", "validation") if np.any(split == SPLITS.index(name))]
    searches = [
        PassageSearch(_rows_of(split == SPLITS.index(name), staging, task.text_columns), words, engine)
        for name in names
    ]
    everyone = _rows_of(split < SPLITS.index("test"), staging, task.text_columns)
    for name, search, hits in zip(names, searches, find_passages(searches, everyone, engine), strict=True):
        held_out, left = SPLITS.index(name), result == DROPPED
        others = (split < held_out) & left
        own, their = (_rows_of(mask, staging, task.text_columns) for mask in ((split == held_out) & left, others))
        result[search.pairs(own, their, hits.of(others))[:, 1]] = held_out
    return result


def _rows_of(mask: NDArray[np.bool_], staging: Staging, names: Sequence[str]) -> Chunks:
    def chunks() -> Iterator[tuple[NDArray[np.int64], list[list[str]]]]:
        for start, chunk in staging.chunks(names):
            positions = np.flatnonzero(mask[start : start + chunk.num_rows])
            table = chunk.take(pa.array(positions))
            yield start + positions, [column.to_pylist() for column in table.columns]

    return chunks


def normalised(table: pa.Table) -> list[str]:
    """Return the normalised texts of rows; a row of several texts is one text."""
    columns = [column.to_pylist() for column in table.columns]
    texts = columns[0] if len(columns) == 1 else ["\x1f".join(values) for values in zip(*columns, strict=True)]
    return normalise_all(texts)


def _shares(config: SplitsConfig, provided: list[str]) -> dict[str, float]:
    """Return the splits to cut, `test` first, and their shares."""
    shares = {name: getattr(config, name) for name in ("test", "validation") if name not in provided}
    for name, share in shares.items():
        if share == 0:
            message = f"the source has no split {name!r} and its share is 0"
            fix = "Set a share above 0, or provide files for the split"
            raise UserError(message, where=f"prepare.splits.{name}", fix=fix)
    return shares
