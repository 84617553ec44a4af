"""Latency and size of a candidate as it would be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textmill.data.prepared import Prepared
from textmill.models.base import Model
from textmill.predicting.loading import Precision, load_predictor
from textmill.selection.candidates import Candidate
from textmill.selection.results import ServingCost
from textmill.selection.trials import SPLIT, BaselineTrial, ChatTrial
from textmill.tasks.abilities import generates, natural_inputs
from textmill.tasks.base import Task

_ROWS = 50
_GENERATION_ROWS = 3
_REPEATS = 3
_MEGABYTE = 1e6
_SERVED: Precision = "int8"  # the graph that serves unless its loss is too large


def measure_network(candidate: Candidate, prepared: Prepared) -> ServingCost:
    """Export the network untrained and measure it: its speed does not depend on the weights.

    A generating model is timed on few inputs; untrained, it generates up to its length limit.

    Raises:
        UserError: The architecture does not fit the task, or cannot be exported.
    """
    import torch

    from textmill.export.export import write_served
    from textmill.models.encoder import keep_tokens
    from textmill.models.lora import merge_adapters
    from textmill.predicting.exported import write_manifest
    from textmill.registry.promotion.costs import latencies, size
    from textmill.training.loading import with_architecture

    config, layout = candidate.config, candidate.layout
    task = Task.build(config.prepare.task)
    torch.manual_seed(config.train.seed)
    pretrained = with_architecture(layout.pretrained)
    network: Any = task.build_network(Model.build(config.train.model), pretrained, prepared.state).eval().float()
    if pretrained is not None and (kept := prepared.kept_tokens) is not None:
        keep_tokens(network, kept)
    merge_adapters(network)
    folder = layout.root / "served"
    write_served(config.export, task, prepared, network, folder)
    write_manifest(folder)
    predictor = load_predictor(folder, _SERVED)
    rows, repeats = (_GENERATION_ROWS, 1) if generates(task) else (_ROWS, _REPEATS)
    [latency] = latencies([predictor.predict], _inputs(task, prepared, rows), repeats)
    return ServingCost(latency, size(folder, predictor, _SERVED))


def measure_baseline(baseline: BaselineTrial) -> ServingCost:
    """Measure a fitted baseline: latency with word splitting, and size when pickled."""
    import cloudpickle

    from textmill.data.words import word_splitter
    from textmill.registry.promotion.costs import latencies

    task, fitted = baseline.task, baseline.predict
    assert fitted is not None
    split = word_splitter(baseline.candidate.config.prepare.words)

    def predict(values: Sequence[Any]) -> list[dict[str, Any]]:
        frame = task.parse_inputs(values)
        texts = frame[list(task.text_columns)].agg(" ".join, axis=1).tolist()
        answers = fitted(frame.assign(words=split(texts)))
        return [{str(key): value for key, value in row.items()} for row in answers.to_dict("records")]

    [latency] = latencies([predict], _inputs(task, baseline.prepared, _ROWS), _REPEATS)
    return ServingCost(latency, len(cloudpickle.dumps(fitted)) / _MEGABYTE)


def measure_chat(trial: ChatTrial) -> ServingCost:
    """Measure a chat model: latency of one question with its examples, and the size of its weights."""
    import pandas as pd

    from textmill.predicting.asked import ask
    from textmill.registry.promotion.costs import latencies

    def predict(values: Sequence[Any]) -> list[dict[str, Any]]:
        ask(trial.model, trial.asking, pd.DataFrame(list(values)), trial.examples)
        return [{} for _ in values]

    [latency] = latencies([predict], _inputs(trial.task, trial.prepared, _GENERATION_ROWS), 1)
    size = sum(path.stat().st_size for path in trial.folder.glob("*.safetensors"))
    return ServingCost(latency, size / _MEGABYTE)


def _inputs(task: Task, prepared: Prepared, rows: int) -> list[dict[str, Any]]:
    return natural_inputs(task, prepared.split(SPLIT).slice(0, rows))[:rows]
