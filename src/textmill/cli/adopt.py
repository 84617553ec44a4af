"""`textmill adopt`: save the settings of a run as an experiment of `conf/`."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from textmill.cli.output import AsJson, print_json


def adopt(
    source: Annotated[
        str, Argument(metavar="RUN-OR-EXP", help="DVC experiment, MLflow run id, version or git revision.")
    ],
    name: Annotated[str | None, Argument(help="Name of the new experiment. Default: the source's name.")] = None,
    force: Annotated[bool, Option("--force", help="Overwrite an experiment of this name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save the settings of a run as conf/experiment/NAME.yaml.

    The file composes to the same configuration as the run.

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
    print("It composes to the same configuration. Run it with:")
    print(f"    dvc exp run -S experiment={adopted.name}")
    if adopted.overruled:
        print(f"\nWarning: params.yaml overrides it: {', '.join(adopted.overruled)}.")
        print("Set these parameters to null in params.yaml to use the experiment's values.")
