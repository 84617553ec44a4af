"""Check the tracking store and the registry: reachable, whole, and without what killed processes left."""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from typing import TYPE_CHECKING

from textmill.cli.health.finding import Finding, Health
from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.registry.runs.identity import ProcessIdentity
from textmill.registry.runs.origin import PROCESS
from textmill.registry.runs.store import database_file, open_store, tracking_uri, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_CHECKED_BYTES = 500_000_000


def check_store(layout: Layout, runtime: RuntimeConfig) -> tuple[Health, MlflowClient | None]:
    """Open the store; return its client too, or None where it cannot be used or is not there yet."""
    uri = tracking_uri(runtime, layout)
    shown, database = without_credentials(uri), database_file(uri)
    if database is not None:
        if not database.exists():
            return Health("store", f"{database} is made at its first use"), None
        if (problem := _damage(database)) is not None:
            remedy = f"Restore {database} from a backup, or move it away: `dvc repro --force train` starts a new one"
            return Health("store", shown, [Finding(f"{database} is damaged: {problem}", remedy)]), None
    try:
        open_store(runtime, layout)
        import mlflow

        client = mlflow.MlflowClient()
        count = len(client.search_experiments())
    except (UserError, OSError) as error:
        what, fix = (error.what, error.fix) if isinstance(error, UserError) else (str(error), None)
        if "database schema" in what:
            what, fix = (
                "the schema of the store is of another MLflow",
                f"Back it up, then run `mlflow db upgrade {shown}`",
            )
        remedy = fix or "Check the address and the permissions"
        return Health("store", shown, [Finding(f"{shown}: {what}", remedy)]), None
    size = f", {database.stat().st_size / 1e6:.1f} MB" if database is not None else ""
    return Health("store", f"{shown}{size}, {count} experiments"), client


def check_runs(layout: Layout, client: MlflowClient | None) -> Health:
    """Look for runs that are RUNNING although their process is dead, and for entries that wait on disk."""
    from textmill.registry.runs.spool import waiting_spools

    findings = []
    if client is not None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        running = list(client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000))
        for run in running:
            identity = run.data.tags.get(PROCESS)
            if identity is None or not ProcessIdentity.from_text(identity).is_dead():
                continue
            what = f"the run {run.info.run_name} ({run.info.run_id}) is RUNNING, and its process is dead"
            findings.append(Finding(what, "Mark it as KILLED", partial(_end, client, run)))
    spools = waiting_spools(layout.spool)
    for spool in spools:
        what = f"metrics of the stage {spool.opening.stage} wait for {spool.uri} ({spool.size() / 1e6:.1f} MB)"
        if spool.is_in_use():
            continue
        send = partial(_send, layout, client) if client is not None else None
        findings.append(Finding(f"{what} in {spool.folder}", "Run `textmill sync` when it answers", send))
    return Health("runs", "none is RUNNING without its process", findings)


def check_registry(client: MlflowClient | None) -> Health:
    """Look for interrupted registrations and promotions, and for versions whose run was deleted."""
    from textmill.registry.promotion.aliases import PENDING_MOVE, recover
    from textmill.registry.runs.store import find_active_run
    from textmill.registry.versions.trial import leftovers, remove_leftovers

    findings: list[Finding] = []
    if client is None:
        return Health("registry", "not looked at, because the store cannot be used")
    models = list(client.search_registered_models())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for name in [model.name for model in models] or [""]:
        untried, logged = leftovers(client, name, experiments)
        if untried or logged:
            what = f"an interrupted registration left {len(untried)} untried versions of {name or 'no model'}"
            remove = partial(remove_leftovers, client, name, experiments)
            findings.append(Finding(f"{what} and {len(logged)} logged models without a version", "Delete them", remove))
    for model in models:
        if PENDING_MOVE in model.tags:
            what = f"a promotion or rollback of {model.name} was interrupted"
            findings.append(Finding(what, "Run `textmill history`", partial(recover, client, model.name)))
        for alias, number in model.aliases.items():
            version = client.get_model_version(model.name, number)
            run_id = version.run_id
            if run_id and find_active_run(client, run_id) is None:
                what = f"the run {run_id} of {model.name} version {number} ({alias}) was deleted"
                restore = partial(_restore, client, run_id)
                findings.append(Finding(what, f"Run `mlflow runs restore --run-id {run_id}`", restore))
    return Health("registry", f"{len(models)} registered model{'s' * (len(models) != 1)}", findings)


def _damage(database: object) -> str | None:
    """Return what SQLite says about a file that is not whole; None for a whole one."""
    path = str(database)
    try:
        connection = sqlite3.connect(
            f"file:{path.replace('?', '%3f').replace('#', '%23')}?mode=ro", uri=True, timeout=5
        )
        try:
            size = connection.execute("pragma page_count").fetchone()[0] * 4096
            if size > _CHECKED_BYTES:
                return None
            answer = str(connection.execute("pragma quick_check(1)").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return None  # locked, or not readable: opening it says more
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if answer == "ok" else answer


def _end(client: MlflowClient, run: Run) -> None:
    from pathlib import Path

    from textmill.registry.runs.entries import apply_entry

    entry = {"kind": "end", "status": "KILLED", "time": int(time.time() * 1000)}
    apply_entry(client, run.info.run_id, entry, {}, Path())


def _send(layout: Layout, client: MlflowClient) -> None:
    from textmill.registry.runs.spool import send_waiting

    for result in send_waiting(layout.spool, client.tracking_uri, client):
        if result.outcome not in ("sent", "in use"):
            raise UserError(result.why)


def _restore(client: MlflowClient, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.restore_run(run_id)
    except MlflowException as error:
        raise UserError(
            "it is gone for good", fix="Register the version again with `dvc repro --force train`"
        ) from error
