"""Planted secrets are searched for in every file, database and log that a whole run leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from support.project import Project, build_project, stages_run
from support.secret_places import forms, guarded_files, places
from support.tiny_export import wait_for

from textmill.registry.server.postgres import free_port

pytestmark = pytest.mark.slow

USER, PASSWORD, TOKEN = "ann", "s3cret-p@ss/w:rd#1", "tok-planted-4711"
ADMIN, ADMIN_PASSWORD = "admin", "tr@cking-planted-0815"
ENVIRONMENT = {"REVIEWS_PASSWORD": PASSWORD, "REVIEWS_TOKEN": TOKEN}
WANTED = [*forms(PASSWORD, USER), *forms(TOKEN), *forms(ADMIN_PASSWORD, ADMIN)]
DATA = """# @package _global_
fetch:
  source:
    _target_: textmill.fetching.sources.files.FilesSource
    files:
      train: http://ann:${{secret:REVIEWS_PASSWORD}}@{place}/train.csv
      validation: http://{place}/validation.csv?token=${{secret:REVIEWS_TOKEN}}
      test: http://{place}/test.csv
    storage_options: {options}
prepare:
  read:
    format: csv
    columns: {{text: text, label: label}}
"""
OPTIONS = '{client_kwargs: {headers: {X-Api-Key: "${oc.env:REVIEWS_TOKEN}"}}}'


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """A real MLflow server with users; give `HOST:PORT`."""
    folder.mkdir()
    port = free_port()
    settings = folder / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = MANAGE\ndatabase_uri = sqlite:///{folder / 'users.db'}\n"
        f"admin_username = {ADMIN}\nadmin_password = {ADMIN_PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--app-name", "basic-auth"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    environment = {**os.environ, "MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "x" * 32}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, 15)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, 9)
    settings.unlink()  # the server's own


def split_reviews(project: Project, folder: Path) -> None:
    """The project's reviews in three files of a folder, no longer in the project."""
    own = project.root / "data/own/reviews.csv"
    header, *rows = own.read_text().splitlines()
    own.unlink()
    folder.mkdir()
    for name, part in (("train", rows[:140]), ("validation", rows[140:180]), ("test", rows[180:])):
        (folder / f"{name}.csv").write_text("\n".join([header, *part]) + "\n")


def test_whole_run_leaves_no_secret(repository_root: Path, tmp_path: Path) -> None:
    project = build_project(tmp_path / "project", repository_root)
    split_reviews(project, tmp_path / "files")
    said = ""
    with (
        guarded_files(tmp_path / "files", USER, PASSWORD, TOKEN) as files,
        tracking_server(tmp_path / "server") as tracking,
    ):
        (project.root / "conf/data/tiny.yaml").write_text(DATA.format(place=files, options=OPTIONS))
        project.commit("Data behind a login")
        # As users write it: the @ of the password not encoded.
        store = {"MLFLOW_TRACKING_URI": f"http://{ADMIN}:{ADMIN_PASSWORD}@{tracking}", "HOME": str(tmp_path / "home")}
        store["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"  # the server shares the machine with the training
        (tmp_path / "home").mkdir()

        def run(*command: str, status: int = 0, **more: str) -> str:
            nonlocal said
            done = project.run(*command, check=False, env={**store, **ENVIRONMENT, **more})
            said += done.stdout + done.stderr
            assert done.returncode == status, done.stdout + done.stderr
            return done.stdout + done.stderr

        ran = run("dvc", "repro", "-v")
        assert stages_run(ran)[-1] == "register"
        project.commit("Results")
        run("textmill", "promote", "1", "--reason", "first")
        for command in ("lineage", "verify", "card", "history"):
            run("textmill", command, *(["1"] if command != "history" else []))
        assert f"http://{tracking}" in run("textmill", "lineage", "1")
        # Errors of each service
        wrong = run("python", "-m", "textmill.stages.fetch", status=1, REVIEWS_PASSWORD="wr@ng-planted-9999")
        assert "401" in wrong
        unset = run("python", "-m", "textmill.stages.fetch", status=1, REVIEWS_TOKEN="")
        assert "needs the environment variable REVIEWS_TOKEN, which is not set" in unset
        refused = {"MLFLOW_TRACKING_URI": f"http://{ADMIN}:wr@ng-planted-9999@{tracking}"}
        assert "rejects this user or password" in run("textmill", "lineage", "1", status=1, **refused)
    down = run("textmill", "lineage", "1", status=1)
    assert "does not answer" in down
    wanted = [*WANTED, *forms("wr@ng-planted-9999")]
    for each in wanted:
        assert each.decode() not in said
    found = places(tmp_path, wanted)
    assert not [path for path in found if Path(path).name != "users.db"], found
    listed = ("git", "cat-file", "--batch-all-objects", "--batch", "--unordered")
    objects = subprocess.run(listed, cwd=project.root, capture_output=True, check=True).stdout
    assert b"${secret:REVIEWS_PASSWORD}" in objects
    assert not [each for each in wanted if each in objects]
    lock = (project.root / "dvc.lock").read_text()
    assert "ann:${secret:REVIEWS_PASSWORD}@" in lock
    assert "${secret:REVIEWS_TOKEN}" in (project.root / "data/raw/provenance.json").read_text()
    assert sorted(path.name for path in (project.root / "data/raw/files/validation").iterdir()) == ["validation.csv"]


def test_literal_secret_is_refused_before_anything_records_it(project: Project) -> None:
    """By `dvc repro` itself, which had recorded the parameters of an earlier run."""
    project.edit("conf/data/tiny.yaml", "data/own/reviews.csv", f"http://{USER}:{PASSWORD}@127.0.0.1:9/reviews.csv")
    done = project.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "conf/data/tiny.yaml:5: fetch.source.files.all: contains a password, token or key." in done.stderr
    assert "${secret:NAME}" in done.stderr
    wanted = [*forms(PASSWORD, USER), quote(PASSWORD).encode()]
    assert not [each for each in wanted if each.decode() in done.stdout + done.stderr]
    assert places(project.root, wanted) == [str(project.root / "conf/data/tiny.yaml")]
