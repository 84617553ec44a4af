"""A promotion or rollback in a process that kills itself right before one of its writes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from support.tiny_registry import NAME
from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig

WRITES = (
    "set_registered_model_tag",
    "delete_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)


def act(root: str, action: str, version: str, champion: str | None) -> str:
    """Act on a judged promotion, or a checked rollback; its outcome."""
    import mlflow

    from textmill.registry.promotion import promotion, rollback
    from textmill.registry.promotion.aliases import read_aliases
    from textmill.registry.promotion.events import Event, event_stamp
    from textmill.registry.runs.store import open_store

    open_store(RuntimeConfig(), Layout(Path(root)))
    client = mlflow.MlflowClient()
    event = Event(**event_stamp(), action=action, version=version, champion=champion, outcome="moved", verdict="pass")  # type: ignore[arg-type]
    if action == "promotion":
        return promotion.complete_promotion(client, NAME, event).outcome
    return rollback._complete_rollback(client, NAME, event, read_aliases(client, NAME)).outcome


def act_and_die(root: str, action: str, version: str, champion: str | None, step: int) -> None:
    """Die by SIGKILL before write number `step`, counted from 0; end well when there are fewer."""
    import mlflow

    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow puts the last store of the test itself there
    made = 0

    def dying(write: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            if made == step:
                os.kill(os.getpid(), signal.SIGKILL)
            made += 1
            return write(*arguments, **options)

        return wrapped

    for name in WRITES:
        setattr(mlflow.MlflowClient, name, dying(getattr(mlflow.MlflowClient, name)))
    act(root, action, version, champion)
