"""Holm's correction: the paper's numbers, and its definition by closed testing."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from textmill.metrics.holm import holm


def test_holm_is_that_of_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_holm_of_random_p_values_is_the_closure_of_bonferroni(seed: int) -> None:
    """A hypothesis is rejected if every set of hypotheses that holds it is rejected by Bonferroni's test."""
    values = np.random.default_rng(seed).choice([0.0, 0.001, 0.004, 0.02, 0.02, 0.3, 1.0], 1 + seed % 7).tolist()
    expected = [
        max(
            min(1.0, len(others) * min(values[other] for other in others))
            for size in range(1, len(values) + 1)
            for others in combinations(range(len(values)), size)
            if index in others
        )
        for index in range(len(values))
    ]
    assert holm(values) == pytest.approx(expected)
