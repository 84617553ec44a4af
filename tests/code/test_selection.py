"""The decisions of `textmill choose`: budget allocation, Pareto front, recommendation."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from textmill.cli.choose import _MILLISECONDS, _SECONDS, quantity
from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.config.sections.candidate import CandidateConfig
from textmill.errors import UserError
from textmill.metrics.bootstrap import Bootstrap, intervals
from textmill.metrics.categories import category_metrics
from textmill.selection.candidates import compose_candidate, merge_params, read_candidates, select_candidates
from textmill.selection.halving import TrainingCost, allocate_budget, count_rungs, select_survivors
from textmill.selection.learning_curve import extrapolate
from textmill.selection.pareto import pareto_front
from textmill.selection.problem import Problem, problem_params
from textmill.selection.recommendation import recommend
from textmill.selection.results import Result, Rung, ServingCost
from textmill.selection.workspace import open_workspace

COSTS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.builds(TrainingCost, st.floats(0, 50), st.floats(0.1, 1000), st.floats(0, 0.99)),
    min_size=1,
    max_size=8,
)


# -- successive halving ---------------------------------------------------------------------


@given(COSTS, st.floats(0.1, 5000))
def test_allocate_budget_stays_within_the_budget_and_advances(costs: dict[str, TrainingCost], budget: float) -> None:
    targets = allocate_budget(budget, costs)
    assert sum(costs[name].until(share) for name, share in targets.items()) <= budget * (1 + 1e-9)
    assert all(costs[name].done < share <= 1 for name, share in targets.items())


@given(COSTS, st.floats(0.1, 5000))
def test_allocate_budget_advances_incomplete_candidates_equally(costs: dict[str, TrainingCost], budget: float) -> None:
    steps = [share - costs[name].done for name, share in allocate_budget(budget, costs).items() if share < 1]
    assert not steps or max(steps) - min(steps) < 1e-9


@given(COSTS)
def test_allocate_budget_that_suffices_completes_all(costs: dict[str, TrainingCost]) -> None:
    # The most expensive one gets an equal share of the rest, which the cheaper ones did not use up.
    highest = max(cost.until(1.0) for cost in costs.values())
    assert allocate_budget(highest * len(costs) * (1 + 1e-9), costs) == dict.fromkeys(costs, 1.0)


def test_allocate_budget_completes_a_cheap_candidate() -> None:
    targets = allocate_budget(
        30.0,
        {"expensive": TrainingCost(0, 1000, 0), "cheap": TrainingCost(0, 3, 0), "other": TrainingCost(1, 500, 0.1)},
    )
    assert targets["cheap"] == 1
    assert targets["expensive"] == pytest.approx(26 / 1500)
    assert targets["other"] == pytest.approx(0.1 + 26 / 1500)


def test_allocate_budget_below_the_fixed_costs_trains_none() -> None:
    assert allocate_budget(3.0, {"first": TrainingCost(2, 100, 0), "second": TrainingCost(2, 100, 0)}) == {}


@dataclass
class Runner:
    """A trial whose quality after its full training is `skill`."""

    name: str
    skill: float
    share: float = 0.0
    seen: list[float] = field(default_factory=list)

    @property
    def quality(self) -> float:
        return self.skill * self.share

    @property
    def cost(self) -> TrainingCost:
        return TrainingCost(0.0, 100.0, self.share)

    def advance(self, share: float) -> None:
        self.share = share
        self.seen.append(share)


@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=9, unique=True), st.floats(10, 300))
@settings(max_examples=50)
def test_the_best_is_trained_longest_and_the_budget_holds(skills: list[float], budget: float) -> None:
    runners = [Runner(str(number), skill) for number, skill in enumerate(skills)]
    active: list[Runner] = list(runners)
    rungs, left = count_rungs(len(runners), budget, 0.0), budget
    for number in range(rungs):
        targets = allocate_budget(left / (rungs - number), {one.name: one.cost for one in active if one.share < 1})
        for one in active:
            if one.name in targets:
                left -= one.cost.until(targets[one.name])
                one.advance(targets[one.name])
        active = select_survivors(active)
    assert left >= -1e-6
    best = max(runners, key=lambda one: one.skill)
    assert best.share == max(one.share for one in runners)
    assert all(one.seen == sorted(one.seen) for one in runners)


@pytest.mark.parametrize(("trials", "rungs"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (8, 4), (9, 5)])
def test_rungs(trials: int, rungs: int) -> None:
    assert count_rungs(trials, 1000.0, 1.0) == rungs


@given(st.integers(0, 20), st.floats(0, 1000), st.floats(0, 100))
def test_rungs_are_worth_their_fixed_costs(trials: int, budget: float, fixed: float) -> None:
    rungs = count_rungs(trials, budget, fixed)
    assert rungs == 1 or budget / rungs >= 4 * fixed * (1 - 1e-9)


def test_select_survivors_keeps_those_not_clearly_worse() -> None:
    runners = [Runner("best", 0.9, 0.1), Runner("close", 0.85, 0.1), Runner("bad", 0.1, 0.1)]
    kept = select_survivors(runners[::2] + runners[1:2], lambda first, second: second.quality - first.quality > 0.01)
    assert [one.name for one in kept] == ["best", "close"]
    assert [one.name for one in select_survivors(runners[:2])] == ["best"]


def test_select_survivors_ignores_complete_trials() -> None:
    runners = [Runner("done", 0.9, 1.0), Runner("good", 0.8, 0.5), Runner("bad", 0.1, 0.5), Runner("worse", 0.0, 0.5)]
    assert [one.name for one in select_survivors(runners)] == ["good", "bad"]


# -- learning curve -------------------------------------------------------------------------


@given(st.floats(0.5, 0.95), st.floats(0.01, 0.1))
def test_a_power_law_is_found_again(limit: float, scale: float) -> None:
    shares = [0.1, 0.2, 0.4]
    assert extrapolate(shares, [limit - scale * share**-0.5 for share in shares]) == pytest.approx(limit - scale)


def test_noise_moves_the_expectation_little() -> None:
    shares = [0.1, 0.2, 0.4]
    values = [0.9 - 0.05 * share**-0.5 for share in shares]
    for number in range(3):
        noisy = [value + (0.005 if number == position else 0) for position, value in enumerate(values)]
        assert extrapolate(shares, noisy) == pytest.approx(0.85, abs=0.01)


@given(st.lists(st.floats(0, 1), min_size=0, max_size=6))
def test_extrapolate_stays_between_the_last_value_and_the_best(values: list[float]) -> None:
    shares = [0.1 * 1.5**number for number in range(len(values))]
    found = extrapolate(shares, values, 1.0)
    if len(values) < 4 or values[-1] <= values[0]:  # the third is at 0.225
        assert found is None
    else:
        assert found is None or values[-1] <= found <= 1 + 1e-9


# -- Pareto front ---------------------------------------------------------------------------

FIGURES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2), st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=10
)


@given(FIGURES)
def test_every_one_is_on_the_front_or_beaten_by_one_that_is(values: dict[str, tuple[int, ...]]) -> None:
    found = pareto_front(values)
    assert found
    for name, mine in values.items():
        beaten = any(
            values[other] != mine and all(a <= b for a, b in zip(values[other], mine, strict=True)) for other in found
        )
        assert (name in found) != beaten


# -- recommendation -------------------------------------------------------------------------

METRIC = category_metrics(["bad", "good"])[0]


def result(name: str, right: float, seed: int = 0, **more: object) -> Result:
    """A candidate that answers a share `right` of 400 rows rightly."""
    draw = np.random.default_rng(seed)
    label = np.where(np.arange(400) % 2, "good", "bad")
    wrong = draw.permutation(400) >= round(400 * right)
    prediction = np.where(wrong, np.where(label == "good", "bad", "good"), label)
    table = pd.DataFrame({"id": [str(row) for row in range(400)], "label": label, "prediction": prediction})
    found = intervals(table, [METRIC], Bootstrap(100))[METRIC.name]
    options: dict[str, object] = {
        "title": name,
        "baseline": False,
        "rungs": [Rung(1.0, 400, found, 1.0, 10.0)],
        "expected": found.value,
        "serving": ServingCost(5.0, 20.0),
        "predictions": table,
        "params": {"experiment": None, "model": name},
    }
    return Result(name=name, **(options | more))  # type: ignore[arg-type]


PROBLEM = Problem("reviews.csv", "some_task")


def test_recommend_a_clear_winner_with_its_params() -> None:
    choice = recommend([result("worse", 0.6), result("better", 0.9, seed=1)], PROBLEM, METRIC)
    assert choice.best.name == "better"
    assert yaml.safe_load(choice.params_yaml) == {"experiment": None, "model": "better"}
    assert "not significant" not in choice.text
    assert choice.versus["worse"].gain.low > 0.2


@pytest.mark.parametrize("name", ["minilm", "encoder_tiny"])
@pytest.mark.parametrize("experiment", [None, "movie_reviews"])
def test_lines_to_adopt_compose_what_was_tried_in_a_fresh_clone(
    name: str, experiment: str | None, tmp_path: Path, repository_root: Path
) -> None:
    clone = Layout(tmp_path / "clone")
    shutil.copytree(repository_root / "conf", clone.conf)
    problem = Problem("movie_reviews", "text_classification", experiment)
    known = read_candidates(clone)[name]
    changes = {"train": {"max_epochs": 1}}
    tried = compose_candidate(clone, tmp_path / "tried", name, known, problem_params(problem, clone), changes)
    lines = recommend([result(name, 0.9, params=tried.params)], problem, METRIC).params_yaml
    published = yaml.safe_load((repository_root / "params.yaml").read_text())
    assert published["experiment"] == "movie_reviews", "the lines have something to replace"
    for written in (lines, yaml.safe_dump({**published, **yaml.safe_load(lines)})):  # replaced, or pasted key by key
        clone.params.write_text(written)
        assert compose(clone) == tried.config
    assert bool(tried.config.gate.floors) == (experiment is not None)


def test_recommend_names_a_cheaper_candidate_of_equal_quality() -> None:
    cheap = result("cheap", 0.895, seed=2, serving=ServingCost(1.0, 2.0))
    choice = recommend([cheap, result("expensive", 0.9, seed=1)], PROBLEM, METRIC)
    assert choice.best.name == "expensive"
    assert "the difference from cheap is not significant" in choice.text
    assert "cheap is cheaper" in choice.text
    assert set(choice.front) == {"cheap", "expensive"}


def test_recommend_ranks_by_the_expected_metric() -> None:
    slow = result("slow", 0.7, rungs=[Rung(0.2, 80, result("x", 0.7).quality, 1.0, 50.0)], expected=0.95)
    choice = recommend([result("fast", 0.8, seed=3), slow], PROBLEM, METRIC)
    assert choice.best.name == "slow"
    assert "after 20% of its training, 0.950 expected" in choice.text


def test_recommend_prefers_an_unfinished_candidate_of_equal_quality() -> None:
    young = result("young", 0.78, seed=5, expected=None)
    young = replace(young, rungs=[replace(young.rungs[0], share=0.1)])
    choice = recommend([result("done", 0.79, seed=6), young, result("bad", 0.5, seed=7)], PROBLEM, METRIC)
    assert choice.best.name == "young"
    assert "may improve with the rest of its training" in choice.text
    clear = recommend([result("done", 0.95, seed=6), young], PROBLEM, METRIC)
    assert clear.best.name == "done"


def test_recommend_a_baseline_adopts_the_best_network() -> None:
    choice = recommend([result("words", 0.9, baseline=True), result("network", 0.6, seed=4)], PROBLEM, METRIC)
    assert choice.best.name == "words"
    assert choice.adopted is not None
    assert choice.adopted.name == "network"
    assert "does not export it" in choice.text


def test_recommend_a_chat_model_compares_on_the_rows_that_it_answered() -> None:
    network = result("network", 0.6, seed=4)
    chat = result("chat", 0.9, baseline=True, asked=True)
    assert chat.predictions is not None
    choice = recommend([replace(chat, predictions=chat.predictions[5:]), network], PROBLEM, METRIC)
    assert choice.best.name == "chat" and choice.adopted is network
    assert "The pipeline does not train chat; the best that it exports is network" in choice.text
    assert choice.versus["network"].gain.low > 0


def test_a_chat_candidate_names_one_model() -> None:
    for chat in ({}, {"pretrained": "owner/name", "folder": "data/own/chat"}):
        with pytest.raises(ValidationError, match="set either pretrained or folder"):
            CandidateConfig.model_validate({"title": "chat", "chat": chat})


def test_recommend_lists_an_excluded_candidate_last() -> None:
    out = result("best", 0.95, excluded="latency 30 ms exceeds the limit of 20 ms")
    choice = recommend([out, result("second", 0.6, seed=1)], PROBLEM, METRIC)
    assert choice.best.name == "second"
    assert [one.name for one in choice.results] == ["second", "best"]
    assert choice.as_dict()["candidates"][1]["excluded"]


def test_recommend_without_eligible_candidates_is_refused() -> None:
    with pytest.raises(UserError, match="no candidate is within the limits"):
        recommend([result("only", 0.9, excluded="size")], PROBLEM, METRIC)


# -- the problem ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [("5min", _SECONDS, 300), ("90 s", _SECONDS, 90), ("1.5h", _SECONDS, 5400), ("20ms", _MILLISECONDS, 20)],
)
def test_quantities(text: str, units: dict[str, float], value: float) -> None:
    assert quantity("--x", text, units) == value


@pytest.mark.parametrize("text", ["5", "min", "-5min", "5 parsec", "0s", ""])
def test_a_quantity_without_sense_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="Write a number with a unit"):
        quantity("--budget", text, _SECONDS)


def test_every_candidate_of_conf_composes_for_its_task(repository_root: Path, tmp_path: Path) -> None:
    project = Layout(repository_root)
    params = problem_params(Problem("movie_reviews", "text_classification"), project)
    for name, candidate in read_candidates(project).items():
        laid = compose_candidate(project, tmp_path, name, candidate, params, {"train": {"max_epochs": 1}})
        assert laid.config.train.max_epochs == 1
        assert laid.config.runtime.tracking_experiment == "movie-reviews"
        assert math.isfinite(laid.config.train.optimizer.learning_rate)


def test_a_model_of_the_hub_is_treated_like_the_pretrained_encoder(repository_root: Path) -> None:
    found = select_candidates(Layout(repository_root), "text_classification", ["minilm"], ["owner/Some-BERT"])
    assert list(found) == ["minilm", "some_bert"]
    assert found["some_bert"].params["model"] == {"pretrained": "owner/Some-BERT"}


def test_open_workspace_removes_folders_of_killed_processes(tmp_path: Path) -> None:
    project = Layout(tmp_path)
    code = (
        "import os, signal, sys; from pathlib import Path; from textmill.config.layout import Layout;"
        "from textmill.selection.workspace import open_workspace\n"
        "with open_workspace(Layout(Path(sys.argv[1]))) as root:\n"
        "    (root / 'weights').write_text('large'); print(root, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    abandoned = Path(done.stdout.strip())
    assert (abandoned / "weights").is_file()
    with open_workspace(project) as ours, open_workspace(project) as beside:
        assert not abandoned.exists()
        assert ours.is_dir()
        assert beside.is_dir()
    assert not [path for path in project.choosing.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.csv", "text,stars\ngood,5\n"),
        ("own.tab", "text\tstars\ngood\t5\n"),
        ("own.ndjson", '\n{"text": "good"}\n{"text": "bad", "stars": 1}\n'),  # the first record lacks a key
    ],
)
def test_columns_of_a_file_are_found_or_asked_for(
    repository_root: Path, tmp_path: Path, name: str, content: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    project = Layout(repository_root)
    found = problem_params(Problem(str(file), "text_classification", label_column="stars"), project)
    assert found["prepare"]["read"] == {"columns": {"text": "text", "label": "stars"}}
    with pytest.raises(UserError, match=r"no column 'label'; there are .*'text'.* Name it by .*--label-column"):
        problem_params(Problem(str(file), "text_classification"), project)
    file.write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        problem_params(Problem(str(file), "text_classification", label_column="stars"), project)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem("movie_review", "text_classification"), "Did you mean 'movie_reviews'"),
        (Problem("movie_reviews", "classification"), "no task 'classification'"),
        (Problem("nowhere.csv", "text_classification"), "no such file"),
        (Problem("reviews.docx", "text_classification"), "ends in .csv"),
        (Problem("movie_reviews", "text_classification", label_column="x"), "this file names the columns"),
    ],
)
def test_problem_params_of_an_invalid_problem_are_refused(
    repository_root: Path, problem: Problem, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        problem_params(problem, Layout(repository_root))


def test_merge_params_at_every_depth() -> None:
    first = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge_params(first, {"a": {"c": 4}, "d": {"e": 5}}) == {"a": {"b": 1, "c": 4}, "d": {"e": 5}}
    assert first == {"a": {"b": 1, "c": 2}, "d": 3}
