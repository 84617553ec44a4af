"""The lock in a registered model's tags: one at a time, dead claims removed, late holders refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.registry.promotion import lock
from textmill.registry.promotion.lock import CLAIM, promotion_lock
from textmill.registry.runs.store import open_store

NAME = "tiny"


@pytest.fixture
def client(tmp_path: Path) -> Any:
    import mlflow

    open_store(RuntimeConfig(), Layout(tmp_path))
    found = mlflow.MlflowClient()
    found.create_registered_model(NAME)
    return found


def claims(client: Any) -> list[str]:
    return [key for key in client.get_registered_model(NAME).tags if key.startswith(CLAIM)]


def test_only_one_is_inside(client: Any) -> None:
    """Without the file's lock: the tags alone keep four threads apart."""
    inside, most = [0], [0]

    def visit() -> None:
        with promotion_lock(client, NAME, "http://only-tags"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert claims(client) == []


def leave(client: Any, **changes: Any) -> str:
    """A claim of someone else."""
    key = f"{CLAIM}0"
    claim = replace(lock._own_claim(), number=1, **changes)
    client.set_registered_model_tag(NAME, key, json.dumps(asdict(claim)))
    return key


def test_claim_of_a_dead_process_is_removed(client: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    pid = process.pid
    process.join()
    for changes in ({"pid": pid}, {"started": 1.0}):  # gone, or its number was given to another
        leave(client, **changes)
        started = time.monotonic()
        with promotion_lock(client, NAME, "http://only-tags"):
            assert len(claims(client)) == 1
        assert time.monotonic() - started < 5


def test_claim_of_another_machine_is_waited_for(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key = leave(client, machine="elsewhere x y", pid=7)
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.5)
    refused = pytest.raises(UserError, match="process 7 on elsewhere is promoting a version of tiny")
    with refused, promotion_lock(client, NAME, "http://only-tags"):
        pytest.fail("it is taken")
    assert claims(client) == [key]
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 30)
    monkeypatch.setattr(lock, "_SILENT_SECONDS", 0.5)
    with promotion_lock(client, NAME, "http://only-tags"):
        assert key not in claims(client)


def test_holder_that_is_late_or_was_removed_may_not_write(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with promotion_lock(client, NAME, "http://only-tags") as held:
        held.check()
        client.delete_registered_model_tag(NAME, claims(client)[0])
        with pytest.raises(UserError, match="timed out"):
            held.check()
    monkeypatch.setattr(lock, "_HOLD_SECONDS", 0.0)
    late = pytest.raises(UserError)
    with late, promotion_lock(client, NAME, "http://only-tags") as held:
        held.check()
    assert claims(client) == []
