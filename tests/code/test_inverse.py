"""An experiment file that composes to given values: the inverse of composing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from textmill.config.compose import compose
from textmill.config.inverse import experiment_text, overruled, sections
from textmill.config.layout import Layout
from textmill.errors import UserError


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, repository_root: Path) -> Layout:
    """A copy of this project's configuration, with an experiment that only names itself."""
    root = tmp_path_factory.mktemp("inverse")
    shutil.copytree(repository_root / "conf", root / "conf")
    shutil.copy(repository_root / "params.yaml", root)
    experiment = root / "conf/experiment/movie_reviews.yaml"
    title = "title: Sentiment of movie-review sentences\n"
    experiment.write_text(experiment.read_text().partition(title)[0] + title)
    return Layout(root)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {}),
        (["seed=3"], {"seed": 3}),
        (
            ["train.optimizer.learning_rate=1e-8", "train.optimizer.betas=[0.8,0.99]", "prepare.max_length=99"],
            {"prepare": {"max_length": 99}, "train": {"optimizer": {"learning_rate": 1e-8, "betas": [0.8, 0.99]}}},
        ),
        (["export.max_length=99"], {"export": {"max_length": 99}}),
        (["evaluate.slice_columns=[]"], {"evaluate": {"slice_columns": []}}),
        (["model.pretrained=null", "train.max_epochs=7"], {"model": {"pretrained": None}, "train": {"max_epochs": 7}}),
        (["model=bert_base"], {"defaults": [{"override /model": "bert_base"}]}),
    ],
)
def test_file_holds_only_what_differs(layout: Layout, overrides: list[str], expected: dict[str, object]) -> None:
    wanted = sections(compose(layout, overrides))
    text = experiment_text(layout, "adopted", wanted, "A test.")
    assert text.splitlines()[:2] == ["# @package _global_", "# A test."]
    always = {"name": "movie-reviews", "title": "Sentiment of movie-review sentences"}
    assert yaml.safe_load(text) == always | expected
    other = Layout(layout.root)
    target = other.conf / "experiment/adopted.yaml"
    target.write_text(text)
    try:
        found = sections(compose(other, ["experiment=adopted", *[value for value in overrides if "seed" in value]]))
    finally:
        target.unlink()
    assert found == wanted


def test_params_that_win_are_named(layout: Layout) -> None:
    wanted = sections(compose(layout, ["seed=3"]))
    target = layout.conf / "experiment/adopted.yaml"
    target.write_text(experiment_text(layout, "adopted", wanted, "A test."))
    try:
        assert overruled(layout, "adopted", wanted) == ["evaluate.seed", "train.seed"]
    finally:
        target.unlink()


def test_machine_is_no_part_of_an_experiment(layout: Layout) -> None:
    wanted = sections(compose(layout, ["trainer=cpu", "runtime.workers=3"]))
    assert "runtime" not in wanted
    assert "workers" not in experiment_text(layout, "adopted", wanted, "A test.")


def test_values_that_conf_cannot_give_are_refused(layout: Layout) -> None:
    wanted = sections(compose(layout))
    del wanted["train"]["task"]["label_smoothing"]
    with pytest.raises(UserError, match=r"cannot compose to these values any more: train\.task\.label_smoothing"):
        experiment_text(layout, "adopted", wanted, "A test.")


def test_key_of_another_schema_is_told(layout: Layout) -> None:
    wanted = sections(compose(layout))
    wanted["train"]["momentum"] = 0.9
    with pytest.raises(UserError, match=r"train\.momentum"):
        experiment_text(layout, "adopted", wanted, "A test.")
