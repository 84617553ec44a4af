"""Every metric equals its reference library, on random and on degenerate input, the resampled values too."""

from __future__ import annotations

import importlib
import math
import random
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sacrebleu
from scipy import stats
from sklearn import metrics as sk

from textmill.metrics import passages, retrieval, rouge, text_overlap
from textmill.metrics.bootstrap import Bootstrap, intervals
from textmill.metrics.categories import category_metrics, category_table
from textmill.metrics.correlations import correlation_metrics
from textmill.metrics.likelihood import likelihood_metrics

LABELS = ["bad", "good", "so-so"]
INTERFACE = ["Open file", "Save as", "Cancel", "No", ""]


def rows_of(count: int, draws: int = 4) -> np.ndarray:
    return np.stack([np.arange(count), *np.random.default_rng(count).integers(0, count, (draws, count))])


def probabilities(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """True labels as positions, and probabilities."""
    draw = np.random.default_rng(2)
    actual = draw.integers(0, 3, 80)
    drawn = draw.dirichlet([1, 1, 1], 80)
    if kind == "one class":
        actual[:] = 1
    elif kind == "constant":
        drawn[:] = [0.2, 0.5, 0.3]
    elif kind == "certain":
        drawn = np.eye(3)[draw.integers(0, 3, 80)]
    elif kind == "ties":
        drawn[:] = 1 / 3
    elif kind == "all right":
        drawn = np.eye(3)[actual] * 0.7 + 0.1
    elif kind == "one class, all right":
        actual[:] = 1
        drawn[:] = [0.1, 0.8, 0.1]
    elif kind == "two rows":
        actual, drawn = actual[:2], drawn[:2]
    return actual, drawn


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["random", "one class", "constant", "certain", "ties", "all right", "one class, all right", "two rows"]
)
def test_category_metrics_equal_scikit_learn_and_torchmetrics(kind: str) -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    actual, drawn = probabilities(kind)
    names = np.array(LABELS, object)
    frame = pd.DataFrame({"id": range(len(actual)), "label": names[actual]})
    table = category_table(drawn, frame, LABELS, ["id"])
    columns = {str(name): table[name].to_numpy() for name in table}
    index = rows_of(len(actual))
    found = {metric.name: metric.score(columns, index) for metric in category_metrics(LABELS)}
    for number, rows in enumerate(index):
        true, said = table["label"].to_numpy()[rows], table["prediction"].to_numpy()[rows]
        expected = {
            "weighted_f1": sk.f1_score(true, said, average="weighted", zero_division=0),
            "macro_f1": sk.f1_score(true, said, average="macro", zero_division=0),
            "accuracy": sk.accuracy_score(true, said),
            "matthews_correlation": sk.matthews_corrcoef(true, said),
            "log_loss": sk.log_loss(true, drawn[rows], labels=LABELS),
            "expected_calibration_error": float(
                multiclass_calibration_error(
                    torch.from_numpy(drawn[rows]), torch.from_numpy(actual[rows]), num_classes=3, n_bins=15
                )
            ),
        }
        for label in LABELS:
            for name, score in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
                expected[f"{name}/{label}"] = score(true, said, labels=[label], average=None, zero_division=0)[0]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name][number] == pytest.approx(value, abs=1e-6), (kind, name)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.random.default_rng(0).standard_normal(40), np.random.default_rng(1).standard_normal(40)),
        (np.repeat([1.0, 2.0, 3.0], 7), np.tile([1.0, 5.0, 2.0], 7)),
        (np.arange(9.0), -np.arange(9.0)),
        (np.arange(12.0) * 1e-200, np.arange(12.0) ** 2),
        (1e8 + np.arange(15.0), np.arange(15.0)[::-1] ** 3),
        (np.array([1.0, 2.0]), np.array([3.0, 1.0])),
        (np.full(10, 0.1), np.arange(10.0)),
        (np.arange(10.0), np.full(10, 0.7)),
        (np.full(5, 0.3), np.full(5, 0.3)),
    ],
)
def test_correlations_equal_scipy_and_are_0_for_a_constant(first: np.ndarray, second: np.ndarray) -> None:
    columns = {"similarity": first, "score": second}
    index = rows_of(len(first))
    spearman, pearson = (metric.score(columns, index) for metric in correlation_metrics("similarity", "score"))
    for number, rows in enumerate(index):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = stats.spearmanr(first[rows], second[rows])[0], stats.pearsonr(first[rows], second[rows])[0]
        for found, value in zip((spearman[number], pearson[number]), expected, strict=True):
            assert found == pytest.approx(0 if math.isnan(value) else value, abs=1e-9)
            assert -1 <= found <= 1


def words(seed: int, count: int, longest: int) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(["a", "file", "open", "save", "the", "."], k=draw.randint(1, longest)))
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("said", "true"),
    [
        (words(1, 30, 14), words(2, 30, 14)),
        (words(3, 6, 2), words(4, 6, 2)),
        (["Open file", "Save as", "Cancel", "Yes", "Print"], ["Open a file", "Save as", "Cancel", "No", "Print page"]),
        (INTERFACE, INTERFACE),
        (["", "", ""], ["a b", "c", "d"]),
        (["x", "y", "z"], ["a b", "c", "d"]),
        (["one two three four"] * 3, ["one two three four"] * 3),
    ],
)
def test_bleu_and_chrf_equal_sacrebleu_in_every_draw(said: list[str], true: list[str]) -> None:
    columns = text_overlap.count_columns(said, [true], "en")
    index = rows_of(len(said))
    found = {metric.name: metric.score(columns, index) for metric in text_overlap.metrics("en")}
    for number, rows in enumerate(index):
        chosen, wanted = [said[row] for row in rows], [[true[row] for row in rows]]
        assert found["bleu"][number] == pytest.approx(sacrebleu.corpus_bleu(chosen, wanted).score)
        assert found["chrf"][number] == pytest.approx(sacrebleu.corpus_chrf(chosen, wanted).score)
    measured = intervals(pd.DataFrame(columns), text_overlap.metrics("en"), Bootstrap(resamples=50))
    assert measured["bleu"].value == pytest.approx(sacrebleu.corpus_bleu(said, [true]).score)
    assert "smooth:exp" in text_overlap.signatures("en")["bleu"]


def test_rouge_equals_rouge_score_also_without_words() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(rouge.NAMES), use_stemmer=True)
    said = [*words(5, 20, 12), "", "...", "one", "the running dogs"]
    true = [*words(6, 20, 12), "a file", "", "one", "a dog runs"]
    found = rouge.scores(said, [[text] for text in true])
    for row, (one, other) in enumerate(zip(said, true, strict=True)):
        expected = scorer.score(other, one)
        assert found[row] == pytest.approx([100 * expected[name].fmeasure for name in rouge.NAMES])


def test_passages_equal_the_squad_script_as_torchmetrics_has_it() -> None:
    script: Any = importlib.import_module("torchmetrics.functional.text.squad")
    draw = random.Random(7)
    texts = [
        "",
        "the",
        "a",
        "The Cat!",
        "cat",
        "in 1999",
        "1999",
        "an  Ox",
        "ox ox",
        "...",
        "Ångström, the",
        "the the cat",
    ]
    for _ in range(300):
        answer, true = draw.choice(texts), draw.choices(texts, k=draw.randint(0, 3))
        usable = [other for other in true if script._normalize_text(other)] or [""]  # as SQuAD 2.0's get_raw_scores
        exact = max(float(script._compute_exact_match_score(answer, other)) for other in usable)
        assert passages.exact_match(answer, true) == exact
        assert passages.f1(answer, true) == pytest.approx(
            max(float(script._compute_f1_score(answer, other)) for other in usable)
        )


def test_retrieval_equals_scikit_learn() -> None:
    """With one right document per query, mean reciprocal rank is ranking average precision, recall is accuracy."""
    scores = np.random.default_rng(8).standard_normal((25, 25))
    ranking = retrieval.search(lambda part: scores[part], 25)
    columns: dict[str, Any] = {"rank": ranking.rank}
    index = rows_of(25)
    found = {metric.name: metric.score(columns, index) for metric in retrieval.retrieval_metrics()}
    for number, rows in enumerate(index):
        expected = {
            "mean_reciprocal_rank": sk.label_ranking_average_precision_score(np.eye(25)[rows], scores[rows]),
            "recall_at_1": sk.top_k_accuracy_score(rows, scores[rows], k=1, labels=range(25)),
            "recall_at_10": sk.top_k_accuracy_score(rows, scores[rows], k=10, labels=range(25)),
        }
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected)
    assert retrieval.search(lambda part: np.zeros((1, 1)), 1).rank.tolist() == [1]
    assert retrieval.search(lambda part: np.zeros((3, 3)), 3).rank.tolist() == [2, 2, 2]  # ties share their mean rank


def test_likelihood_equals_torch_and_torchmetrics() -> None:
    import torch
    from torch.nn.functional import cross_entropy
    from torchmetrics.functional.text import perplexity

    logits = torch.randn(6, 9, 11, generator=torch.Generator().manual_seed(9))
    targets = torch.randint(11, (6, 9), generator=torch.Generator().manual_seed(10))
    targets[2, 4:] = -100
    nll = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(6, 9).sum(1).double().numpy()
    columns = {"nll": nll, "targets": (targets >= 0).sum(1).numpy()}
    index = rows_of(6)
    loss, perplex = (metric.score(columns, index) for metric in likelihood_metrics())
    for number, rows in enumerate(index):
        chosen = logits[rows], targets[rows]
        assert loss[number] == pytest.approx(
            float(cross_entropy(chosen[0].flatten(0, 1), chosen[1].flatten())), rel=1e-5
        )
        assert perplex[number] == pytest.approx(float(perplexity(*chosen, ignore_index=-100)), rel=1e-4)
