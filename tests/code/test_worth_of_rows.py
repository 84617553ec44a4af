"""The worth of rows to label, and near-duplicates that come once."""

from __future__ import annotations

import numpy as np

from textmill.data.duplicates import find_repetitions
from textmill.selection.labelling import choose_rows, worth

NAN = float("nan")


def test_worth_is_highest_for_the_smallest_margin() -> None:
    found = worth(np.array([[[0.5, 0.4, 0.1], [0.98, 0.01, 0.01], [0.4, 0.3, 0.3]]]), np.zeros(3))
    assert np.allclose(found.uncertainty, [0.9, 0.03, 0.9])
    assert np.allclose(found.score, found.uncertainty)
    assert np.allclose(found.disagreement, 0)


def test_worth_of_rows_about_which_models_disagree_is_higher() -> None:
    sure = [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]
    other = [[0.9, 0.1], [0.1, 0.9], [NAN, NAN]]
    found = worth(np.array([sure, other]), np.zeros(3))
    assert np.allclose(found.score, [0.2, 1.0, 0.2])
    assert found.disagreement[1] > 0.5 > found.disagreement[0]
    assert np.allclose(found.disagreement[[0, 2]], 0)


def test_worth_of_total_disagreement_is_one() -> None:
    for several in (False, True):
        found = worth(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]), np.zeros(1), several)
        assert np.allclose(found.disagreement, 1)


def test_worth_of_rows_with_new_words_is_higher() -> None:
    found = worth(np.array([[[0.9, 0.1], [0.9, 0.1]]]), np.array([0.0, 1.0]))
    assert np.allclose(found.score, [0.2, 1.0])
    assert np.allclose(found.uncertainty, 0.2)


def test_worth_of_several_labels_follows_the_least_certain_one() -> None:
    found = worth(np.array([[[0.99, 0.5, 0.01], [0.99, 0.9, 0.01]]]), np.zeros(2), several=True)
    assert np.allclose(found.score, [1.0, 0.2])


def test_chosen_rows_are_the_best_ones_and_near_duplicates_come_once() -> None:
    film = "the film has a great cast and a good story about a lost dog"
    texts = [film, film + "!", film.upper(), "a plot without any idea", "short"]
    chosen = choose_rows(np.array([0.2, 0.9, 0.5, 0.4, 0.1]), [texts], 3)
    assert chosen.tolist() == [1, 3, 4]
    assert choose_rows(np.array([0.2, 0.9, 0.5, 0.4, 0.1]), [texts], 1).tolist() == [1]


def test_repetitions_are_found_among_many_texts() -> None:
    chooser = np.random.default_rng(0)
    words = [f"word{number}" for number in range(500)]
    texts = [" ".join(chooser.choice(words, 12)) for _ in range(300)]
    repeated = find_repetitions([*texts, *(f"{text} x" for text in texts[:50]), texts[60]], 0.8, 5)
    assert not repeated[:300].any()
    assert repeated[300:].all()
    assert find_repetitions([], 0.8, 5).tolist() == []
