"""`tools/deployment.py`: the linters pass on this checkout, and see planted faults."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deployment", ROOT / "tools/deployment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


deployment = load()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("deploy", ".github", ".ci"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Dockerfile", ".yamllint.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_deployment_files_have_no_problem() -> None:
    assert deployment.problems() == []


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        ("Dockerfile", "FROM base AS packages-cpu", "FROM debian AS packages-cpu", "DL3006"),
        ("Dockerfile", "USER 1000:1000", "USER root", "DL3002"),
        ("deploy/slurm/train.sbatch", 'cd "${SLURM_SUBMIT_DIR:-$PWD}"', "cd $SLURM_SUBMIT_DIR", "SC2086"),
        ("deploy/kubernetes/serve.yaml", "replicas: 2", "replicas: two", "serve.yaml: Deployment: spec.replicas"),
        ("deploy/kubernetes/serve.yaml", "readinessProbe", "readynessProbe", "readynessProbe"),
        ("deploy/kubernetes/nightly.yaml", "concurrencyPolicy", "concurrency", "'concurrency' was unexpected"),
        ("deploy/kubernetes/ray-job.yaml", "memory: 16Gi", "memory: [16]", "ray-job.yaml: RayJob"),
        ("deploy/kubernetes/train-job.yaml", "backoffLimit: 6", "backoffLimit:  6", "too many spaces"),
        (".github/workflows/pipeline.yml", "runs-on:", "run-on:", "pipeline.yml"),
    ],
)
def test_planted_fault_is_seen(copy: Path, path: str, old: str, new: str, said: str) -> None:
    text = (copy / path).read_text()
    assert old in text
    (copy / path).write_text(text.replace(old, new, 1) if path != "Dockerfile" else text.replace(old, new))
    assert said in "\n".join(deployment.problems(copy))


def test_versions_of_the_image_are_those_of_the_project() -> None:
    text = (ROOT / "Dockerfile").read_text()
    python = re.findall(r"^ARG PYTHON=(\S+)", text, re.MULTILINE)
    assert python == ["3.12"]
    used = set(re.findall(r"'\.\[([a-z,]+)\]'", text))
    extras = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", extras, re.MULTILINE) for group in used for extra in group.split(","))


def test_commands_of_the_pods_exist() -> None:
    from textmill.cli.main import COMMANDS

    known = {command.__name__ for commands in COMMANDS.values() for command in commands}
    called = set()
    for path in (ROOT / "deploy").rglob("*.*"):
        called |= set(re.findall(r"textmill[, ]+(?!tune-|serve-)([a-z]+)(?=[, ])", _commands(path)))
    assert {"tune", "serve", "retrain"} <= called <= known


def _commands(path: Path) -> str:
    """Return what a file runs: arguments of its containers, or the lines of a script."""
    if path.suffix != ".yaml":
        lines = path.read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("#")) if path.suffix == ".sbatch" else ""
    documents = list(yaml.safe_load_all(path.read_text()))
    pods = [pod for document in documents for pod in deployment.pod_templates(document)]
    return "\n".join(", ".join([*each.get("args", []), ""]) for pod in pods for each in pod["spec"]["containers"])
