"""Measure the trained model and its baselines on the test split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from textmill.config.layout import Layout
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.data.prepared import SPLITS, Prepared
from textmill.errors import UserError
from textmill.evaluation.evaluator import Evaluator, ExaminesNetwork, FindsLabelIssues, Report, evaluator_of
from textmill.evaluation.measurements import Measurements, measure
from textmill.evaluation.slices import LENGTH, cut_slices
from textmill.files import read_optional, sha256_folder
from textmill.metrics.base import Outputs, Section
from textmill.metrics.bootstrap import Bootstrap
from textmill.models.base import Model
from textmill.tasks.abilities import ContinuesText, GeneratesText, examples_of
from textmill.tasks.base import Task
from textmill.text.occlusion import shown_gains, without_each_word

if TYPE_CHECKING:
    import torch

    from textmill.models.language_model import LanguageModel

_TOKENS_PER_BATCH = 4096
_EXPLAINED, _MOST_WORDS, _SHOWN_WORDS = 10, 100, 3
"""Worst errors that are explained, words of a text that are left out, and words that are shown."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        predictions: One row per test row, with `length` and the slice columns.
        outputs: Raw outputs of the network, in the same order.
        errors: Wrong predictions, worst first, at most `evaluate.worst`.
        own_metrics: Metrics of the task's evaluator without an interval.
        rows: Number of rows of each split.
        warnings: Sentences on what nobody should overlook.
        label_issues: Training rows whose label is likely wrong, the likeliest first; None where not searched.
        training: Metrics of the stage `train`, such as its seconds.
    """

    task: Task
    model: Model
    measurements: Measurements
    predictions: pd.DataFrame
    outputs: Outputs
    errors: pd.DataFrame
    sections: list[Section]
    own_metrics: dict[str, float]
    rows: dict[str, int]
    warnings: list[str]
    label_issues: pd.DataFrame | None = None
    training: Mapping[str, float] = field(default_factory=dict)


def fingerprint(config: EvaluateConfig, layout: Layout) -> str:
    """Return the SHA-256 over everything that decides the metrics: configuration, data and weights.

    Raises:
        UserError: There is no prepared data or no trained model.
    """
    prepared = Prepared(layout.prepared)
    weights = layout.trained / "model"
    if not weights.is_dir():
        raise UserError("no trained model here", where=str(weights), fix="Run `dvc repro train`")
    parts = [config.model_dump_json(), *(prepared.digest(name) for name in SPLITS), sha256_folder(weights)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def evaluate(config: EvaluateConfig, runtime: RuntimeConfig, layout: Layout) -> Evaluation:
    """Predict the test split of `data/prepared` with the model of `data/trained` and measure it.

    The model computes in float32. A second thread trains the baselines meanwhile.

    Raises:
        UserError: An input is missing, a slice column is unknown, or an output or a metric is not a finite number.
    """
    task = Task.build(config.task)
    model = Model.build(config.model)
    prepared = Prepared(layout.prepared)
    state = prepared.state
    test = prepared.split("test")
    evaluator = evaluator_of(task)
    examples = examples_of(task, test)
    if len(examples) < 2:
        raise UserError(
            f"the test split has {len(examples)} rows, at least 2 are required",
            where=str(prepared.folder / "test"),
            fix="Raise splits.test in conf/prepare/, or add a test file",
        )
    frame = examples.frame()
    slices = cut_slices(frame, config.slice_columns, config.min_slice)
    with ThreadPoolExecutor(1) as pool:
        baselines = pool.submit(_baseline_predictions, evaluator, prepared, frame, config)
        issues = pool.submit(_label_issues, evaluator, prepared, config)
        network, outputs, examined = _predict(evaluator, model, prepared, layout.trained, runtime.trainer.accelerator)
    _require_finite(outputs, task, examples)
    predictions = evaluator.predictions(outputs, frame, state)
    report = evaluator.report(predictions, state)
    measurements = measure(
        task,
        evaluator.metrics(state),
        predictions,
        baselines.result(),
        slices,
        Bootstrap(config.resamples, config.confidence, config.seed),
    )
    suite = _suite_report(config, task, network, prepared, layout)
    errors = (pd.DataFrame() if report.errors is None else report.errors).head(config.worst)
    return Evaluation(
        task=task,
        model=model,
        measurements=measurements,
        predictions=predictions.assign(**{name: frame[name].to_numpy() for name in (LENGTH, *config.slice_columns)}),
        outputs=outputs,
        errors=_explained(errors, task, network, prepared),
        sections=[*report.sections, *examined.sections, *suite.sections],
        own_metrics={**report.metrics, **examined.metrics, **suite.metrics},
        rows={name: prepared.split(name).num_rows for name in SPLITS},
        warnings=[*report.warnings, *examined.warnings],
        label_issues=issues.result(),
        training=read_optional(layout.trained / "metrics.json"),
    )


def _require_finite(outputs: Outputs, task: Task, examples: Any) -> None:
    """Refuse outputs that are not finite, except NaN at the padding of a row: they would still give an answer."""
    for name, values in outputs.items():
        if not np.issubdtype(values.dtype, np.floating) or np.isfinite(values).all():
            continue
        wrong = ~np.isfinite(values)
        if values.ndim > 1 and len(values) == len(examples):
            columns = examples.columns()
            lengths = [[len(ids) for ids in columns[column]] for column in task.sequence_columns.values()]
            if values.shape[1] == np.max(lengths):
                padding = np.arange(values.shape[1]) >= np.min(lengths, axis=0)[:, None]
                wrong &= ~(np.isnan(values) & padding.reshape(*padding.shape, *[1] * (values.ndim - 2)))
        if rows := int(wrong.reshape(len(values), -1).any(axis=1).sum()):
            raise UserError(
                f"the model's {name} are not finite numbers in {rows} of {len(values)} test rows",
                where="data/trained/model",
                fix="The training has diverged; train with a lower learning rate",
            )


def _baseline_predictions(
    evaluator: Evaluator, prepared: Prepared, frame: pd.DataFrame, config: EvaluateConfig
) -> dict[str, pd.DataFrame]:
    columns = evaluator.baseline_columns
    fitted: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = evaluator.baselines(
        prepared.frame("train", columns),
        prepared.frame("validation", columns),
        prepared.state,
        config.baselines,
        config.seed,
    )
    return {name: predict(frame) for name, predict in fitted.items()}


def _explained(errors: pd.DataFrame, task: Task, network: torch.nn.Module, prepared: Prepared) -> pd.DataFrame:
    """Add a column `why` to errors of one label a text: the words that most raise or lower the predicted label."""
    if errors.empty or not {"text", "label", "prediction"} <= set(errors) or len(task.text_columns) != 1:
        return errors
    if not (prepared.tokenizer_folder / "tokenizer.json").is_file():
        return errors
    import pyarrow as pa

    from textmill.data.tokenizing import load_tokenizer
    from textmill.metrics.categories import encode, softmax
    from textmill.training.inference import predict_table

    parts = [without_each_word(text, _MOST_WORDS) for text in errors["text"].head(_EXPLAINED)]
    texts = [text for (_, others), whole in zip(parts, errors["text"], strict=False) for text in (whole, *others)]
    longest = max(prepared.split("test").column("length").to_pylist())
    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    encoded = task.encode(pd.DataFrame({"text": texts}), tokenizer, prepared.state, longest)
    probabilities = softmax(predict_table(network, task, pa.table(encoded))["logits"])
    predicted, start, why = encode(errors["prediction"].to_numpy(), prepared.state["labels"]), 0, []
    for row, (found, others) in enumerate(parts):
        of_label = probabilities[start : start + 1 + len(others), predicted[row]]
        why.append(shown_gains(found, (of_label[0] - of_label[1:]).tolist(), _SHOWN_WORDS))
        start += 1 + len(others)
    return errors.assign(why=[*why, *[""] * (len(errors) - len(why))])


def _label_issues(evaluator: Evaluator, prepared: Prepared, config: EvaluateConfig) -> pd.DataFrame | None:
    if not config.label_issues or not isinstance(evaluator, FindsLabelIssues) or len(evaluator.task.text_columns) > 1:
        return None  # the label of a pair does not follow from the words of its texts
    train = prepared.frame("train", evaluator.baseline_columns)
    return evaluator.label_issues(train, prepared.state, config.seed)


def _predict(
    evaluator: Evaluator, model: Model, prepared: Prepared, trained: Path, accelerator: str
) -> tuple[torch.nn.Module, Outputs, Report]:
    network = load_for_answers(evaluator.task, model, prepared, trained, accelerator)
    outputs = split_outputs(evaluator.task, network, prepared, "test")
    if not isinstance(evaluator, ExaminesNetwork):
        return network, outputs, Report()
    return network, outputs, evaluator.examine(network, outputs, prepared.tokenizer_folder, prepared.state)


def _suite_report(
    config: EvaluateConfig, task: Task, network: torch.nn.Module, prepared: Prepared, layout: Layout
) -> Report:
    """Return the report's section on `evaluate.suite`, and each metric as `suite_TASK_METRIC`; empty without a suite.

    Raises:
        UserError: The task is not one of a language model, the harness is missing, or the suite is invalid.
    """
    if config.suite is None:
        return Report()
    from textmill.data.tokenizing import load_tokenizer
    from textmill.evaluation.suites import require_harness, run_suite
    from textmill.predicting.exported import ExportedModel
    from textmill.predicting.text_continuer import TextContinuer

    if not isinstance(task, ContinuesText):
        fix = "Set it to null, or choose a task of language models"
        raise UserError(f"{task.name} does not continue text", where="evaluate.suite", fix=fix)
    require_harness()
    from textmill.predicting.harness_model import ContinuerModel

    folder = prepared.tokenizer_folder
    options: dict[str, Any] = {"max_length": 1, "cleaning": {}, "outputs": [], "graphs": {}}  # of no use here
    exported = ExportedModel(task=config.task, model=config.model, state=prepared.state, **options)
    continuer = TextContinuer(exported, load_tokenizer(folder), cast("LanguageModel", network))
    run = run_suite(layout.conf / "suites" / config.suite / "suite.yaml", ContinuerModel(continuer, folder))
    bootstrap = Bootstrap(config.resamples, config.confidence, config.seed)
    rows, metrics = [], {}
    for each in run.tasks:
        for name, found in each.intervals(bootstrap).items():
            numbers = {"value": found.value, "low": found.low, "high": found.high}
            rows.append({"task": each.name, "rows": len(each.rows), "few-shot": each.shots, "metric": name, **numbers})
            metrics[re.sub(r"\W+", "_", f"suite_{each.name}_{name}")] = found.value
    text = f"Tasks of lm-evaluation-harness in conf/suites/{config.suite}, with {config.confidence:.0%} intervals."
    return Report(metrics=metrics, sections=[Section("Suite", text, pd.DataFrame(rows))])


def load_for_answers(task: Task, model: Model, prepared: Prepared, trained: Path, accelerator: str) -> torch.nn.Module:
    """Load the trained network in evaluation mode, on the device that `accelerator` names."""
    from textmill.training.loading import load_network

    network: torch.nn.Module = load_network(task, model, prepared.state, trained)
    return network.to(_device(accelerator))


def split_outputs(
    task: Task, network: torch.nn.Module, prepared: Prepared, split: str, *, autocast: bool = False
) -> Outputs:
    """Return the network's outputs for a split, generated texts included; `autocast` allows bfloat16."""
    from textmill.data.tokenizing import load_tokenizer
    from textmill.training.inference import predict_table

    table = prepared.split(split)
    outputs = predict_table(network, task, table, tokens_per_batch=_TOKENS_PER_BATCH, autocast=autocast)
    if isinstance(task, GeneratesText):
        tokenizer = load_tokenizer(prepared.tokenizer_folder)
        outputs |= task.generate(network, table.column("input_ids").to_pylist(), tokenizer, prepared.state)
    return outputs


def _device(accelerator: str) -> torch.device:
    """Return the machine's accelerator, or the CPU if there is none or `accelerator` is `cpu`."""
    import torch

    if accelerator == "cpu" or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")
