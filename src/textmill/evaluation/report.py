"""Write the files of an evaluation, its report as one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.sections.evaluate import EvaluateConfig
from textmill.evaluation.brief import write_brief, write_pdf
from textmill.evaluation.measurements import GROUP, Measurements, words
from textmill.metrics.bootstrap import Interval
from textmill.metrics.plots import data_uri, interval_chart, png

if TYPE_CHECKING:
    import pandas as pd

    from textmill.evaluation.evaluate import Evaluation

_TEMPLATE = "report.html.jinja"
_MODELS = "models"
_SLICES = "slices"

_SHOWN_ISSUES = 15


@dataclass(frozen=True)
class Table:
    """Formatted cells, and which columns are numeric."""

    head: list[str]
    rows: list[list[str]]
    numeric: list[bool]


def write_evaluation(evaluation: Evaluation, config: EvaluateConfig, title: str, folder: Path) -> None:
    """Write the files of `data/evaluation` (except `run.json`) into `folder`."""
    import numpy as np

    plots = folder / "plots"
    plots.mkdir(parents=True)
    measurements = evaluation.measurements
    summary = measurements.summary() | ({"findings": evaluation.own_metrics} if evaluation.own_metrics else {})
    for name, values in (
        ("metrics.json", summary),
        ("decision.json", measurements.decision()),
        ("figures.json", measurements.details() | {"warnings": evaluation.warnings}),
    ):
        # keys unsorted: the main metric stays first
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    evaluation.predictions.to_parquet(folder / "predictions.parquet", index=False)
    np.savez(folder / "outputs.npz", allow_pickle=False, **evaluation.outputs)
    evaluation.errors.round(6).to_csv(folder / "errors.csv", index=False)
    if evaluation.label_issues is not None:
        evaluation.label_issues.assign(right_label="").to_csv(folder / "label_issues.csv", index=False)
    slices_table(measurements).to_csv(plots / "slices.csv", index=False)
    for section in evaluation.sections:
        for name, table in section.plots.items():
            table.to_csv(plots / f"{name}.csv", index=False)
    images = draw_plots(evaluation)
    for name, image in images.items():
        (plots / f"{name}.png").write_bytes(image)
    brief = write_brief(evaluation, title, config.confidence)
    write_pdf(folder / "report.pdf", title, brief, images)
    (folder / "report.html").write_text(render_report(evaluation, config, title, images), encoding="utf-8")


def slices_table(measurements: Measurements) -> pd.DataFrame:
    """Return the main metric on each slice, one per row."""
    import pandas as pd

    rows = [
        {"column": part.column, "slice": part.name, "rows": part.rows, **part.interval.as_dict()}
        for part in measurements.slices
    ]
    return pd.DataFrame(rows, columns=["column", "slice", "rows", "value", "low", "high"])


def draw_plots(evaluation: Evaluation) -> dict[str, bytes]:
    """Return every plot of the report as PNG, by name."""
    measurements, metric = evaluation.measurements, words(evaluation.measurements.main)
    this = measurements.test[measurements.main]
    models = {"this model": this} | {
        words(name): base[measurements.main] for name, base in measurements.baselines.items()
    }
    drawn = {_MODELS: interval_chart(models, metric)}
    if measurements.slices:
        slices = {f"{words(part.column)}: {part.name}": part.interval for part in measurements.slices}
        drawn[_SLICES] = interval_chart({"all rows": this} | slices, metric, reference=this.value)
    for section in evaluation.sections:
        drawn |= section.figures
    return {name: png(figure) for name, figure in drawn.items()}


def render_report(evaluation: Evaluation, config: EvaluateConfig, title: str, images: Mapping[str, bytes]) -> str:
    """Return the HTML page with embedded style and plots (`images`: PNGs of `draw_plots`)."""
    measurements = evaluation.measurements
    uris = {name: data_uri(image) for name, image in images.items()}
    return render_page(
        _TEMPLATE,
        title=title,
        task=words(evaluation.task.name),
        model=words(evaluation.model.name),
        metric=words(measurements.main),
        main=measurements.test[measurements.main],
        leads=[_lead(measurements, name) for name in measurements.baselines],
        confidence=f"{100 * config.confidence:g} %",
        config=config,
        rows=evaluation.rows,
        warnings=evaluation.warnings,
        brief=write_brief(evaluation, title, config.confidence),
        models_plot=uris[_MODELS],
        models_table=_models_table(measurements),
        groups_table=_groups_table(measurements),
        slices_plot=uris.get(_SLICES),
        slices_table=_slices_table(measurements),
        sections=[
            {
                "title": section.title,
                "text": section.text,
                "table": None if section.table is None or section.table.empty else frame_table(section.table),
                "plots": [(words(name), uris[name]) for name in section.figures],
            }
            for section in evaluation.sections
        ],
        issues=_issues(evaluation),
        errors=frame_table(evaluation.errors),
        wrong=len(evaluation.errors),
        explained="why" in evaluation.errors,
    )


def render_page(template: str, **content: Any) -> str:
    """Render a template of this package."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("textmill.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def frame_table(frame: pd.DataFrame) -> Table:
    """Convert a data frame to a `Table`; floats have three decimals."""
    from pandas.api.types import is_float_dtype, is_numeric_dtype

    columns = [
        [f"{value:.3f}" for value in frame[name]] if is_float_dtype(frame[name]) else [str(v) for v in frame[name]]
        for name in frame
    ]
    return Table(
        head=[words(str(name)) for name in frame],
        rows=[list(row) for row in zip(*columns, strict=True)],
        numeric=[is_numeric_dtype(frame[name]) for name in frame],
    )


def _lead(measurements: Measurements, baseline: str) -> dict[str, Any]:
    """Return the model's lead over a baseline, positive where it is better, with its verdict."""
    better = measurements.higher_is_better[measurements.main]
    lead = measurements.difference[baseline][measurements.main].as_gain(higher_is_better=better)
    verdict = "better" if lead.low > 0 else "worse" if lead.high < 0 else "no clear difference"
    return {
        "name": words(baseline),
        "value": measurements.baselines[baseline][measurements.main],
        "lead": lead,
        "verdict": verdict,
    }


def _models_table(measurements: Measurements) -> Table:
    rows = [
        [
            f"{words(name)} {'↑' if measurements.higher_is_better[name] else '↓'}",
            shown(measurements.test[name]),
            *(shown(metrics[name]) for metrics in measurements.baselines.values()),
        ]
        for name in measurements.headline
    ]
    head = ["", "this model", *map(words, measurements.baselines)]
    return Table(head, rows, [False] + [True] * (len(head) - 1))


def _groups_table(measurements: Measurements) -> Table | None:
    """Return the metrics of single groups: one row per group, one column per metric."""
    cells: dict[str, dict[str, str]] = {}
    for name, interval in measurements.test.items():
        metric, _, group = name.partition(GROUP)
        if group:
            cells.setdefault(group, {})[metric] = shown(interval)
    if not cells:
        return None
    columns = list(dict.fromkeys(metric for row in cells.values() for metric in row))
    rows = [[group, *(row.get(metric, "") for metric in columns)] for group, row in cells.items()]
    return Table(["", *map(words, columns)], rows, [False] + [True] * len(columns))


def _issues(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the number of likely wrong labels, of those that a near-duplicate contradicts, and the first rows."""
    issues = evaluation.label_issues
    if issues is None or issues.empty:
        return None
    table = frame_table(issues.drop(columns="similar_to").head(_SHOWN_ISSUES))
    return {"rows": len(issues), "near": int((issues["similar_to"] != "").sum()), "table": table}


def _slices_table(measurements: Measurements) -> Table:
    rows = [[words(part.column), part.name, f"{part.rows:,}", shown(part.interval)] for part in measurements.slices]
    return Table(["by", "slice", "rows", words(measurements.main)], rows, [False, False, True, True])


def shown(interval: Interval) -> str:
    """Format a value with its interval."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
