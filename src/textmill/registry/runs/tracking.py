"""One MLflow run for each pipeline run: opened by `train`, continued by the later stages."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from textmill.config import resolved
from textmill.config.layout import Layout
from textmill.config.section import Section
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.files import read_json, write_json
from textmill.registry.runs.origin import PREFIX, installed_packages, lock_tags, origin_tags, user_name
from textmill.registry.runs.store import connect, find_active_run, tracking_errors

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["StageRun", "connect", "stage_run"]

log = logging.getLogger("textmill")

_CONFIGURATION = "config/resolved.yaml"
_FLUSH_SECONDS = 1.0
_SYSTEM_METRICS_SECONDS = 5.0
_PARAMS_IN_A_BATCH = 100
_METRICS_IN_A_BATCH = 1000
_DIGEST_LENGTH = 12  # MLflow's tables show no more; the profile has the whole digest


class StageRun:
    """An open MLflow run. Metrics are buffered and written about once a second."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str, experiment: str) -> None:
        self.run_id = run_id
        self.experiment = experiment
        self.client = client
        self.uri = uri
        self._pending: list[Any] = []
        self._flushed = time.monotonic()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings get dotted names. Parameters logged before keep their values."""
        from mlflow.entities import Param

        with tracking_errors(self.uri):
            known = self.client.get_run(self.run_id).data.params
            new = [Param(key, str(value)) for key, value in _flat(params) if key not in known]
            for start in range(0, len(new), _PARAMS_IN_A_BATCH):
                self.client.log_batch(self.run_id, params=new[start : start + _PARAMS_IN_A_BATCH])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, at `step` if given."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(key, float(value), now, step or 0) for key, value in metrics.items()]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS or len(self._pending) >= _METRICS_IN_A_BATCH:
            self.flush()

    def flush(self) -> None:
        """Write the buffered metrics."""
        with tracking_errors(self.uri):
            while self._pending:
                self.client.log_batch(self.run_id, metrics=self._pending[:_METRICS_IN_A_BATCH])
                del self._pending[:_METRICS_IN_A_BATCH]
        self._flushed = time.monotonic()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file in `folder` of the run's artifacts."""
        with tracking_errors(self.uri):
            self.client.log_artifact(self.run_id, str(path), folder)

    def log_folder(self, path: Path, folder: str) -> None:
        """Store a folder's content in `folder` of the run's artifacts."""
        with tracking_errors(self.uri):
            self.client.log_artifacts(self.run_id, str(path), folder)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a plot in the run's artifacts; `name` includes the format, such as `plots/history.png`."""
        with tracking_errors(self.uri):
            self.client.log_figure(self.run_id, figure, name)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, replacing earlier values."""
        from mlflow.entities import RunTag

        with tracking_errors(self.uri):
            self.client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

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
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.models import infer_signature

        with tracking_errors(self.uri), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Hint: Inferred schema contains integer column")
            dataset = Dataset(
                name=name,
                digest=digest[:_DIGEST_LENGTH],
                source_type="local",
                source=json.dumps({"uri": source}),
                schema=json.dumps({"mlflow_colspec": infer_signature(head).inputs.to_dict()}),
                profile=json.dumps({"num_rows": rows, "sha256": digest}),
            )
            dataset_input = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
            self.client.log_inputs(self.run_id, datasets=[dataset_input])

    def log_configuration(self, stage: str, section: Section, layout: Layout) -> None:
        """Store the resolved configuration with the run; `section` is the one that `stage` used.

        A stage run by hand may use other values than `data/resolved.yaml`, and a continued run keeps the
        values of its earlier stages.
        """
        with tracking_errors(self.uri):
            content = read_configuration(self.client, self.run_id)
            if content is None and layout.resolved.is_file():
                content = resolved.load(layout.resolved.read_text(encoding="utf-8"))
            if content is not None:
                content[stage] = section.model_dump(mode="json", by_alias=True)
                self.client.log_text(self.run_id, resolved.dump(content), _CONFIGURATION)

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
) -> Iterator[StageRun]:
    """Open or resume the stage's MLflow run; set its final status on exit.

    The stage continues the run of the stage before. A new run is opened when that run is not in this
    store, or has this stage with another fingerprint (one training evaluated in two ways). The new run
    names its predecessor in the tag `textmill.upstream_run_id` and copies its parameters. A repeated
    stage finds this run again.

    The status is FINISHED, FAILED after an exception, or KILLED after Ctrl-C or SIGTERM.

    Args:
        stage: Name of the stage.
        layout: The project.
        runtime: Names the store and the experiment.
        upstream: `run.json` of the stage before, or None to open a new run.
        fingerprint: Digest of everything that determines the stage's result.
        resume_run_id: Interrupted run of this stage to continue.
        name: Label of the run, followed by the fingerprint: the model.
        system_metrics: Whether to log CPU, memory and GPU usage.

    Raises:
        UserError: The store cannot be reached or refuses.
    """
    connect(runtime, layout)
    import mlflow

    client, uri = mlflow.MlflowClient(), mlflow.get_tracking_uri()
    run = monitor = None
    try:
        with delay_signals(), tracking_errors(uri):
            previous = read_json(upstream)["run_id"] if upstream and upstream.is_file() else None
            source = find_active_run(client, resume_run_id or previous)
            if source is None or (resume_run_id is None and _holds_another(source, stage, fingerprint)):
                existing = _find_linked(client, runtime.tracking_experiment, previous, stage, fingerprint)
            else:
                existing = source
            if existing is not None:
                client.update_run(existing.info.run_id, status="RUNNING")
                run = StageRun(client, uri, existing.info.run_id, runtime.tracking_experiment)
            else:
                label = f"{name or stage}-{fingerprint[:8]}"
                run_id = create_run(
                    client, runtime.tracking_experiment, os.environ.get("DVC_EXP_NAME") or label, layout.root
                )
                run = StageRun(client, uri, run_id, runtime.tracking_experiment)
                client.log_text(run_id, installed_packages(), "environment/requirements.txt")
                _copy(run, source, previous)
        run.set_tags({f"{PREFIX}stage.{stage}": fingerprint, **lock_tags(layout.root)})
        monitor = _start_monitor(run.run_id, resume_run_id is not None) if system_metrics else None
        yield run
        run.flush()
    except BaseException as error:
        if run is not None:
            end_run(run, run_status(error), monitor, broken=True)
        raise
    end_run(run, "FINISHED", monitor, broken=False)


def read_configuration(client: MlflowClient, run_id: str) -> dict[str, Any] | None:
    """Return the configuration sections stored with a run, or None if there are none."""
    import mlflow

    folder = _CONFIGURATION.partition("/")[0]
    if not any(artifact.path == _CONFIGURATION for artifact in client.list_artifacts(run_id, folder)):
        return None
    return resolved.load(mlflow.artifacts.load_text(f"runs:/{run_id}/{_CONFIGURATION}"))


def _find_linked(
    client: MlflowClient, experiment: str, previous: str | None, stage: str, fingerprint: str
) -> Run | None:
    """Return the run that an earlier call opened for this stage after the run `previous`."""
    store = client.get_experiment_by_name(experiment)
    if previous is None or store is None:
        return None
    tags = {f"{PREFIX}upstream_run_id": previous, f"{PREFIX}stage.{stage}": fingerprint}
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    return next(iter(client.search_runs([store.experiment_id], query, max_results=1)), None)


def _holds_another(run: Run, stage: str, fingerprint: str) -> bool:
    return str(run.data.tags.get(f"{PREFIX}stage.{stage}", fingerprint)) != fingerprint


def create_run(client: MlflowClient, experiment: str, name: str, root: Path) -> str:
    """Create a run with the tags of its origin and return its id."""
    tags = origin_tags(root) | {
        f"{PREFIX}experiment": experiment,
        "mlflow.source.name": "textmill",
        "mlflow.source.type": "PROJECT",
    }
    if user := user_name():
        tags["mlflow.user"] = user
    stored = client.get_experiment_by_name(experiment)
    if stored is None:
        raise UserError(f"the experiment {experiment!r} no longer exists in the tracking store")
    return str(client.create_run(stored.experiment_id, run_name=name, tags=tags).info.run_id)


def _copy(run: StageRun, source: Run | None, previous: str | None) -> None:
    """Link a new run to the run `previous` and copy its parameters and configuration."""
    if previous is None:
        return
    run.set_tags({f"{PREFIX}upstream_run_id": previous})
    if source is None:
        return
    if train := source.data.tags.get(f"{PREFIX}stage.train"):
        run.set_tags({f"{PREFIX}stage.train": train})
    if (content := read_configuration(run.client, source.info.run_id)) is not None:
        run.client.log_text(run.run_id, resolved.dump(content), _CONFIGURATION)
    run.log_params(source.data.params)


def _start_monitor(run_id: str, resume: bool) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, sampling_interval=_SYSTEM_METRICS_SECONDS, resume_logging=resume)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def end_run(run: StageRun, status: str, monitor: Any = None, *, broken: bool) -> None:
    """End the run. With `broken`, errors of the store are only logged, so that the stage's error is raised."""
    with delay_signals():
        try:
            if monitor is not None:
                monitor.finish()
            run.flush()
            with tracking_errors(run.uri):
                run.client.set_terminated(run.run_id, status)
        except UserError as error:
            if not broken:
                raise
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
    """Delay SIGINT and SIGTERM until the block ends, so that no run is created and left open."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda signum, frame: arrived.append((signum, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for signum, _ in arrived:
        os.kill(os.getpid(), signum)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
