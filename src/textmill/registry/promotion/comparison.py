"""Compare two versions or runs: parameters, data, metrics, paired differences, costs."""

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
from textmill.evaluation.gate import Costs, deciding_inputs, unseen_checks
from textmill.evaluation.measurements import GROUP
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, Interval, intervals, paired_differences
from textmill.predicting.exported import read_specification
from textmill.registry.promotion.measuring import fetch_verified, measure
from textmill.registry.promotion.promotion import current_configuration
from textmill.registry.runs.addresses import find_run, find_version, require_run_id
from textmill.registry.runs.origin import data_digests
from textmill.registry.runs.store import open_client
from textmill.registry.versions.version_files import fetch_folder
from textmill.tasks.base import State, Task

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_TEST = "test/"
_PREDICTIONS = "evaluation/predictions.parquet"


class NotMeasuredError(Exception):
    """Two subjects that cannot predict the same rows now; the message says why, if both are versions."""


@dataclass(frozen=True)
class Subject:
    """A run to compare, and the latest version registered from it, if any."""

    name: str
    run: Run
    version: ModelVersion | None


@dataclass(frozen=True)
class Comparison:
    """The differences between two subjects; pairs are in the order of the subjects.

    Attributes:
        params: Parameters that differ.
        digests: Digests of the prepared files, equal ones included, and of the test rows as the gate counts them.
        metrics: Headline metrics with intervals; None where a subject lacks one.
        differences: Paired differences, second minus first; empty if the rows differ.
        higher_is_better: Metric name -> direction, for metrics computed here.
        costs: Costs measured together; empty unless both are versions.
        how: Source of metrics and differences, as a sentence.
    """

    names: tuple[str, str]
    params: dict[str, tuple[str | None, str | None]]
    digests: dict[str, tuple[str | None, str | None]]
    metrics: dict[str, tuple[Interval | None, Interval | None]]
    differences: dict[str, Interval]
    higher_is_better: dict[str, bool]
    costs: tuple[Costs, ...]
    how: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "names": list(self.names),
            "params": {name: list(pair) for name, pair in self.params.items()},
            "digests": {name: list(pair) for name, pair in self.digests.items()},
            "metrics": {
                name: [interval.as_dict() if interval else None for interval in pair]
                for name, pair in self.metrics.items()
            },
            "differences": {name: interval.as_dict() for name, interval in self.differences.items()},
            "costs": [asdict(costs) for costs in self.costs],
            "how": self.how,
        }


def compare(first: str, second: str, layout: Layout) -> Comparison:
    """Compare two versions (addresses as in `addresses.find_version`) or runs (ids).

    Two versions with the same test rows predict them again, together. Otherwise the metrics are those
    logged by the runs, and the differences come from their stored predictions.

    Raises:
        UserError: A subject does not exist, or the store does not answer.
    """
    config = current_configuration(layout)
    with open_client(config.runtime, layout) as client:
        pair = (_subject(first, client, layout), _subject(second, client, layout))
        params = _pairs(pair[0].run.data.params, pair[1].run.data.params)
        common: dict[str, Any] = {
            "names": (pair[0].name, pair[1].name),
            # Not what `textmill plan` expected: every machine and every moment has its own estimate.
            "params": {
                name: values
                for name, values in params.items()
                if values[0] != values[1] and not name.startswith("plan.")
            },
            "digests": _pairs(_digests(pair[0]), _digests(pair[1])),
        }
        try:
            values = _measured(pair, layout, config)
        except NotMeasuredError as error:
            values = _logged(pair, layout, config, f" Not predicted now: {error}." if str(error) else "")
        common["digests"] |= values.pop("digests", {})
        return Comparison(**common, **values)


def _subject(text: str, client: MlflowClient, layout: Layout) -> Subject:
    run = find_run(text, client)
    if run is None:
        version = find_version(text, client, layout)
        return Subject(f"{version.name}/{version.version}", client.get_run(require_run_id(version)), version)
    versions = client.search_model_versions(f"run_id = '{text}'")
    last = max(versions, key=lambda version: int(version.version), default=None)
    return Subject(run.info.run_name or text, run, last)


def _digests(subject: Subject) -> dict[str, str]:
    """Return the digests of splits and corpus from the version's tags, or else from the run's logged datasets."""
    if subject.version is not None:
        return data_digests(subject.version.tags)
    inputs = subject.run.inputs.dataset_inputs if subject.run.inputs else []
    return {logged.dataset.name: logged.dataset.digest for logged in inputs}


def _pairs(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    return {name: (first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])}


def _measured(pair: tuple[Subject, Subject], layout: Layout, config: PipelineConfig) -> dict[str, Any]:
    """Measure two versions on the test split of the second: on all of it if it is that of the first too.

    Otherwise they are measured on the rows that neither has seen.

    Raises:
        NotMeasuredError: One of them is not a version, or its data is not available, or too few rows are unseen.
    """
    if any(subject.version is None for subject in pair):
        raise NotMeasuredError
    versions = [fetch_verified(subject.version, layout) for subject in pair[::-1] if subject.version]
    try:
        material = measure(versions, layout, config.gate)
    except UserError as error:
        raise NotMeasuredError(str(error).rstrip(".")) from error
    assert material.champion is not None, "two versions were given"
    digests = (material.champion.digest, material.digest)
    deciding = deciding_inputs(material, config.gate)
    if deciding is None or deciding.champion is None:
        problems = unseen_checks(material, None, config.gate.min_unseen)
        raise NotMeasuredError(f"their test rows differ, and {'; '.join(check.words for check in problems)}")
    tables = (deciding.champion.predictions, deciding.challenger.predictions)
    used = next((rows for rows in material.unseen if rows.inputs.digest == deciding.digest), None)
    rows = f"the {len(deciding.frame)} rows of the test split" if used is None else "rows that neither has seen"
    counts = "" if used is None else f": {used}"
    graphs = "the graphs that serve" if config.gate.precision == "auto" else f"their {config.gate.precision} graphs"
    return {
        **_measured_metrics(tables, material.metrics, material.target_columns, config),
        "costs": (material.champion.costs, material.challenger.costs),
        "digests": {"test rows": digests},
        "how": f"Both predicted {rows} now, with {graphs}{counts}.",
    }


def _measured_metrics(
    tables: tuple[pd.DataFrame, pd.DataFrame], metrics: Any, targets: Any, config: PipelineConfig
) -> dict[str, Any]:
    bootstrap = Bootstrap(config.gate.resamples, config.gate.confidence, config.gate.seed)
    headline: list[Metric] = [metric for metric in metrics if GROUP not in metric.name]
    try:
        first, second = (intervals(table, headline, bootstrap) for table in tables)
        differences = paired_differences(tables[1], tables[0], headline, bootstrap, targets)
    except (KeyError, ValueError) as error:  # unknown labels or columns
        raise UserError(f"the two have no common metrics ({error!r})", fix="Compare models of one task") from error
    return {
        "metrics": {metric.name: (first[metric.name], second[metric.name]) for metric in headline},
        "differences": differences,
        "higher_is_better": {metric.name: metric.higher_is_better for metric in headline},
    }


def _logged(pair: tuple[Subject, Subject], layout: Layout, config: PipelineConfig, why: str) -> dict[str, Any]:
    """Compare stored predictions if both have them for the same rows, or else logged metrics."""
    try:
        tables = (_predictions(pair[0].run), _predictions(pair[1].run))
        task, state = _task_and_state(pair, layout, config)
        metrics = evaluator_of(task).metrics(state)
        how = f"From the stored predictions of the runs for {len(tables[0])} test rows.{why}"
        return {**_measured_metrics(tables, metrics, task.target_columns, config), "costs": (), "how": how}
    except UserError as error:
        reason = error.what
    first, second = (_logged_intervals(subject.run.data.metrics) for subject in pair)
    names = dict.fromkeys([*first, *second])
    return {
        "metrics": {name: (first.get(name), second.get(name)) for name in names},
        "differences": {},
        "higher_is_better": {},
        "costs": (),
        "how": f"As logged by the runs. No paired difference: {reason}.{why}",
    }


def _task_and_state(pair: tuple[Subject, Subject], layout: Layout, config: PipelineConfig) -> tuple[Task, State]:
    """Return those of a version among the two, or else of the workspace."""
    for version in filter(None, (subject.version for subject in pair)):
        exported = read_specification(fetch_folder(version, layout))
        return Task.build(exported.task), exported.state
    return Task.build(config.evaluate.task), Prepared(layout.prepared).state


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
    """Return the headline metrics of the test split with their intervals."""
    names = [name.removeprefix(_TEST) for name in metrics if name.startswith(_TEST)]
    return {
        name: Interval(metrics[_TEST + name], metrics[f"{_TEST}{name}_low"], metrics[f"{_TEST}{name}_high"])
        for name in names
        if GROUP not in name and f"{_TEST}{name}_low" in metrics and f"{_TEST}{name}_high" in metrics
    }
