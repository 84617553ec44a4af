"""The first page of the report, for those who decide: what was trained, on what, how good, its errors, its cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.evaluation.measurements import words

if TYPE_CHECKING:
    from textmill.evaluation.evaluate import Evaluation
    from textmill.metrics.bootstrap import Interval

_A4 = (8.27, 11.69)
_LINE = 92
"""Characters of a line of the PDF."""


def write_brief(evaluation: Evaluation, title: str, confidence: float) -> dict[str, str]:
    """Return a short text by heading."""
    measurements, rows = evaluation.measurements, evaluation.rows
    metric, main = words(measurements.main), measurements.test[measurements.main]
    training = evaluation.training
    brief = {
        "Model": f"{title}: a {words(evaluation.model.name)} for {words(evaluation.task.name)}.",
        "Data": f"{rows['train']:,} training rows, with {rows['validation']:,} validation rows to choose the best "
        f"state. All values below are from {rows['test']:,} test rows that took no part in the training.",
        "Quality": f"Its {metric} is {_with_interval(main, confidence)}.{_lead(evaluation, confidence)}",
        "Errors": " ".join([*evaluation.warnings, *_wrong(evaluation)]),
    }
    if "train_seconds" in training:
        minutes = training["train_seconds"] / 60
        brief["Cost"] = f"The training took {minutes:,.1f} minutes on the machine that ran it" + (
            f" ({training['samples_per_second']:,.0f} rows/s)." if "samples_per_second" in training else "."
        )
    return {heading: text for heading, text in brief.items() if text}


def write_pdf(path: Path, title: str, brief: Mapping[str, str], images: Mapping[str, bytes]) -> None:
    """Write the brief and the first plots as one page of A4."""
    import io

    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    figure: Any = Figure(figsize=_A4)
    FigureCanvasPdf(figure)
    figure.text(0.08, 0.95, title, fontsize=16, weight="bold", va="top", parse_math=False)
    place = 0.91
    for heading, text in brief.items():
        lines = textwrap.wrap(text, _LINE)
        figure.text(0.08, place, heading, fontsize=10, weight="bold", va="top", parse_math=False)
        figure.text(0.08, place - 0.018, "\n".join(lines), fontsize=9, va="top", linespacing=1.4, parse_math=False)
        place -= 0.035 + 0.0165 * len(lines)
    shown = list(images.values())[:2]
    height = min(0.3, (place - 0.06) / max(1, len(shown)))
    for number, image in enumerate(shown):
        axes = figure.add_axes((0.08, place - (number + 1) * height, 0.84, height * 0.95))
        axes.imshow(imread(io.BytesIO(image)))
        axes.axis("off")
    figure.savefig(path, format="pdf", dpi=200, metadata={"Title": title, "CreationDate": None})


def _with_interval(interval: Interval, confidence: float, *, sign: str = "") -> str:
    low, high = f"{interval.low:{sign}.3f}", f"{interval.high:{sign}.3f}"
    return f"{interval.value:{sign}.3f} ({100 * confidence:g} % interval {low} to {high})"


def _lead(evaluation: Evaluation, confidence: float) -> str:
    measurements = evaluation.measurements
    strongest = measurements.strongest_baseline
    if strongest is None:
        return ""
    better = measurements.higher_is_better[measurements.main]
    lead = measurements.difference[strongest][measurements.main].as_gain(higher_is_better=better)
    verdict = "better than" if lead.low > 0 else "worse than" if lead.high < 0 else "not clearly different from"
    value = measurements.baselines[strongest][measurements.main].value
    return (
        f" That is {verdict} the strongest baseline, {words(strongest)} ({value:.3f}): "
        f"lead {_with_interval(lead, confidence, sign='+')}."
    )


def _wrong(evaluation: Evaluation) -> list[str]:
    """Return sentences on the share of wrong answers, the most frequent confusion, and the weakest slice."""
    predictions, said = evaluation.predictions, []
    if {"label", "prediction"} <= set(predictions):
        wrong = predictions[predictions["label"] != predictions["prediction"]]
        said.append(f"{len(wrong):,} of {len(predictions):,} answers are wrong.")
        if len(wrong):
            pair: Any
            pair, number = next(iter(wrong.value_counts(["label", "prediction"]).items()))
            true, answered = pair
            said.append(f"The most frequent error is {answered} where {true} is right ({number} rows).")
    measurements = evaluation.measurements
    if measurements.slices:
        sign = 1 if measurements.higher_is_better[measurements.main] else -1
        part = min(measurements.slices, key=lambda part: sign * part.interval.value)
        said.append(
            f"The weakest part of the test rows is {words(part.column)} {part.name} ({part.rows} rows): "
            f"{words(measurements.main)} {part.interval.value:.3f}."
        )
    return said
