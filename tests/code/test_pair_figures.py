"""Figures and losses over pairs of texts, held against the libraries or the plain formula."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from textmill.errors import UserError
from textmill.metrics import retrieval
from textmill.metrics.baselines.word_vectors import TfidfVectors, overlaps, stems
from textmill.metrics.correlations import pearson, spearman

VALUES = st.lists(st.integers(0, 6), min_size=3, max_size=30)


@settings(max_examples=50, deadline=None)
@given(VALUES, st.integers(0, 99))
def test_correlations_are_scipys_in_every_draw(values: list[int], seed: int) -> None:
    chooser = np.random.default_rng(seed)
    first = np.array(values, float)
    second = first + chooser.integers(0, 5, len(first))
    index = chooser.integers(0, len(first), (6, len(first)))
    for found, reference in (
        (spearman(first, second, index), stats.spearmanr),
        (pearson(first, second, index), stats.pearsonr),
    ):
        for rows, value in zip(index, found, strict=True):
            if np.ptp(first[rows]) == 0 or np.ptp(second[rows]) == 0:
                assert value == 0
            else:
                assert value == pytest.approx(reference(first[rows], second[rows])[0])


def test_rank_of_the_own_document() -> None:
    scores = np.array([[0.1, 0.9, 0.5], [0.2, 0.7, 0.3], [0.4, 0.4, 0.4]])
    found = retrieval.search(lambda part: scores[part], 3)
    assert found.rank.tolist() == [3, 1, 2]
    assert found.best.tolist()[:2] == [1, 1]
    assert found.score.tolist() == [0.1, 0.7, 0.4]
    columns = {"rank": found.rank}
    everything = np.arange(3)[None]
    figures = {metric.name: metric.score(columns, everything)[0] for metric in retrieval.retrieval_metrics()}
    assert figures == pytest.approx(
        {"mean_reciprocal_rank": (1 / 3 + 1 + 1 / 2) / 3, "recall_at_1": 1 / 3, "recall_at_10": 1}
    )


def test_search_of_a_document_in_many_rows_counts_it_once_and_as_right_anywhere() -> None:
    # Three rows share a document; the fourth query ranks it before its own
    scores = np.array([[0.9, 0.9, 0.9, 0.1], [0.2, 0.2, 0.2, 0.8], [0.7, 0.7, 0.7, 0.3], [0.6, 0.6, 0.6, 0.5]])
    found = retrieval.search(lambda part: scores[part], 4, ["a", "a", "a", "b"])
    assert found.rank.tolist() == [1, 2, 1, 2]
    assert found.best.tolist() == [0, 3, 0, 0]
    frame = pd.DataFrame(
        {"text_a": ["sort numbers", "number sort", "a graph"], "text_b": ["sorts numbers"] * 2 + ["graphs"]}
    )
    for found_in in retrieval.word_search(frame, frame, "text_a", "text_b", {"saturations": [1.2]}).values():
        assert found_in(frame).rank.tolist() == [1, 1, 1]


def test_contrast_rows_with_an_equal_text_are_no_negatives() -> None:
    import torch

    from textmill.tasks.semantic_search import SemanticSearch

    task = SemanticSearch.from_options(symmetric=True)
    frame = pd.DataFrame({"text_a": ["q1", "q2", "q3", "q1"], "text_b": ["same", "same", "other", "more"]})
    batch = {name: torch.tensor(ids) for name, ids in task.encode_targets(frame, {}).items()}
    first, second = torch.nn.functional.normalize(torch.randn(2, 4, 8, generator=torch.manual_seed(1)), dim=-1)
    second[1] = second[0]  # the same text
    scores = 20 * first @ second.T
    scores[0, 1] = scores[1, 0] = scores[0, 3] = scores[3, 0] = -torch.inf
    expected = -(scores.log_softmax(1).diag() + scores.log_softmax(0).diag()).mean() / 2
    torch.testing.assert_close(task.pair_loss(first, second, batch), expected)
    outputs = {"sentence_embedding_a": second.numpy(), "sentence_embedding_b": second.numpy()}
    rows = {name: ids.tolist() for name, ids in batch.items()}
    assert task.validation_metrics(outputs, rows, {})["recall_at_1"] == 1


def test_search_in_parts_is_the_search_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 9, 4))
    whole = retrieval.search_embeddings(*vectors)
    monkeypatch.setattr(retrieval, "_ROWS_AT_ONCE", 2)
    assert retrieval.search_embeddings(*vectors).rank.tolist() == whole.rank.tolist()


def test_word_search_finds_what_shares_words() -> None:
    frame = pd.DataFrame(
        {
            "text_a": ["Sorting of numbers", "The nodes of a graph", "zzz"],
            "text_b": ["It sorts each number quickly.", "A graph has a node and an edge.", "Nothing is alike."],
        }
    )
    fitted = retrieval.word_search(frame, frame, "text_a", "text_b", {"saturations": [1.2]})
    assert set(fitted) == {"bm25", "tfidf"}
    for found_in in fitted.values():
        assert found_in(frame).rank.tolist() == [1, 1, 2]  # the last has no word in common: the middle of three
    with pytest.raises(UserError, match=r"evaluate\.baselines\.k1"):
        retrieval.word_search(frame, frame, "text_a", "text_b", {"k1": 2})


def test_words_in_common() -> None:
    assert stems("The graphs of a graph") == ["graph", "graph"]
    assert overlaps(["red cars", "the"], ["a red car drives", "of"]).tolist() == [pytest.approx(2 / 3), 0]
    vectors = TfidfVectors(["red car", "blue car", "green tree"])
    first, second = ["red car", "green tree"], ["red cars", "blue car"]
    assert vectors.cosines(first, second).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert np.diag(vectors.all_cosines(first, second)).tolist() == pytest.approx([1, 0], abs=1e-6)
    with pytest.raises(UserError, match="no words"):
        TfidfVectors(["the of a"])


def test_losses_are_the_papers_formulas() -> None:
    import torch

    from textmill.models.losses.pairs import cosent, cosine_regression, in_batch_contrast

    chooser = np.random.default_rng(1)
    cosines, scores = chooser.uniform(-1, 1, 6), np.array([0.1, 0.5, 0.5, 0.9, 0.2, 0.0])
    total = sum(math.exp(20 * (cosines[j] - cosines[i])) for i in range(6) for j in range(6) if scores[i] > scores[j])
    found = cosent(torch.tensor(cosines), torch.tensor(scores), 20.0)
    assert float(found) == pytest.approx(math.log(1 + total), rel=1e-5)
    assert float(cosent(torch.tensor([0.3]), torch.tensor([0.5]), 20.0)) == 0
    assert float(cosine_regression(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 1.0]))) == pytest.approx(0.125)
    first, second = (torch.nn.functional.normalize(torch.tensor(chooser.normal(size=(4, 3))), dim=1) for _ in range(2))
    product = 20 * first.float() @ second.float().T
    one_way = float(-product.log_softmax(dim=1).diag().mean())
    other_way = float(-product.log_softmax(dim=0).diag().mean())
    assert float(in_batch_contrast(first, second, 20.0, symmetric=False)) == pytest.approx(one_way, rel=1e-5)
    assert float(in_batch_contrast(first, second, 20.0, symmetric=True)) == pytest.approx(
        (one_way + other_way) / 2, rel=1e-5
    )
