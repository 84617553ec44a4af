"""Every file of a version is under its manifest: changed, missing and planted files are named before they are used."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import marshal
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.faults import record, rounds
from support.project import inherited_environment
from support.tiny_export import RUNTIME, build_evaluated_project, export_config, register_config
from support.tiny_registry import textmill

from textmill.config.layout import Layout
from textmill.predicting.exported import TamperedError
from textmill.registry.runs.tracking import connect
from textmill.registry.versions import version_manifest
from textmill.registry.versions.bill_of_materials import bill_of_materials
from textmill.registry.versions.version_files import fetch_folder
from textmill.stages import export, register

pytestmark = pytest.mark.slow

NAME = "tiny-reviews"
ADDRESS = f"models:/{NAME}/1"
LOAD = """
import sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
import pandas as pd
print(model.predict(pd.DataFrame({"text": ["a great film"]})).to_dict("records"))
"""


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = build_evaluated_project(tmp_path_factory.mktemp("sealed") / "project")
    export.main(export_config(), RUNTIME, layout)
    register.main(register_config(), RUNTIME, layout)
    return layout


@pytest.fixture
def version(registered: Layout) -> Any:
    import mlflow

    connect(RUNTIME, registered)
    return mlflow.MlflowClient().get_model_version(NAME, "1")


@pytest.fixture
def model(registered: Layout, version: Any) -> Iterator[Path]:
    """The version's folder in the store; what a test does to it is undone."""
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=ADDRESS))
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept, symlinks=True)
    yield folder
    shutil.rmtree(folder)
    kept.rename(folder)


def refused(version: Any, layout: Layout) -> str:
    with pytest.raises(TamperedError) as caught:
        fetch_folder(version, layout)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def flip(path: Path, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def files(model: Path) -> list[Path]:
    """All files of a version that have content, but for MLflow's own note."""
    found = [path for path in sorted(model.rglob("*")) if path.is_file() and path.stat().st_size]
    return [path for path in found if path.name != version_manifest.REGISTRY_NOTE]


# -- each file -------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink])
def test_any_harmed_file_is_named(model: Path, version: Any, registered: Layout, harm: Callable[[Path], None]) -> None:
    """Every file beside the code; of the code each n-th."""
    beside = [path for path in files(model) if not path.is_relative_to(model / "code")]
    code = [path for path in files(model) if path.is_relative_to(model / "code")]
    tried = beside + code[:: rounds(40, 1)]
    assert {"MLmodel", "served_model.py", "conda.yaml", "requirements.txt", "sbom.cdx.json", "model.int8.onnx"} <= {
        path.name for path in tried
    }
    for path in tried:
        content = path.read_bytes()
        harm(path)
        said = refused(version, registered)
        path.write_bytes(content)
        assert str(path) in said
    fetch_folder(version, registered)
    record(
        "6 Bit flip or truncation",
        seen="MODEL/FILE: the file was changed after the registration (digest differs). Do not use this version",
        kept="nothing of the version is loaded",
        measured=f"{harm.__name__} in {len(tried)} files of a version, each named before use",
        files=len(tried),
    )


def bytecode(model: Path) -> Path:
    """Valid bytecode of another source, where Python looks for it."""
    place = model / "code/textmill/errors.pyc"
    place.parent.mkdir()
    program = compile(f"open({str(model.parent / 'ran')!r}, 'w').close()", "x", "exec")
    place.write_bytes(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(program))
    shutil.copy(place, place.with_name("__init__.pyc"))
    return place.parent


def write(path: Path, content: str = "") -> Path:
    path.write_text(content)
    return path


def link(path: Path) -> Path:
    path.symlink_to("/etc")
    return path


def moved_and_linked(path: Path) -> Path:
    """A link in place of a file, to the same bytes elsewhere."""
    path.symlink_to(shutil.move(path, Path(tempfile.mkdtemp()) / path.name))
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def empty(path: Path) -> Path:
    path.mkdir()
    return path


def mark(model: Path, name: str) -> Path:
    """Let a module of the stored code leave a mark when it is imported."""
    archive = model / "code/textmill.zip"
    with zipfile.ZipFile(archive) as code:
        content = {each: code.read(each) for each in code.namelist()}
    content[name] = f"open({str(model.parent / 'ran')!r}, 'w').close()\n".encode() + content.get(name, b"")
    with zipfile.ZipFile(archive, "w") as code:
        for each, source in content.items():
            code.writestr(each, source)
    return archive


@pytest.mark.parametrize(
    "plant",
    [
        bytecode,
        lambda model: write(model / "code/pandas.py"),
        lambda model: write(model / "code/evil.pth", "import os"),
        lambda model: mark(model, "textmill/sitecustomize.py"),
        lambda model: write(model / "python_model.pkl"),
        lambda model: write(model / "artifacts/extra.json"),
        lambda model: write(model / "artifacts/model/extra.json"),
        lambda model: link(model / "code/linked"),
        lambda model: link(model / "artifacts/model/linked"),
        lambda model: moved_and_linked(model / "requirements.txt"),
        lambda model: moved_and_linked(model / "artifacts/model/tokenizer.json"),
        lambda model: pipe(model / "code/pandas.py"),
        lambda model: empty(model / "code/pandas"),
    ],
    ids=[
        *("bytecode", "module", "pth", "nested", "pickle", "beside", "exported", "link", "exported-link"),
        *("equal-link", "exported-equal-link", "pipe", "folder"),
    ],
)
def test_planted_file_is_named(model: Path, version: Any, registered: Layout, plant: Callable[[Path], Path]) -> None:
    planted = plant(model)
    said = refused(version, registered)
    assert str(planted) in said or str(planted.parent) in said


def test_forged_manifest_is_named(model: Path, version: Any, registered: Layout) -> None:
    flip(model / "served_model.py")
    version_manifest.seal(model)
    assert "the manifest of the version differs from the registered one" in refused(version, registered)


# -- each command ----------------------------------------------------------------------------------


@contextmanager
def changed_loader(model: Path) -> Iterator[None]:
    loader = model / "served_model.py"
    content = loader.read_text()
    loader.write_text(content + "\n# changed\n")
    yield
    loader.write_text(content)


def test_commands_refuse_a_changed_loader(model: Path, registered: Layout) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return textmill(*arguments, cwd=registered.root)

    with changed_loader(model):
        serve = ("serve", "--port", "0", "--model", ADDRESS)
        for command in (("verify", ADDRESS), ("predict", "great film", "--model", ADDRESS), serve):
            done = run(*command)
            assert done.returncode in (1, 3), done
            assert "served_model.py" in "".join((done.stdout + done.stderr).split()), done
    done = run("predict", "great film", "--model", ADDRESS, "--json")
    assert done.returncode == 0, done.stderr


# -- a load by MLflow alone ------------------------------------------------------------------------


def load(layout: Layout, address: str = ADDRESS) -> subprocess.CompletedProcess[str]:
    environment = {
        **inherited_environment(),
        "MLFLOW_TRACKING_URI": f"sqlite:///{layout.root / 'mlflow.db'}",
        "PYTHONPATH": "",
    }
    command = [sys.executable, "-P", "-c", LOAD, address]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=layout.root.parent)


def test_load_leaves_the_version_as_registered(model: Path, version: Any, registered: Layout) -> None:
    done = load(registered)
    assert "label" in done.stdout, done.stderr
    fetch_folder(version, registered)
    assert not list(model.rglob("*.pyc"))


@pytest.mark.parametrize(
    "harm",
    [lambda model: mark(model, "textmill/__init__.py"), bytecode],
    ids=["code", "bytecode"],
)
def test_load_runs_no_changed_code(model: Path, registered: Layout, harm: Callable[[Path], Path]) -> None:
    path = harm(model)
    done = load(registered)
    assert done.returncode != 0
    assert str(path) in done.stderr or str(path.parent) in done.stderr
    assert not (model.parent / "ran").exists()


def forge(model: Path) -> None:
    """Change the code, and whatever in the folder has its digest."""
    before = hashlib.sha256((model / "code/textmill.zip").read_bytes()).hexdigest()
    after = hashlib.sha256(mark(model, "textmill/errors.py").read_bytes()).hexdigest()
    loader = model / "served_model.py"
    assert before in loader.read_text()
    loader.write_text(loader.read_text().replace(before, after))
    version_manifest.seal(model)


def test_load_compares_with_the_registry(model: Path, registered: Layout) -> None:
    """Everything in the folder changed together: the digest of the manifest is in the registry."""
    forge(model)
    done = load(registered)
    assert done.returncode != 0
    assert "differs from the registered one" in done.stderr


def test_load_by_a_path_says_that_no_registry_was_asked(model: Path, registered: Layout) -> None:
    (model / version_manifest.REGISTRY_NOTE).unlink(missing_ok=True)
    done = load(registered, str(model))
    assert "label" in done.stdout, done.stderr
    assert "the version is not compared with the registry" in done.stderr


# -- bill of materials -----------------------------------------------------------------------------


def test_bill_of_materials_names_what_the_version_needs(model: Path) -> None:
    from cyclonedx.model.bom import Bom

    bill = json.loads((model / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    versions = {component["name"]: component.get("version") for component in bill["components"]}
    pinned = dict(line.split("==") for line in (model / "requirements.txt").read_text().split())
    assert pinned.items() <= versions.items()
    assert "pydantic-core" in versions  # needed by pydantic
    assert bill["metadata"]["component"]["name"] == NAME
    assert "sbom.cdx.json" in json.loads((model / version_manifest.MANIFEST).read_text())
    assert len(Bom.from_json(bill).components) == len(versions)


def test_bill_of_materials_names_pretrained_weights_and_their_licence() -> None:
    pretrained = {"origin": "package:w==1", "version": "1", "licence": "Apache-2.0"}
    pretrained["files"] = {"model.safetensors": "a" * 64}
    text = bill_of_materials("m", [], {"trained": "b" * 64, "pretrained": pretrained})
    [weights] = json.loads(text)["components"]
    assert (weights["name"], weights["licenses"]) == ("package:w==1", [{"license": {"id": "Apache-2.0"}}])


# -- places ----------------------------------------------------------------------------------------


@pytest.mark.fault
def test_store_that_was_moved_is_told(registered: Layout, tmp_path: Path) -> None:
    moved = Layout(Path(shutil.copytree(registered.root, tmp_path / "moved", symlinks=True)))
    away = registered.root / "mlruns"
    hidden = away.rename(away.with_name("hidden"))
    try:
        for command in (("verify", "1"), ("predict", "x", "--model", ADDRESS), ("lineage", "1")):
            done = textmill(*command, cwd=moved.root)
            said = "".join((done.stdout + done.stderr).split())
            assert "Traceback" not in said, said
            if command[0] != "lineage":
                assert done.returncode, command
                assert "thestorewasmoved" in said, said
                assert "ln-sNEWOLD" in said, said
    finally:
        hidden.rename(away)


@pytest.mark.fault
def test_version_outlives_its_run(registered: Layout, version: Any) -> None:
    """A deleted run breaks one link, which is named; the version is described and answers."""
    import mlflow

    run_id = version.run_id
    client = mlflow.MlflowClient()
    client.delete_run(run_id)
    try:
        verified = textmill("verify", "1", "--json", cwd=registered.root)
        links = {link["name"]: link for link in json.loads(verified.stdout)["links"]}
        assert verified.returncode == 3
        assert {name for name, link in links.items() if link["status"] == "broken"} == {"run"}
        assert run_id in links["run"]["detail"]
        assert json.loads(textmill("lineage", "1", "--json", cwd=registered.root).stdout)["run"]["name"] is None
        assert textmill("predict", "great film", "--model", ADDRESS, cwd=registered.root).returncode == 0
        assert "no longer in the store" in textmill("card", "1", cwd=registered.root).stdout
        reproduced = textmill("reproduce", "1", cwd=registered.root)
    finally:
        client.restore_run(run_id)
    assert reproduced.returncode == 1
    assert len(reproduced.stderr.strip().splitlines()) == 1
    record(
        "11 Deleted run of a registered version",
        seen="verify: run broken, RUN_ID is not in STORE, or was deleted there",
        kept="the version: it is listed, described and answers",
        measured="1 of 8 links broken; lineage, card and predict work, reproduce refuses in one line",
    )
