"""What an answer of a candidate costs: time for one input and size on disk, as it would be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textmill.data.prepared import Prepared
from textmill.models.base import Model
from textmill.predicting.loading import Precision, load_predictor
from textmill.selection.candidates import Candidate
from textmill.selection.contenders import SPLIT, Baseline
from textmill.selection.results import Served
from textmill.tasks.abilities import generates, natural_inputs
from textmill.tasks.base import Task

_ROWS = 50
_FEW_ROWS = 3  # of a model that writes
_REPEATS = 3
_MEGABYTE = 1e6
_SERVED: Precision = "int8"  # the graph that is served unless another is asked for


def network_costs(candidate: Candidate, prepared: Prepared) -> Served:
    """Of a network with the weights that it begins with: its speed does not depend on them.

    A model that writes is timed on few inputs; untrained, it writes as much as it may.

    Raises:
        UserError: The architecture does not fit the task, or cannot be exported.
    """
    import torch

    from textmill.export.export import write_served
    from textmill.models.lora import merge_adapters
    from textmill.predicting.exported import write_manifest
    from textmill.registry.promotion.costs import latencies, size
    from textmill.training.loading import with_architecture

    config, layout = candidate.config, candidate.layout
    task = Task.build(config.prepare.task)
    torch.manual_seed(config.train.seed)
    pretrained = with_architecture(layout.pretrained)
    network: Any = task.build_network(Model.build(config.train.model), pretrained, prepared.state).eval().float()
    merge_adapters(network)
    folder = layout.root / "served"
    write_served(config.export, task, prepared, network, folder)
    write_manifest(folder)
    predictor = load_predictor(folder, _SERVED)
    rows, repeats = (_FEW_ROWS, 1) if generates(task) else (_ROWS, _REPEATS)
    [latency] = latencies([predictor], _inputs(task, prepared, rows), repeats)
    return Served(latency, size(folder, predictor, _SERVED))


def baseline_costs(baseline: Baseline) -> Served:
    """Of a fitted baseline: a text is cut into words and answered. It is pickled only to be weighed."""
    import cloudpickle

    from textmill.registry.promotion.costs import latencies

    task, prepared = baseline.task, baseline.prepared
    [latency] = latencies([_Answering(baseline)], _inputs(task, prepared, _ROWS), _REPEATS)
    return Served(latency, len(cloudpickle.dumps(baseline.answer)) / _MEGABYTE)


def _inputs(task: Task, prepared: Prepared, rows: int) -> list[dict[str, Any]]:
    return natural_inputs(task, prepared.split(SPLIT).slice(0, rows))[:rows]


class _Answering:
    """A baseline that is asked as a served model is."""

    def __init__(self, baseline: Baseline) -> None:
        from textmill.data.words import word_splitter

        self._baseline = baseline
        self._words = word_splitter(baseline.candidate.config.prepare.words)

    def predict(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        """Answer natural inputs."""
        task = self._baseline.task
        frame = task.parse_inputs(values)
        texts = frame[list(task.text_columns)].agg(" ".join, axis=1).tolist()
        assert self._baseline.answer is not None
        answered = self._baseline.answer(frame.assign(words=self._words(texts)))
        return [{str(key): value for key, value in row.items()} for row in answered.to_dict("records")]
