"""A real throw-away DVC repository with a pipeline small enough to run many times."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.project import Project, build_project


@pytest.fixture(scope="session")
def built_project(tmp_path_factory: pytest.TempPathFactory, repository_root: Path) -> Project:
    """The tiny project after one whole `dvc repro`, committed."""
    project = build_project(tmp_path_factory.mktemp("built") / "project", repository_root)
    project.repro()
    project.commit("Its first results")
    return project


@pytest.fixture
def project(built_project: Project, tmp_path: Path) -> Project:
    """A copy of the tiny project of the test's own, everything up to date, with an empty store."""
    copy = Project(tmp_path / "project")
    ignored = shutil.ignore_patterns("mlruns", "mlflow.db*")
    shutil.copytree(built_project.root, copy.root, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(autouse=True)
def no_store_left_behind() -> Iterator[None]:
    """MLflow notes a store that a test opened in the environment, where the next test's commands would find it."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)
