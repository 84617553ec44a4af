"""Versions, exports and projects made by an earlier commit work with today's code.

The earlier code comes from git, runs as itself in processes of its own, and leaves a registered version
behind. A failure of `earlier` or `other_exports` means that the old code does not run in this environment;
every other failure means that today's code breaks what its users have.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.http_client import ask
from support.project import Project, inherited_environment, stages_run
from support.serving import served

from textmill.config.plugins import Plugin
from textmill.registry.versions import fresh_process

pytestmark = pytest.mark.slow

COMMIT = "045f12d80dcfe33451a3611fac964d8b4642c16e"
"""The last commit before the modules moved into rooms, in November 2026."""

NAME = "tiny-reviews"
KINDS = ("questions", "pairs", "plays")
STAGES = ["compose", "fetch", "prepare", "train", "evaluate", "export", "register"]

LAY = """
import sys
from pathlib import Path
from support.project import build_project

build_project(Path(sys.argv[1]), Path(sys.argv[2]))
"""

OTHERS = """
import sys
from pathlib import Path
from support import tiny_pairs, tiny_questions, tiny_text
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.train import TrainConfig
from textmill.stages import evaluate, export, train

root = Path(sys.argv[1])
tiny_questions.run_stages(tiny_questions.prepared_project(root / "questions"))
layout = tiny_pairs.prepared_project(root / "pairs", tiny_pairs.pairs(120))
tiny_pairs.run_stages(layout, tiny_pairs.TASK, tiny_pairs.MODEL, max_epochs=1)
layout = tiny_text.prepared_project(root / "plays")
plugins = {"task": tiny_text.TASK, "model": tiny_text.EXPERTS}
values = tiny_text.train_values(max_epochs=1, model=tiny_text.EXPERTS)
train.main(TrainConfig.model_validate(values), tiny_text.RUNTIME, layout)
measured = {"seed": 1, "resamples": 100, "min_slice": 5, **plugins}
evaluate.main(EvaluateConfig.model_validate(measured), tiny_text.RUNTIME, layout)
exported = {"title": "Tiny plays", "max_length": 32, **plugins}
export.main(ExportConfig.model_validate(exported), tiny_text.RUNTIME, layout)
"""

ANSWER = """
import json, sys
import mlflow
import pandas as pd
import textmill

model = mlflow.pyfunc.load_model(sys.argv[1])
with open(sys.argv[2]) as file:
    answers = model.predict(pd.DataFrame(json.load(file)["inputs"]))
print(json.dumps([textmill.__file__, answers.to_dict("records")]))
"""
"""Loads a version in a process that has today's Textmill already."""

GATE = """
gate:
  difference: {margin: 0.5}
  slices: {margin: 0.5}
  budgets: {latency: {ratio: 1000}, repeats: 1}
"""

ENTRY = "from textmill.cli.main import main; main()"
"""The `textmill` command, in the old code and in today's."""


def run(project: Project, source: Path, *command: str, status: int = 0) -> str:
    """Run a command with the code in `source`; give what it prints."""
    if command[0] == "textmill":  # the installed script names an entry point of today's code
        command = (sys.executable, "-c", ENTRY, *command[1:])
    done = project.run(*command, check=False, env={"PYTHONPATH": str(source), "COLUMNS": "160"})
    said = f"{' '.join(command)}\nwith the code of {source} in {project.root} ended with {done.returncode}"
    assert done.returncode == status, f"{said}, not {status}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_earlier(checkout: Path, script: str, *arguments: str | Path) -> None:
    """Run a Python script with the old code and the old tests' helpers."""
    environment = {**inherited_environment(), "PYTHONPATH": f"{checkout / 'src'}{os.pathsep}{checkout / 'tests'}"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert not done.returncode, f"the code of {COMMIT[:7]} does not run here any more\n{done.stdout}\n{done.stderr}"


def copied(project: Project, target: Path) -> Project:
    """A copy with a database of its own; artefacts stay where they are."""
    return Project(Path(shutil.copytree(project.root, target, symlinks=True)))


def stored_answers(exported: Path) -> dict[str, Any]:
    """The inputs and the answers that the old code kept beside its export."""
    return dict(json.loads((exported / "examples.json").read_text()))


@pytest.fixture(scope="session")
def today(repository_root: Path) -> Path:
    """The code of this checkout."""
    return repository_root / "src"


@pytest.fixture(scope="module")
def checkout(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the earlier commit."""
    git = ["git", "-C", str(repository_root)]
    if subprocess.run([*git, "cat-file", "-e", f"{COMMIT}^{{commit}}"], capture_output=True).returncode:
        pytest.skip(f"commit {COMMIT[:7]} is not in this clone; fetch it: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("earlier") / "checkout"
    folder.mkdir()
    archive = subprocess.run([*git, "archive", COMMIT], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


@pytest.fixture(scope="module")
def earlier(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which the old code ran its whole pipeline and registered version 1."""
    project = Project(tmp_path_factory.mktemp("earlier") / "project")
    run_earlier(checkout, LAY, project.root, checkout)
    assert stages_run(run(project, checkout / "src", "dvc", "repro")) == STAGES
    project.commit("Results of the earlier code")
    return project


@pytest.fixture(scope="module")
def upgraded(
    earlier: Project, checkout: Path, today: Path, repository_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """The same project: the old code promoted version 1, then today's code was laid over and registered version 2."""
    project = copied(earlier, tmp_path_factory.mktemp("upgraded") / "project")
    run(project, checkout / "src", "textmill", "promote", "1", "--reason", "by the earlier code")
    shutil.rmtree(project.root / "src")
    for name in ("src", "conf"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(repository_root / name, project.root / name, ignore=ignored, dirs_exist_ok=True)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "constraints.txt"):
        shutil.copy(repository_root / name, project.root)
    with (project.root / "conf/experiment/tiny.yaml").open("a") as file:
        file.write(GATE)
    project.commit("Upgraded")
    said = run(project, today, "dvc", "repro")
    assert stages_run(said)[-1] == "register", said
    registered = json.loads((project.root / "data/registered/registered.json").read_text())
    assert (registered["version"], registered["alias"]) == ("2", "challenger"), registered
    project.commit("Results of today's code")
    return project


@pytest.fixture(scope="module")
def other_exports(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of the old code that answer otherwise than a classifier does, one folder for each of `KINDS`."""
    root = tmp_path_factory.mktemp("others")
    run_earlier(checkout, OTHERS, root)
    return root


# -- a project of the earlier code as it is -------------------------------------------------------


def test_earlier_export_answers_as_stored(earlier: Project, today: Path) -> None:
    stored = stored_answers(earlier.root / "data/exported")
    texts = [row["text"] for row in stored["inputs"]]
    for model in ("data/exported/model", f"models:/{NAME}/1", f"models:/{NAME}@challenger"):
        said = run(earlier, today, "textmill", "predict", "--json", "--model", model, *texts)
        found = [{key: value for key, value in row.items() if key != "input"} for row in json.loads(said)]
        assert fresh_process.answers_equal(stored["outputs"], found), model


def test_earlier_version_loads_with_its_own_code(earlier: Project, today: Path) -> None:
    command = [sys.executable, fresh_process.__file__, f"models:/{NAME}/1", "data/exported/examples.json"]
    said = earlier.run(*command, env={"PYTHONPATH": str(today), **store(earlier)}).stdout
    assert json.loads(said)["problem"] is None


def test_earlier_version_loads_where_textmill_is_imported(earlier: Project, today: Path) -> None:
    """Then MLflow runs the version's `served_model.py` with the modules of today."""
    command = [sys.executable, "-c", ANSWER, f"models:/{NAME}/1", "data/exported/examples.json"]
    code, found = json.loads(earlier.run(*command, env={"PYTHONPATH": str(today), **store(earlier)}).stdout)
    assert Path(code).is_relative_to(today)
    assert fresh_process.answers_equal(stored_answers(earlier.root / "data/exported")["outputs"], found)


def store(project: Project) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{project.root / 'mlflow.db'}"}


def test_earlier_version_is_served(earlier: Project, today: Path, tmp_path: Path) -> None:
    stored = stored_answers(earlier.root / "data/exported")
    address = f"models:/{NAME}@challenger"
    with served(earlier.root, tmp_path / "log", "--model", address, PYTHONPATH=str(today)) as server:
        answer = ask(server.port, "POST", "/predict", {"input": stored["inputs"][0]["text"]})
        assert answer.status == 200, answer.body
        assert answer.headers["x-textmill-model"] == f"{NAME}/1"
        expected, found = stored["outputs"][0], answer.json()["output"]
        assert found["label"] == expected["label"]
        # 8-bit activations are scaled by the whole batch, and here the row is alone in it.
        assert found["probability"] == pytest.approx(expected["probability"], abs=0.02)


def test_earlier_version_becomes_first_champion(earlier: Project, today: Path, tmp_path: Path) -> None:
    project = copied(earlier, tmp_path / "project")
    assert "challenger is version 1" in run(project, today, "textmill", "history")
    event = json.loads(run(project, today, "textmill", "promote", "1", "--json"))
    assert (event["outcome"], event["verdict"], event["champion"]) == ("moved", "pass", None)
    (kept,) = json.loads(run(project, today, "textmill", "history", "--json"))["events"]
    assert kept["version"] == "1"


# -- the project upgraded -------------------------------------------------------------------------


def test_upgraded_project_is_up_to_date_after_one_repro(upgraded: Project, today: Path) -> None:
    assert stages_run(run(upgraded, today, "dvc", "repro")) == []


def test_earlier_version_is_verified_and_described(upgraded: Project, today: Path) -> None:
    links = json.loads(run(upgraded, today, "textmill", "verify", "1", "--json"))["links"]
    assert {link["status"] for link in links} == {"holds"}, links
    lineage = json.loads(run(upgraded, today, "textmill", "lineage", "1", "--json"))
    assert lineage["lock"]["found_in"].startswith("commit ")
    assert lineage["lock"]["outputs"].keys() >= {"data/resolved.yaml", "data/trained", "data/registered"}
    assert f"| version | {NAME}/1, " in run(upgraded, today, "textmill", "card", "1")


def test_earlier_version_is_compared(upgraded: Project, today: Path) -> None:
    found = json.loads(run(upgraded, today, "textmill", "compare", "1", "2", "--json"))
    assert found["names"] == [f"{NAME}/1", f"{NAME}/2"]
    assert "predicted the 72 rows of the test split now" in found["how"]
    assert "weighted_f1" in found["differences"]
    # Since then the format is measured, checkpoints follow their cost, faulty steps are noticed, and a training may go
    # on from a champion.
    new = {"precision", "train.checkpoint_seconds", "train.faulty_steps", "train.start"}
    new |= {"launcher.name", "launcher.ranks"}
    assert set(found["params"]) <= new


def test_todays_version_replaces_earlier_champion_and_rolls_back(
    upgraded: Project, today: Path, tmp_path: Path
) -> None:
    project = copied(upgraded, tmp_path / "project")
    event = json.loads(run(project, today, "textmill", "promote", "2", "--json"))
    assert (event["outcome"], event["verdict"], event["champion"]) == ("moved", "pass", "1"), event
    run(project, today, "textmill", "rollback", "--reason", "back to the earlier version")
    found = json.loads(run(project, today, "textmill", "history", "--json"))
    assert [(event["action"], event["champion"], event["version"]) for event in found["events"]] == [
        ("promotion", None, "1"),
        ("promotion", "1", "2"),
        ("rollback", "2", "1"),
    ]
    assert found["events"][0]["reason"] == "by the earlier code"
    assert not found["moved_elsewhere"]


def test_drift_from_earlier_version_is_measured(upgraded: Project, today: Path) -> None:
    command = ("textmill", "drift", "--reference", f"{NAME}/1", "data/own/reviews.csv", "--json")
    found = json.loads(run(upgraded, today, *command))
    assert (found["verdict"], found["rows"]) == ("no drift", 240)


def test_earlier_run_is_adopted_without_names_of_old(upgraded: Project, today: Path, tmp_path: Path) -> None:
    """An old run names classes where they were; that is not a difference from today's configuration."""
    project = copied(upgraded, tmp_path / "project")
    project.edit("conf/data/tiny.yaml", "textmill.data.sources", "textmill.fetching.sources")
    run(project, today, "textmill", "adopt", "1", "again")
    assert "_target_" not in (project.root / "conf/experiment/again.yaml").read_text()


def test_earlier_version_is_reproduced(upgraded: Project, today: Path) -> None:
    """Its commit has the code of then: today's `reproduce` runs it."""
    found = json.loads(run(upgraded, today, "textmill", "reproduce", "1", "--json"))
    assert found["equal"], found


# -- plugins ---------------------------------------------------------------------------------------


def test_names_that_earlier_documentation_gave_plugins_are_there(checkout: Path) -> None:
    text = (checkout / "docs/extending.md").read_text()
    imports = re.findall(r"^from textmill\S* import .+$", text, re.MULTILINE)
    assert len(imports) == 3
    for line in imports:
        exec(line, {})


def test_classes_that_earlier_configurations_name_are_found(checkout: Path) -> None:
    files = (checkout / "conf").rglob("*.yaml")
    targets = {name for file in files for name in re.findall(r"_target_: (textmill\.\S+)", file.read_text())}
    assert len(targets) > 25
    for target in sorted(targets):
        assert Plugin.find(target).__name__ == target.rpartition(".")[2]


# -- exports of other tasks -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_earlier_export_of_another_task_answers_as_stored(other_exports: Path, today: Path, kind: str) -> None:
    """Loaded as its card says."""
    folder = other_exports / kind / "data/exported"
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "model/README.md").read_text(), re.DOTALL)
    loading, line = snippet.strip().rsplit("\n", 1)
    assert line.startswith("print(")
    stored = stored_answers(folder)
    code = f"{loading}\nimport json, sys\nprint(json.dumps({line[6:-1].split('(')[0]}(json.load(sys.stdin))))"
    command = [sys.executable, "-c", code]
    environment = {**inherited_environment(), "PYTHONPATH": str(today)}
    given = json.dumps(stored["inputs"])
    done = subprocess.run(command, input=given, cwd=folder / "model", env=environment, capture_output=True, text=True)
    assert not done.returncode, f"{code}\n{done.stderr}"
    found = json.loads(done.stdout)
    if kind == "questions":
        assert fresh_process.answers_equal(stored["outputs"], found)
        return
    # Two corrections since: which beam the search returns, and one window a row beyond the context.
    (key,) = {"pairs": ["translation"], "plays": ["text"]}[kind]
    for before, now in zip(stored["outputs"], found, strict=True):
        shared = os.path.commonprefix([before[key], now[key]])  # noqa: RUF071 - characters are meant
        assert len(shared) >= min(len(before[key]), len(now[key])) // 3, (before, now)
    assert any(before[key] == now[key] for before, now in zip(stored["outputs"], found, strict=True))
