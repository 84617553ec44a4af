from __future__ import annotations

import numpy as np
import pytest

from textmill.training.batching import BatchSampler, EpochPlanner


def lengths_like_sentences(rows: int = 5000) -> np.ndarray:
    return np.random.default_rng(0).gamma(6, 4.5, rows).astype(np.int64) + 3


def planner(lengths: np.ndarray, **options: int | None) -> EpochPlanner:
    settings = {"tokens": 1024, "max_rows": None, "seed": 1} | options
    return EpochPlanner(lengths, **settings)  # type: ignore[arg-type]


def test_padding_is_at_most_a_tenth() -> None:
    lengths = lengths_like_sentences()
    shares = [planner(lengths, max_rows=rows).plan(0).padding_share for rows in (None, 32)]
    assert max(shares) <= 0.10
    batches = planner(lengths).plan(0).batches
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert shares[0] == pytest.approx(1 - lengths.sum() / padded)


def test_no_batch_exceeds_the_budget_but_a_single_long_row() -> None:
    lengths = np.append(lengths_like_sentences(500), 5000)
    batches = planner(lengths, max_rows=20).plan(3).batches
    assert all(len(batch) <= 20 for batch in batches)
    over = [batch for batch in batches if len(batch) * lengths[batch].max() > 1024]
    assert [batch.tolist() for batch in over] == [[500]]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_every_row_comes_once_and_ranks_share_the_same_batches(ranks: int) -> None:
    plan = planner(lengths_like_sentences(733)).plan(2)
    parts = [plan.parts(rank, ranks) for rank in range(ranks)]
    for batch, *shares in zip(plan.batches, *parts, strict=True):
        assert np.concatenate(shares).tolist() == batch.tolist()
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sorted(np.concatenate(plan.batches).tolist()) == list(range(733))


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    lengths = lengths_like_sentences(600)

    def order(seed: int, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in planner(lengths, seed=seed).plan(epoch).batches]

    assert order(1, 4) == order(1, 4)
    assert order(1, 4) != order(1, 5)
    assert order(1, 4) != order(2, 4)
    companions = [{frozenset(batch) for batch in order(1, epoch)} for epoch in (0, 1)]
    assert len(companions[0] & companions[1]) < len(companions[0]) / 10


def test_batches_do_not_come_in_order_of_length() -> None:
    lengths = lengths_like_sentences()
    longest = [lengths[batch].max() for batch in planner(lengths).plan(0).batches]
    position = np.arange(len(longest))
    assert abs(np.corrcoef(position, longest)[0, 1]) < 0.3


def test_a_batch_with_fewer_rows_than_ranks_leaves_some_without() -> None:
    plan = planner(np.array([5])).plan(0)
    assert [plan.parts(rank, 2)[0].tolist() for rank in range(2)] == [[0], []]


def test_the_sampler_goes_on_in_the_middle_but_has_the_whole_length() -> None:
    batches = [np.array([number]) for number in range(5)]
    sampler = BatchSampler(batches, start=3)
    assert list(sampler) == [[3], [4]]
    assert len(sampler) == 5
