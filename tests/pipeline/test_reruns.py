"""What a stage reruns for, and what `textmill why` says about it; on a throw-away project that runs its own source."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
import yaml
from support.project import Project

LATER = ["prepare", "train", "evaluate", "export", "register"]
TASK = "src/textmill/tasks/text_classification.py"
pytestmark = pytest.mark.slow


@pytest.fixture
def edited(project: Project) -> Project:
    """The tiny project, everything up to date, whose commands import the source that lies in it."""
    return Project(project.root, own_code=True)


def why(project: Project) -> dict[str, list[str]]:
    """The stages that will run, with the reasons in words."""
    found = json.loads(project.run("textmill", "why", "--json").stdout)
    return {stage: [each["text"] for each in entry["next"]] for stage, entry in found.items() if entry["next"]}


def changed_themselves(project: Project) -> list[str]:
    """The stages that DVC finds changed after `compose`, not counting those that only follow one of them."""
    project.run("dvc", "repro", "compose")
    return list(json.loads(project.run("dvc", "status", "--json").stdout))


def pin(project: Project, package: str) -> str:
    """Change a package's pin; gives the old one."""
    constraints = project.root / "constraints.txt"
    found = re.search(rf"(?m)^{package}==(\S+)$", constraints.read_text())
    assert found
    project.edit("constraints.txt", found[0], f"{package}==99.9")
    return found[1]


def test_comments_docstrings_and_formatting_anywhere_run_only_compose(edited: Project) -> None:
    before = (edited.root / "data/code.yaml").read_bytes()
    edited.run(sys.executable, "-m", "ruff", "format", "--quiet", "--isolated", "--line-length", "60", "src")
    files = list((edited.root / "src").rglob("*.py"))
    docstrings = 0
    for file in files:
        text, count = re.subn(r'(?m)^(\s*"""[A-Z][^"\n]*)\."""$', r'\1, in other words."""', file.read_text())
        file.write_text(f"# A comment.\n{text}\n# Another.\n")
        docstrings += count
    assert len(files) > 200
    assert docstrings > 300
    assert edited.repro() == ["compose"]
    assert (edited.root / "data/code.yaml").read_bytes() == before


def test_other_tasks_models_and_routers_run_only_compose(edited: Project) -> None:
    source = edited.root / "src/textmill"
    others = [
        *("tasks/translation.py", "tasks/semantic_search.py", "tasks/language_modelling.py"),
        *("models/hub_language_model.py", "models/decoder_model.py", "models/sentence_encoder.py"),
        *("evaluation/evaluators/translation.py", "evaluation/evaluators/language_modelling.py"),
        *("models/routing/switch.py", "models/routing/sinkhorn.py", "fetching/sources/catalogues.py"),
    ]
    for name in others:
        text, count = re.subn(r"(?m)^( +)return (?=\S)", r"\1return None or ", (source / name).read_text())
        assert count, name
        (source / name).write_text(text)
    assert edited.repro() == ["compose"]


def test_wording_of_the_report_runs_evaluate_and_later(edited: Project) -> None:
    edited.edit("src/textmill/metrics/category_sections.py", '"Confusions",', '"Labels mistaken for others",')
    edited.edit("src/textmill/evaluation/report.html.jinja", "</body>", "<p>Other words.</p></body>")
    reasons = why(edited)
    assert list(reasons) == ["compose", "evaluate", "export", "register"]
    template, section = reasons["evaluate"]
    assert template == "textmill.evaluation.report.html.jinja changed"
    assert section.startswith("textmill.metrics.category_sections.")
    assert changed_themselves(edited) == ["evaluate"]


def test_validation_metric_runs_train_and_later_and_refuses_the_checkpoint(edited: Project) -> None:
    overrides = ["train.max_epochs=500", "train.checkpoint_seconds=0.01"]
    checkpoints = edited.root / ".dvc/tmp/textmill/checkpoints"
    command = [sys.executable, "-m", "textmill.stages.train", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(edited.root / "src")}
    process = subprocess.Popen(command, cwd=edited.root, env=environment, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if list(checkpoints.glob("*/step-*.json")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert list(checkpoints.glob("*/step-*.json"))

    edited.edit("src/textmill/metrics/categories.py", "f1(counts) * counts.actual", "counts.actual * f1(counts)")
    reasons = why(edited)
    assert list(reasons) == ["compose", "train", "evaluate", "export", "register"]
    assert reasons["train"] == ["textmill.metrics.categories.weighted_f1 changed"]

    done = edited.run("dvc", "repro", "train")
    assert "train: runs because textmill.metrics.categories.weighted_f1 changed\n" in done.stderr
    (refused,) = [line for line in done.stderr.splitlines() if "does not continue" in line]
    assert "train.max_epochs 500 → 2" in refused
    assert "textmill.metrics.categories.weighted_f1 changed" in refused


def test_cleaning_and_tokenising_run_prepare_and_later(edited: Project) -> None:
    edited.edit("src/textmill/data/cleaning.py", "_ROUNDS = ", "_ROUNDS = 1 + ")
    assert list(why(edited)) == ["compose", *LATER]
    # A served model cleans its input by the same code
    assert changed_themselves(edited) == ["prepare", "export", "register"]
    edited.edit("src/textmill/data/cleaning.py", "_ROUNDS = 1 + ", "_ROUNDS = ")
    assert list(why(edited)) == ["compose"]
    edited.edit("src/textmill/data/tokenizing.py", "def load_tokenizer(", "def load_tokenizer(*_: None, ")
    assert list(why(edited)) == ["compose", *LATER]


def test_pin_of_a_package_runs_the_stages_that_import_it_and_later(edited: Project) -> None:
    before = pin(edited, "scikit-learn")
    reasons = why(edited)
    assert list(reasons) == ["compose", "evaluate", "export", "register"]
    assert reasons["evaluate"] == [f"package scikit-learn {before} → 99.9"]
    assert changed_themselves(edited) == ["evaluate"]
    pin(edited, "ftfy")
    assert list(why(edited)) == ["compose", *LATER]
    pin(edited, "gunicorn")
    # A served text is cleaned by ftfy too.
    assert changed_themselves(edited) == ["prepare", "evaluate", "export", "register"]


def test_package_of_a_user_beside_textmill_counts(edited: Project) -> None:
    (edited.root / "src/mine").mkdir()
    (edited.root / "src/mine/__init__.py").touch()
    plugin = edited.root / "src/mine/task.py"
    plugin.write_text(
        "from textmill.tasks.text_classification import TextClassification\n\n\n"
        "class Mine(TextClassification):\n    def loss(self, *arguments):\n        return super().loss(*arguments)\n"
    )
    conf = edited.root / "conf/task/text_classification.yaml"
    conf.write_text(conf.read_text().replace("textmill.tasks.text_classification.TextClassification", "mine.task.Mine"))
    edited.run("dvc", "repro", "compose")
    digests = yaml.safe_load((edited.root / "data/code.yaml").read_text())
    plugin.write_text(plugin.read_text().replace("return super", "return 0 or super"))
    edited.run("dvc", "repro", "compose")
    after = yaml.safe_load((edited.root / "data/code.yaml").read_text())
    changed = {stage for stage in after if after[stage] != digests[stage]}
    assert "train" in changed
    assert not changed & {"fetch", "prepare"}


def test_why_names_parameters_rows_and_outputs_before_and_after_the_run(edited: Project) -> None:
    edited.edit("conf/experiment/tiny.yaml", "max_epochs: 2", "max_epochs: 1")
    reviews = edited.root / "data/own/reviews.csv"
    lines = reviews.read_text().splitlines()
    lines[3] = lines[3].replace(",", " changed,")
    reviews.write_text("\n".join([*lines, "a wonderful superb film at the end,good"]) + "\n")
    (edited.root / "data/trained/metrics.json").unlink()
    reasons = why(edited)
    assert list(reasons) == ["compose", "fetch", *LATER]
    assert reasons["fetch"] == ["data/own changed: reviews.csv: 1 row added, 1 row changed"]
    assert reasons["prepare"] == ["fetch will run and may change data/pretrained and data/raw"]
    assert reasons["train"][0] == "train.max_epochs 2 → 1"
    assert reasons["train"][-1] == "its output data/trained was modified"

    done = edited.run("dvc", "repro", "train")
    assert "fetch: runs because data/own changed\n" in done.stderr
    assert "train: runs because train.max_epochs 2 → 1; data/prepared changed\n" in done.stderr
    found = json.loads(edited.run("textmill", "why", "--json").stdout)
    ran = {
        stage: [each["text"] for each in entry["last"]["reasons"]] for stage, entry in found.items() if entry["last"]
    }
    assert ran["fetch"] == [
        "data/own changed: files/all/reviews.csv: 1 row added, 1 row changed; files changed: provenance.json"
    ]
    assert ran["train"][0] == "train.max_epochs 2 → 1"
    assert re.match(r"data/prepared changed: .*row", ran["train"][1])
    assert [stage for stage, entry in found.items() if not entry["next"]] == ["compose", "fetch", "prepare", "train"]
    assert found["register"]["next"][0]["kind"] == "stage"
    shown = edited.run("textmill", "why", "train").stdout
    assert re.search(r"train\n  ran last on 2.*, because\n    train.max_epochs 2 → 1\n", shown)
    assert "is up to date" in shown

    edited.run("dvc", "repro", "--force", "--single-item", "compose")
    forced = edited.run("textmill", "why", "compose").stdout
    assert "no input changed" in forced


def test_why_says_what_it_cannot_know(edited: Project) -> None:
    edited.edit(TASK, "label_smoothing: Annotated", "other: int = 0\n    label_smoothing: Annotated")
    for file in (edited.root / ".dvc/tmp/textmill/code").glob("*.json"):
        file.unlink()
    reasons = why(edited)
    assert re.fullmatch(r"its code changed; the details .* are not on this machine", reasons["train"][0])
    (edited.root / "dvc.lock").unlink()
    assert {text for texts in why(edited).values() for text in texts[:1]} == {"it never ran here"}
    done = edited.run("textmill", "why", "trian", check=False)
    assert done.returncode == 1
    assert "no such stage. Did you mean 'train'?" in done.stderr


def test_nothing_to_do_takes_at_most_a_second_more_than_status(edited: Project) -> None:
    def seconds(*command: str) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            edited.run(*command)
            times.append(time.perf_counter() - started)
        return min(times)

    assert seconds("dvc", "repro") <= seconds("dvc", "status") + 1
