"""A DVC remote: what one member pushed, another pulls, and nothing has to run again."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.project import Project

from textmill.files import folder_digests

pytestmark = pytest.mark.slow


def test_fresh_clone_pulls_everything_and_runs_nothing(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "add", "data/own/reviews.csv")  # a user's own file is an input, and no stage's output
    project.repro()
    project.run("dvc", "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    project.commit("A remote")
    project.run("dvc", "push")
    clone = Project(tmp_path / "elsewhere/clone")
    project.run("git", "clone", "--quiet", str(project.root), str(clone.root))
    assert not (clone.root / "data/exported").exists()
    clone.run("dvc", "pull")
    assert clone.repro() == []
    outputs = ("raw", "pretrained", "prepared", "trained", "evaluation", "exported", "registered")
    for name in outputs:
        assert folder_digests(clone.root / "data" / name) == folder_digests(project.root / "data" / name)
    assert clone.run("git", "status", "--short").stdout == ""
    assert clone.run("textmill", "predict", "wonderful film", "--json").stdout
