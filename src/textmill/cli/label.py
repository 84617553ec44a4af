"""`textmill label`: choose the rows to label, and store their labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from textmill.cli.drift import exported_folder_of
from textmill.cli.output import VERSION_HELP, AsJson, print_json, print_table
from textmill.cli.predict import Column, columns_from
from textmill.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10
_SHARE = 0.1


def label(
    file: Annotated[
        Path | None, Argument(help="Table, as `textmill init` reads it; any other file: one text per line.")
    ] = None,
    captured: Annotated[Path | None, Option(help="Folder of `textmill serve --capture`.")] = None,
    model: Annotated[str, Option(help=f"Model that will learn. {VERSION_HELP} Or an exported folder.")] = "champion",
    other_model: Annotated[
        str | None, Option("--other", help="Another model of the task: rows of different answers count.")
    ] = None,
    rows: Annotated[int | None, Option(min=1, help="Maximum rows to write. Default: a tenth of all.")] = None,
    pool: Annotated[int, Option(min=1, help="Maximum rows to choose from; more are sampled at random.")] = 20_000,
    output: Annotated[Path, Option(help="CSV to write.")] = Path("to_label.csv"),
    done: Annotated[
        Path | None, Option(help="Instead of choosing: CSV with labels filled in, to store in --captured.")
    ] = None,
    new_labels: Annotated[
        bool, Option("--new-labels", help="With --done: allow labels that the model does not know.")
    ] = False,
    column: Column = None,
    as_json: AsJson = False,
) -> None:
    """Write the rows whose labels are worth a person's time to a CSV; store the CSV that was filled in.

    Best are rows with an uncertain answer, with new words, or with different answers of models. Near-duplicates come
    once; rows with a right answer do not come. Fill in the column right_label: a label, or `remove`.

    Example: textmill label --captured data/own/captured --output to_label.csv
    """
    from textmill.config.resolved import trust_project

    columns = columns_from(column)
    trust_project()
    folder = exported_folder_of(model)
    if done is not None:
        if captured is None or file is not None:
            raise UserError("needs --captured, and no file to choose from", where="--done", fix="See --help")
        _store(done, folder, captured, new_labels, as_json)
        return
    if (file is None) == (captured is None):
        raise UserError("give a file or --captured, and not both", where="textmill label", fix="See --help")
    if output.exists():
        raise UserError("exists, perhaps with labels", where=str(output), fix="Move it, or give another --output")
    from textmill.evaluation.reference import REFERENCE_FILE, read_reference
    from textmill.files import atomic_write
    from textmill.predicting.loading import load_predictor
    from textmill.selection.labelling import for_spreadsheet, rank, read_file, read_unlabelled

    predictor = load_predictor(folder)
    reference = read_reference(folder) if (folder / REFERENCE_FILE).is_file() else None
    second = load_predictor(exported_folder_of(other_model)) if other_model else None
    task, cleaning = predictor.task, predictor.exported.cleaning
    if captured is not None:
        unlabelled = read_unlabelled(captured, task, cleaning, pool)
    else:
        assert file is not None
        unlabelled = read_file(file, task, cleaning, columns, pool)
    table, among = rank(unlabelled, predictor, reference, second, rows, _SHARE)
    safe = table.map(for_spreadsheet)  # texts are from anyone
    atomic_write(output, safe.to_csv(index=False).encode("utf-8-sig"))  # the mark tells spreadsheets the encoding
    if as_json:
        print_json({"model": model, "among": among, "skipped": unlabelled.skipped, "rows": table.to_dict("records")})
    else:
        _print(table, among, output, captured)


def _store(done: Path, folder: Path, captured: Path, new_labels: bool, as_json: bool) -> None:
    from textmill.predicting.exported import read_specification
    from textmill.selection.labelling import store_labels
    from textmill.tasks.base import Task

    exported = read_specification(folder)
    labels = exported.state.get("labels", [])
    stored, removed = store_labels(done, Task.build(exported.task), labels, captured, new_labels)
    if as_json:
        print_json({"file": str(done), "captured": str(captured), "rows": stored, "removed": removed})
    else:
        print(f"{stored} rows of {done} are stored in {captured}; {removed} of them are to be removed")


def _print(table: pd.DataFrame, among: int, output: Path, captured: Path | None) -> None:
    from rich.console import Console

    shown = table.head(_SHOWN)
    names = ("answer", "score", "uncertainty", "novelty", "disagreement")
    print_table(
        ("", table.columns[2], *names),
        [
            (str(row["rank"]), str(row[table.columns[2]])[:80], *(str(row[name]) for name in names))
            for row in shown.to_dict("records")
        ],
        title=f"{len(table):,} of {among:,} rows to label, the first {len(shown)}",
        numeric=(0, *range(3, 7)),
    )
    console = Console()
    folder = captured or "FOLDER"
    for line in (
        f"  Written to {output}: fill in the column right_label, then run",
        f"  textmill label --done {output} --captured {folder}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
