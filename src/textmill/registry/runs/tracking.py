"""One MLflow run for each pipeline run: opened by `train`, continued by the later stages."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from textmill.config import resolved
from textmill.config.layout import Layout
from textmill.config.section import Section
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError, disk_full
from textmill.files import read_json, size_of, write_json
from textmill.registry.runs.entries import METRICS_IN_A_BATCH, SYSTEM, Entry, apply_entry, read_configuration
from textmill.registry.runs.opening import Opened, Opening, new_run, open_run, process_tag, run_name
from textmill.registry.runs.origin import PREFIX, lock_tags
from textmill.registry.runs.spool import Spool, SpooledLog, send_waiting
from textmill.registry.runs.store import (
    OFFLINE,
    UnreachableError,
    connect,
    database_file,
    is_offline,
    open_store,
    request_timeout,
    tracking_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

__all__ = ["StageRun", "connect", "read_configuration", "stage_run"]

log = logging.getLogger("textmill")

_FLUSH_SECONDS = 1.0
_SYSTEM_METRICS_SECONDS = 5.0
_DIGEST_LENGTH = 12  # MLflow's tables show no more; the profile has the whole digest
_SIGNAL_SECONDS = 3.0
_REQUEST_SECONDS = 15


class EntryLog(Protocol):
    """Where the entries of a run go: a store, or a spool on the way to a server."""

    def add(self, entry: Entry) -> None:
        """Take an entry."""

    def close(self, status: str) -> None:
        """End the run."""


class StoreLog:
    """Write each entry at once: for a store on this machine."""

    def __init__(self, client: MlflowClient, uri: str, opened: Opened) -> None:
        self._client, self._uri, self._opened = client, uri, opened

    def add(self, entry: Entry) -> None:
        """Write an entry; raise UserError if the store refuses or its disk is full."""
        try:
            with tracking_errors(self._uri):
                apply_entry(self._client, self._opened.run_id, entry, self._opened.last_steps, Path())
        except OSError as error:
            database = database_file(self._uri)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or database is None:
                raise
            needed = size_of(Path(entry["path"])) if entry["kind"] == "artifacts" else 0
            raise disk_full(database.parent / "mlruns", needed) from error

    def close(self, status: str) -> None:
        """Set the run's status."""
        self.add({"kind": "end", "status": status, "time": int(time.time() * 1000)})


class StageRun:
    """An open MLflow run. Metrics are buffered and written about once a second.

    Attributes:
        run_id: Id in the store, or on this machine until the store has given one.
        experiment: MLflow's experiment.
    """

    def __init__(self, run_id: str, experiment: str, entries: EntryLog) -> None:
        self.run_id = run_id
        self.experiment = experiment
        self._entries = entries
        self._pending: list[list[Any]] = []
        self._flushed = time.monotonic()
        self._lock = threading.RLock()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings get dotted names. Parameters logged before keep their values."""
        self._entries.add({"kind": "params", "values": {key: str(value) for key, value in _flat(params)}})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, at `step` if given. In a resumed stage, steps logged before are not logged again."""
        now = int(time.time() * 1000)
        with self._lock:
            self._pending += [[key, float(value), now, step] for key, value in metrics.items()]
            if time.monotonic() - self._flushed > _FLUSH_SECONDS or len(self._pending) >= METRICS_IN_A_BATCH:
                self.flush()

    def flush(self) -> None:
        """Write the buffered metrics."""
        with self._lock:
            if self._pending:
                self._entries.add({"kind": "metrics", "values": self._pending})
                self._pending = []
            self._flushed = time.monotonic()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file in `folder` of the run's artifacts, or all files of a folder."""
        self._entries.add({"kind": "artifacts", "path": str(path.absolute()), "folder": folder})

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a plot in the run's artifacts; `name` includes the format, such as `plots/history.png`."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / Path(name).name
            figure.savefig(path)
            self.log_artifact(path, str(Path(name).parent))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, replacing earlier values."""
        self._entries.add({"kind": "tags", "values": {key: str(value) for key, value in tags.items()}})

    def end(self, status: str) -> None:
        """Write what is buffered, and set the run's status."""
        self.flush()
        self._entries.close(status)

    def log_input_table(
        self, head: pd.DataFrame, *, name: str, source: str, digest: str, context: str, rows: int
    ) -> None:
        """Log a dataset as input of the run.

        Args:
            head: A few rows, from which the schema is inferred.
            name: Name in the UI.
            source: Path or address of the data.
            digest: SHA-256 of the whole dataset.
            context: Its use: `training`, `validation` or `test`.
            rows: Number of rows of the whole dataset.
        """
        from mlflow.models import infer_signature

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer column")
            schema = infer_signature(head).inputs.to_dict()
        dataset = {
            "name": name,
            "digest": digest[:_DIGEST_LENGTH],
            "source_type": "local",
            "source": json.dumps({"uri": source}),
            "schema": json.dumps({"mlflow_colspec": schema}),
            "profile": json.dumps({"num_rows": rows, "sha256": digest}),
        }
        self._entries.add({"kind": "dataset", "values": dataset, "context": context})

    def log_configuration(self, stage: str, section: Section, layout: Layout) -> None:
        """Store the resolved configuration with the run; `section` is the one that `stage` used.

        A stage run by hand may use other values than `data/resolved.yaml`, and a continued run keeps the
        values of its earlier stages.
        """
        base = None
        if layout.resolved.is_file():
            base = resolved.load(layout.resolved.read_text(encoding="utf-8"))
        values = section.model_dump(mode="json", by_alias=True)
        self._entries.add({"kind": "configuration", "stage": stage, "values": values, "base": base})

    def write_reference(self, path: Path) -> None:
        """Write `run.json`, from which the next stage reads the run id."""
        write_json(path, {"run_id": self.run_id, "experiment": self.experiment})


@contextmanager
def stage_run(
    stage: str,
    layout: Layout,
    runtime: RuntimeConfig,
    *,
    upstream: Path | None,
    fingerprint: str,
    resume_run_id: str | None = None,
    name: str | None = None,
    system_metrics: bool = False,
    needs_store: bool = False,
) -> Iterator[StageRun]:
    """Open or resume the stage's MLflow run; set its final status on exit.

    The stage continues the run of the stage before. A new run is opened when that run is not in this
    store, or has this stage with another fingerprint (one training evaluated in two ways). The new run
    names its predecessor in the tag `textmill.upstream_run_id` and copies its parameters. A repeated
    stage finds this run again.

    The status is FINISHED, FAILED after an exception, or KILLED after Ctrl-C or SIGTERM.

    No stage waits for a server: entries go to a spool on disk first, see `spool`. If a server does not
    answer at the start, a stage that continues a run goes on without it.

    Args:
        stage: Name of the stage.
        layout: The project.
        runtime: Names the store and the experiment.
        upstream: `run.json` of the stage before, or None to open a new run.
        fingerprint: Digest of everything that determines the stage's result.
        resume_run_id: Interrupted run of this stage to continue.
        name: Label of the run, followed by the fingerprint: the model.
        system_metrics: Whether to log CPU, memory and GPU usage.
        needs_store: Whether the stage uses more of the store than the run, as `register` does.

    Raises:
        UserError: The store refuses, or it cannot be reached and the stage opens a new run or needs it.
    """
    opening = Opening(
        stage=stage,
        fingerprint=fingerprint,
        experiment=runtime.tracking_experiment,
        name=run_name(name or stage, fingerprint),
        previous=str(read_json(upstream)["run_id"]) if upstream and upstream.is_file() else None,
        resume=resume_run_id,
        tags={f"{PREFIX}stage.{stage}": fingerprint, **lock_tags(layout.root), **process_tag()},
    )
    run = monitor = None
    with request_timeout(None if needs_store else _REQUEST_SECONDS):
        try:
            with delay_signals():
                run = _open(opening, layout, runtime, needs_store=needs_store)
            monitor = _start_monitor(run) if system_metrics else None
            yield run
            run.flush()
        except BaseException as error:
            if run is not None:
                end_run(run, run_status(error), monitor, cause=error)
            raise
        end_run(run, "FINISHED", monitor)


def _open(opening: Opening, layout: Layout, runtime: RuntimeConfig, *, needs_store: bool) -> StageRun:
    """Open the run in the store, or in a spool where the server does not answer or is not to be asked."""
    uri = tracking_uri(runtime, layout)
    if database_file(uri):
        connect(runtime, layout)
        import mlflow

        client = mlflow.MlflowClient()
        with tracking_errors(uri):
            opened = open_run(client, opening, layout.root)
        return StageRun(opened.run_id, opening.experiment, StoreLog(client, uri, opened))
    opening = replace(opening, local_id=uuid.uuid4().hex)
    offline = is_offline(runtime, layout)
    opened_online: Opened | None = None
    if offline and needs_store:
        fix = f"Unset ${OFFLINE} and runtime.tracking_offline, run `textmill sync`, then `dvc repro`"
        raise UserError(f"{opening.stage} needs the tracking server, and the project is offline", fix=fix)
    if not offline:
        try:
            opened_online = _open_online(opening, layout, runtime, uri)
        except UnreachableError as error:
            if needs_store or opening.previous is None:
                raise _told_to_sync(error, layout) from error
            log.warning("%s: %s It continues without the server", opening.stage, error)
    if opened_online is None:
        opening = replace(opening, new=new_run(layout.root, opening.experiment))
    spool = Spool.create(layout.spool, uri, layout.root, opening, opened_online)

    def client_of_server() -> MlflowClient:
        import mlflow

        if spool.state.run_id is None:  # the stages before it come first
            open_store(runtime, layout)
            send_waiting(layout.spool, uri, mlflow.MlflowClient(), skip=spool.folder)
        return mlflow.MlflowClient()

    run_id = opened_online.run_id if opened_online else str(opening.local_id)
    return StageRun(run_id, opening.experiment, SpooledLog(spool, None if offline else client_of_server))


def _open_online(opening: Opening, layout: Layout, runtime: RuntimeConfig, uri: str) -> Opened:
    """Send what earlier stages left, then open the run."""
    connect(runtime, layout)
    import mlflow

    client = mlflow.MlflowClient()
    for result in send_waiting(layout.spool, uri, client):
        if result.outcome == "sent":
            log.info("%s: sent what %s had kept for the tracking server", opening.stage, result.stage)
        elif result.outcome == "refused":
            log.warning("%s: %s is kept in %s: %s", opening.stage, result.stage, result.folder, result.why)
    with tracking_errors(uri):
        return open_run(client, opening, layout.root)


def _told_to_sync(error: UnreachableError, layout: Layout) -> UserError:
    kept = f"run `textmill sync` (what earlier stages logged is kept in {layout.spool})"
    wait = any(layout.spool.glob("[0-9]*"))
    fix = f"Start it, {kept}, then `dvc repro`" if wait else f"{error.fix}, or set ${OFFLINE}=1 to log to it later"
    return UnreachableError(error.what, where=error.where, fix=fix)


def _start_monitor(run: StageRun) -> Any:
    """Log CPU, memory and GPU usage to the run's own log; MLflow's monitor asks the server at each sample."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):
        def monitor(self) -> None:
            step = 0
            while not self._shutdown_event.is_set():
                self.collect_metrics()  # type: ignore[no-untyped-call]
                if self._shutdown_event.wait(self.sampling_interval):
                    return
                try:
                    metrics = self.aggregate_metrics()  # type: ignore[no-untyped-call]
                    run.log_metrics({f"{SYSTEM}{key}": value for key, value in metrics.items()}, step)
                except (UserError, OSError):  # the stage itself meets the full disk too
                    return
                step += 1
                for monitor in self.monitors:
                    monitor.clear_metrics()  # type: ignore[no-untyped-call]

    monitor = Monitor(run.run_id, sampling_interval=_SYSTEM_METRICS_SECONDS)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def end_run(run: StageRun, status: str, monitor: Any = None, *, cause: BaseException | None = None) -> None:
    """End the run. After an error `cause`, those of the store are only logged, so that the former is raised."""
    with delay_signals():
        try:
            if monitor is not None:
                monitor.finish()
            run.end(status)
        except (UserError, OSError) as error:
            if cause is None:
                raise
            if str(error) != str(cause):  # the stage ends with the same line
                log.warning("could not mark the run %s as %s: %s", run.run_id, status, error)


def run_status(error: BaseException) -> str:
    """Return KILLED for an interruption, FAILED for any other error.

    Lightning turns Ctrl-C into `SystemExit(1)` and SIGTERM into a `SystemExit` without a code.
    """
    if isinstance(error, SystemExit) and isinstance(error.code, int) and 0 < error.code < 128:
        return "KILLED" if isinstance(error.__context__, KeyboardInterrupt) else "FAILED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


@contextmanager
def delay_signals() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until the block ends, so that no run is created and left open.

    At most three seconds: a server that hangs must not hold a process that is to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    end = float("inf")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def delay(number: int, _frame: FrameType | None) -> None:
        nonlocal end
        if not arrived:
            arrived.append(number)
            end = time.monotonic() + _SIGNAL_SECONDS
            timer.start()
        elif time.monotonic() >= end:
            arrived.clear()
            restore()
            os.kill(os.getpid(), number)

    def remind() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, arrived[0])

    timer = threading.Timer(_SIGNAL_SECONDS + 0.1, remind)
    timer.daemon = True
    for number in handlers:
        signal.signal(number, delay)
    try:
        yield
    finally:
        timer.cancel()
        restore()
    for late in arrived:
        os.kill(os.getpid(), late)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
