"""The parts of `textmill choose` that decide: who gets money, who is on the front, what is said."""

from __future__ import annotations

import math
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

from textmill.cli.choose import _MILLISECONDS, _SECONDS, _quantity
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.metrics.bootstrap import Bootstrap, intervals
from textmill.metrics.categories import category_metrics
from textmill.selection.advice import advise
from textmill.selection.candidates import chosen_candidates, known_candidates, lay_out, merged
from textmill.selection.copies import copies
from textmill.selection.halving import Price, allot, rung_count, survivors
from textmill.selection.learning_curve import extrapolate
from textmill.selection.pareto import front
from textmill.selection.question import Question, question_lines
from textmill.selection.results import Result, Rung, Served

PRICES = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.builds(Price, st.floats(0, 50), st.floats(0.1, 1000), st.floats(0, 0.99)),
    min_size=1,
    max_size=8,
)


# -- successive halving ---------------------------------------------------------------------


@given(PRICES, st.floats(0.1, 5000))
def test_an_allotment_keeps_within_the_budget_and_goes_forward(prices: dict[str, Price], budget: float) -> None:
    targets = allot(budget, prices)
    assert sum(prices[name].of(share) for name, share in targets.items()) <= budget * (1 + 1e-9)
    assert all(prices[name].done < share <= 1 for name, share in targets.items())


@given(PRICES, st.floats(0.1, 5000))
def test_those_that_are_not_finished_go_the_same_share_further(prices: dict[str, Price], budget: float) -> None:
    steps = [share - prices[name].done for name, share in allot(budget, prices).items() if share < 1]
    assert not steps or max(steps) - min(steps) < 1e-9


@given(PRICES)
def test_enough_money_finishes_everyone(prices: dict[str, Price]) -> None:
    # The dearest gets an equal part of what is left, which the cheaper ones did not use up.
    dearest = max(price.of(1.0) for price in prices.values())
    assert allot(dearest * len(prices) * (1 + 1e-9), prices) == dict.fromkeys(prices, 1.0)


def test_a_cheap_one_is_finished_beside_dear_ones() -> None:
    targets = allot(30.0, {"dear": Price(0, 1000, 0), "cheap": Price(0, 3, 0), "other": Price(1, 500, 0.1)})
    assert targets["cheap"] == 1
    assert targets["dear"] == pytest.approx(26 / 1500)
    assert targets["other"] == pytest.approx(0.1 + 26 / 1500)


def test_no_money_trains_nobody() -> None:
    assert allot(3.0, {"first": Price(2, 100, 0), "second": Price(2, 100, 0)}) == {}


@dataclass
class Runner:
    """A contender whose quality after its whole recipe is `skill`."""

    name: str
    skill: float
    share: float = 0.0
    seen: list[float] = field(default_factory=list)

    @property
    def quality(self) -> float:
        return self.skill * self.share

    @property
    def price(self) -> Price:
        return Price(0.0, 100.0, self.share)

    def advance(self, share: float) -> None:
        self.share = share
        self.seen.append(share)


@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=9, unique=True), st.floats(10, 300))
@settings(max_examples=50)
def test_the_best_is_trained_longest_and_the_budget_holds(skills: list[float], budget: float) -> None:
    runners = [Runner(str(number), skill) for number, skill in enumerate(skills)]
    active: list[Runner] = list(runners)
    rungs, left = rung_count(len(runners), budget, 0.0), budget
    for number in range(rungs):
        targets = allot(left / (rungs - number), {one.name: one.price for one in active if one.share < 1})
        for one in active:
            if one.name in targets:
                left -= one.price.of(targets[one.name])
                one.advance(targets[one.name])
        active = survivors(active)
    assert left >= -1e-6
    best = max(runners, key=lambda one: one.skill)
    assert best.share == max(one.share for one in runners)
    assert all(one.seen == sorted(one.seen) for one in runners)


@pytest.mark.parametrize(("contenders", "rungs"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (8, 4), (9, 5)])
def test_rungs(contenders: int, rungs: int) -> None:
    assert rung_count(contenders, 1000.0, 1.0) == rungs


@given(st.integers(0, 20), st.floats(0, 1000), st.floats(0, 100))
def test_rungs_are_worth_their_fixed_costs(contenders: int, budget: float, fixed: float) -> None:
    rungs = rung_count(contenders, budget, fixed)
    assert rungs == 1 or budget / rungs >= 4 * fixed * (1 - 1e-9)


def test_whom_no_test_can_tell_apart_goes_on() -> None:
    runners = [Runner("best", 0.9, 0.1), Runner("close", 0.85, 0.1), Runner("bad", 0.1, 0.1)]
    kept = survivors(runners[::2] + runners[1:2], lambda first, second: second.quality - first.quality > 0.01)
    assert [one.name for one in kept] == ["best", "close"]
    assert [one.name for one in survivors(runners[:2])] == ["best"]


def test_those_that_are_done_take_nobodys_place() -> None:
    runners = [Runner("done", 0.9, 1.0), Runner("good", 0.8, 0.5), Runner("bad", 0.1, 0.5), Runner("worse", 0.0, 0.5)]
    assert [one.name for one in survivors(runners)] == ["good", "bad"]


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
def test_nothing_is_promised_below_what_was_reached_or_above_the_top(values: list[float]) -> None:
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
    found = front(values)
    assert found
    for name, mine in values.items():
        beaten = any(
            values[other] != mine and all(a <= b for a, b in zip(values[other], mine, strict=True)) for other in found
        )
        assert (name in found) != beaten


# -- advice ---------------------------------------------------------------------------------

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
        "served": Served(5.0, 20.0),
        "predictions": table,
        "lines": {"experiment": None, "model": name},
    }
    return Result(name=name, **(options | more))  # type: ignore[arg-type]


QUESTION = Question("reviews.csv", "some_task")


def test_the_clear_winner_is_named_with_its_lines() -> None:
    choice = advise([result("worse", 0.6), result("better", 0.9, seed=1)], QUESTION, METRIC)
    assert choice.best.name == "better"
    assert yaml.safe_load(choice.lines) == {"model": "better"}
    assert "told apart" not in choice.words
    assert choice.versus["worse"].gain.low > 0.2


def test_what_cannot_be_told_apart_is_said_and_the_cheaper_one_named() -> None:
    cheap = result("cheap", 0.895, seed=2, served=Served(1.0, 2.0))
    choice = advise([cheap, result("dear", 0.9, seed=1)], QUESTION, METRIC)
    assert choice.best.name == "dear"
    assert "cannot be told apart from cheap" in choice.words
    assert "cheap is cheaper" in choice.words
    assert set(choice.front) == {"cheap", "dear"}


def test_an_expectation_decides_and_is_told() -> None:
    slow = result("slow", 0.7, rungs=[Rung(0.2, 80, result("x", 0.7).quality, 1.0, 50.0)], expected=0.95)
    choice = advise([result("fast", 0.8, seed=3), slow], QUESTION, METRIC)
    assert choice.best.name == "slow"
    assert "after 20% of its recipe, 0.950 expected" in choice.words


def test_what_is_as_good_already_and_not_done_is_taken() -> None:
    young = result("young", 0.78, seed=5, expected=None)
    young = replace(young, rungs=[replace(young.rungs[0], share=0.1)])
    choice = advise([result("done", 0.79, seed=6), young, result("bad", 0.5, seed=7)], QUESTION, METRIC)
    assert choice.best.name == "young"
    assert "it has most of what it can learn still before it" in choice.words
    clear = advise([result("done", 0.95, seed=6), young], QUESTION, METRIC)
    assert clear.best.name == "done"


def test_a_baseline_that_wins_is_not_what_is_adopted() -> None:
    choice = advise([result("words", 0.9, baseline=True), result("network", 0.6, seed=4)], QUESTION, METRIC)
    assert choice.best.name == "words"
    assert choice.adopted is not None
    assert choice.adopted.name == "network"
    assert "does not export it" in choice.words


def test_who_is_out_is_not_advised_and_stays_in_the_table() -> None:
    out = result("best", 0.95, excluded="latency 30 ms, at most 20 ms is allowed")
    choice = advise([out, result("second", 0.6, seed=1)], QUESTION, METRIC)
    assert choice.best.name == "second"
    assert [one.name for one in choice.results] == ["second", "best"]
    assert choice.as_dict()["candidates"][1]["excluded"]


def test_nobody_within_the_limits_is_one_line() -> None:
    with pytest.raises(UserError, match="no candidate is within the limits"):
        advise([result("only", 0.9, excluded="size")], QUESTION, METRIC)


# -- what is asked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [("5min", _SECONDS, 300), ("90 s", _SECONDS, 90), ("1.5h", _SECONDS, 5400), ("20ms", _MILLISECONDS, 20)],
)
def test_quantities(text: str, units: dict[str, float], value: float) -> None:
    assert _quantity("--x", text, units) == value


@pytest.mark.parametrize("text", ["5", "min", "-5min", "5 parsec", "0s", ""])
def test_a_quantity_without_sense_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="Write a number with a unit"):
        _quantity("--budget", text, _SECONDS)


def test_every_candidate_of_conf_composes_for_its_task(repository_root: Path, tmp_path: Path) -> None:
    project = Layout(repository_root)
    lines = question_lines(Question("movie_reviews", "text_classification"), project)
    for name, candidate in known_candidates(project).items():
        laid = lay_out(project, tmp_path, name, candidate, lines, {"train": {"max_epochs": 1}})
        assert laid.config.train.max_epochs == 1
        assert laid.config.runtime.tracking_experiment == "movie-reviews"
        assert math.isfinite(laid.config.train.optimizer.learning_rate)


def test_a_model_of_the_hub_is_treated_like_the_pretrained_encoder(repository_root: Path) -> None:
    found = chosen_candidates(Layout(repository_root), "text_classification", ["minilm"], ["owner/Some-BERT"])
    assert list(found) == ["minilm", "some_bert"]
    assert found["some_bert"].params["model"] == {"pretrained": "owner/Some-BERT"}


def test_copies_go_with_their_process_even_when_that_was_killed(tmp_path: Path) -> None:
    project = Layout(tmp_path)
    code = (
        "import os, signal, sys; from pathlib import Path; from textmill.config.layout import Layout;"
        "from textmill.selection.copies import copies\n"
        "with copies(Layout(Path(sys.argv[1]))) as root:\n"
        "    (root / 'weights').write_text('large'); print(root, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    abandoned = Path(done.stdout.strip())
    assert (abandoned / "weights").is_file()
    with copies(project) as ours, copies(project) as beside:
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
    found = question_lines(Question(str(file), "text_classification", label_column="stars"), project)
    assert found["prepare"]["read"] == {"columns": {"text": "text", "label": "stars"}}
    with pytest.raises(UserError, match=r"no column 'label'; there are .*'text'.* Name it by .*--label-column"):
        question_lines(Question(str(file), "text_classification"), project)
    file.write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        question_lines(Question(str(file), "text_classification", label_column="stars"), project)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question("movie_review", "text_classification"), "Did you mean 'movie_reviews'"),
        (Question("movie_reviews", "classification"), "no task 'classification'"),
        (Question("nowhere.csv", "text_classification"), "no such file"),
        (Question("reviews.docx", "text_classification"), "ends in .csv"),
        (Question("movie_reviews", "text_classification", label_column="x"), "columns are named by the entry"),
    ],
)
def test_a_question_without_sense_is_one_line(repository_root: Path, question: Question, said: str) -> None:
    with pytest.raises(UserError, match=said):
        question_lines(question, Layout(repository_root))


def test_lines_are_merged_at_every_depth() -> None:
    first = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(first, {"a": {"c": 4}, "d": {"e": 5}}) == {"a": {"b": 1, "c": 4}, "d": {"e": 5}}
    assert first == {"a": {"b": 1, "c": 2}, "d": 3}
