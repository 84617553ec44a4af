"""Numbers with intervals, ordered classes and ranks after re-ranking; metrics equal those of the libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from textmill.errors import UserError
from textmill.evaluation.evaluator import evaluator_of
from textmill.metrics.intervals import conformal_quantile, number_metrics, number_table
from textmill.metrics.retrieval import reranked
from textmill.models.regressor import OrdinalRegressor, Regressor
from textmill.tasks.base import Task
from textmill.tasks.re_ranking import ReRanking
from textmill.tasks.text_regression import TextRegression


def test_conformal_quantile_many_draws_cover_what_was_asked() -> None:
    draw = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        scores = np.abs(draw.standard_t(2, 60))
        covered.append((np.abs(draw.standard_t(2, 200)) <= conformal_quantile(scores, 0.9)).mean())
    assert 0.9 - 0.01 < np.mean(covered) < 0.9 + 1 / 61 + 0.01
    assert conformal_quantile(np.array([3.0, 1.0]), 0.9) == 3.0, "two rows cannot promise it: the largest"


def test_number_metrics_any_resample_equal_the_libraries() -> None:
    draw = np.random.default_rng(1)
    actual = draw.integers(0, 5, 80).astype(float)
    expected = actual + draw.normal(size=80)
    ranks = np.clip(np.rint(expected), 0, 4)
    frame = pd.DataFrame({"id": range(80)})
    table = number_table(frame, actual, expected, np.full(80, 1.5), ranks)
    columns = {str(name): table[name].to_numpy() for name in table}
    index = np.stack([np.arange(80), *draw.integers(0, 80, (4, 80))])
    found = {metric.name: metric.score(columns, index) for metric in number_metrics(ordered=True)}
    for at, rows in enumerate(index):
        true, guess = actual[rows], ranks[rows]
        assert found["spearman"][at] == pytest.approx(stats.spearmanr(expected[rows], true).statistic)
        assert found["mean_absolute_error"][at] == pytest.approx(sk.mean_absolute_error(true, guess))
        assert found["root_mean_squared_error"][at] == pytest.approx(sk.root_mean_squared_error(true, guess))
        assert found["quadratic_kappa"][at] == pytest.approx(sk.cohen_kappa_score(true, guess, weights="quadratic"))
        assert found["accuracy"][at] == pytest.approx(sk.accuracy_score(true, guess))
        assert found["interval_coverage"][at] == pytest.approx((np.abs(expected - actual) <= 1.5)[rows].mean())


class Constant(torch.nn.Module):
    """An encoder whose states are the token ids."""

    hidden_size = 1
    pooling = "mean"
    head_dropout = 0.0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return input_ids.unsqueeze(-1).float()


def fitted(task: TextRegression, network: Any, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    batch = {"input_ids": torch.tensor(x)[:, None], "target": torch.tensor(y).float()}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    optimizer = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        task.loss(network, batch).loss.backward()
        optimizer.step()
    return {name: values.detach().numpy() for name, values in task.loss(network.eval(), batch).outputs.items()}


def test_heteroscedastic_regression_noise_of_the_input_is_learned() -> None:
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    x = draw.integers(0, 2, 2000)
    y = 0.5 * x + draw.normal(size=2000) * np.where(x == 1, 1.0, 0.2)
    task = TextRegression.from_options(heteroscedastic=True)
    outputs = fitted(task, Regressor(Constant(), heteroscedastic=True), x, y)
    assert [outputs["scale"][x == kind].mean() for kind in (0, 1)] == pytest.approx([0.2, 1.0], rel=0.1)
    metrics = task.validation_metrics(outputs, {"target": y.tolist()}, {"mean": 0.0, "spread": 1.0})
    weights = task.calibrate_weights({"quantile": torch.ones(())}, metrics)
    radius = outputs["scale"] * float(weights["quantile"])
    covered = np.abs(outputs["location"] - y) <= radius
    assert covered.mean() == pytest.approx(0.9, abs=0.01)
    assert [covered[x == kind].mean() for kind in (0, 1)] == pytest.approx([0.9, 0.9], abs=0.03)


def test_ordinal_regression_probabilities_follow_the_classes() -> None:
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    x = draw.integers(0, 3, 1500)
    y = np.clip(x + draw.integers(-1, 2, 1500) * (draw.random(1500) < 0.2), 0, 2)
    task = TextRegression.from_options(classes=["low", "middle", "high"])
    outputs = fitted(task, OrdinalRegressor(Constant(), [0.66, 0.33]), x, y)
    rows = [int(np.flatnonzero(x == kind)[0]) for kind in (0, 1, 2)]
    some = {name: values[rows] for name, values in outputs.items()}
    answers = task.answers(some, {}, {}, {"mean": 0.0, "spread": 1.0})
    assert [answer["label"] for answer in answers] == ["low", "middle", "high"]
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1) for answer in answers)


def frame(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values, dtype="str") for name, values in columns.items()})


def test_regression_unusable_values_are_rejected_with_a_reason() -> None:
    rows = frame(text=["a"] * 5 + [None], value=["1", "much", "nan", None, "9", "1"])
    task = TextRegression.from_options(lowest=0, highest=5)
    reasons = {row.row: row.reason for row in task.check(rows, None)}
    assert reasons == {
        1: "is not a number: 'much'",
        2: "is nan, not a finite number",
        3: "is missing",
        4: "is 9, not between 0.0 and 5.0",
        5: "is empty",
    }
    [row] = TextRegression.from_options(classes=["a", "b"]).check(frame(text=["x", "y"], value=["a", "c"]), None)
    assert row.reason == "'c' is none of the classes a, b"
    with pytest.raises(UserError, match="all values of the training split are the same"):
        task.fit([frame(text=["x", "y"], value=["2", "2.0"])])


def test_reranked_documents_beyond_the_depth_keep_their_rank() -> None:
    queries = ["a", "a", "a", "b", "b", "b"]
    scores = np.array([0.1, 0.9, 0.5, 0.8, 0.2, 0.2])
    relevant = np.array([True, False, False, False, True, False])
    ranks = reranked(queries, scores, relevant, np.array([1, 2, 3, 1, 2, 3]), 3)
    assert ranks.tolist() == [3, 1, 2, 1, 2.5, 2.5]
    assert reranked(queries, scores, relevant, np.array([7, 1, 2, 1, 2, 3]), 2)[0] == 7


def test_re_ranking_evaluator_first_stage_is_as_given() -> None:
    task = ReRanking.from_options(depth=3)
    rows = frame(text_a=["q"] * 3, text_b=["x", "y", "q z"], relevant=["0", "0", "1"], first_rank=["1", "2", "3"])
    rows = rows.assign(id=["1", "2", "3"])
    evaluator = evaluator_of(task)
    baselines = evaluator.baselines(rows, rows, {}, {}, 0)
    metric = evaluator.main_metric({})
    values = {}
    for name, predict in {
        **baselines,
        "ours": lambda f: evaluator.predictions({"logits": np.array([[0], [0], [1]])}, f, {}),
    }.items():
        table = predict(rows)
        values[name] = metric.score({str(c): table[c].to_numpy() for c in table}, np.arange(3)[None])[0]
    assert values == {"first_stage": pytest.approx(1 / 3), "tfidf": 1.0, "ours": 1.0}
    reasons = [row.reason for row in task.check(rows.assign(first_rank=["0", "x", "3"]), None)]
    assert reasons == ["is '0', not a rank from 1", "is 'x', not a rank from 1"]


@pytest.mark.parametrize(
    ("spec", "rows", "state"),
    [
        (
            "multi_label_classification.MultiLabelClassification",
            {"text": "good film", "labels": "a|b"},
            {"labels": ["a", "b"]},
        ),
        ("text_regression.TextRegression", {"text": "good film", "value": "1"}, {"mean": 0.0, "spread": 1.0}),
        (
            "token_classification.TokenClassification",
            {"text": "good film", "entities": '[[0, 4, "x"]]'},
            {"labels": ["x"]},
        ),
        ("re_ranking.ReRanking", {"text_a": "good", "text_b": "film", "relevant": "1", "first_rank": "1"}, {}),
    ],
)
def test_baselines_new_texts_without_targets_are_answered(
    spec: str, rows: dict[str, str], state: dict[str, Any]
) -> None:
    """What `textmill choose` times."""
    import cloudpickle

    task = Task.build({"_target_": f"textmill.tasks.{spec}"})
    other = {name: "0.5" if name == "value" else "a" if name == "labels" else cell for name, cell in rows.items()}
    train = frame(**{name: [cell, other[name], cell] for name, cell in rows.items()})
    train = train.assign(id=["1", "2", "3"], words="good film")
    for predict in evaluator_of(task).baselines(train, train, state, {}, 0).values():
        assert len(predict(train)) == 3
        assert len(predict(train[[*task.text_columns, "words"]])) == 3
        assert cloudpickle.dumps(predict)
