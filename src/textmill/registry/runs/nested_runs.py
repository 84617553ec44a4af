"""A parent run in MLflow with child runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.registry.runs.opening import Opened, Opening, create_run, new_run, open_run, process_tag
from textmill.registry.runs.store import connect, tracking_errors
from textmill.registry.runs.tracking import StageRun, StoreLog, delay_signals, end_run, run_status

_PARENT = "mlflow.parentRunId"  # tag by which MLflow's UI nests runs


class NestedRuns:
    """A parent run and its children by name."""

    def __init__(self, parent: StageRun, layout: Layout) -> None:
        self.parent = parent
        self.children: dict[str, StageRun] = {}
        self._layout = layout

    def start_child(self, name: str) -> StageRun:
        """Open a child run; it ends with the parent."""
        run = _open(self.parent.experiment, name, self._layout)
        self.children[name] = run
        run.set_tags({_PARENT: self.parent.run_id})
        return run


@contextmanager
def nested_runs(name: str, layout: Layout, runtime: RuntimeConfig) -> Iterator[NestedRuns]:
    """Open a parent run; on exit set the final status of all runs.

    Raises:
        UserError: The store cannot be reached or refuses.
    """
    connect(runtime, layout)
    runs = NestedRuns(_open(runtime.tracking_experiment, name, layout), layout)
    status: str = "FINISHED"
    cause: BaseException | None = None
    try:
        yield runs
    except BaseException as error:
        status, cause = run_status(error), error
        raise
    finally:
        for run in (*runs.children.values(), runs.parent):
            end_run(run, status, cause=cause)


@contextmanager
def child_run(parent: str | None, opening: Opening, layout: Layout) -> Iterator[StageRun]:
    """Open or resume a run below the run `parent`, None for no parent; on exit set its final status.

    The store must be connected.

    Raises:
        UserError: The store cannot be reached or refuses.
    """
    import mlflow

    client, uri = mlflow.MlflowClient(), mlflow.get_tracking_uri()
    with delay_signals(), tracking_errors(uri):
        opened = open_run(client, opening, layout.root)
        run = StageRun(opened.run_id, opening.experiment, StoreLog(client, uri, opened))
        run.set_tags(process_tag() | ({_PARENT: parent} if parent else {}))
    try:
        yield run
    except BaseException as error:
        end_run(run, run_status(error), cause=error)
        raise
    end_run(run, "FINISHED")


def mark_running(run_id: str) -> None:
    """Set a run to RUNNING, as other processes still work on it."""
    import mlflow

    with tracking_errors(mlflow.get_tracking_uri()):
        mlflow.MlflowClient().update_run(run_id, status="RUNNING")


def _open(experiment: str, name: str, layout: Layout) -> StageRun:
    import mlflow

    client, uri = mlflow.MlflowClient(), mlflow.get_tracking_uri()
    with delay_signals(), tracking_errors(uri):
        tags = {**new_run(layout.root, experiment)["tags"], **process_tag()}
        run_id = create_run(client, experiment, name, tags)
        return StageRun(run_id, experiment, StoreLog(client, uri, Opened(run_id, {})))
