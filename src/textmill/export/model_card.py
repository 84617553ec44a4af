"""Render the model card: `README.md` of the exported folder (Mitchell et al. 2019)."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from textmill.data.prepared import SPLITS
from textmill.evaluation.evaluator import evaluator_of
from textmill.export.checkpoint import auto_class
from textmill.files import read_optional
from textmill.metrics.bootstrap import Interval
from textmill.tasks.abilities import ContinuesText, generates

if TYPE_CHECKING:
    from pathlib import Path

    from textmill.config.layout import Layout
    from textmill.data.prepared import Prepared
    from textmill.tasks.base import Task

_PIPELINES = {"AutoModelForSequenceClassification": "text-classification"}


def render_card(
    title: str,
    task: Task,
    prepared: Prepared,
    layout: Layout,
    parity: dict[str, float],
    sizes: dict[str, float],
    verdict: str,
    folder: Path,
) -> str:
    """Return the card as Markdown, from the outputs of earlier stages; `verdict` says which graph serves.

    `folder` is the exported folder, whose files the card describes.
    """
    from jinja2 import Environment, StrictUndefined

    name = "generator_card.md.jinja" if generates(task) else "card.md.jinja"
    template = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    # Markdown, in which HTML's escapes would be read as text
    configuration = read_optional(folder / "config.json")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # nosec B701
    metrics = read_optional(layout.evaluation / "metrics.json")
    records = task.example_inputs()
    better = evaluator_of(task).main_metric(prepared.state).higher_is_better
    return environment.from_string(template).render(
        title=title,
        task=task.name.replace("_", " "),
        corpus=read_optional(layout.raw / "provenance.json"),
        pretrained=read_optional(layout.pretrained / "provenance.json"),
        rows={split: prepared.split(split).num_rows for split in SPLITS},
        metrics=_metric_rows(metrics),
        baselines=list(metrics.get("baselines", {})),
        lead={
            other: _lead(lead.get(task.main_metric), better) for other, lead in metrics.get("difference", {}).items()
        },
        main_metric=task.main_metric,
        state=prepared.state,
        continues=isinstance(task, ContinuesText),
        inputs=[record if len(record) > 1 else next(iter(record.values())) for record in records],
        prompts=[next(iter(record.values())) for record in records],
        parity=parity,
        verdict=verdict,
        sizes=sizes,
        auto_class=auto_class(folder),
        pipeline=_PIPELINES.get(auto_class(folder)) if len(task.text_columns) == 1 else None,
        configuration=configuration,
        sentence_vectors=(folder / "modules.json").is_file(),
    )


def _metric_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the card's table: a metric's name, the model's value, each baseline's value."""
    baselines = metrics.get("baselines", {}).values()
    return [
        [name.replace("_", " "), _interval(metric), *(_interval(baseline.get(name)) for baseline in baselines)]
        for name, metric in metrics.get("test", {}).items()
        if isinstance(metric, dict) and "value" in metric
    ]


def _lead(difference: Any, higher_is_better: bool) -> str:
    """Return a difference from a baseline so that it is positive where the model is better."""
    if not isinstance(difference, dict):
        return "-"
    return _interval(Interval(**difference).as_gain(higher_is_better=higher_is_better).as_dict())


def _interval(metric: Any) -> str:
    if not isinstance(metric, dict) or "value" not in metric:
        return "-"
    if metric.get("low") is None:
        return f"{metric['value']:.4f}"
    return f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"
