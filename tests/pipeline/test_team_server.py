"""A team's server: PostgreSQL, proxied artefacts, users and passwords; the pipeline against it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.project import Project
from support.team_server import Team, reachable_folder, team_server

from textmill.files import read_json

pytestmark = pytest.mark.slow

NAME = "tiny-reviews"


def as_user(team: Team, user: str, program: str) -> Any:
    """What a short program with a `client` prints as JSON, run by a member in the project."""
    code = f"import json\nfrom mlflow import MlflowClient\nclient = MlflowClient()\nprint(json.dumps({program}))"
    done = team.project.run("python", "-c", code, env=team.server.environment(user))
    return json.loads(done.stdout)


def test_pipeline_lands_on_the_server(team: Team) -> None:
    runs = as_user(
        team,
        "ben",
        "[(run.info.status, run.info.artifact_uri, run.data.tags['mlflow.user'], run.data.metrics)"
        f" for run in client.search_runs([client.get_experiment_by_name('{NAME}').experiment_id])]",
    )
    assert [(status, artifacts.partition(":")[0]) for status, artifacts, *_ in runs] == [
        ("FINISHED", "mlflow-artifacts")
    ] * 2
    assert all(0 <= metrics["test/weighted_f1"] <= 1 for *_, metrics in runs)
    versions = as_user(
        team, "ben", f"[(v.version, v.source) for v in client.search_model_versions(\"name = '{NAME}'\")]"
    )
    assert sorted(int(version) for version, _ in versions) == [1, 2]
    assert not (team.project.root / "mlflow.db").exists()
    assert not list((team.project.root).glob("mlruns/*/*"))
    assert list((team.server.folder / "artifacts").rglob("model.int8.onnx"))


def test_another_member_predicts_with_a_registered_version(team: Team) -> None:
    asked = ("textmill", "predict", "wonderful film", "--json", "--model", f"models:/{NAME}@challenger")
    unknown = team.project.run(*asked[:-1], "models:/nothing/1", env=team.server.environment("ben"), check=False)
    assert f"nothing has no version 1. Registered models: {NAME}." in unknown.stderr
    there = json.loads(team.project.run(*asked, env=team.server.environment("ben")).stdout)
    here = json.loads(team.project.run("textmill", "predict", "wonderful film", "--json").stdout)
    assert there == here


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"MLFLOW_TRACKING_PASSWORD": "wrong"}, "the tracking server rejects this user or password"),
        ({"MLFLOW_TRACKING_USERNAME": "nobody"}, "the tracking server rejects this user or password"),
        (
            {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""},
            "the tracking server requires a user and a password",
        ),
    ],
)
def test_wrong_or_no_password_is_one_clear_line(team: Team, change: dict[str, str], says: str) -> None:
    environment = {**team.server.environment("ada"), **change}
    before = read_json(team.project.root / "data/registered/registered.json")
    for command in (
        ("python", "-m", "textmill.stages.register"),
        ("textmill", "predict", "good", "--model", f"models:/{NAME}/1"),
    ):
        done = team.project.run(*command, env=environment, check=False)
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert says in line
        assert "MLFLOW_TRACKING_PASSWORD" in line
    assert read_json(team.project.root / "data/registered/registered.json") == before


def test_what_a_member_may_not_do_is_told(team: Team) -> None:
    program = (
        "from textmill.registry.runs.store import tracking_errors\n"
        "from textmill.errors import UserError\n"
        "from mlflow import MlflowClient\n"
        "try:\n"
        "    with tracking_errors('the server'):\n"
        f"        MlflowClient().delete_registered_model('{NAME}')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = team.project.run("python", "-c", program, env=team.server.environment("ben"))
    assert "denies this to the user ben. Ask its admin for the permission" in done.stdout


def test_no_request_without_a_password(team: Team) -> None:
    for path in ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/api/2.0/mlflow-artifacts/artifacts"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(team.server.address + path, timeout=30)
        assert refused.value.code == 401, path


def test_secrets_stay_in_files_of_their_owner(team: Team) -> None:
    folder = team.server.folder
    secret_files = ("admin-password", "database-password", "database-address", "session-key", "basic_auth.ini")
    for name in (*secret_files, "server.log"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    secrets = [(folder / name).read_text().strip() for name in ("admin-password", "database-password", "session-key")]
    told = (folder / "server.log").read_text() + team.server.output.read_text()
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    for secret in secrets:
        assert len(secret) >= 32
        assert secret not in told
        assert secret not in processes


# -- the champion ----------------------------------------------------------------------------

GATE = """
gate:
  resamples: 200
  difference: {margin: 0.5}
  slices: {columns: [], min_rows: 5, margin: 0.5}
  budgets: {latency: {ratio: 1000}, rows: 5, repeats: 1}
"""


def model_aliases(team: Team) -> dict[str, str]:
    return {
        alias: str(version)
        for alias, version in as_user(team, "ben", f"client.get_registered_model('{NAME}').aliases").items()
    }


def test_promote_and_roll_back_on_the_server(team: Team) -> None:
    """Whoever manages the model may; another member is told so before anything moved."""
    project, ada = team.project, team.server.environment("ada")
    with (project.root / "params.yaml").open("a") as file:
        file.write(GATE)
    project.run("dvc", "repro", env=ada)
    before = model_aliases(team)
    refused = project.run("textmill", "promote", "1", env=team.server.environment("ben"), check=False)
    assert refused.returncode == 1
    assert "denies this to the user ben" in refused.stderr.strip().splitlines()[-1]
    assert model_aliases(team) == before
    tags = as_user(team, "ben", f"client.get_registered_model('{NAME}').tags")
    assert "textmill.intent" not in tags
    (event,) = (json.loads(value) for key, value in tags.items() if key.startswith("textmill.event."))
    assert (event["outcome"], event["verdict"]) == ("forbidden", "pass")
    of_version = as_user(team, "ben", f"client.get_model_version('{NAME}', '1').tags")
    assert (of_version["textmill.outcome"], of_version["textmill.decision"]) == ("forbidden", event["decision"])
    read = f"import mlflow, json; print(mlflow.artifacts.load_text('{event['decision']}/decision.json'))"
    stored = json.loads(project.run("python", "-c", read, env=team.server.environment("ben")).stdout)
    assert stored["outcome"] == "forbidden"

    project.run("textmill", "promote", "1", env=ada)
    assert model_aliases(team)["champion"] == "1"
    project.run("textmill", "promote", "2", env=ada)
    assert model_aliases(team) == {"champion": "2", "previous": "1"}
    project.run("textmill", "rollback", "--reason", "too many complaints", env=ada)
    assert model_aliases(team)["champion"] == "1"
    told = project.run("textmill", "history", "--json", env=team.server.environment("ben")).stdout
    assert "too many complaints" in told
    assert "ada" in told


# -- starting and stopping -------------------------------------------------------------------


def server_command(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "textmill"), "server", *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEXTMILL")}
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, env={**kept, **environment})


def test_stops_gracefully_keeps_everything_and_starts_again(team: Team) -> None:
    """On a database of the team's own, given by its address; here a second one of the same PostgreSQL."""
    import psycopg

    address = (team.server.folder / "database-address").read_text().strip()
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("CREATE DATABASE other")
    given = {"TEXTMILL_DATABASE": address.rpartition("/")[0].replace("postgresql:", "postgres:") + "/other"}
    with reachable_folder() as folder:
        chosen = {**given, "TEXTMILL_ADMIN_PASSWORD": "chosen by the team %"}
        with team_server(folder / "second", **chosen) as server:
            again = server_command("--folder", str(server.folder), "--port", "1025", **chosen)
            assert "another server uses this folder" in again.stderr
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
            assert server.output.read_text().endswith("Stopped.\n")
        assert not (folder / "second/admin-password").exists()
        with team_server(folder / "second", "--upgrade", "--json", **given) as server:
            while server.address not in (told := server.output.read_text().partition("Stopped.\n")[2]):
                assert server.process.poll() is None
                time.sleep(0.1)
            assert json.loads(told)["password_file"] is None
            request = urllib.request.Request(f"{server.address}/api/2.0/mlflow/users/get?username=admin")
            basic = base64.b64encode(b"admin:chosen by the team %").decode()
            request.add_header("Authorization", f"Basic {basic}")
            assert json.load(urllib.request.urlopen(request, timeout=30))["user"]["is_admin"] is True


def test_bad_settings_are_one_clear_line(team: Team, tmp_path: Path) -> None:
    port = team.server.address.rpartition(":")[2]
    address = (team.server.folder / "database-address").read_text().strip()
    wrong = address.replace((team.server.folder / "database-password").read_text().strip(), "wrong")
    readable = tmp_path / "readable"
    readable.mkdir()
    (readable / "admin-password").write_text("everybody reads this\n")
    (readable / "admin-password").chmod(0o644)
    folder = ("--folder", str(tmp_path / "new"), "--port", "1025")
    for done, says in (
        (server_command("--folder", str(tmp_path / "new"), "--port", port), "cannot listen here"),
        (server_command(*folder, TEXTMILL_DATABASE="sqlite:///x.db"), "not the address of a PostgreSQL database"),
        (server_command(*folder, TEXTMILL_DATABASE="postgresql://a:b@127.0.0.1:9/c"), "the database refuses"),
        (server_command(*folder, TEXTMILL_DATABASE=wrong), "password authentication failed"),
        (
            server_command("--folder", str(readable), "--port", "1025", TEXTMILL_DATABASE=address),
            "other users can read this secret. Run `chmod 600",
        ),
    ):
        assert done.returncode == 1
        (line,) = done.stderr.strip().splitlines()
        assert says in line
        assert "wrong" not in line
        assert done.stdout == ""


def test_make_target_installs_the_extra_and_runs_the_server(project: Project, repository_root: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(repository_root / name, project.root)
    shutil.copytree(repository_root / "tools", project.root / "tools", dirs_exist_ok=True)
    shown = project.run("make", "--dry-run", "server").stdout
    assert "--editable '.[server]'" in shown
    installed = ("--old-file=.venv/.installed", "--old-file=.venv/.installed-server")
    done = project.run("make", *installed, "server", check=False, env={"TEXTMILL_DATABASE": "sqlite:///x.db"})
    assert done.returncode == 2
    first = done.stderr.splitlines()[0]
    taken = "127.0.0.1:5000: cannot listen here" in first  # by another server on this machine
    assert taken or "$TEXTMILL_DATABASE: not the address of a PostgreSQL database" in first


def test_private_database_of_a_killed_server_is_taken_over(team: Team) -> None:
    with reachable_folder() as folder:
        with team_server(folder / "killed") as server:
            children = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
            server.process.kill()
            server.process.wait()
            for line in children.splitlines():
                pid, parent = line.split()
                if int(parent) == server.process.pid:
                    os.killpg(int(pid), signal.SIGKILL)
        with team_server(folder / "killed"):
            pass
