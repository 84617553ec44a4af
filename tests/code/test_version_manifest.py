"""The manifest of a version, file by file, on a small folder; `test_version_files.py` has real versions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from textmill.registry.versions.version_manifest import MANIFEST, REGISTRY_NOTE, find_problem, seal

MISSING = "the manifest of the version is missing"
OTHER = "the manifest of the version differs from the registered one"
UNREADABLE = "the manifest of the version is not readable"
GONE = "the file is missing"
UNLISTED = "the manifest of the version does not list this file"
UNLISTED_FOLDER = "the manifest of the version does not list this folder"
CHANGED = "the file was changed after the registration (digest differs)"
LINK = "it is a link, whose target may change at any time"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    for name, text in {
        "MLmodel": "flavors: {}",
        "served_model.py": "print(1)",
        "code/textmill.zip": "zip",
        "code/plugin/own.py": "print(2)",
        "artifacts/exported/manifest.json": "{}",
        "artifacts/exported/model.onnx": "onnx",
        "artifacts/exported/deep/er/tokenizer.json": "{}",
        "artifacts/notes/a.txt": "a",
        "artifacts/notes/deep/manifest.json": "of nobody",
        "artifacts/notes/deep/b.txt": "b",
        REGISTRY_NOTE: "name: x",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_manifest_lists_what_loading_reads(folder: Path) -> None:
    sealed = seal(folder)
    content = (folder / MANIFEST).read_bytes()
    assert sealed == hashlib.sha256(content).hexdigest()
    assert content.endswith(b"\n")
    assert b'\n  "MLmodel": "' in content, "one line a file, for people"
    expected = {
        "MLmodel": digest("flavors: {}"),
        "__pycache__": digest(""),
        "artifacts/exported/manifest.json": digest("{}"),
        "artifacts/notes/a.txt": digest("a"),
        "artifacts/notes/deep/b.txt": digest("b"),
        "artifacts/notes/deep/manifest.json": digest("of nobody"),
        "code/plugin/__pycache__": digest(""),
        "code/plugin/own.py": digest("print(2)"),
        "code/textmill.zip": digest("zip"),
        "served_model.py": digest("print(1)"),
    }
    assert json.loads(content) == expected
    assert list(json.loads(content)) == sorted(expected)
    assert find_problem(folder) is None
    assert find_problem(folder, sealed) is None
    assert (folder / "__pycache__").is_file()


def link(path: Path) -> None:
    path.symlink_to(path.parent / "MLmodel")


def link_to_folder(path: Path) -> None:
    path.symlink_to(path.parent / "code", target_is_directory=True)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "harm", "problem"),
    [
        ("MLmodel", lambda path: path.write_text("flavors: {x}"), CHANGED),
        ("MLmodel", Path.unlink, GONE),
        ("artifacts/exported/manifest.json", lambda path: path.write_text("{ }"), CHANGED),
        ("artifacts/exported/manifest.json", Path.unlink, GONE),
        ("artifacts/notes/deep/b.txt", lambda path: path.write_text("c"), CHANGED),
        ("artifacts/notes/deep/manifest.json", lambda path: path.write_text(""), CHANGED),
        ("code/planted.py", lambda path: path.write_text("print(3)"), UNLISTED),
        ("code/" + MANIFEST, lambda path: path.write_text("{}"), UNLISTED),
        ("code/" + REGISTRY_NOTE, lambda path: path.write_text("{}"), UNLISTED),
        ("code/textmill.zip", pipe, CHANGED),
        ("empty", Path.mkdir, UNLISTED_FOLDER),
        ("artifacts/exported/empty", Path.mkdir, UNLISTED_FOLDER),
        ("planted", link, UNLISTED),
        ("planted", link_to_folder, LINK),
        ("artifacts/exported/link", link, LINK),
    ],
)
def test_whatever_differs_is_named(folder: Path, name: str, harm: Callable[[Path], object], problem: str) -> None:
    if name == "artifacts/exported/link":
        (folder / "artifacts/exported/MLmodel").write_text("")
    sealed = seal(folder)
    harm(folder / name)
    assert find_problem(folder, sealed) == (name, problem)
    assert find_problem(folder) == (name, problem)


def test_what_has_its_own_manifest_or_nobody_reads_is_left_out(folder: Path) -> None:
    sealed = seal(folder)
    (folder / "artifacts/exported/model.onnx").write_text("other: its own manifest says so")
    (folder / "artifacts/exported/deep/er/tokenizer.json").unlink()
    (folder / "artifacts/exported/deep/er/other.json").write_text("")
    (folder / REGISTRY_NOTE).write_text("name: y")
    assert find_problem(folder, sealed) is None


def test_manifest_itself_is_checked_first(folder: Path) -> None:
    sealed = seal(folder)
    (folder / "MLmodel").unlink()
    path = folder / MANIFEST
    path.write_text(path.read_text() + " ")
    assert find_problem(folder, sealed) == (MANIFEST, OTHER)
    assert find_problem(folder) == ("MLmodel", GONE)
    path.write_text("{")
    assert find_problem(folder) == (MANIFEST, UNREADABLE)
    assert find_problem(folder, hashlib.sha256(b"{").hexdigest()) == (MANIFEST, UNREADABLE)
    path.unlink()
    assert find_problem(folder, sealed) == (MANIFEST, MISSING)
    path.mkdir()
    assert find_problem(folder) == (MANIFEST, MISSING)


def test_the_first_problem_by_name_is_told(folder: Path) -> None:
    seal(folder)
    (folder / "served_model.py").unlink()
    (folder / "code/plugin/own.py").unlink()
    (folder / "zzz").mkdir()
    assert find_problem(folder) == ("code/plugin/own.py", GONE)
