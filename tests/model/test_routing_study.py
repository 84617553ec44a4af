"""The study of routers on a tiny text: nested runs, going on, and the page."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.tiny_text import play

from textmill.models.routing.record import RoutingRecord

SIZES = ["model.n_layers=2", "model.width=32", "model.n_heads=2", "model.max_length=16", "~fetch.source.sha256"]
PAGE = "# A page\n\n<!-- routing-study -->\nold\n<!-- /routing-study -->\n\nIts end.\n"
Study = Callable[..., None]


@pytest.fixture(scope="module")
def bench(repository_root: Path) -> Iterator[ModuleType]:
    """The program, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository_root))
        import bench.routing_page
        import bench.routing_study
        import bench.routing_task

        yield bench


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "plays.txt").write_text("\n".join(play(number) for number in range(12)))
    (folder / "page.md").write_text(PAGE)
    return folder


@pytest.fixture(scope="module")
def study(bench: ModuleType, home: Path) -> Iterator[Study]:
    """Runs parts of a study of two routers, three steps, one seed."""

    def run(*options: str, routers: str = "top_k,soft") -> None:
        size = ["--text", str(home / "plays.txt"), "--steps", "3", "--seeds", "1", "--page", str(home / "page.md")]
        bench.routing_study.main([*size, "--routers", routers, *options, *SIZES])

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTMILL_HOME", str(home))
        run("--only", "train")
        yield run


def runs_of(home: Path) -> tuple[Any, dict[str, Any]]:
    """The newest parent, and its finished children by arm."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("routing-study").experiment_id
    runs = client.search_runs([experiment])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    finished = [run for run in children if run.info.status == "FINISHED"]
    by_arm = {run.data.tags["textmill.routing_study.arm"]: run for run in finished}
    assert len(by_arm) == len(finished), "an arm ran twice"
    return parent, by_arm


@pytest.mark.slow
def test_each_router_is_a_nested_run(study: Study, home: Path) -> None:
    from mlflow import MlflowClient

    parent, children = runs_of(home)
    assert parent.info.status == "FINISHED"
    assert set(children) == {"dense", "top_k", "soft"}
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    for arm, run in children.items():
        assert run.data.metrics["final/validation/loss"] < math.log(60)
        assert run.data.params["steps"] == "3"
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 3
        balance = client.get_metric_history(run.info.run_id, "train/routing/load_entropy")
        assert len(balance) == (0 if arm == "dense" else 3)
    assert children["top_k"].data.params["train.model.router.k"] == "2"
    active = [int(run.data.params["weights.active"]) for run in children.values()]
    assert max(active) < 1.3 * min(active)


@pytest.mark.slow
def test_what_finished_is_not_run_again(study: Study, home: Path) -> None:
    from mlflow import MlflowClient

    before = runs_of(home)
    MlflowClient(f"sqlite:///{home / 'mlflow.db'}").set_terminated(before[1]["soft"].info.run_id, "KILLED")
    study("--only", "train")
    after = runs_of(home)
    assert after[0].info.run_id == before[0].info.run_id
    kept = {arm: run.info.run_id == before[1][arm].info.run_id for arm, run in after[1].items()}
    assert kept == {"dense": True, "top_k": True, "soft": False}


@pytest.mark.slow
def test_the_page_gets_tables_and_pictures(study: Study, home: Path) -> None:
    study()
    text = (home / "page.md").read_text()
    assert text.startswith("# A page\n") and text.endswith("\nIts end.\n")
    assert "\nold\n" not in text
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        *("feed-forward", *rows[1:3], "`top_k`", "`soft` ‡"),
        *("feed-forward", "dense", "`top_k`", "`soft` ‡"),
    ]
    assert set(rows[1:3]) == {"dense", "dense, equal time"}
    assert "the best router, `top_k`" in text and "At equal time, for which dense gets" in text
    assert text.count("x) |") == 3, "each arm's speed beside dense"
    assert all((home / f"routing-study-{name}.png").stat().st_size > 5_000 for name in ("loss", "balance"))
    assert set(runs_of(home)[1]) == {"dense", "top_k", "soft", "dense_equal_time"}


@pytest.mark.slow
def test_more_steps_than_the_text_has_batches_are_several_epochs(bench: ModuleType, study: Study, home: Path) -> None:
    options = Namespace(routers="top_k", seeds=1, steps=3, text=home / "plays.txt", fresh=False)
    found = bench.routing_study.Study(options, SIZES)
    few, many = (found.configured(found.arms[0], 1, steps).train for steps in (3, 10_000))
    assert (few.max_epochs, few.batches.per_epoch) == (1, 3)
    tokens = found.prepared.statistics["splits"]["train"]["tokens"]["total"]
    assert many.max_epochs > 1
    assert many.batches.per_epoch * many.batches.tokens <= tokens
    assert 10_000 <= many.max_epochs * many.batches.per_epoch < 10_000 + many.max_epochs


@pytest.mark.slow
def test_a_router_that_is_not_there_is_named(study: Study) -> None:
    from textmill.errors import UserError

    with pytest.raises(UserError, match="no such router: top_q"):
        study(routers="top_q")


def test_interval_of_a_mean(bench: ModuleType) -> None:
    # Student's t at 97.5 % with two degrees of freedom is 4.3027; the standard error of 1, 2, 3 is 1/sqrt(3).
    interval = bench.routing_page.t_interval([1.0, 2.0, 3.0])
    assert interval.value == 2.0
    assert interval.high - interval.value == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert bench.routing_page.t_interval([1.5]).low == 1.5


def test_differences_are_taken_seed_by_seed(bench: ModuleType) -> None:
    page = bench.routing_page

    def outcomes(losses: list[float]) -> dict[int, Any]:
        return {seed: page.Outcome({"final/validation/loss": loss}, {}, {}) for seed, loss in enumerate(losses)}

    arms = {"dense": outcomes([2.0, 3.0, 4.0]), "top_k": outcomes([1.9, 2.9, 3.9]), "soft": outcomes([0.1, 0.1, 0.1])}
    found = page.Found(arms, {}, {}, looks_ahead={"soft": "always"})
    gap = page.difference(found, "top_k")
    assert gap.value == pytest.approx(-0.1) and gap.high < -0.09, "seeds differ much, pairs do not"
    assert page.best_router(found) == "top_k", "one that sees later tokens is in no comparison"


def test_balance_by_hand(bench: ModuleType) -> None:
    def record(load: list[int]) -> dict[str, float]:
        taken = RoutingRecord(torch.tensor(load), torch.tensor([5, 5, 5, 0]), torch.eye(4), {})
        metrics: dict[str, float] = bench.routing_task.balance(taken)
        return metrics

    assert record([5, 5, 5, 5]) == {
        "load_entropy": pytest.approx(1.0),
        "load_max_over_mean": pytest.approx(1.0),
        "dropped_share": 0.25,
        "confidence": 1.0,
    }
    assert record([20, 0, 0, 0])["load_entropy"] == 0.0
    assert record([20, 0, 0, 0])["load_max_over_mean"] == 4.0
