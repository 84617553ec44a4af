"""Sets of labels: cells, thresholds, metrics that equal scikit-learn's, and a label that is never predicted."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from textmill.errors import UserError
from textmill.evaluation.evaluators.multi_label_classification import MultiLabelClassificationEvaluator
from textmill.metrics.label_sets import best_thresholds, label_set_metrics, label_set_table
from textmill.tasks.multi_label_classification import MultiLabelClassification
from textmill.text.label_lists import read_flag, read_labels

LABELS = ["anger", "joy", "fear", "rare"]


def table(rows: int = 60, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(rows, len(LABELS)))
    actual = draw.random((rows, len(LABELS))) < [0.4, 0.3, 0.1, 0.0]
    margins = logits - [0.2, -0.3, 9.0, 0.5]
    frame = pd.DataFrame({"id": [str(row) for row in range(rows)], "text": ["x"] * rows})
    return label_set_table(logits, margins, actual, frame, LABELS), logits, margins > 0, actual


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["anger", "joy"]', ["anger", "joy"]),
        ("['anger', 'joy', 'anger']", ["anger", "joy"]),
        ("['anger' 'joy'\n 'fear']", ["anger", "joy", "fear"]),
        ("""["rock 'n' roll", 'joy']""", ["rock 'n' roll", "joy"]),
        ("[1, 2.0]", ["1", "2"]),
        ("anger | joy|", ["anger", "joy"]),
        ("[]", []),
        (None, []),
        (" ", []),
    ],
)
def test_read_labels_cell_of_any_form_returns_each_label_once(cell: Any, expected: list[str]) -> None:
    assert read_labels(cell, "|") == expected


def test_read_labels_pattern_returns_its_groups_once() -> None:
    cell = "::SCOPE:Integrity:SCOPE:Access Control:IMPACT:Modify Memory::SCOPE:Integrity:IMPACT:Other::"
    assert read_labels(cell, "|", "SCOPE:([^:]+)") == ["Integrity", "Access Control"]


@pytest.mark.parametrize("cell", ["[anger, joy]", '[{"a": 1}]', "[[]]"])
def test_read_labels_list_of_anything_else_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="is not a list of labels"):
        read_labels(cell, "|")


def test_read_flag_other_values_are_refused() -> None:
    assert [read_flag(cell) for cell in ("1", "0", "true", "False", "1.0")] == [True, False, True, False, True]
    for cell in ("2", "maybe", None):
        with pytest.raises(ValueError, match=r"neither 0 nor 1|is missing"):
            read_flag(cell)


def test_label_set_metrics_any_resample_equal_scikit_learn() -> None:
    predictions, logits, predicted, actual = table()
    columns = {str(name): predictions[name].to_numpy() for name in predictions}
    index = np.stack([np.arange(60), *np.random.default_rng(1).integers(0, 60, (5, 60))])
    found = {metric.name: metric.score(columns, index) for metric in label_set_metrics(LABELS)}
    for draw, rows in enumerate(index):
        true, guess = actual[rows], predicted[rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for average in ("macro", "micro", "weighted"):
                expected = sk.f1_score(true, guess, average=average, zero_division=0)
                assert found[f"{average}_f1"][draw] == pytest.approx(expected)
            each = sk.precision_recall_fscore_support(true, guess, zero_division=0)
        assert found["exact_match"][draw] == pytest.approx(sk.accuracy_score(true, guess))
        probabilities = 1 / (1 + np.exp(-logits[rows]))
        losses = [sk.log_loss(true[:, i], probabilities[:, i], labels=[0, 1]) for i in range(len(LABELS))]
        assert found["log_loss"][draw] == pytest.approx(np.mean(losses))
        for position, label in enumerate(LABELS):
            for name, values in zip(("precision", "recall", "f1"), each, strict=False):
                assert found[f"{name}/{label}"][draw] == pytest.approx(values[position])


def test_best_thresholds_every_cut_none_has_a_higher_f1() -> None:
    draw = np.random.default_rng(3)
    logits, actual = draw.normal(size=(50, 3)).round(1), draw.random((50, 3)) < 0.3
    for column, threshold in enumerate(best_thresholds(logits, actual)):
        scores, true = logits[:, column], actual[:, column]
        cuts = [*np.unique(scores), scores.min() - 1]
        best = max(sk.f1_score(true, scores > cut, zero_division=0) for cut in cuts)
        assert sk.f1_score(true, scores > threshold, zero_division=0) == pytest.approx(best)


def test_best_thresholds_label_without_a_row_gets_the_common_one() -> None:
    logits, actual = np.array([[2.0, 1.9], [-1.0, -2.0]]), np.array([[True, False], [False, False]])
    thresholds = best_thresholds(logits, actual)
    assert np.isfinite(thresholds).all() and 1.9 < thresholds[1] < 2.0


def test_evaluator_never_predicted_label_is_said_in_log_report_and_metrics(caplog: pytest.LogCaptureFixture) -> None:
    predictions = table()[0]
    evaluator = MultiLabelClassificationEvaluator(MultiLabelClassification.from_options())
    with caplog.at_level(logging.WARNING, logger="textmill"):
        report = evaluator.report(predictions, {"labels": LABELS, "shares": [0.1] * 4})
    assert "the model never predicts fear" in caplog.text
    assert report.sections[0].title == "Labels that are never predicted" and "fear" in report.sections[0].text
    assert report.metrics == {"labels_never_predicted": 1.0}, "rare has no row in the test split"


def frame(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values, dtype="str") for name, values in columns.items()})


def test_task_columns_of_0_and_1_give_the_labels() -> None:
    task = MultiLabelClassification.from_options(columns=["toxic", "rude"], names={"rude": "impolite"})
    rows = frame(text=["a", "b", "c", "d"], toxic=["1", "0", "maybe", None], rude=["1", "0", "0", "1"])
    assert task.target_columns == ("toxic", "rude")
    reasons = {row.row: (row.column, row.reason) for row in task.check(rows, None)}
    assert reasons == {2: ("toxic", "is 'maybe', neither 0 nor 1"), 3: ("toxic", "is missing")}
    state = task.fit([rows.head(2)])
    assert state == {"labels": ["toxic", "impolite"], "shares": [0.5, 0.5]}
    assert task.label_matrix(rows.head(2), state["labels"]).tolist() == [[True, True], [False, False]]


def test_task_unknown_label_rejects_the_row_and_an_empty_cell_has_none() -> None:
    task = MultiLabelClassification.from_options(separator=",", names={"1": "joy", "2": "anger"})
    rows = frame(text=["a", "b", "c"], labels=["1,2", None, "3"])
    [rejected] = task.check(rows, {"labels": ["anger", "joy"], "shares": []})
    assert (rejected.row, rejected.reason) == (2, "has '3', which is none of the labels anger, joy")
    assert task.label_matrix(rows.head(2), ["anger", "joy"]).tolist() == [[True, True], [False, False]]


def test_task_without_two_labels_is_one_line() -> None:
    with pytest.raises(UserError, match="one label only, 'x'"):
        MultiLabelClassification.from_options().fit([frame(text=["a"], labels=["x"])])
