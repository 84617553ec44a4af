"""SIGKILL before every single write of a promotion and of a rollback: the next command completes or undoes it."""

from __future__ import annotations

import multiprocessing
import signal
from typing import Any

import pytest
from support import killed_promotion
from support.tiny_registry import NAME, aliases, store

from textmill.config.layout import Layout
from textmill.registry.promotion.aliases import recover
from textmill.registry.promotion.events import history

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Three bare versions in a store; moving aliases needs no more."""
    layout = Layout(tmp_path_factory.mktemp("bare") / "project")
    layout.root.mkdir()
    client = store(layout)
    client.create_registered_model(NAME)
    for _ in range(3):
        client.create_model_version(NAME, "file:///nowhere")
    client.set_registered_model_alias(NAME, "champion", "1")
    return layout


@pytest.mark.parametrize(
    ("action", "version", "before", "after"),
    [
        (
            "promotion",
            "3",
            {"champion": "2", "previous": "1", "challenger": "3"},
            {"champion": "3", "previous": "2"},
        ),
        (
            "rollback",
            "1",
            {"champion": "2", "previous": "1", "challenger": "3"},
            {"champion": "1", "challenger": "3"},
        ),
    ],
)
def test_kill_before_each_write(
    layout: Layout, action: str, version: str, before: dict[str, str], after: dict[str, str]
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "support.killed_promotion"])
    undone = completed = 0
    for step in range(30):
        reset(layout, before)
        arguments = (str(layout.root), action, version, before["champion"], step)
        process = context.Process(target=killed_promotion.act_and_die, args=arguments)
        process.start()
        process.join(120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        said = recovered(layout)
        found = aliases(layout)
        assert found in (before, after), f"step {step} left {found}"
        assert leftovers(layout) == [], f"step {step}"
        events = history(store(layout), NAME)["events"]
        if found == after:
            completed += 1
            assert [event["outcome"] for event in events] == ["moved"]
        else:
            assert [event["outcome"] for event in events] == (["undone"] if said else [])
            undone += 1
            assert killed_promotion.act(str(layout.root), action, version, before["champion"]) == "moved"
            assert aliases(layout) == after
        assert recovered(layout) is None
    else:
        pytest.fail("never ended")
    assert aliases(layout) == after
    assert undone >= 3, "before and while the plan is written"
    assert completed >= 3, "after the champion moved"


def reset(layout: Layout, wanted: dict[str, str]) -> None:
    """Only these aliases, and no tag."""
    client: Any = store(layout)
    model = client.get_registered_model(NAME)
    for key in model.tags:
        client.delete_registered_model_tag(NAME, key)
    for alias in model.aliases.keys() - wanted.keys():
        client.delete_registered_model_alias(NAME, alias)
    for alias, number in wanted.items():
        client.set_registered_model_alias(NAME, alias, number)


def recovered(layout: Layout) -> str | None:
    client: Any = store(layout)
    return recover(client, NAME)


def leftovers(layout: Layout) -> list[str]:
    """Plans. A dead claim may stay: the next lock removes it."""
    return [key for key in store(layout).get_registered_model(NAME).tags if "intent" in key]
