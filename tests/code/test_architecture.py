"""The shape of the package: imports run one way, heavy ones stay where they are used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ABOVE = {"cli", "stages"}
ROOMS = {"data", "tasks", "models", "training", "evaluation", "export", "registry", "serving"}
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


def imported_rooms(path: Path) -> set[str]:
    """First-level folders of textmill that a file imports, at whatever depth of code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in getattr(node, "names", [])]
            if isinstance(node, ast.Import)
            else []
        )
        found |= {name.split(".")[1] for name in names if name.startswith("textmill.")}
    return found


def package_files(root: Path) -> list[Path]:
    return sorted((root / "src/textmill").rglob("*.py"))


def test_nothing_imports_from_above(repository_root: Path) -> None:
    package = repository_root / "src/textmill"
    for path in package_files(repository_root):
        room = path.relative_to(package).parts[0]
        if room in ROOMS:
            assert not imported_rooms(path) & ABOVE, path
        if room == "config":
            assert not imported_rooms(path) & (ABOVE | ROOMS), path


def test_no_stage_or_room_knows_a_task(repository_root: Path) -> None:
    package = repository_root / "src/textmill"
    names = [path.stem for path in (package / "tasks").glob("*.py") if path.stem not in ("__init__", "base")]
    assert names
    for path in package_files(repository_root):
        if "tasks" in path.relative_to(package).parts:
            continue
        for name in names:
            assert name not in path.read_text(encoding="utf-8"), f"{path} names the task {name}"


def test_files_stay_readable(repository_root: Path) -> None:
    long = {
        path.name: lines
        for path in package_files(repository_root)
        if (lines := len(path.read_text().splitlines())) > 330
    }
    assert not long


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
    assert not loaded_modules("import textmill.serving.predictor") & {
        "torch",
        "transformers",
        "mlflow",
        "pytorch_lightning",
    }


def test_help_starts_at_once() -> None:
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([str(Path(sys.executable).parent / "textmill"), "--help"], check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    # The goal is 0.3 s on a quiet machine (bench/startup.py); a busy one gets twice that.
    assert min(taken) < 0.6
