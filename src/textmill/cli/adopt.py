"""`textmill adopt`: a good run becomes an experiment of `conf/`."""

from __future__ import annotations

from typing import Annotated

import typer

from textmill.cli.json_output import print_json


def adopt(
    source: Annotated[
        str, typer.Argument(metavar="RUN-OR-EXP", help="A DVC experiment, an MLflow run id, a version, a git revision.")
    ],
    name: Annotated[str | None, typer.Argument(help="Of the new experiment. Default: that of the source.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an experiment of this name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a run's choices back as conf/experiment/NAME.yaml, which composes to the same values.

    Example: textmill adopt quick-fox larger_steps && dvc exp run -S experiment=larger_steps
    """
    from textmill.config.layout import find_layout
    from textmill.registry.lineage.adoption import adopt as write

    layout = find_layout()
    adopted = write(source, name, layout, force=force)
    path = adopted.path.relative_to(layout.root)
    if as_json:
        document = {"name": adopted.name, "path": str(path), "origin": adopted.origin, "overruled": adopted.overruled}
        print_json(document)
        return
    print(f"{path}, from {adopted.origin}:\n")
    print("".join(f"    {line}\n" for line in adopted.text.splitlines()))
    print("It composes to the same values. Run it with:")
    print(f"    dvc exp run -S experiment={adopted.name}")
    if adopted.overruled:
        print(f"\nBut params.yaml sets otherwise, and wins: {', '.join(adopted.overruled)}.")
        print("Set those knobs to null there to leave them to the experiment.")
