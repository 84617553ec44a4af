"""Make a version the challenger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textmill.registry.promotion.aliases import recover_locked
from textmill.registry.promotion.lock import promotion_lock
from textmill.registry.runs.store import tracking_errors
from textmill.registry.versions.versions import CHALLENGER, RegisteredVersion

if TYPE_CHECKING:
    from mlflow import MlflowClient


def make_challenger(client: MlflowClient, registered: RegisteredVersion) -> None:
    """Set the alias `challenger` under the lock of promotions, which moves this alias too.

    Raises:
        UserError: Another process holds the lock for too long, or the store refuses.
    """
    with (
        tracking_errors(client.tracking_uri),
        promotion_lock(client, registered.name, client.tracking_uri) as lock,
    ):
        recover_locked(client, registered.name, lock)
        lock.check()
        client.set_registered_model_alias(registered.name, CHALLENGER, registered.version)
