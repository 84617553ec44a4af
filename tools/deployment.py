"""Lint Dockerfile, deploy/ and .github/ with tools of the package index: `python tools/deployment.py`.

hadolint, shellcheck, yamllint, check-jsonschema and kubernetes-validate read files only: nothing is built or started.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = "1.34"
_WITHOUT_SCHEMA = ("Kustomization", "RayJob", "RayCluster")


def problems(root: Path = ROOT) -> list[str]:
    """Return what the linters say of the files below `root`."""
    deploy = root / "deploy"
    return [
        *_run(root, "hadolint", "Dockerfile"),
        *_run(root, "shellcheck", *_names(root, deploy.rglob("*.sbatch")), ".ci/run"),
        *_run(root, "yamllint", "--strict", "--format", "parsable", "deploy", ".github"),
        *_run(root, "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *_workflows(root)),
        *(found for path in sorted((deploy / "kubernetes").glob("*.yaml")) for found in _kubernetes(path)),
    ]


def pod_templates(document: Any) -> Iterator[dict[str, Any]]:
    """Yield the pod templates at any depth of a resource."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "template" and isinstance(value, dict) and "containers" in value.get("spec", {}):
                yield value
            else:
                yield from pod_templates(value)
    elif isinstance(document, list):
        for value in document:
            yield from pod_templates(value)


def _kubernetes(path: Path) -> Iterator[str]:
    """Validate resources by Kubernetes' schema; of those of an operator, their pods."""
    import kubernetes_validate

    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        checked = [document]
        if document["kind"] in _WITHOUT_SCHEMA:
            pods = pod_templates(document)
            checked = [
                {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod["spec"]} for pod in pods
            ]
        for each in checked:
            try:
                kubernetes_validate.validate(each, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                where = ".".join(map(str, error.path))
                yield f"{path.name}: {document['kind']}: {where}: {error.message}"


def _workflows(root: Path) -> list[str]:
    return _names(root, (root / ".github/workflows").glob("*.yml"))


def _names(root: Path, paths: Any) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in paths)


def _run(root: Path, *command: str) -> list[str]:
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], cwd=root, capture_output=True, text=True)
    return [] if not done.returncode else (done.stdout + done.stderr).strip().splitlines()


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or "deployment: nothing to correct")
    sys.exit(bool(found))
