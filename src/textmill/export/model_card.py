"""The model card: `README.md` of the exported folder (Mitchell et al. 2019)."""

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
    """The card as Markdown, from what the stages before have written down."""
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
        lead={name: _interval(found.get(task.main_metric)) for name, found in metrics.get("difference", {}).items()},
        parity=parity,
        sizes=sizes,
    )


def render_generator_card(
    title: str,
    task: Task,
    prepared: Prepared,
    layout: Layout,
    parity: dict[str, float],
    sizes: dict[str, float],
) -> str:
    """The card of a model that writes text: going on from its input, or an answer of its own."""
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
    """Rows of the card's table: a metric's name, this model's figure, each baseline's."""
    baselines = metrics.get("baselines", {}).values()
    return [
        [name.replace("_", " "), _interval(figure), *(_interval(baseline.get(name)) for baseline in baselines)]
        for name, figure in metrics.get("test", {}).items()
        if isinstance(figure, dict) and "value" in figure
    ]


def _interval(figure: Any) -> str:
    if not isinstance(figure, dict) or "value" not in figure:
        return "-"
    if figure.get("low") is None:
        return f"{figure['value']:.4f}"
    return f"{figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"
