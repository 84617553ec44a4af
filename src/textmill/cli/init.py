"""`textmill init`: describe data files in `conf/`, ready to train."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from textmill.cli.output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from textmill.tasks.recognition.columns import Proposal
    from textmill.text.columns import Seen


def init(
    files: Annotated[
        list[str], Argument(metavar="FILE...", help="Tables, texts, folders, addresses, or a data set of the hub.")
    ],
    name: Annotated[str | None, Option(help="Name of the experiment. Default: the file's name.")] = None,
    task: Annotated[str | None, Option(help="Name of a file in conf/task/. Default: what the files look like.")] = None,
    text: Annotated[list[str] | None, Option(help="Text column. Repeat it to join several.")] = None,
    label: Annotated[str | None, Option(help="Column to predict.")] = None,
    sheet: Annotated[str | None, Option(help="Sheet of a workbook. Default: the first one with rows.")] = None,
    encoding: Annotated[str | None, Option(help="Encoding of the files, such as gb18030. Default: detected.")] = None,
    yes: Annotated[bool, Option("--yes", "-y", help="Ask nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at data files, print what they hold, and write conf/data/NAME.yaml and conf/experiment/NAME.yaml.

    Files named train, validation (dev) and test are these splits. Subfolders of texts are classes.

    Example: textmill init reviews.csv && dvc exp run -S experiment=reviews
    """
    from textmill.config.layout import find_layout
    from textmill.config.sections.prepare import ReadConfig
    from textmill.selection.inspection import languages_of, look_at, sources_of
    from textmill.selection.proposal import checked_name, data_file, experiment_file, propose, require_new, write

    def ask(question: str, answers: list[str]) -> str:
        if yes or as_json or not sys.stdin.isatty():
            return answers[0]
        from click import Choice

        return str(typer.prompt(question, default=answers[0], type=Choice(answers)))

    layout = find_layout()
    title = Path(files[0].partition("?")[0]).name.partition(".")[0]
    name = checked_name(name, title)
    require_new(layout, name)
    with TemporaryDirectory() as fetched:
        source, splits = sources_of(files, layout, Path(fetched))
        seen = look_at(splits, ReadConfig(columns={}, sheet=sheet, encoding=encoding))
        languages = languages_of(seen.texts) if seen.texts else {}
        proposal = propose(seen, languages, layout, ask, task, text or [], label)
    if sheet is not None:
        proposal.read["sheet"] = sheet
    paths = write(layout, name, data_file(source, seen, proposal), experiment_file(name, proposal, title))
    if as_json:
        columns = {column.name: column.kind for column in seen.columns}
        found = {"format": str(seen.found), "rows": seen.rows, "columns": columns, "languages": languages}
        print_json({"name": name, "task": proposal.task, "files": paths, **found, "reasons": proposal.said})
        return
    _print(seen, languages, proposal)
    print(f"\n{paths[0]} and {paths[1]} say so; edit what is wrong. Then train and register it:\n")
    print(f"    dvc exp run -S experiment={name}")


def _print(seen: Seen, languages: dict[str, float], proposal: Proposal) -> None:
    splits = ", ".join(f"{split} ({len(files)})" if len(files) > 1 else split for split, files in seen.files.items())
    spoken = ", ".join(f"{code} {share:.0%}" for code, share in list(languages.items())[:3])
    print(f"Read as {seen.found}. Splits: {splits}. {seen.rows:,}{'' if seen.whole else ' or more'} rows.")
    print(f"Languages: {spoken}." if spoken else "", end="\n" if spoken else "")
    if seen.header:
        print("There is no header line: the columns are numbered.")
    for reason, count in seen.rejected.most_common(3):
        print(f"{count} of these rows will be rejected: {reason}.")
    used = {value if isinstance(value, str) else ", ".join(value): key for key, value in proposal.columns.items()}
    rows = [
        (column.name, column.kind, f"{column.distinct:,}", used.get(column.name, ""), column.example)
        for column in seen.columns
    ]
    print_table(("column", "kind", "different", "is the task's", "example"), rows, numeric=(2,))
    print(f"Task: {proposal.task}.")
    for line in proposal.said:
        print(line)
