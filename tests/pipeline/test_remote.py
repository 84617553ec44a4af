"""A DVC remote: what one member pushed, another pulls, and nothing has to run again."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from support.project import Project

from textmill.files import folder_digests

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pushed(built_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The built project, whose remote, a folder beside it, was set up and filled after its first results."""
    project = Project(tmp_path_factory.mktemp("remote") / "project")
    shutil.copytree(
        built_project.root, project.root, symlinks=True, ignore=shutil.ignore_patterns("mlruns", "mlflow.db*")
    )
    project.run("dvc", "add", "data/own/reviews.csv")  # a user's own file is an input, and no stage's output
    project.repro()
    project.run("dvc", "remote", "add", "--default", "storage", "../storage")
    project.commit("A remote")
    project.run("dvc", "push")
    return project


@pytest.fixture
def clone(pushed: Project) -> Project:
    """A fresh clone beside the project, with an empty cache."""
    root = pushed.root.parent / "clone"
    shutil.rmtree(root, ignore_errors=True)
    pushed.run("git", "clone", "--quiet", str(pushed.root), str(root))
    assert not (root / "data/exported").exists()
    return Project(root)


def test_fresh_clone_pulls_everything_and_runs_nothing(pushed: Project, clone: Project) -> None:
    clone.run("dvc", "pull")
    assert clone.repro() == []
    outputs = ("raw", "pretrained", "prepared", "trained", "evaluation", "exported", "registered")
    for name in outputs:
        assert folder_digests(clone.root / "data" / name) == folder_digests(pushed.root / "data" / name)
    assert clone.run("git", "status", "--short").stdout == ""
    assert clone.run("textmill", "predict", "wonderful film", "--json").stdout


def test_version_is_made_again_in_a_clone_from_what_the_remote_has(
    pushed: Project, clone: Project, built_project: Project
) -> None:
    """The version's commit is older than the remote; one output is missing there, so the user's own file is pulled."""
    lock = yaml.safe_load((pushed.root / "dvc.lock").read_text())
    digest = next(out["md5"] for out in lock["stages"]["fetch"]["outs"] if out["path"] == "data/raw")
    listing = pushed.root.parent / "storage/files/md5" / digest[:2] / digest[2:]
    content = listing.read_bytes()
    listing.unlink()
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{built_project.root}/mlflow.db"}
    try:
        found = json.loads(clone.run("textmill", "reproduce", "1", "--json", env=store).stdout)
    finally:
        listing.write_bytes(content)
    assert found["equal"]
    assert found["same_weights"]
    assert found["ran"] == ["fetch", "evaluate", "export"]
    assert clone.run("git", "status", "--short").stdout == ""
    assert not (clone.root / "data/exported").exists()
