"""The finished trainings of an experiment: operations, loss and learning rate of each."""

from __future__ import annotations

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.planning.scaling import Point
from textmill.registry.runs.store import open_client

METRIC = "bits_per_byte"
_MOST = 1000


def read_trainings(experiment: str, layout: Layout, runtime: RuntimeConfig) -> list[Point]:
    """Return the FINISHED runs of an experiment that have a plan and the metric `best/bits_per_byte`.

    Raises:
        UserError: The store cannot be reached, or there is no such experiment or run.
    """
    with open_client(runtime, layout) as client:
        stored = client.get_experiment_by_name(experiment)
        if stored is None:
            known = ", ".join(sorted(each.name for each in client.search_experiments()))
            raise UserError(f"no MLflow experiment {experiment!r}", where="--from-runs", fix=f"Known: {known}")
        runs = client.search_runs([stored.experiment_id], "attributes.status = 'FINISHED'", max_results=_MOST)
    points = [
        Point(
            str(run.info.run_name),
            float(run.data.params["plan.flops"]),
            float(run.data.metrics[f"best/{METRIC}"]),
            float(run.data.params["train.optimizer.learning_rate"]),
        )
        for run in runs
        if "plan.flops" in run.data.params and f"best/{METRIC}" in run.data.metrics
    ]
    if not points:
        fix = "It needs language models that `train` planned and finished (runtime.plan)"
        raise UserError(f"no finished training with operations and best/{METRIC}", where=experiment, fix=fix)
    return points
