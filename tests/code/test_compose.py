"""Composing the configuration: precedence, and errors that name file, key, value and choices."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from textmill.config import resolved
from textmill.config.compose import compose
from textmill.config.layout import Layout, find_layout
from textmill.errors import UserError


@pytest.fixture
def layout(tmp_path: Path, repository_root: Path) -> Layout:
    """A project with this checkout's own configuration."""
    shutil.copytree(repository_root / "conf", tmp_path / "conf")
    shutil.copy(repository_root / "params.yaml", tmp_path)
    return Layout(tmp_path)


def put(layout: Layout, path: str, pattern: str, replacement: str) -> None:
    file = layout.root / path
    text, count = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
    assert count == 1, f"{pattern} found {count} times in {path}"
    file.write_text(text)


def problem(layout: Layout, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(layout, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_every_experiment_composes(layout: Layout) -> None:
    names = [path.stem for path in (layout.conf / "experiment").glob("*.yaml")]
    assert "movie_reviews" in names
    for name in names:
        assert compose(layout, [f"experiment={name}"]).registration.name


def test_precedence_group_then_experiment_then_params_then_command_line(layout: Layout) -> None:
    assert compose(layout).train.max_epochs != 7
    put(layout, "conf/experiment/movie_reviews.yaml", r"\ntrain:\n", "\ntrain:\n  max_epochs: 7\n")
    assert compose(layout).train.max_epochs == 7
    put(layout, "params.yaml", r"max_epochs: null", "max_epochs: 8")
    assert compose(layout).train.max_epochs == 8
    assert compose(layout, ["train.max_epochs=9"]).train.max_epochs == 9


@pytest.mark.parametrize("name", ["2024", "nan", "'null'", "'no'", "2024-01-31", "1.5"])
def test_names_that_look_like_values_are_names(layout: Layout, name: str) -> None:
    copy = layout.conf / f"experiment/{name.strip(chr(39))}.yaml"
    shutil.copy(layout.conf / "experiment/movie_reviews.yaml", copy)
    layout.params.write_text(f"experiment: {name}")
    expected = compose(layout)
    assert expected.registration.name == "movie-reviews"
    layout.params.write_text("")
    assert compose(layout, [f"experiment={name}"]) == expected


def test_params_choose_a_group(layout: Layout) -> None:
    (layout.conf / "trainer/slow.yaml").write_text(
        (layout.conf / "trainer/auto.yaml").read_text().replace("devices: auto", "devices: 3")
    )
    with layout.params.open("a") as file:
        file.write("trainer: slow\n")
    assert compose(layout).runtime.trainer.devices == 3
    assert compose(layout, ["trainer=auto"]).runtime.trainer.devices == "auto"


def test_round_trip_and_canonical_text(layout: Layout, tmp_path: Path) -> None:
    config = compose(layout)
    resolved.write(tmp_path / "data/resolved.yaml", config)
    assert resolved.read(tmp_path / "data/resolved.yaml") == config
    text = (tmp_path / "data/resolved.yaml").read_text()
    content = yaml.safe_load(text)
    assert list(content) == sorted(content)
    put(layout, "conf/experiment/movie_reviews.yaml", r"^title: .*\n", "")
    with (layout.conf / "experiment/movie_reviews.yaml").open("a") as file:
        file.write("# moved\ntitle: Sentiment of movie-review sentences\n")
    assert text.endswith(resolved.to_yaml(compose(layout)))


@pytest.mark.parametrize(
    ("written", "where", "says"),
    [
        ("train: {max_epochs: -3}", "params.yaml:1", "train.max_epochs = -3: should be greater than or equal to 1"),
        ("train: {max_epoch: 3}", "params.yaml:1", "train.max_epoch: unknown key. Did you mean 'max_epochs'?"),
        ("train: {optimizer: {learning_rate: fast}}", "params.yaml:1", "train.optimizer.learning_rate = 'fast'"),
        ("train: {optimizer: {schedule: wavy}}", "params.yaml:1", "'linear', 'cosine', 'constant' or 'stable'"),
        ("experiment: movie_review", "params.yaml:1", "Did you mean 'movie_reviews'?"),
        ("experiment: no", "params.yaml:1", "experiment = False: is not a name. Quote it"),
        ("experiment: 7", "params.yaml:1", "there is no conf/experiment/7.yaml"),
        ("trian: {max_epochs: 3}", "params.yaml:1", "trian: unknown key. Did you mean 'train'"),
        ("seed: [", "params.yaml:", "invalid YAML"),
        ("- 1", "params.yaml", "must hold keys with values"),
        ("model: {dropout: 3}", "params.yaml:1", "model.dropout = 3"),
        ("task: {_target_: textmill.tasks.nothing.Nothing}", "params.yaml:1", "cannot import the class"),
        ("register: {name: a b}", "params.yaml:1", "register.name = 'a b'"),
        ("prepare: {read: {columns: {label: {source: no}}}}", "params.yaml:1", "label.source = False: should be"),
        ("prepare: {read: {columns: {label: {names: {1: a}}}}}", "params.yaml:1", "set either bins or names"),
    ],
)
def test_errors_in_params_name_the_line(layout: Layout, written: str, where: str, says: str) -> None:
    prefix = "" if written.startswith(("experiment", "- ")) else "\nexperiment: movie_reviews"
    layout.params.write_text(written + prefix)
    text = problem(layout)
    assert text.startswith(where), text
    assert says in text, text


def test_dates_in_a_list_are_texts(layout: Layout) -> None:
    layout.params.write_text("experiment: movie_reviews\ntask: {labels: [2024-01-01, 1e5]}")
    assert dict(compose(layout).prepare.task)["labels"] == ["2024-01-01", "1e5"]


def test_error_in_a_group_file_names_that_file(layout: Layout) -> None:
    put(layout, "conf/train/finetune.yaml", r"^max_epochs: .*$", "max_epochs: many")
    assert re.match(r"conf/train/finetune\.yaml:\d+: train\.max_epochs = 'many': ", problem(layout))


def test_error_on_the_command_line(layout: Layout) -> None:
    assert problem(layout, "train.max_epochs=0").startswith("command line: train.max_epochs = 0")
    assert problem(layout, "what is this").startswith("command line: cannot read")
    assert problem(layout, "title=one, two").startswith("command line: cannot read 'title=one, two'")
    assert problem(layout, "experiment=movies").startswith("command line: experiment = 'movies'")


def test_digest_with_wrong_form_is_refused(layout: Layout) -> None:
    assert "sha256" in problem(layout, "fetch.pretrained_sha256=abc")


def test_layout_of_a_temporary_experiment_points_home(tmp_path: Path) -> None:
    copy = tmp_path / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    (copy / "dvc.yaml").touch()
    layout = find_layout(copy)
    assert (layout.root, layout.home) == (copy, tmp_path)
    assert layout.checkpoints.is_absolute()


def test_outside_a_project_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not inside a Textmill project"):
        find_layout(tmp_path)


def test_resolved_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro compose"):
        resolved.read(tmp_path / "resolved.yaml")
    (tmp_path / "resolved.yaml").write_text("train: {}")
    with pytest.raises(UserError, match="changed or damaged after `compose` wrote it"):
        resolved.read(tmp_path / "resolved.yaml")
    (tmp_path / "resolved.yaml").write_text(f"{resolved.HEADER}train: {{}}")  # as earlier code wrote it
    with pytest.raises(UserError, match="not a resolved configuration"):
        resolved.read(tmp_path / "resolved.yaml")


@pytest.mark.parametrize(
    ("path", "added", "line"),
    [
        ("params.yaml", "seed: 18\n", "the key 'seed' is set twice, here and in line 4"),
        ("params.yaml", "evaluate: {resamples: 100, resamples: 200}\n", "the key 'resamples' is set twice"),
        ("params.yaml", "gate:\n  floors: {accuracy: 0.5}\n  floors: {}\n", "the key 'floors' is set twice"),
        ("conf/experiment/movie_reviews.yaml", "title: Another\n", "the key 'title' is set twice"),
        ("conf/data/movie_reviews.yaml", "x: [{0: a, 0: b}]\n", "the key '0' is set twice"),
        ("conf/config.yaml", "seed: 18\n", "the key 'seed' is set twice"),
    ],
)
def test_compose_with_a_repeated_key_names_file_and_line(layout: Layout, path: str, added: str, line: str) -> None:
    file = layout.root / path
    file.write_text(file.read_text() + added)
    text = problem(layout)
    last = len(file.read_text().splitlines())
    assert text.startswith(f"{path}:{last}: {line}"), text
    assert text.endswith("Remove one of the two.")


def test_compose_with_the_same_key_in_two_mappings_is_accepted(layout: Layout) -> None:
    file = layout.root / "params.yaml"
    anchors = "candidate: null\nevaluate: &own\n  resamples: 100\nexport:\n  title: A\n"
    file.write_text(file.read_text() + anchors)
    assert compose(layout).evaluate.resamples == 100


def test_file_of_conf_that_git_does_not_know_is_named_in_a_copy(
    tmp_path: Path, repository_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    for root in (home, copy):
        shutil.copytree(repository_root / "conf", root / "conf")
        (root / "params.yaml").write_text("experiment: mine\n")
    (home / "conf/data/mine.yaml").write_text("# @package _global_\n")
    experiment = "# @package _global_\ndefaults:\n  - override /data: mine\nname: mine\n"
    (home / "conf/experiment/mine.yaml").write_text(experiment)
    monkeypatch.setenv("TEXTMILL_HOME", str(home))
    with pytest.raises(UserError, match=r"^conf/experiment/mine\.yaml: git does not know this file.*`git add conf/exp"):
        compose(Layout(copy))
    (copy / "conf/experiment/mine.yaml").write_text(experiment)
    with pytest.raises(UserError, match=r"^conf/data/mine\.yaml: git does not know this file"):
        compose(Layout(copy))


def test_bare_no_as_a_label_says_to_quote_it(tmp_path: Path, repository_root: Path) -> None:
    shutil.copytree(repository_root / "conf", tmp_path / "conf")
    (tmp_path / "params.yaml").write_text("experiment: movie_reviews\ntask:\n  labels: [no, yes]\n")
    with pytest.raises(UserError, match=r"params\.yaml:3: task\.labels\.0 = False: .*Put it into quotes"):
        compose(Layout(tmp_path))
