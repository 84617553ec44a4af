"""SIGKILL while an output is written: the earlier one loads, the partial one is removed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.faults import record, rounds
from support.project import Project

from textmill.files import folder_digests, remove_abandoned

WRITER = """
import pathlib, sys
from textmill.files import atomic_folder, atomic_write
target, number = pathlib.Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    number += 1
    with atomic_folder(target) as folder:
        for name in "abcd":
            (folder / name).write_text(str(number) * 1000)
    atomic_write(target.with_name("file"), str(number) * 100_000)
"""
OPENER = """
import pathlib
from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.registry.runs.store import open_store
open_store(RuntimeConfig(), Layout(pathlib.Path.cwd()))
"""
OUTPUTS = {"prepare": "data/prepared", "export": "data/exported", "evaluate": "data/evaluation"}


def test_killed_writer_leaves_one_whole_output_and_the_next_one_removes_the_rest(tmp_path: Path) -> None:
    target = tmp_path / "out"
    left, number = 0, rounds(25, 300)
    for _ in range(number):
        with subprocess.Popen([sys.executable, "-c", WRITER, target], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            while not target.is_dir():  # only before the very first is there nothing
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.02))
            writer.kill()
        contents = {(target / name).read_text() for name in "abcd"}
        assert len(contents) == 1, "a mixture of two versions"
        whole = contents.pop()
        assert whole == whole[: len(whole) // 1000] * 1000
        written = tmp_path / "file"
        if written.exists():
            text = written.read_text()
            assert text == text[: len(text) // 100_000] * 100_000
        left += len(remove_abandoned(tmp_path))
        assert {path.name for path in tmp_path.iterdir()} <= {"out", "file"}
    assert left, "no kill hit a write"
    record(
        "4 SIGKILL while any output is replaced",
        seen="nothing",
        kept="the earlier output or the new one, whole; the next run deletes what is partial",
        measured=f"{number} kills at random moments, {left} of them within a write: 0 mixed or missing outputs",
    )


def test_partial_output_of_a_living_writer_is_not_removed(tmp_path: Path) -> None:
    program = WRITER.replace('print("ready", flush=True)\n', "").replace(
        "        for name", '        print("ready", flush=True); sys.stdin.readline()\n        for name'
    )
    command = [sys.executable, "-c", program, tmp_path / "out"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert remove_abandoned(tmp_path) == []
        (partial,) = tmp_path.glob(".out.partial-*")
        writer.kill()
        writer.wait()
    assert remove_abandoned(tmp_path) == [partial]


@pytest.mark.slow
@pytest.mark.fault
def test_stage_killed_at_any_moment_keeps_the_earlier_output(project: Project) -> None:
    """By hand, where the earlier output stands until the new one is complete."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    number, partial = rounds(1, 10), 0
    for stage, output in OUTPUTS.items():
        before = folder_digests(project.root / output)
        for _ in range(number):
            command = [sys.executable, "-m", f"textmill.stages.{stage}"]
            process = subprocess.Popen(
                command, cwd=project.root, env=os.environ | {"PATH": path}, stderr=subprocess.DEVNULL
            )
            while process.poll() is None and not list((project.root / "data").glob(".*.partial-*")):
                time.sleep(0.005)
            time.sleep(random.uniform(0, 2))
            if process.poll() is None:
                process.kill()
                process.wait()
                assert folder_digests(project.root / output).keys() == before.keys()
            partial += bool(list((project.root / "data").glob(".*.partial-*")))
        project.run("python", "-m", f"textmill.stages.{stage}")
        assert not list((project.root / "data").glob(".*.partial-*"))
        assert folder_digests(project.root / output).keys() == before.keys()
    assert partial, "no kill hit a write"
    record(
        "4 SIGKILL of prepare, evaluate and export",
        seen="nothing; `dvc repro` runs the stage again",
        kept="the earlier output; the next run of the stage deletes the partial one",
        measured=f"{number * len(OUTPUTS)} kills, {partial} within a write: the earlier output was whole each time",
    )


@pytest.mark.slow
@pytest.mark.fault
def test_store_whose_creation_was_killed_is_created_again(tmp_path: Path) -> None:
    number, within = 0, 0
    while number < rounds(2, 20) or (not within and number < 50):
        number += 1
        root = tmp_path / str(number)
        root.mkdir()
        partial = root / "mlflow.db-partial"
        with subprocess.Popen([sys.executable, "-c", OPENER], cwd=root) as creator:
            while creator.poll() is None and not partial.exists():
                time.sleep(0.005)
            time.sleep(random.uniform(0, 1.5))
            creator.kill()
        within += partial.exists()
        again = subprocess.run([sys.executable, "-c", OPENER], cwd=root, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert {path.name for path in root.iterdir()} == {"mlflow.db", "mlflow.db-lock"}
    assert within, "no kill hit the creation"
    record(
        "4 SIGKILL during the first use of a store",
        seen="nothing",
        kept="nothing yet; the next use creates it",
        measured=f"{number} kills, {within} during the creation: the next use succeeded each time",
    )
