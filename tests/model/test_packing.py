"""Documents as one stream of tokens, cut into windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_decoder import VOCABULARY, language_model

from textmill.data.shards import ShardWriter, open_split
from textmill.tasks.abilities import examples_of
from textmill.tasks.examples import packing
from textmill.tasks.examples.packing import BestFitRows, PackedWindows, best_fit, packing_counts
from textmill.tasks.language_modelling import LanguageModelling

LENGTHS = [5, 1, 9, 30, 2, 14]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Documents in several shards; the tokens count upwards throughout."""
    ends = np.cumsum(LENGTHS)
    rows = pa.table(
        {
            "id": [f"d{row}" for row in range(len(LENGTHS))],
            "source": ["play"] * len(LENGTHS),
            "input_ids": pa.array(
                [list(range(end - size, end)) for end, size in zip(ends, LENGTHS, strict=True)], pa.list_(pa.int32())
            ),
            "length": pa.array(LENGTHS, pa.int32()),
        }
    )
    folder: Path = tmp_path_factory.mktemp("split")
    with ShardWriter(folder, rows.schema, 2) as writer:
        writer.write(rows)
    return open_split(folder)


def windows(packed: PackedWindows) -> list[list[int]]:
    return [list(map(int, window)) for window in packed.columns()["input_ids"]]


def test_every_token_but_the_first_is_a_target_once(table: pa.Table) -> None:
    packed = PackedWindows(table, 8)
    assert [target for window in windows(packed) for target in window[1:]] == list(range(1, 61))
    assert packed.lengths.tolist() == [8] * 7 + [4]
    assert all(len(window) == length + 1 for window, length in zip(windows(packed), packed.lengths, strict=True))


def test_document_ids_follow_the_documents(table: pa.Table) -> None:
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    packed = PackedWindows(table, 8)
    for tokens, documents in zip(packed.columns()["input_ids"], packed.columns()["document_ids"], strict=True):
        assert documents.tolist() == owner[tokens].tolist()
    assert packed.frame()["id"].tolist()[:3] == ["d0@0", "d2@2", "d3@1"]


def test_epochs_begin_elsewhere_with_as_many_whole_windows(table: pa.Table) -> None:
    packed = PackedWindows(table, 8)
    epochs = [packed.in_epoch(epoch, seed=3) for epoch in range(20)]
    firsts = {windows(one)[0][0] for one in epochs}  # type: ignore[arg-type]
    assert len(firsts) > 4 and max(firsts) < 8
    assert {tuple(one.lengths) for one in epochs} == {(8,) * 6}
    assert windows(packed.in_epoch(4, 3)) == windows(epochs[4])  # type: ignore[arg-type]


def test_a_text_shorter_than_a_window_still_trains(table: pa.Table) -> None:
    packed = PackedWindows(table, 100)
    assert [len(window) for window in windows(packed.in_epoch(0, 0))] == [61]  # type: ignore[arg-type]


def test_collated_windows_predict_the_next_token_and_keep_documents_apart(table: pa.Table) -> None:
    task = LanguageModelling.from_options(sequence_length=8)
    packed = examples_of(task, table)
    batch = task.collate(packed.__getitems__([0, 7]))
    assert batch["input_ids"].shape == (2, 8)
    assert batch["labels"][0].tolist() == (batch["input_ids"][0] + 1).tolist()
    assert batch["labels"][1].tolist() == [57, 58, 59, 60, -100, -100, -100, -100]
    assert batch["document_ids"][0].tolist() == [0] * 5 + [1] + [2] * 2
    within = task.collate(packed.__getitems__([3]))
    assert "document_ids" not in within, "one document needs no mask"


def drawn_lengths(count: int, longest: int = 100) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(1, longest + 1, count)


def first_principles(sizes: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing as it is defined, with a search through all rows; returns the filled tokens of each."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - size)
    return sorted(capacity - room for room in rooms)


@pytest.mark.parametrize("capacity", [100, 128, 300])
def test_best_fit_fills_rows_as_its_definition_does(capacity: int) -> None:
    sizes = drawn_lengths(500)
    rows = best_fit(sizes, capacity)
    assert sorted(np.bincount(rows, weights=sizes).astype(int).tolist()) == first_principles(sizes.tolist(), capacity)
    assert (best_fit(sizes, capacity) == rows).all(), "the same every time"


@pytest.mark.parametrize("at_once", [1 << 20, 4])
@pytest.mark.parametrize("length", [8, 16, 64])
def test_best_fit_makes_every_token_a_target_once(
    table: pa.Table, length: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_AT_ONCE", at_once)
    rows = BestFitRows(table, length)
    assert sorted(target for row in windows(rows) for target in row[1:]) == list(range(61))
    assert [len(row) - 1 for row in windows(rows)] == rows.lengths.tolist()
    assert rows.lengths.max() <= length


@pytest.mark.parametrize("length", [8, 16])
def test_best_fit_cuts_only_documents_longer_than_a_row(table: pa.Table, length: int) -> None:
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    rows, places = BestFitRows(table, length), [set[int]() for _ in LENGTHS]
    for number, window in enumerate(windows(rows)):
        for document in owner[window[1:]]:
            places[document].add(number)
    assert [len(place) for place in places] == [-(-size // length) for size in LENGTHS]
    for tokens, documents in zip(rows.columns()["input_ids"], rows.columns()["document_ids"], strict=True):
        assert documents[1:].tolist() == owner[tokens[1:]].tolist() and documents[0] == documents[1]
    assert windows(PackedWindows(table, length, best_fit=True).in_epoch(3, 1)) == windows(rows)  # type: ignore[arg-type]


def test_counts_are_those_of_the_rows(table: pa.Table) -> None:
    length = 16
    owner = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    cut = [set[int]() for _ in LENGTHS]
    for number, window in enumerate(windows(PackedWindows(table, length))):
        for document in owner[window[1:]]:
            cut[document].add(number)
    counts = packing_counts(table, length)
    assert counts["concatenate"]["cut"] == sum(len(place) > 1 for place in cut) == 2
    assert counts["best_fit"]["cut"] == sum(size > length for size in LENGTHS) == 1
    assert counts["best_fit"]["rows"] == len(BestFitRows(table, length)) == 4
    assert counts["best_fit"]["filled"] == pytest.approx(61 / (4 * length), abs=1e-6)


def test_best_fit_fills_nearly_all_of_its_rows() -> None:
    lengths = np.random.default_rng(1).lognormal(4.5, 1.1, 20_000).astype(np.int64).clip(1, 4000)
    ids = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), pa.array(np.zeros(lengths.sum()), pa.int32())
    )
    counts = packing_counts(pa.table({"input_ids": ids, "length": pa.array(lengths, pa.int32())}), 1024)
    assert counts["best_fit"]["filled"] > 0.999
    assert counts["best_fit"]["cut"] < 0.15 * counts["concatenate"]["cut"]


def test_loss_of_packed_documents_is_that_of_single_ones(table: pa.Table) -> None:
    """The end of a document predicts the beginning of the next one in the row; all else is as without packing."""
    task = LanguageModelling.from_options(sequence_length=16, packing="best_fit")
    model = language_model()
    columns = examples_of(task, table).in_epoch(0, 0).columns()
    rows = [np.asarray(ids) % VOCABULARY for ids in columns["input_ids"]]

    def gradients(ids: list[Any], documents: list[Any]) -> tuple[float, list[torch.Tensor]]:
        batch = task.collate({"input_ids": ids, "document_ids": documents})
        loss = task.loss(model, batch).loss * task.target_count(batch)
        return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))

    single = []
    for ids, documents in zip(rows, columns["document_ids"], strict=True):
        ends = [*(np.flatnonzero(np.diff(documents)) + 1).tolist(), len(ids) - 1]
        single += [ids[start : end + 1] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert len(single) > len(rows) == 4
    packed = gradients(rows, list(columns["document_ids"]))
    alone = gradients(single, [np.zeros(len(ids)) for ids in single])
    assert packed[0] == pytest.approx(alone[0], rel=1e-5)
    for one, other in zip(packed[1], alone[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
