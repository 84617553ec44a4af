"""`textmill report`: open the report of the evaluation."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from typer import Option

from textmill.cli.output import AsJson, print_json
from textmill.errors import UserError


def report(
    pdf: Annotated[bool, Option("--pdf", help="The first page as PDF instead of the whole report.")] = False,
    as_json: AsJson = False,
) -> None:
    """Open the report of the last evaluation in a browser, and print its path.

    Without a display only the path is printed.

    Example: textmill report --pdf
    """
    from textmill.config.layout import find_layout

    path = find_layout().evaluation / ("report.pdf" if pdf else "report.html")
    if not path.is_file():
        raise UserError("there is no report yet", where=str(path), fix="Run `dvc repro evaluate`")
    if as_json:
        print_json({"path": str(path.absolute())})
        return
    print(path.absolute())
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        import webbrowser

        webbrowser.open(path.absolute().as_uri())
