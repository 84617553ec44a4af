"""`textmill compare`: compare two versions or runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from textmill.cli.output import VERSION_HELP, AsJson, print_json, print_table

if TYPE_CHECKING:
    from textmill.evaluation.comparison_page import Part


def compare(
    first: Annotated[str, Argument(help=f"{VERSION_HELP} Or an MLflow run id.")],
    second: Annotated[str, Argument(help="Version or run id, as above.")],
    html: Annotated[Path | None, Option(help="Also write a page with plots to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare metrics, costs, data and parameters of two versions or runs.

    A gain is positive where the second is better; intervals are of paired bootstraps on the same rows.

    Example: textmill compare champion challenger
    """
    from textmill.config.layout import find_layout
    from textmill.evaluation.comparison_page import parts_of, render_comparison
    from textmill.files import atomic_write
    from textmill.registry.promotion.comparison import compare as run

    comparison = run(first, second, find_layout())
    parts = parts_of(
        comparison.names,
        comparison.metrics,
        comparison.differences,
        comparison.higher_is_better,
        comparison.costs,
        comparison.digests,
        comparison.params,
    )
    if html is not None:
        page = render_comparison(
            comparison.names,
            comparison.how,
            parts,
            comparison.metrics,
            comparison.differences,
            comparison.higher_is_better,
        )
        atomic_write(html, page)
    if as_json:
        print_json(comparison.as_dict())
        return
    for part in parts:
        _print_part(part)
    print(f"  {comparison.how}")
    if html is not None:
        print(f"  Page with plots: {html}")


def _print_part(part: Part) -> None:
    if not part.table.rows:
        print(f"\n  {part.empty}\n")
        return
    numeric = [position for position, right in enumerate(part.table.numeric) if right]
    print_table(part.table.head, part.table.rows, title=part.title, numeric=numeric)
