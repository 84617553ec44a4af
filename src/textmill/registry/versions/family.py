"""One MLflow run with others below it: of several trainings that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.registry.runs.store import connect, tracking_errors
from textmill.registry.runs.tracking import StageRun, create_run, end_run, signals_wait, status_after

_PARENT = "mlflow.parentRunId"  # by which MLflow's UI nests runs


class Family:
    """The run above, and those below it by name."""

    def __init__(self, parent: StageRun, layout: Layout) -> None:
        self.parent = parent
        self.children: dict[str, StageRun] = {}
        self._layout = layout

    def child(self, name: str) -> StageRun:
        """A new run below; it ends with the one above."""
        run = _open(self.parent.experiment, name, self._layout, self.parent.uri)
        self.children[name] = run
        run.set_tags({_PARENT: self.parent.run_id})
        return run


@contextmanager
def run_family(name: str, layout: Layout, runtime: RuntimeConfig) -> Iterator[Family]:
    """Open the run above; at the end all runs end as the block did.

    Args:
        name: Of the run above.
        layout: The project.
        runtime: Names the store and the experiment.

    Raises:
        UserError: The store cannot be reached or refuses.
    """
    connect(runtime, layout)
    import mlflow

    family = Family(_open(runtime.tracking_experiment, name, layout, mlflow.get_tracking_uri()), layout)
    status, broken = "FINISHED", False
    try:
        yield family
    except BaseException as error:
        status, broken = status_after(error), True
        raise
    finally:
        for run in (*family.children.values(), family.parent):
            end_run(run, status, broken=broken)


def _open(experiment: str, name: str, layout: Layout, uri: str) -> StageRun:
    import mlflow

    client = mlflow.MlflowClient()
    with signals_wait(), tracking_errors(uri):
        return StageRun(client, uri, create_run(client, experiment, name, layout.root), experiment)
