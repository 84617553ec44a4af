"""The prediction of a larger training from tracked smaller ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.planning.scaling import Point, Scaling
from textmill.registry.runs.trainings import read_trainings

FLOPS = 1e11 * np.array([0.1, 0.316, 0.316, 0.316, 1.0])
SEED_NOISE = 0.005
RATES = 4e-3 * np.array([1, 1, 1 / 3, 3, 1])


def law(flops: float, rate: float, floor: float, factor: float, exponent: float, best: float, curve: float) -> float:
    return float(floor + factor * (flops / 1e11) ** -exponent + curve * np.log(rate / best) ** 2)


def drawn(seed: int) -> tuple[list[Point], float, float]:
    """Five noisy trainings of a law, the loss at ten times the operations, and the best learning rate."""
    draw = np.random.default_rng(seed)
    best = float(np.exp(draw.normal(np.log(4e-3), 0.5)))
    values = (draw.uniform(0.8, 1.6), draw.uniform(0.5, 1.5), draw.uniform(0.1, 0.3), best, draw.uniform(0.01, 0.06))
    points = [
        Point(str(at), float(flops), law(flops, rate, *values) * (1 + SEED_NOISE * draw.standard_normal()), float(rate))
        for at, (flops, rate) in enumerate(zip(FLOPS, RATES, strict=True))
    ]
    return points, law(1e12, best, *values), best


def test_prediction_intervals_cover_the_truth_of_many_laws() -> None:
    covered, errors, factors = 0, [], []
    for seed in range(12):
        points, loss, rate = drawn(seed)
        found = Scaling(points).predict(1e12)
        covered += found.loss_low <= loss <= found.loss_high
        errors.append(abs(found.loss / loss - 1))
        factors.append(max(found.rate / rate, rate / found.rate))
    assert covered >= 10
    assert np.median(errors) < 0.03
    assert sum(factor < 2 for factor in factors) >= 11, "one notch"


def test_prediction_widens_with_the_distance() -> None:
    law = Scaling(drawn(3)[0])
    near, far = law.predict(1e12), law.predict(1e15)
    assert far.loss < near.loss
    assert far.loss_high - far.loss_low > near.loss_high - near.loss_low
    assert law.fitted() == pytest.approx([point.loss for point in law.points], rel=0.05)


@pytest.mark.parametrize("flops", [[1e10, 1e11], [1e11, 1e11, 1.1e11]])
def test_prediction_from_too_little_is_one_line(flops: list[float]) -> None:
    with pytest.raises(UserError, match="do not show how the loss falls"):
        Scaling([Point("a", each, 2.0, 1e-3) for each in flops])


@pytest.fixture
def tracked(tmp_path: Path) -> Layout:
    """A project with five finished trainings, an unfinished one, and one without a plan."""
    import mlflow

    layout = Layout(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("plays")
    for number, point in enumerate([*drawn(1)[0], Point("running", 1e13, 9.0, 1.0), Point("no plan", 1e13, 9.0, 1.0)]):
        run = client.create_run(experiment, run_name=point.name).info.run_id
        client.log_param(run, "train.optimizer.learning_rate", point.rate)
        if point.name != "no plan":
            client.log_param(run, "plan.flops", f"{point.flops:.4g}")
        client.log_metric(run, "best/bits_per_byte", point.loss)
        if number != 5:
            client.set_terminated(run)
    return layout


def test_read_trainings_takes_finished_and_planned_ones(tracked: Layout) -> None:
    found = read_trainings("plays", tracked, RuntimeConfig())
    assert sorted(point.name for point in found) == ["0", "1", "2", "3", "4"]


def test_plan_from_runs_prints_the_prediction_and_plots(tracked: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tracked.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = CliRunner().invoke(app, ["plan", "--from-runs", "plays", "--plot", "law.png", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["prediction"]["flops"] == pytest.approx(1e12)
    assert len(found["trainings"]) == 5
    assert (tracked.root / "law.png").read_bytes().startswith(b"\x89PNG")
    text = CliRunner().invoke(app, ["plan", "--from-runs", "plays", "--budget", "5e12"]).stdout
    assert "With 5e+12 FLOPs:" in text
    assert "5 trainings of plays" in text


@pytest.mark.parametrize(
    ("name", "said"), [("play", "no MLflow experiment 'play'"), ("Default", "no finished training")]
)
def test_plan_from_runs_without_trainings_is_one_line(tracked: Layout, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_trainings(name, tracked, RuntimeConfig())
