"""Each figure of `textmill.metrics.categories` equals scikit-learn's or torchmetrics'."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from textmill.metrics.categories import CALIBRATION_BINS, category_metrics, encode

LABELS = ["bad", "good", "so-so", "unseen"]
ROWS = 400


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    chooser = np.random.default_rng(3)
    actual = chooser.integers(0, 3, ROWS)  # the last label never occurs, as in a small slice
    logits = chooser.normal(size=(ROWS, len(LABELS)))
    logits[np.arange(ROWS), actual] += 1.0
    logits[:, 3] -= 9
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.array(LABELS, dtype=object)
    table = {"label": names[actual], "prediction": names[probabilities.argmax(axis=1)]}
    return table | {f"probability_{label}": probabilities[:, i] for i, label in enumerate(LABELS)}


@pytest.fixture(scope="module")
def index() -> np.ndarray:
    return np.random.default_rng(4).integers(0, ROWS, (6, ROWS))


def expected(name: str, columns: dict[str, np.ndarray], rows: np.ndarray) -> float:
    actual, predicted = columns["label"][rows], columns["prediction"][rows]
    probabilities = np.stack([columns[f"probability_{label}"][rows] for label in LABELS], axis=1)
    figure, _, label = name.partition("/")
    if label:
        of_label = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}[figure]
        return of_label(actual, predicted, labels=[label], average=None, zero_division=0)[0]
    return {
        "weighted_f1": lambda: sk.f1_score(actual, predicted, average="weighted"),
        "macro_f1": lambda: sk.f1_score(actual, predicted, average="macro"),
        "accuracy": lambda: sk.accuracy_score(actual, predicted),
        "matthews_correlation": lambda: sk.matthews_corrcoef(actual, predicted),
        "log_loss": lambda: sk.log_loss(actual, probabilities, labels=LABELS),
    }[figure]()


NAMES = [metric.name for metric in category_metrics(LABELS)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "expected_calibration_error"])
def test_equals_scikit_learn_on_every_draw(name, columns, index):
    metric = next(metric for metric in category_metrics(LABELS) if metric.name == name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = [expected(name, columns, rows) for rows in index]
    np.testing.assert_allclose(metric.score(columns, index), wanted, rtol=1e-12)


def test_calibration_error_equals_torchmetrics(columns, index):
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import multiclass_calibration_error

    metric = next(m for m in category_metrics(LABELS) if m.name == "expected_calibration_error")
    probabilities = torch.tensor(np.stack([columns[f"probability_{label}"] for label in LABELS], axis=1))
    actual = torch.tensor(encode(columns["label"], LABELS))
    wanted = [
        float(multiclass_calibration_error(probabilities[rows], actual[rows], len(LABELS), CALIBRATION_BINS))
        for rows in index
    ]
    np.testing.assert_allclose(metric.score(columns, index), wanted, atol=1e-6)
    assert not metric.higher_is_better


def test_the_same_metric_on_other_predictions_counts_anew(columns, index):
    metric = category_metrics(LABELS)[0]
    before = metric.score(columns, index)
    perfect = dict(columns, prediction=columns["label"])
    assert (metric.score(perfect, index) == 1).all()
    np.testing.assert_array_equal(metric.score(columns, index), before)


def test_a_value_that_is_no_label_is_refused():
    with pytest.raises(ValueError, match="'meh' is none of the labels"):
        encode(np.array(["bad", "meh"], dtype=object), LABELS)


def test_confusions_name_the_most_frequent_mistake_first(columns):
    from textmill.metrics.category_sections import category_sections

    confusions, calibration = category_sections(pd.DataFrame(columns), LABELS)
    matrix = sk.confusion_matrix(columns["label"], columns["prediction"], labels=LABELS)
    np.fill_diagonal(matrix, 0)
    assert confusions.table["rows"].iloc[0] == matrix.max()
    assert confusions.table["rows"].sum() == matrix.sum()
    assert list(confusions.plots["confusion"].columns) == ["actual", "predicted"]
    assert calibration.plots["reliability"]["rows"].sum() == ROWS
