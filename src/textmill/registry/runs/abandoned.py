"""End the runs of trainings that were killed and then given up for another."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import find_active_run, open_client

log = logging.getLogger("textmill")


def end_abandoned(run_ids: Iterable[str | None], successor: str, layout: Layout, runtime: RuntimeConfig) -> None:
    """Set runs that are still RUNNING to KILLED, with the tag `textmill.successor_run_id`.

    An error of the store is only logged: the runs are not those of the stage.

    Args:
        run_ids: Runs whose process is gone; None and unknown ones do not count.
        successor: The run of the training that came instead.
        layout: The project.
        runtime: Names the store.
    """
    found = [run_id for run_id in run_ids if run_id]
    if not found:
        return
    try:
        with open_client(runtime, layout) as client:
            for run_id in found:
                run = find_active_run(client, run_id)
                if run is not None and run.info.status == "RUNNING":
                    client.set_tag(run_id, f"{PREFIX}successor_run_id", successor)
                    client.set_terminated(run_id, "KILLED")
                    log.info("train: ended the abandoned run %s as KILLED", run_id)
    except UserError as error:
        log.warning("train: could not end the abandoned runs %s: %s", ", ".join(found), error)
