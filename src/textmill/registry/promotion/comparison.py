"""Two versions or runs side by side: parameters, data, figures, paired differences, costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.config.schema import PipelineConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.evaluation.evaluator import evaluator_of
from textmill.evaluation.gate import Costs
from textmill.evaluation.measurements import GROUP
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, Interval, intervals, paired_differences
from textmill.registry.promotion.measuring import fetched, measure
from textmill.registry.promotion.promotion import configuration
from textmill.registry.runs.addresses import find_run, find_version, run_id_of
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import open_store, tracking_errors
from textmill.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_DIGESTS = f"{PREFIX}data."
_TEST = "test/"
_PREDICTIONS = "evaluation/predictions.parquet"


@dataclass(frozen=True)
class Subject:
    """One of the two: a run, and the version made of it where there is one."""

    name: str
    run: Run
    version: ModelVersion | None


@dataclass(frozen=True)
class Comparison:
    """What is alike and what is not, the first of each pair belonging to the first subject.

    Attributes:
        names: Of the two.
        params: Parameters that differ.
        digests: Digests of the data, equal or not.
        figures: Headline metrics with intervals; None where one has none.
        differences: Second minus first, on paired draws; empty when the rows are not the same.
        higher_is_better: Of each metric that was measured now.
        costs: Measured side by side; empty for what is no version.
        how: Where figures and differences come from, in words.
    """

    names: tuple[str, str]
    params: dict[str, tuple[str | None, str | None]]
    digests: dict[str, tuple[str | None, str | None]]
    figures: dict[str, tuple[Interval | None, Interval | None]]
    differences: dict[str, Interval]
    higher_is_better: dict[str, bool]
    costs: tuple[Costs, ...]
    how: str

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "names": list(self.names),
            "params": {name: list(pair) for name, pair in self.params.items()},
            "digests": {name: list(pair) for name, pair in self.digests.items()},
            "figures": {
                name: [found.as_dict() if found else None for found in pair] for name, pair in self.figures.items()
            },
            "differences": {name: found.as_dict() for name, found in self.differences.items()},
            "costs": [asdict(costs) for costs in self.costs],
            "how": self.how,
        }


def compare(first: str, second: str, layout: Layout) -> Comparison:
    """Compare two versions or runs.

    Two versions made beside the test split at hand answer it anew, in one session. Otherwise the
    figures are those that the runs logged, and the differences come from their stored predictions.

    Args:
        first: A version's address (see `addresses.find_version`) or the id of a run.
        second: The same.
        layout: The project.

    Raises:
        UserError: One is not there, or the store does not answer.
    """
    config = configuration(layout)
    uri = open_store(config.runtime, layout)
    import mlflow

    client = mlflow.MlflowClient()
    with tracking_errors(uri):
        pair = (_subject(first, client, layout), _subject(second, client, layout))
        digests = _pairs(_digests(pair[0]), _digests(pair[1]))
        common: dict[str, Any] = {
            "names": (pair[0].name, pair[1].name),
            "params": {
                name: values
                for name, values in _pairs(pair[0].run.data.params, pair[1].run.data.params).items()
                if values[0] != values[1]
            },
            "digests": digests,
        }
        if _can_answer(pair, layout):
            return Comparison(**common, **_measured(pair, layout, config))
        return Comparison(**common, **_logged(pair, layout, config))


def _subject(text: str, client: MlflowClient, layout: Layout) -> Subject:
    run = find_run(text, client)
    if run is None:
        version = find_version(text, client, layout)
        return Subject(f"{version.name}/{version.version}", client.get_run(run_id_of(version)), version)
    made = client.search_model_versions(f"run_id = '{text}'")
    last = max(made, key=lambda found: int(found.version), default=None)
    return Subject(run.info.run_name or text, run, last)


def _digests(subject: Subject) -> dict[str, str]:
    """Of the splits and the corpus; a run without a version knows what it logged as its datasets."""
    if subject.version is not None:
        tags = subject.version.tags
        return {
            key.removeprefix(_DIGESTS).removesuffix("_sha256"): value
            for key, value in sorted(tags.items())
            if key.startswith(_DIGESTS)
        }
    used = subject.run.inputs.dataset_inputs if subject.run.inputs else []
    return {found.dataset.name: found.dataset.digest for found in used}


def _pairs(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    return {name: (first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])}


def _can_answer(pair: tuple[Subject, Subject], layout: Layout) -> bool:
    """Whether both are versions made beside the test split at hand."""
    if not (layout.prepared / "state.json").is_file() or any(subject.version is None for subject in pair):
        return False
    digest = Prepared(layout.prepared).digest("test")
    return all(subject.version.tags.get(f"{_DIGESTS}test_sha256") == digest for subject in pair if subject.version)


def _measured(pair: tuple[Subject, Subject], layout: Layout, config: PipelineConfig) -> dict[str, Any]:
    sides = [fetched(subject.version, layout) for subject in pair if subject.version]
    material = measure(sides, layout, config.gate)
    assert material.champion is not None, "two sides were given"
    tables = (material.challenger.predictions, material.champion.predictions)
    how = (
        f"Both answered the {len(material.frame)} rows of the test split now, by their {config.gate.precision} graphs."
    )
    return {
        **_figures(tables, material.metrics, material.target_columns, config),
        "costs": (material.challenger.costs, material.champion.costs),
        "how": how,
    }


def _figures(
    tables: tuple[pd.DataFrame, pd.DataFrame], metrics: Any, targets: Any, config: PipelineConfig
) -> dict[str, Any]:
    bootstrap = Bootstrap(config.gate.resamples, config.gate.confidence, config.gate.seed)
    headline: list[Metric] = [metric for metric in metrics if GROUP not in metric.name]
    try:
        first, second = (intervals(table, headline, bootstrap) for table in tables)
        differences = paired_differences(tables[1], tables[0], headline, bootstrap, targets)
    except (KeyError, ValueError) as error:  # a metric met labels or columns that it does not know
        raise UserError(f"the two cannot be measured alike ({error!r})", fix="Compare models of one task") from error
    return {
        "figures": {metric.name: (first[metric.name], second[metric.name]) for metric in headline},
        "differences": differences,
        "higher_is_better": {metric.name: metric.higher_is_better for metric in headline},
    }


def _logged(pair: tuple[Subject, Subject], layout: Layout, config: PipelineConfig) -> dict[str, Any]:
    """From the runs alone: their stored predictions where they are of the same rows, else their figures."""
    try:
        tables = (_predictions(pair[0].run), _predictions(pair[1].run))
        task = Task.build(config.evaluate.task)
        metrics = evaluator_of(task).metrics(Prepared(layout.prepared).state)
        how = f"From the predictions of {len(tables[0])} test rows that the runs stored."
        return {**_figures(tables, metrics, task.target_columns, config), "costs": (), "how": how}
    except UserError as error:
        why = error.what
    first, second = (_logged_intervals(subject.run.data.metrics) for subject in pair)
    names = dict.fromkeys([*first, *second])
    return {
        "figures": {name: (first.get(name), second.get(name)) for name in names},
        "differences": {},
        "higher_is_better": {},
        "costs": (),
        "how": f"As the runs logged them. There is no paired difference: {why}.",
    }


def _predictions(run: Run) -> pd.DataFrame:
    import mlflow
    import pandas as pd
    from mlflow.exceptions import MlflowException

    address = f"runs:/{run.info.run_id}/{_PREDICTIONS}"
    try:
        path = Path(mlflow.artifacts.download_artifacts(artifact_uri=address))
    except (MlflowException, OSError) as error:
        raise UserError(f"the run {run.info.run_name} stored no predictions") from error
    return pd.read_parquet(path)


def _logged_intervals(metrics: Mapping[str, float]) -> dict[str, Interval]:
    """Headline figures of the test split, with their bounds."""
    names = [name.removeprefix(_TEST) for name in metrics if name.startswith(_TEST)]
    return {
        name: Interval(metrics[_TEST + name], metrics[f"{_TEST}{name}_low"], metrics[f"{_TEST}{name}_high"])
        for name in names
        if GROUP not in name and f"{_TEST}{name}_low" in metrics and f"{_TEST}{name}_high" in metrics
    }
