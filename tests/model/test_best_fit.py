"""Documents packed whole by best fit."""

from __future__ import annotations

import logging
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from tiny_decoder import VOCABULARY, language_model

from textmill.data.shards import ShardWriter, open_split
from textmill.tasks.abilities import examples_of
from textmill.tasks.examples.best_fit import best_fit
from textmill.tasks.examples.packing import PackedWindows
from textmill.tasks.language_modelling import LanguageModelling

LENGTH = 16


@pytest.fixture(scope="module")
def sizes() -> NDArray[np.int64]:
    return np.clip(np.random.default_rng(1).lognormal(1.8, 0.9, 400).astype(np.int64), 1, 90)


@pytest.fixture(scope="module")
def table(sizes: NDArray[np.int64], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Documents in several shards; the tokens count upwards throughout."""
    ends = np.cumsum(sizes)
    rows = pa.table(
        {
            "id": [f"d{row}" for row in range(len(sizes))],
            "source": ["play"] * len(sizes),
            "input_ids": pa.array(
                [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)], pa.list_(pa.int32())
            ),
            "length": pa.array(sizes, pa.int32()),
        }
    )
    folder: Path = tmp_path_factory.mktemp("split")
    with ShardWriter(folder, rows.schema, 100) as writer:
        writer.write(rows)
    return open_split(folder)


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """Fills of the windows, by the definition of best-fit-decreasing."""
    rooms: list[int] = []
    for length in lengths:
        fitting = [(room, window) for window, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting)[1]] -= length
        else:
            rooms.append(capacity - length)
    return sorted(capacity - room for room in rooms)


def test_best_fit_fills_windows_as_the_definition_does() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        capacity = int(random.integers(3, 40))
        lengths = np.sort(random.integers(1, capacity + 1, random.integers(1, 150)))[::-1].copy()
        fills = np.bincount(best_fit(lengths, capacity), weights=lengths).astype(int)
        assert sorted(fills.tolist()) == one_by_one(lengths.tolist(), capacity)


def test_best_fit_of_a_million_documents_takes_seconds() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 1, 1_000_000).astype(np.int64), 1, 2048)
    lengths = np.sort(lengths)[::-1].copy()
    started = time.perf_counter()
    windows = best_fit(lengths, 2048)
    assert time.perf_counter() - started < 30
    assert np.bincount(windows, weights=lengths).max() <= 2048
    assert lengths.sum() / (2048 * (windows.max() + 1)) > 0.999


def test_each_token_is_a_target_once_and_no_document_that_fits_is_cut(
    table: pa.Table, sizes: NDArray[np.int64], caplog: pytest.LogCaptureFixture
) -> None:
    task = LanguageModelling.from_options(sequence_length=LENGTH, packing="best_fit")
    examples = examples_of(task, table)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    with caplog.at_level(logging.INFO, "textmill"):
        epochs = [examples.in_epoch(epoch, 7) for epoch in range(3)]
    assert len({tuple(epoch.lengths) for epoch in epochs}) == 1
    whole = sizes.cumsum()[sizes <= LENGTH] - sizes[sizes <= LENGTH]  # first tokens of documents that fit
    layouts = set()
    for epoch in epochs:
        found = epoch.__getitems__(list(range(len(epoch))))
        targets = np.concatenate([window[1:] for window in found["input_ids"]])
        assert sorted(targets.tolist()) == list(range(int(sizes.sum())))
        for window, documents, length in zip(found["input_ids"], found["document_ids"], epoch.lengths, strict=True):
            assert len(window) == length + 1 <= LENGTH + 1
            assert documents.tolist() == owner[window].tolist()
            assert window[0] == (window[1] - 1) % sizes.sum(), "the token before, or the end of another document"
            for first in set(whole.tolist()) & set(window[1:].tolist()):
                size = int(sizes[owner[first]])
                start = window.tolist().index(first, 1)
                assert window[start : start + size].tolist() == list(range(first, first + size))
        layouts.add(tuple(map(tuple, (window.tolist() for window in found["input_ids"]))))
    assert len(layouts) == 3, "documents meet others in each epoch"
    fits = int((sizes <= LENGTH).sum())
    assert f"cuts {len(sizes) - fits} of {len(sizes)} documents, concatenation cuts " in caplog.text
    assert len(examples.in_epoch(0, 7)) * LENGTH < 1.05 * sizes.sum(), "less than a twentieth is padding"
    assert isinstance(examples, PackedWindows)
    assert examples.lengths.sum() == sizes.sum() - 1, "validation and test are measured as before"


@torch.inference_mode()
def test_loss_of_a_packed_window_is_that_of_its_documents_alone(table: pa.Table) -> None:
    task = LanguageModelling.from_options(sequence_length=LENGTH, packing="best_fit")
    network = language_model().eval()
    epoch = examples_of(task, table).in_epoch(0, 7)
    windows = epoch.__getitems__(list(range(len(epoch))))
    of = max(range(len(epoch)), key=lambda row: len(set(windows["document_ids"][row].tolist())))
    ids, documents = windows["input_ids"][of] % VOCABULARY, windows["document_ids"][of]
    edges = [0, *(np.flatnonzero(np.diff(documents[:-1])) + 1), len(documents) - 1]
    assert len(edges) > 4, "several documents"

    def nll(first: int, last: int) -> float:
        part = {"input_ids": [ids[first : last + 1]], "document_ids": [documents[first : last + 1]]}
        return float(task.loss(network, task.collate(part)).outputs["nll"].sum())

    alone = sum(nll(int(first), int(last)) for first, last in pairwise(edges))
    assert nll(0, len(documents) - 1) == pytest.approx(alone, rel=1e-5)
