"""Two ranks have the loss curve of one, with whole and with divided weights; checkpoints fit any number of ranks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_curves import CASES, write_data

PROGRAM = Path(__file__).with_name("tiny_curves.py")
TOLERANCE = 1e-5
WHOLE = ("classifier", "classifier-muon", "dense", "dense-muon", "top_k", "bias-muon", "search")
CUT = 12
pytestmark = pytest.mark.slow


def curves(root: Path, ranks: int, *jobs: str) -> dict[str, Any]:
    """Return the losses of trainings, one after the other, by so many ranks that gloo connects."""
    result = root / f"{ranks}-{len(list(root.glob('*.json')))}.json"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(PROGRAM), str(root), str(result), *jobs]
    processes = []
    for rank in range(ranks):
        own = {"WORLD_SIZE": str(ranks), "RANK": str(rank)} if ranks > 1 else {}
        processes.append(subprocess.Popen(command, env=environment | own, cwd=root, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, errors
    return json.loads(result.read_text())  # type: ignore[no-any-return]


def largest_difference(one: dict[str, float], other: dict[str, float]) -> float:
    assert other
    assert other.keys() <= one.keys()
    return max(abs(one[step] - value) for step, value in other.items())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_data(folder / "prepared")
    return folder


@pytest.fixture(scope="module")
def one_rank(root: Path) -> dict[str, Any]:
    return {job.partition(":")[0]: found for job, found in curves(root, 1, *(f"{case}:auto" for case in CASES)).items()}


@pytest.fixture(scope="module")
def two_ranks(root: Path) -> dict[str, Any]:
    return curves(root, 2, *(f"{case}:ddp" for case in WHOLE), *(f"{case}:fsdp" for case in CASES))


@pytest.mark.parametrize("job", [*(f"{case}:ddp" for case in WHOLE), *(f"{case}:fsdp" for case in CASES)])
def test_two_ranks_have_the_curve_of_one(one_rank: dict[str, Any], two_ranks: dict[str, Any], job: str) -> None:
    expected, found = one_rank[job.partition(":")[0]], two_ranks[job]
    assert found["losses"].keys() == expected["losses"].keys()
    assert largest_difference(expected["losses"], found["losses"]) <= TOLERANCE
    assert largest_difference(expected["validations"], found["validations"]) <= TOLERANCE
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-5, abs=1e-5)
    divided = job.endswith(":fsdp")
    assert 0.4 < found["share"] < 0.7 if divided else found["share"] == 1


def test_a_checkpoint_of_two_ranks_goes_on_with_one_and_with_four(root: Path, one_rank: dict[str, Any]) -> None:
    """Divided and whole checkpoints, each by the other way too: the same batches, the same losses."""
    cut = curves(root, 2, f"dense-muon:fsdp:{CUT}", f"classifier:fsdp:{CUT}", f"top_k:ddp:{CUT}")
    assert all(found["cut"] for found in cut.values())
    kinds = {path.is_dir() for path in root.glob("checkpoints/*/step-*.ckpt")}
    assert kinds == {True, False}, "folders of parts, and single files"
    for name in ("one", "four"):
        shutil.copytree(root / "checkpoints", root / name / "checkpoints")
        shutil.copytree(root / "prepared", root / name / "prepared")
    found = curves(root / "one", 1, "dense-muon:auto", "classifier:fsdp", "top_k:auto")
    found |= {f"{job} 4": each for job, each in curves(root / "four", 4, "dense-muon:fsdp", "top_k:fsdp").items()}
    for job, each in found.items():
        expected = one_rank[job.partition(":")[0]]
        steps = [int(step) for step in each["losses"]]
        assert 9 < min(steps) <= CUT, job
        assert max(steps) == max(map(int, expected["losses"]))
        assert largest_difference(expected["losses"], each["losses"]) <= TOLERANCE, job
        assert each["weights"] == pytest.approx(expected["weights"], rel=1e-5, abs=1e-5)
