"""`textmill drift`: new texts beside the training data of a version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textmill.cli.exit_codes import INCONCLUSIVE, REFUSED
from textmill.cli.json_output import print_json
from textmill.cli.lineage import VERSION_HELP
from textmill.errors import UserError

if TYPE_CHECKING:
    from textmill.evaluation.drift import Drift


def drift(
    file: Annotated[Path, typer.Argument(help="CSV, TSV, JSON Lines or Parquet; any other file has a text a line.")],
    reference: Annotated[str, typer.Option(help=f"{VERSION_HELP} Or a folder with an exported model.")],
    html: Annotated[Path | None, typer.Option(help="Write the report, one page with pictures, to this file.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="TASK-COLUMN=FILE-COLUMN, where the two differ; may be repeated.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows used at most; of a larger file as many at random.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare new texts with those that a version was trained on: lengths, words, labels, the model's outputs.

    The version brings what must be known of its training data along. Ends with 0 when there is no
    drift, 3 when there is, 4 when there are too few rows to say.

    Example: textmill drift --reference movie-reviews@challenger july.csv --html drift.html
    """
    from textmill.evaluation.drift import measure_drift
    from textmill.evaluation.new_texts import read_new_texts
    from textmill.evaluation.reference import read_reference
    from textmill.predicting.loading import load_predictor
    from textmill.tasks.abilities import drift_features_of

    columns = dict(_pair(text) for text in column or [])
    folder = _folder(reference)
    predictor = load_predictor(folder, "fp32")
    known = read_reference(folder)
    new = read_new_texts(file, predictor.task, predictor.exported.cleaning, columns, rows)
    outputs, answers = predictor.answer_rows(new.frame, new.frame) if known.outputs else ({}, [])
    comparable = drift_features_of(predictor.task, outputs)
    found = measure_drift(known, new.frame, new.targets, comparable, answers)
    if html is not None:
        from textmill.evaluation.drift_report import render_drift
        from textmill.files import atomic_write

        atomic_write(html, render_drift(found, reference, file.name, new.skipped))
    if as_json:
        document = {"reference": reference, "file": str(file), "skipped": new.skipped, **found.as_dict()}
        print_json(document)
    else:
        _print_table(found, file, reference, html)
    if found.verdict != "no drift":
        raise typer.Exit(REFUSED if found.verdict == "drift" else INCONCLUSIVE)


def _folder(reference: str) -> Path:
    if Path(reference).is_dir():
        return Path(reference)
    from textmill.config.layout import find_layout
    from textmill.registry.lineage.lineage import exported_folder, find_origin

    layout = find_layout()
    return exported_folder(find_origin(reference, layout), layout)


def _pair(text: str) -> tuple[str, str]:
    name, sign, other = text.partition("=")
    if not (name and sign and other):
        raise UserError(f"cannot read {text!r}", where="--column", fix="Write TASK-COLUMN=FILE-COLUMN")
    return name, other


def _print_table(found: Drift, file: Path, reference: str, html: Path | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{file.name} ({found.rows:,} rows) beside the training data of {reference}"
    table = Table(box=box.SIMPLE_HEAD, title=escape(title), title_justify="left")
    for name in ("of", "measure"):
        table.add_column(name)
    for name in ("effect", "limit", "p"):
        table.add_column(name, justify="right")
    table.add_column("")
    for measure in found.measures:
        cells = (f"{measure.effect:.3f}", f"{measure.limit:g}", f"{measure.p_value:.2g}")
        flag = "drift" if measure.flagged else ""
        table.add_row(
            escape(measure.subject), escape(measure.name), *cells, flag, style="red" if measure.flagged else ""
        )
    console = Console()
    console.print(table)
    console.print(f"  Verdict: {found.verdict}.", highlight=False)
    if html is not None:
        console.print(f"  The report with pictures is {html}.", highlight=False, markup=False, soft_wrap=True)
