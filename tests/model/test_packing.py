"""Documents as one stream of tokens, cut into windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from textmill.data.shards import ShardWriter, open_split
from textmill.tasks.abilities import examples_of
from textmill.tasks.examples.packing import PackedWindows
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
