"""Kneser-Ney models and the figures of samples."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from textmill.errors import UserError
from textmill.metrics.baselines.ngrams import KneserNey, fit_baselines
from textmill.metrics.samples import distinct, repetition

VOCABULARY = 6


def documents(count: int, seed: int) -> list[list[int]]:
    """Texts in which a token tells the next but one."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        tokens = [draw.randrange(VOCABULARY) for _ in range(2)]
        while len(tokens) < 30:
            tokens.append((tokens[-2] + 1) % VOCABULARY if draw.random() < 0.9 else draw.randrange(VOCABULARY))
        found.append(tokens)
    return found


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("context", [[0], [3, 1], [5, 5, 5, 5, 5], [2, 4, 0]])
def test_probabilities_sum_to_one(order: int, context: list[int]) -> None:
    model = KneserNey(documents(20, 1), order, VOCABULARY)
    total = 0.0
    for token in range(VOCABULARY):
        both = model.negative_log_likelihoods([[*context, token], context])
        total += math.exp(both[1] - both[0]) if len(context) > 1 else math.exp(-both[0])
    assert total == pytest.approx(1)


def test_bigrams_by_hand() -> None:
    # a b a b a c: bigrams ab 2, ba 2, ac 1; contexts a 3, b 2; D falls back to 1 / (1 + 2 * 2) = 0.2
    model = KneserNey([[0, 1, 0, 1, 0, 2]], 2, 3)
    # unigrams by different tokens before them: a 1 (after b), b 1, c 1 (after a); all seen once, so D = 0.5
    lower = (1 - 0.5) / 3 + 0.5 * 3 / 3 / 3
    expected = (2 - 0.2) / 3 + 0.2 * 2 / 3 * lower
    assert np.exp(-model.negative_log_likelihoods([[0, 1]])[0]) == pytest.approx(expected)


def test_the_order_is_chosen_on_validation_and_beats_single_tokens() -> None:
    models = fit_baselines(documents(200, 1), documents(20, 2), VOCABULARY, {"orders": [2, 3]})
    assert models["kneser_ney"].order == 3
    losses = {name: model.negative_log_likelihoods(documents(20, 3)).sum() for name, model in models.items()}
    assert losses["kneser_ney"] < 0.6 * losses["unigram"]
    with pytest.raises(UserError, match=r"evaluate\.baselines\.order"):
        fit_baselines([[0, 1]], [[0, 1]], 2, {"order": 3})


def test_repetition_and_distinct_ngrams() -> None:
    assert distinct([1, 2, 1, 2], 1) == 0.5
    assert distinct([1, 2, 1, 2], 2) == pytest.approx(2 / 3)
    assert repetition([1] * 10) == pytest.approx(6 / 7)
    assert repetition([1, 2, 3]) == 0
