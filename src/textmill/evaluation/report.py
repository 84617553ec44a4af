"""The evaluation as one HTML page that needs no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.sections.evaluate import EvaluateConfig
from textmill.evaluation.measurements import GROUP, Measurements
from textmill.metrics.bootstrap import Interval
from textmill.metrics.pictures import data_uri, interval_chart, png

if TYPE_CHECKING:
    import pandas as pd

    from textmill.evaluation.evaluate import Evaluation

_TEMPLATE = "report.html.jinja"
_MODELS = "models"
_SLICES = "slices"
_SPELLING = {"f1": "F1", "tfidf": "TF-IDF"}


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, and which columns are numbers."""

    head: list[str]
    rows: list[list[str]]
    numeric: list[bool]


def write_evaluation(found: Evaluation, config: EvaluateConfig, title: str, folder: Path) -> None:
    """Write the files of `data/evaluation` (all but `run.json`) into `folder`."""
    import numpy as np

    plots = folder / "plots"
    plots.mkdir(parents=True)
    summary = found.measurements.summary() | ({"findings": found.own_metrics} if found.own_metrics else {})
    for name, values in (("metrics.json", summary), ("figures.json", found.measurements.details())):
        # in their own order, the main metric first
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    found.predictions.to_parquet(folder / "predictions.parquet", index=False)
    np.savez(folder / "outputs.npz", allow_pickle=False, **found.outputs)
    found.errors.round(6).to_csv(folder / "errors.csv", index=False)
    slices_table(found.measurements).to_csv(plots / "slices.csv", index=False)
    for section in found.sections:
        for name, table in section.plots.items():
            table.to_csv(plots / f"{name}.csv", index=False)
    pictures = pictures_of(found)
    for name, image in pictures.items():
        (plots / f"{name}.png").write_bytes(image)
    (folder / "report.html").write_text(render_report(found, config, title, pictures), encoding="utf-8")


def slices_table(measurements: Measurements) -> pd.DataFrame:
    """The main metric over each slice, one a row."""
    import pandas as pd

    rows = [
        {"column": part.column, "slice": part.name, "rows": part.rows, **part.interval.as_dict()}
        for part in measurements.slices
    ]
    return pd.DataFrame(rows, columns=["column", "slice", "rows", "value", "low", "high"])


def pictures_of(found: Evaluation) -> dict[str, bytes]:
    """Every picture of the report as PNG, by name."""
    measurements, metric = found.measurements, words(found.measurements.main)
    this = measurements.test[measurements.main]
    models = {"this model": this} | {
        words(name): base[measurements.main] for name, base in measurements.baselines.items()
    }
    drawn = {_MODELS: interval_chart(models, metric)}
    if measurements.slices:
        slices = {f"{words(part.column)}: {part.name}": part.interval for part in measurements.slices}
        drawn[_SLICES] = interval_chart({"all rows": this} | slices, metric, reference=this.value)
    for section in found.sections:
        drawn |= section.figures
    return {name: png(figure) for name, figure in drawn.items()}


def render_report(found: Evaluation, config: EvaluateConfig, title: str, pictures: Mapping[str, bytes]) -> str:
    """The page, with its style and its pictures inside.

    Args:
        found: What was measured.
        config: How.
        title: Name of the experiment.
        pictures: PNGs by name, as `pictures_of` gives them.
    """
    measurements = found.measurements
    uris = {name: data_uri(image) for name, image in pictures.items()}
    return render_page(
        _TEMPLATE,
        title=title,
        task=words(found.task.name),
        model=words(found.model.name),
        measure=words(measurements.main),
        main=measurements.test[measurements.main],
        leads=[_lead(measurements, name) for name in measurements.baselines],
        confidence=f"{100 * config.confidence:g} %",
        config=config,
        rows=found.rows,
        models_picture=uris[_MODELS],
        models_table=_models_table(measurements),
        groups_table=_groups_table(measurements),
        slices_picture=uris.get(_SLICES),
        slices_table=_slices_table(measurements),
        sections=[
            {
                "title": section.title,
                "text": section.text,
                "table": None if section.table is None or section.table.empty else frame_table(section.table),
                "pictures": [(words(name), uris[name]) for name in section.figures],
            }
            for section in found.sections
        ],
        errors=frame_table(found.errors),
        wrong=len(found.errors),
    )


def render_page(template: str, **content: Any) -> str:
    """A page of this room, from its template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("textmill.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def words(name: str) -> str:
    """A name of the program's as words, in their usual spelling."""
    return " ".join(_SPELLING.get(word, word) for word in name.split("_"))


def frame_table(frame: pd.DataFrame) -> Table:
    """A data frame as shown: floats with three digits."""
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
    """The model's lead over a baseline, and what may be said of it."""
    lead = measurements.difference[baseline][measurements.main]
    sign = 1 if measurements.higher_is_better[measurements.main] else -1
    ends = sorted((sign * lead.low, sign * lead.high))
    verdict = "better" if ends[0] > 0 else "worse" if ends[1] < 0 else "no clear difference"
    return {
        "name": words(baseline),
        "figure": measurements.baselines[baseline][measurements.main],
        "lead": lead,
        "verdict": verdict,
    }


def _models_table(measurements: Measurements) -> Table:
    rows = [
        [
            f"{words(name)} {'↑' if measurements.higher_is_better[name] else '↓'}",
            shown(measurements.test[name]),
            *(shown(found[name]) for found in measurements.baselines.values()),
        ]
        for name in measurements.headline
    ]
    head = ["", "this model", *map(words, measurements.baselines)]
    return Table(head, rows, [False] + [True] * (len(head) - 1))


def _groups_table(measurements: Measurements) -> Table | None:
    """The metrics of single groups: a row a group, a column a figure."""
    cells: dict[str, dict[str, str]] = {}
    for name, interval in measurements.test.items():
        figure, found, group = name.partition(GROUP)
        if found:
            cells.setdefault(group, {})[figure] = shown(interval)
    if not cells:
        return None
    columns = list(dict.fromkeys(figure for row in cells.values() for figure in row))
    rows = [[group, *(row.get(figure, "") for figure in columns)] for group, row in cells.items()]
    return Table(["", *map(words, columns)], rows, [False] + [True] * len(columns))


def _slices_table(measurements: Measurements) -> Table:
    rows = [[words(part.column), part.name, f"{part.rows:,}", shown(part.interval)] for part in measurements.slices]
    return Table(["by", "slice", "rows", words(measurements.main)], rows, [False, False, True, True])


def shown(interval: Interval) -> str:
    """A figure with its interval in a table's cell."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
