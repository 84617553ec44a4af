"""Heavy imports stay where they are used, and no stage knows a task."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = {
    "torch",
    "transformers",
    "mlflow",
    "pytorch_lightning",
    "sklearn",
    "matplotlib",
    "onnxruntime",
    "pandera",
    "datasets",
}


def package_files(root: Path) -> list[Path]:
    return sorted((root / "src/textmill").rglob("*.py"))


def test_no_stage_or_room_knows_a_task(repository_root: Path) -> None:
    package = repository_root / "src/textmill"
    names = [
        path.stem for path in (package / "tasks").glob("*.py") if path.stem not in ("__init__", "base", "abilities")
    ]
    assert names
    for path in package_files(repository_root):
        if {"tasks", "evaluators"} & set(path.relative_to(package).parts):
            continue
        for name in names:
            assert name not in path.read_text(encoding="utf-8"), f"{path} names the task {name}"


def loaded_modules(statement: str) -> set[str]:
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import textmill.cli.main",
        "import textmill.stages.compose, textmill.config.compose",
        "import textmill.tasks.text_classification",
        "import textmill.stages.train, textmill.stages.register",
    ],
)
def test_light_modules_load_nothing_heavy(statement: str) -> None:
    assert not loaded_modules(statement) & HEAVY


def test_predicting_needs_neither_torch_nor_mlflow() -> None:
    assert not loaded_modules("import textmill.predicting.predictor") & {
        "torch",
        "transformers",
        "mlflow",
        "pytorch_lightning",
    }


def test_help_starts_at_once() -> None:
    taken = []
    for _ in range(6):
        started = time.perf_counter()
        subprocess.run([str(Path(sys.executable).parent / "textmill"), "--help"], check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    # The goal is 0.3 s on a quiet machine (bench/startup.py); a busy one gets twice that.
    assert min(taken) < 0.6
