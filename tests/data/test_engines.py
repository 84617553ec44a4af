"""`prepare` gives the same files by threads, processes and Ray, and goes on after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.data import reading
from textmill.data.parallel import Engine
from textmill.data.prepare import prepare
from textmill.errors import UserError
from textmill.files import folder_digests


def digests(project: Any, engine: str, workers: int) -> dict[str, str]:
    options = {
        "task": {"_target_": "textmill.tasks.text_classification.TextClassification"},
        "read": {"columns": {"text": "text", "label": "label"}},
        "quality": {"gopher_repetition": {"top_n_grams": {}}},
        "mask": ["email"],
        "rows_per_shard": 70,
    }
    runtime = RuntimeConfig.model_validate({"engine": engine, "workers": workers})
    prepare(PrepareConfig.model_validate(options), runtime, project.layout)
    assert not (project.layout.state / "prepare").exists()
    return {
        name: digest for name, digest in folder_digests(project.layout.prepared).items() if not name.endswith(".png")
    }


def fill(project: Any, rows: list[tuple[str, str]]) -> None:
    """Put rows with near-duplicates in different chunks, mail addresses and rejected rows."""
    near = [(f"{text} and its actor", label) for text, label in rows[:30]]
    changed = [(f"{text} and its actors", label) for text, label in near[:20]]
    wrong = [("", "good"), ("a b a b " * 20, "bad"), ("write to me@b.org", "good")]
    project.rows("all/films.csv", [*near, *rows[30:], *wrong, *changed])


@pytest.mark.slow
def test_prepare_by_any_engine_and_number_of_workers_writes_the_same_files(
    project: Any, many_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "ROWS", 50)
    fill(project, many_rows(400))
    expected = digests(project, "threads", 1)
    statistics = json.loads((project.layout.prepared / "statistics.json").read_text())
    assert statistics["duplicates"]["near"] == 20
    assert statistics["masked"] == {"email": 1}
    for engine, workers in (("threads", 3), ("processes", 2), ("ray", 2)):
        if engine == "ray":
            pytest.importorskip("ray")
        assert digests(project, engine, workers) == expected, (engine, workers)


KILLED = """
import os, sys
from pathlib import Path
from textmill.config.layout import Layout
from textmill.data import encoding, parallel, reading
sys.path.insert(0, sys.argv[1])
reading.ROWS = 50
written = parallel.atomic_write
def write(path, content):
    written(path, content)
    if path.name == "encoded-000002":
        os._exit(9)
parallel.atomic_write = write
from test_engines import digests
class Project:
    layout = Layout(Path.cwd())
digests(Project, "processes", 2)
"""


@pytest.mark.slow
def test_killed_prepare_goes_on_from_its_finished_chunks(
    project: Any, many_rows: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reading, "ROWS", 50)
    fill(project, many_rows(400))
    expected = digests(project, "threads", 1)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent)]
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(command, cwd=project.root, env={**os.environ, "PYTHONPATH": paths}, capture_output=True)
    assert done.returncode == 9, done.stderr.decode()
    caplog.clear()
    assert digests(project, "processes", 2) == expected
    assert "continue from 12 finished chunks" in caplog.text  # 9 cleaned and 3 encoded ones


def test_engine_returns_results_in_order_and_raises_the_first_error() -> None:
    for workers in (1, 3):
        with Engine("threads", workers) as engine:
            assert list(engine.map(lambda item: item * item, range(20))) == [item * item for item in range(20)]
            with pytest.raises(ZeroDivisionError):
                list(engine.map(lambda item: 1 // (3 - item), range(20)))


def test_engine_without_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed.*\[cluster\]"):
        Engine("ray")
