"""Slices by length and by column: disjoint, large enough, never everything."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from textmill.errors import UserError
from textmill.evaluation.slices import cut_slices


def frame(lengths: list[int], source: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"length": lengths, "source": source or ["all"] * len(lengths)})


def test_lengths_fall_into_quarters():
    found = cut_slices(frame(list(range(1, 101))), ["source"], 10)
    assert [part.name for part in found] == ["1 to 25 tokens", "26 to 50 tokens", "51 to 75 tokens", "76 to 100 tokens"]
    assert sorted(np.concatenate([part.rows for part in found])) == list(range(100))


def test_ties_make_fewer_quarters():
    found = cut_slices(frame([5] * 60 + [9] * 40), [], 10)
    assert [(part.name, len(part.rows)) for part in found] == [("5 tokens", 60), ("9 tokens", 40)]


def test_small_slices_and_those_of_every_row_are_left_out():
    found = cut_slices(frame([7] * 50, ["a"] * 30 + ["b"] * 15 + ["c"] * 5), ["source"], 10)
    assert [(part.column, part.name, len(part.rows)) for part in found] == [("source", "a", 30), ("source", "b", 15)]


def test_an_unknown_column_is_named_with_the_choices():
    with pytest.raises(UserError, match=r"^evaluate\.slice_columns: .*no column 'topic'.*length, source"):
        cut_slices(frame([1, 2]), ["topic"], 1)
