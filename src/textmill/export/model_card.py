"""Render the model card: `README.md` of the exported folder (Mitchell et al. 2019)."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from textmill.files import read_optional
from textmill.tasks.abilities import ContinuesText

if TYPE_CHECKING:
    from textmill.config.layout import Layout
    from textmill.data.prepared import Prepared
    from textmill.export.parity import Parity
    from textmill.tasks.base import Task


def render_card(
    title: str, task: Task, prepared: Prepared, layout: Layout, parity: Parity, sizes: dict[str, float]
) -> str:
    """Return the card as Markdown, from the outputs of earlier stages."""
    metrics = read_optional(layout.evaluation / "metrics.json")
    return _rendered(
        "card.md.jinja",
        title=title,
        task=task.name.replace("_", " "),
        main_metric=task.main_metric,
        inputs=[record if len(record) > 1 else next(iter(record.values())) for record in task.example_inputs()],
        corpus=read_optional(layout.raw / "provenance.json"),
        pretrained=read_optional(layout.pretrained / "provenance.json"),
        rows={name: prepared.split(name).num_rows for name in ("train", "validation", "test")},
        state=prepared.state,
        figures=_metric_rows(metrics),
        baselines=list(metrics.get("baselines", {})),
        lead={name: _interval(lead.get(task.main_metric)) for name, lead in metrics.get("difference", {}).items()},
        parity=parity,
        sizes=sizes,
    )


def render_generator_card(
    title: str, task: Task, prepared: Prepared, layout: Layout, parity: dict[str, float], sizes: dict[str, float]
) -> str:
    """Return the card of a model that generates text."""
    metrics = read_optional(layout.evaluation / "metrics.json")
    return _rendered(
        "generator_card.md.jinja",
        title=title,
        task=task.name.replace("_", " "),
        continues=isinstance(task, ContinuesText),
        pretrained=read_optional(layout.pretrained / "provenance.json"),
        prompts=[next(iter(record.values())) for record in task.example_inputs()],
        corpus=read_optional(layout.raw / "provenance.json"),
        documents={name: prepared.split(name).num_rows for name in ("train", "validation", "test")},
        vocabulary_size=prepared.state.get("vocabulary_size"),
        figures=_metric_rows(metrics),
        baselines=list(metrics.get("baselines", {})),
        parity=parity,
        sizes=sizes,
    )


def _rendered(name: str, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    template = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string(template).render(**values)


def _metric_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the card's table: a metric's name, the model's value, each baseline's value."""
    baselines = metrics.get("baselines", {}).values()
    return [
        [name.replace("_", " "), _interval(metric), *(_interval(baseline.get(name)) for baseline in baselines)]
        for name, metric in metrics.get("test", {}).items()
        if isinstance(metric, dict) and "value" in metric
    ]


def _interval(metric: Any) -> str:
    if not isinstance(metric, dict) or "value" not in metric:
        return "-"
    if metric.get("low") is None:
        return f"{metric['value']:.4f}"
    return f"{metric['value']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"
