"""Search spaces of `textmill tune`: files of `conf/tune/`, their distributions and their errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.project import DATA, EXPERIMENT

from textmill.config.layout import Layout
from textmill.config.sections.tune import TuneConfig
from textmill.errors import UserError
from textmill.selection.search_space import check_space, distributions, read_space, settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Layout:
    """A project with its own `conf/tune/`, and the rest of `conf/` of this checkout."""
    layout = Layout(tmp_path / "project")
    layout.conf.mkdir(parents=True)
    for path in (ROOT / "conf").iterdir():
        if path.name not in ("tune", "experiment", "data"):
            (layout.conf / path.name).symlink_to(path)
    for group, text in (("data", DATA), ("experiment", EXPERIMENT.replace("/model: tiny", "/model: minilm"))):
        (layout.conf / group).mkdir()
        (layout.conf / group / "tiny.yaml").write_text(text)
    (layout.conf / "tune").mkdir()
    return layout


def write(layout: Layout, text: str) -> None:
    (layout.conf / "tune" / "mine.yaml").write_text(text)


def test_distributions_follow_the_kind_of_range() -> None:
    space = {
        "train.optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
        "train.max_epochs": {"low": 1, "high": 9},
        "train.optimizer.warmup": {"low": 0, "high": 0.3},
        "train.batches.tokens": {"low": 256, "high": 1024, "step": 256},
        "model": {"choices": ["encoder_tiny", "encoder_mini"]},
    }
    found = {key: str(each) for key, each in distributions(TuneConfig.model_validate({"space": space})).items()}
    assert found == {
        "train.optimizer.learning_rate": "FloatDistribution(high=0.01, log=True, low=1e-05, step=None)",
        "train.max_epochs": "IntDistribution(high=9, log=False, low=1, step=1)",
        "train.optimizer.warmup": "FloatDistribution(high=0.3, log=False, low=0.0, step=None)",
        "train.batches.tokens": "IntDistribution(high=1024, log=False, low=256, step=256)",
        "model": "CategoricalDistribution(choices=('encoder_tiny', 'encoder_mini'))",
    }


def test_settings_nests_keys_and_keeps_groups() -> None:
    values = {"train.optimizer.learning_rate": 0.1, "train.max_epochs": 2, "model": "encoder_tiny"}
    expected = {"train": {"optimizer": {"learning_rate": 0.1}, "max_epochs": 2}, "model": "encoder_tiny"}
    assert settings(values) == expected


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "conf/tune").glob("*.yaml")])
def test_every_space_of_conf_composes(name: str, tmp_path: Path) -> None:
    layout = Layout(ROOT)
    params = {"experiment": "shakespeare" if name == "language_model" else "movie_reviews"}
    base = check_space(name, read_space(layout, name), layout, tmp_path, params)
    assert base.config.registration.name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("space: {}", "conf/tune/mine.yaml: space: Dictionary should have at least 1 item"),
        ("spaces: {a: {low: 1, high: 2}}", "conf/tune/mine.yaml: space: Field required"),
        ("space: {a: {low: 2, high: 1}}", "low must be below high"),
        ("space: {a: {low: 0, high: 1, log: true}}", "log needs a low above 0"),
        ("space: {a: {low: 1}}", "needs either low and high, or choices"),
        ("space: {a: {low: 1, high: 2}}\nmetric: loss", "metric and mode go together"),
        ("space: [", "conf/tune/mine.yaml: not YAML"),
    ],
)
def test_read_space_wrong_file_is_one_line(project: Layout, text: str, said: str) -> None:
    write(project, text)
    with pytest.raises(UserError) as error:
        read_space(project, "mine")
    assert said in str(error.value)


def test_read_space_unknown_name_lists_the_known(project: Layout) -> None:
    write(project, "space: {a: {low: 1, high: 2}}")
    with pytest.raises(UserError, match=r"no search space 'mime'. Did you mean 'mine'\?"):
        read_space(project, "mime")


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("train.optimizer.learning_rat", "{low: 0.1, high: 0.2}", "does not compose with 0.1"),
        ("train.optimizer.learning_rate", "{low: 0.1, high: 2.5}", "does not compose with 2.5"),
        ("model", "{choices: [encoder_tiny, encoder_huge]}", "does not compose with 'encoder_huge'"),
        ("evaluate.resamples", "{low: 100, high: 200}", "does not change what is trained"),
    ],
)
def test_check_space_useless_key_is_one_line(project: Layout, key: str, values: str, said: str) -> None:
    write(project, f"space: {{{key}: {values}}}")
    with pytest.raises(UserError) as error:
        check_space("mine", read_space(project, "mine"), project, project.root / "copies", {"experiment": "tiny"})
    assert str(error.value).startswith(f"conf/tune/mine.yaml: {key}: {said}")
