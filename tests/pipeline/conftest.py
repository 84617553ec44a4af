"""A real throw-away DVC repository with a pipeline small enough to run many times."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.project import Project, build_project
from support.team_server import Team, add_users, reachable_folder, team_server
from support.tiny_registry import build_registry, copy_registry

from textmill.config.layout import Layout


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


@pytest.fixture(scope="session")
def team(built_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A team's server after two trainings of the tiny project by one member."""
    project = Project(tmp_path_factory.mktemp("team") / "project")
    shutil.copytree(
        built_project.root, project.root, symlinks=True, ignore=shutil.ignore_patterns("mlruns", "mlflow.db*")
    )
    with reachable_folder() as folder, team_server(folder / "server") as server:
        add_users(server)
        ada = server.environment("ada")
        project.run("dvc", "repro", "--force", "--downstream", "train", env=ada)
        project.commit("Trained against the server")
        project.edit("params.yaml", "seed: 17", "seed: 18")
        project.run("dvc", "repro", env=ada)
        project.commit("Another seed")
        yield Team(server, project)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """The tiny registered model of three versions."""
    with pytest.MonkeyPatch.context() as patch:  # over before any test runs
        return build_registry(tmp_path_factory.mktemp("registry") / "project", patch)


@pytest.fixture
def three_versions(registry: Layout, tmp_path: Path) -> Layout:
    """A copy with a database of the test's own: three versions, no champion yet."""
    return copy_registry(registry, tmp_path / "project")
