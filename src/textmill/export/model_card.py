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
    differences = read_optional(layout.evaluation / "metrics.json").get("difference", {})
    return _render(
        "card.md.jinja",
        _common_values(title, task, prepared, layout),
        main_metric=task.main_metric,
        inputs=[record if len(record) > 1 else next(iter(record.values())) for record in task.example_inputs()],
        state=prepared.state,
        lead={name: _interval(metrics.get(task.main_metric)) for name, metrics in differences.items()},
        parity=parity,
        sizes=sizes,
    )


def render_generator_card(
    title: str, task: Task, prepared: Prepared, layout: Layout, parity: dict[str, float], sizes: dict[str, float]
) -> str:
    """Return the card of a model that generates text."""
    return _render(
        "generator_card.md.jinja",
        _common_values(title, task, prepared, layout),
        continues=isinstance(task, ContinuesText),
        prompts=[next(iter(record.values())) for record in task.example_inputs()],
        vocabulary_size=prepared.state.get("vocabulary_size"),
        parity=parity,
        sizes=sizes,
    )


def _common_values(title: str, task: Task, prepared: Prepared, layout: Layout) -> dict[str, Any]:
    metrics = read_optional(layout.evaluation / "metrics.json")
    return {
        "title": title,
        "task": task.name.replace("_", " "),
        "corpus": read_optional(layout.raw / "provenance.json"),
        "pretrained": read_optional(layout.pretrained / "provenance.json"),
        "rows": {name: prepared.split(name).num_rows for name in ("train", "validation", "test")},
        "metrics": _metric_rows(metrics),
        "baselines": list(metrics.get("baselines", {})),
    }


def _render(name: str, common: dict[str, Any], **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    template = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string(template).render(**common, **values)


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
