"""Apply the log entries of a run to the tracking store; applying one twice adds nothing.

A SQL store keys a metric by run, name, step, time and value, a dataset by name and digest, and a tag or
an artifact by name. A parameter is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config import resolved
from textmill.registry.runs.origin import REGISTERED

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

Entry = dict[str, Any]

METRICS_IN_A_BATCH = 1000
SYSTEM = "system/"
_CONFIGURATION = "config/resolved.yaml"
_PARAMS_IN_A_BATCH = 100


def apply_entry(client: MlflowClient, run_id: str, entry: Entry, last_steps: Mapping[str, int], folder: Path) -> None:
    """Apply one entry to a run.

    Args:
        client: The store.
        run_id: The run.
        entry: As written by `StageRun`.
        last_steps: Last step of each metric before the stage was resumed: repeated steps are skipped.
        folder: The folder to which the paths of artifacts are relative.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    kind, values = entry["kind"], entry.get("values")
    if kind == "metrics":
        metrics = list(_metrics(entry["values"], last_steps))
        for start in range(0, len(metrics), METRICS_IN_A_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + METRICS_IN_A_BATCH])
    elif kind == "params":
        known = client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in entry["values"].items() if key not in known]
        for start in range(0, len(new), _PARAMS_IN_A_BATCH):
            client.log_batch(run_id, params=new[start : start + _PARAMS_IN_A_BATCH])
    elif kind == "tags":
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in entry["values"].items()])
    elif kind == "artifacts":
        path = folder / entry["path"]
        (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), entry["folder"])
    elif kind == "dataset":
        inputs = DatasetInput(Dataset(**entry["values"]), [InputTag("mlflow.data.context", entry["context"])])
        client.log_inputs(run_id, datasets=[inputs])
    elif kind == "configuration":
        content = read_configuration(client, run_id) or entry["base"]
        if content is not None:
            write_configuration(client, run_id, {**content, entry["stage"]: values})
    elif kind == "end":
        _end(client, run_id, entry["status"], entry["time"])
    else:
        raise ValueError(f"unknown entry {kind!r}")


def read_configuration(client: MlflowClient, run_id: str) -> dict[str, Any] | None:
    """Return the configuration sections stored with a run, or None if there are none."""
    import mlflow

    folder = _CONFIGURATION.partition("/")[0]
    if not any(artifact.path == _CONFIGURATION for artifact in client.list_artifacts(run_id, folder)):
        return None
    return resolved.load(mlflow.artifacts.load_text(f"runs:/{run_id}/{_CONFIGURATION}"))


def write_configuration(client: MlflowClient, run_id: str, content: dict[str, Any]) -> None:
    """Store configuration sections with a run."""
    client.log_text(run_id, resolved.dump(content), _CONFIGURATION)


def merge_metrics(entries: Iterable[tuple[int, Entry]]) -> Iterator[tuple[int, Entry]]:
    """Join consecutive entries of metrics, with the position after the last one of each."""
    held: tuple[int, Entry] | None = None
    for position, entry in entries:
        if held and entry["kind"] == "metrics" and len(held[1]["values"]) < METRICS_IN_A_BATCH:
            held = position, {**entry, "values": held[1]["values"] + entry["values"]}
            continue
        if held:
            yield held
        held = (position, entry) if entry["kind"] == "metrics" else None
        if held is None:
            yield position, entry
    if held:
        yield held


def _metrics(values: list[Any], last_steps: Mapping[str, int]) -> Iterator[Metric]:
    from mlflow.entities import Metric

    for key, value, time, step in values:
        last = last_steps.get(key, -1)
        if key.startswith(SYSTEM):  # counted from 0 by each process
            step = (step or 0) + last + 1
        elif step is not None and step <= last:
            continue
        yield Metric(key, value, time, step or 0)


def _end(client: MlflowClient, run_id: str, status: str, time: int) -> None:
    """Set a run's status; the run of a registered version stays FINISHED when a stage is repeated and fails."""
    run = client.get_run(run_id)
    if REGISTERED in run.data.tags:
        if run.info.status == "FINISHED":
            return
        status = "FINISHED"
    client.set_terminated(run_id, status, end_time=time)
