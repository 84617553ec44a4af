"""`textmill drift`: compare new texts with the training data of a version."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Exit, Option

from textmill.cli.output import INCONCLUSIVE, REFUSED, VERSION_HELP, AsJson, print_json, print_table
from textmill.cli.predict import Column, columns_from
from textmill.errors import UserError

if TYPE_CHECKING:
    from textmill.evaluation.drift import Drift
    from textmill.evaluation.drift_over_time import By
    from textmill.evaluation.reference import Reference
    from textmill.predicting.predictor import Predictor


def drift(
    reference: Annotated[str, Option(help=f"{VERSION_HELP} Or a folder with an exported model.")],
    file: Annotated[
        Path | None, Argument(help="Table, as `textmill init` reads it; any other file: one text per line.")
    ] = None,
    captured: Annotated[Path | None, Option(help="Instead of a file: folder of `textmill serve --capture`.")] = None,
    by: Annotated[Literal["hour", "day", "week"], Option(help="Period of a look at captured requests.")] = "day",
    gauges: Annotated[
        Path | None, Option(help="Write Prometheus gauges of the newest look to this file (*.prom).")
    ] = None,
    html: Annotated[Path | None, Option(help="Write the report, one page with plots, to this file.")] = None,
    column: Column = None,
    rows: Annotated[int, Option(min=1, help="Maximum rows; a larger file or period is sampled at random.")] = 2000,
    as_json: AsJson = False,
) -> None:
    """Compare new texts with a version's training data: lengths, words, labels, model outputs.

    The statistics of the training data are part of the version. Exit status: 0 no drift, 3 drift,
    4 too few rows to tell; with --captured, of the newest complete period.

    Example: textmill drift --reference movie-reviews@challenger july.csv --html drift.html
    """
    from textmill.evaluation.drift import measure_drift
    from textmill.evaluation.new_texts import read_new_texts
    from textmill.evaluation.reference import read_reference
    from textmill.predicting.loading import load_predictor
    from textmill.tasks.abilities import drift_features_of

    columns = columns_from(column)
    if (file is None) == (captured is None):
        raise UserError("give a file or --captured, and not both", where="textmill drift", fix="See --help")
    folder = exported_folder_of(reference)
    predictor = load_predictor(folder, "fp32")
    expected = read_reference(folder)
    if captured is not None:
        _over_time(captured, predictor, expected, by, rows, reference, html, gauges, as_json)
        return
    assert file is not None
    new = read_new_texts(file, predictor.task, predictor.exported.cleaning, columns, rows)
    outputs, answers = predictor.answer_rows(new.frame, new.frame) if expected.outputs else ({}, [])
    comparable = drift_features_of(predictor.task, outputs)
    result = measure_drift(expected, new.frame, new.targets, comparable, answers)
    if html is not None:
        from textmill.evaluation.drift_report import render_drift
        from textmill.files import atomic_write

        atomic_write(html, render_drift(result, reference, file.name, new.skipped))
    if as_json:
        print_json({"reference": reference, "file": str(file), "skipped": new.skipped, **result.as_dict()})
    else:
        _print_table(result, file, reference, html)
    if result.verdict != "no drift":
        raise Exit(REFUSED if result.verdict == "drift" else INCONCLUSIVE)


def _over_time(
    captured: Path,
    predictor: Predictor,
    expected: Reference,
    by: By,
    rows: int,
    reference: str,
    html: Path | None,
    gauges: Path | None,
    as_json: bool,
) -> None:
    """Judge captured requests, write page and gauges, and exit by the newest look."""
    from textmill.evaluation.drift_over_time import measure_over_time, read_captured, write_gauges
    from textmill.tasks.abilities import drift_features_of

    times, frame, skipped = read_captured(
        captured, predictor.task, predictor.exported.cleaning, by, rows, datetime.now(UTC)
    )
    outputs, answers = predictor.answer_rows(frame, frame) if expected.outputs else ({}, [])
    looks = measure_over_time(expected, times, frame, drift_features_of(predictor.task, outputs), answers, by)
    if html is not None:
        from textmill.evaluation.drift_report import render_over_time
        from textmill.files import atomic_write

        atomic_write(html, render_over_time(looks, reference, by, skipped))
    if gauges is not None:
        write_gauges(looks, reference, gauges)
    newest = looks[-1].drift
    if as_json:
        told = [{"start": each.start.isoformat(), "requests": each.requests, **each.drift.as_dict()} for each in looks]
        print_json({"reference": reference, "captured": str(captured), "by": by, "skipped": skipped, "looks": told})
    else:
        _print_table(newest, captured, reference, html)
        print_table(
            (by, "rows", "judged with", "verdict"),
            [
                (f"{e.start:%Y-%m-%d %H:%M}", f"{e.requests:,}", f"{e.drift.rows:,}", e.drift.verdict)
                for e in looks[-14:]
            ],
            title=f"The last looks, by {by} (UTC)",
            numeric=range(1, 3),
        )
    if newest.verdict != "no drift":
        raise Exit(REFUSED if newest.verdict == "drift" else INCONCLUSIVE)


def exported_folder_of(reference: str) -> Path:
    """Return the exported folder of a version or alias; a folder is returned as it is.

    Raises:
        UserError: There is no such version.
    """
    if Path(reference).is_dir():
        return Path(reference)
    from textmill.config.layout import find_layout
    from textmill.registry.lineage.lineage import exported_folder, find_origin

    layout = find_layout()
    return exported_folder(find_origin(reference, layout), layout)


def _print_table(result: Drift, file: Path, reference: str, html: Path | None) -> None:
    from rich.console import Console
    from rich.text import Text

    title = f"{file.name} ({result.rows:,} rows) compared with the training data of {reference}"
    rows = []
    for measure in result.measures:
        cells = (f"{measure.effect:.3f}", f"{measure.limit:g}", f"{measure.p_value:.2g}")
        flag, style = ("drift", "red") if measure.flagged else ("", "")
        rows.append([Text(cell, style) for cell in (measure.subject, measure.name, *cells, flag)])
    print_table(("subject", "measure", "effect", "limit", "p", ""), rows, title=title, numeric=range(2, 5))
    console = Console()
    console.print(f"  Verdict: {result.verdict}.", highlight=False)
    if html is not None:
        console.print(f"  Report with plots: {html}", highlight=False, markup=False, soft_wrap=True)
