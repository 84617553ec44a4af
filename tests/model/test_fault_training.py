"""Trainings that are killed, interrupted, short of memory or fed with corrupt data: real processes and signals."""

from __future__ import annotations

import math
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.faults import record, rounds
from test_resume import SETTINGS, finish, history, runs, start
from tiny_training import ARCHITECTURE, MODEL, make_project, write_split

from textmill.files import read_json

pytestmark = [pytest.mark.fault, pytest.mark.slow]
IMPORTER = """
import time
from textmill.stages.runner import run_program
def program():
    print("ready", flush=True)
    import pytorch_lightning, mlflow
    time.sleep(60)
run_program("import", program)
"""
LONG = SETTINGS | {"max_epochs": 500, "early_stopping": None}
PLAIN = {"model": MODEL | {"architecture": ARCHITECTURE} | dict.fromkeys(("dropout", "hidden_dropout"), 0.0)}


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def checkpoints(root: Path) -> list[Path]:
    return sorted(root.glob(".dvc/tmp/textmill/checkpoints/*/step-*.ckpt"))


def wait_for_step(process: subprocess.Popen[str], root: Path) -> None:
    """Wait for the first batch, and a random time more."""
    while process.poll() is None and not (root / "samples-0").exists():
        time.sleep(0.02)
    time.sleep(random.random())


def test_a_trainer_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    epochs = {"max_epochs": rounds(12, 200)}
    whole, killed = (
        make_project(tmp_path / name, **LONG | epochs | {"checkpoint_seconds": seconds})
        for name, seconds in (("whole", None), ("killed", 0.2))
    )
    code, errors = finish(start(whole))
    assert code == 0, errors
    ((count, share),) = re.findall(r"(\d+) checkpoints took .* s, ([\d.]+) % of the training", errors)
    lost, deaths, resumed, wanted = [], 0, 0, rounds(2, 20)
    while True:
        (killed / "samples-0").unlink(missing_ok=True)
        process = start(killed)
        if deaths < wanted:
            wait_for_step(process, killed)
            while deaths % 2 == 0 and process.poll() is None and not checkpoints(killed):
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        code, errors = finish(process)
        resumed += "continuing from" in errors
        if code == 0:
            break
        assert code == -signal.SIGKILL, errors
        deaths += 1
        kept = int(checkpoints(killed)[-1].stem.removeprefix("step-")) if checkpoints(killed) else 0
        lost.append(int((killed / "step").read_text()) - kept)
    for name, load in (("final.pt", torch.load), ("data/trained/model/model.safetensors", load_file)):
        expected, found = load(whole / name), load(killed / name)
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert history(whole) == history(killed)
    assert list(runs(killed).values()) == ["FINISHED"]
    assert resumed >= min(deaths, 1)
    assert float(share) < 2
    record(
        "1 SIGKILL of the trainer",
        seen="the next run continues from the last checkpoint, in the same MLflow run",
        kept="the last two checkpoints; the end has the same bits",
        measured=f"{deaths} kills, {resumed} of the next runs continued, at most {max(lost)} steps redone; "
        f"without a kill {count} checkpoints took {share} % of the time",
        kills=deaths,
        steps_lost=lost,
        checkpoint_share=float(share),
    )


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)],
    ids=lambda each: str(each),
)
def test_a_signal_writes_a_checkpoint_at_once(tmp_path: Path, number: int, status: int) -> None:
    root = make_project(tmp_path / "project", **LONG | {"checkpoint_seconds": 1e6})
    process = start(root, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    wait_for_step(process, root)
    sent = time.monotonic()
    process.send_signal(number)
    code, errors = finish(process)
    seconds = time.monotonic() - sent
    assert code == status, errors
    assert "Traceback" not in errors
    assert seconds < 5
    step = int(re.findall(r"wrote a checkpoint at step (\d+)", errors)[0])
    assert [int(path.stem.removeprefix("step-")) for path in checkpoints(root)] == [step]
    assert list(runs(root).values()) == ["KILLED"]
    code, errors = finish(start(root, "step", step + 1))
    assert f"continuing from {checkpoints(root)[0]}" in errors
    record(
        "3 SIGTERM, Ctrl-C, pre-emption",
        seen=f"{signal.Signals(number).name}: status {status}, one line with the step",
        kept="a checkpoint of the last step; the run is KILLED",
        measured=f"{signal.Signals(number).name}: {seconds:.1f} s from the signal to the exit",
        seconds=seconds,
    )


def test_a_second_training_of_the_same_settings_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", **LONG)
    first = start(root)
    wait_for_step(first, root)
    code, errors = finish(start(root))
    assert code == 1
    assert f"process {first.pid} on" in errors
    assert "Traceback" not in errors
    assert list(runs(root).values()) == ["RUNNING"]
    first.send_signal(signal.SIGKILL)
    finish(first)
    code, errors = finish(start(root, "step", 1))  # the lock died with its process
    assert "continuing from" in errors


def test_an_abandoned_training_ends_and_is_mentioned_once(tmp_path: Path) -> None:
    import json

    root = make_project(tmp_path / "project", **SETTINGS)
    finish(start(root, "step", 4))
    (abandoned,) = runs(root)
    values = json.loads((root / "config.json").read_text())
    values["train"]["seed"] = 4
    (root / "config.json").write_text(json.dumps(values))
    code, errors = finish(start(root, "step", 4))
    assert code == -signal.SIGKILL
    assert "does not continue the unfinished training" in errors
    assert runs(root)[abandoned] == "KILLED"
    code, errors = finish(start(root))
    assert code == 0, errors
    assert "does not continue" not in errors
    assert sorted(runs(root).values()) == ["FINISHED", "KILLED"]
    assert checkpoints(root), "the checkpoints of the other settings stay"


@pytest.mark.parametrize("value", [math.nan, 1e6], ids=["not finite", "spike"])
def test_a_corrupt_batch_is_caught_written_out_and_skipped(tmp_path: Path, value: float) -> None:
    """One row of 400 has a target that is not one; its step must not move the weights."""
    settings = PLAIN | {"max_epochs": 3, "batches": {"tokens": 256}, "optimizer": {"learning_rate": 3e-4}}
    losses, logs = {}, {}
    for name, corrupt in (("clean", {}), ("corrupt", {333: [1 - value, value]})):
        root = make_project(tmp_path / name, **settings, faulty_steps="skip")
        write_split(root / "data/prepared/train", 400, 0, corrupt)
        write_split(root / "data/prepared/validation", 200, 1, {})
        code, logs[name] = finish(start(root))
        assert code == 0, logs[name]
        losses[name] = float(history(root)[-1]["validation/loss"])
    assert "is skipped" not in logs["clean"]
    skipped = re.findall(r"step (\d+) is skipped: .* \(its batch: (.*)\)", logs["corrupt"])
    assert len(skipped) == 3  # the row comes once an epoch
    batch = read_json(Path(skipped[0][1]))
    assert batch["step"] == int(skipped[0][0])
    assert any(shares[1] != shares[1] or shares[1] == value for shares in batch["batches"][0]["label_probabilities"])
    change = abs(losses["corrupt"] / losses["clean"] - 1)
    assert change <= 0.002
    record(
        "9 NaN, infinite loss, spike",
        seen="`step N is skipped: … (its batch: FILE)`, or the end in one line with train.faulty_steps: stop",
        kept="the weights before the step",
        measured=f"{value}: caught in its step, final loss changed by {100 * change:.2f} %",
        change=change,
    )


def test_a_corrupt_batch_stops_the_training_by_default(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", **PLAIN)
    write_split(root / "data/prepared/train", 200, 0, {100: [math.nan, 1.0]})
    code, errors = finish(start(root))
    assert code == 1
    assert re.search(r"train\.optimizer: the training loss is nan at step \d+ \(its batch: .*\.json\)", errors), errors
    assert "Traceback" not in errors
    assert list(runs(root).values()) == ["FAILED"]


def test_clean_trainings_raise_no_alarm(tmp_path: Path) -> None:
    alarms, seeds = 0, rounds(2, 20)
    for seed in range(seeds):
        rate = 10 ** random.Random(seed).uniform(-4, -2)
        settings = {"seed": seed, "max_epochs": 15, "faulty_steps": "skip", "optimizer": {"learning_rate": rate}}
        code, errors = finish(start(make_project(tmp_path / str(seed), **settings)))
        assert code == 0, errors
        alarms += errors.count("its batch:")
    assert alarms == 0
    record(
        "9 NaN, infinite loss, spike: clean trainings",
        seen="nothing",
        kept="everything",
        measured=f"{alarms} false alarms in {seeds} trainings",
        alarms=alarms,
        seeds=seeds,
    )


def test_short_memory_halves_the_batch_and_keeps_the_steps(tmp_path: Path) -> None:
    """Under a limit of the system on the process's memory, the weights are those of a training without one."""
    optimizer = {"learning_rate": 0.5, "epsilon": 1.0, "warmup": 0, "schedule": "constant", "gradient_clip": None}
    batches = {"tokens": 60_000, "accumulate": 2}

    def trained(name: str, *arguments: object) -> tuple[Any, str]:
        root = make_project(tmp_path / name, **PLAIN, batches=batches, max_epochs=2, optimizer=optimizer)
        write_split(root / "data/prepared/train", 4000, 0)
        code, errors = finish(start(root, *arguments))
        assert code == 0, errors
        return torch.load(root / "final.pt"), errors

    roomy, log = trained("roomy")
    assert "out of memory" not in log
    for limit in (300, 350, 250, 400, 200):  # how much a batch needs depends on what the process has freed before
        short, log = trained(f"short-{limit}", "memory", limit)
        if found := re.findall(r"out of memory with a batch of \d+ positions; computes it in (\d+) parts", log):
            break
    parts = int(found[-1])
    weights = roomy, short
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-5, atol=1e-6)
    record(
        "10 Out of memory",
        seen="`out of memory with a batch of N positions; computes it in P parts from now on`",
        kept="the size of the steps: the weights equal those without a limit",
        measured=f"a limit of {limit} MB: {parts} parts",
        parts=parts,
    )


def test_memory_for_not_even_one_row_is_refused_in_one_line(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", **PLAIN, batches={"tokens": 60_000})
    write_split(root / "data/prepared/train", 4000, 0)
    code, errors = finish(start(root, "memory", 1))
    assert code == 1, errors
    assert re.search(r"train\.batches\.tokens: out of memory at step 0: not even one row", errors), errors
    assert "Traceback" not in errors
    assert [path.name for path in (root / "data").iterdir()] == ["prepared"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=lambda each: str(each)
)
def test_a_signal_during_imports_ends_quietly(number: int, status: int) -> None:
    """Some of PyTorch's modules are imported from C++, which no exception may leave."""
    count, slowest = rounds(4, 60), 0.0
    for _ in range(count):
        with subprocess.Popen(
            [sys.executable, "-c", IMPORTER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.uniform(0, 3))
            sent = time.monotonic()
            process.send_signal(number)
            errors = process.communicate()[1]
        slowest = max(slowest, time.monotonic() - sent)
        assert process.returncode == status, errors
        assert "Traceback" not in errors
        assert "terminate called" not in errors
    assert slowest < 5
    record(
        "3 SIGTERM, Ctrl-C, pre-emption: while libraries are imported",
        seen=f"{signal.Signals(number).name}: status {status}",
        kept="everything: the stage has not begun",
        measured=f"{signal.Signals(number).name}: {count} signals, at most {slowest:.1f} s to the exit",
        seconds=slowest,
    )
