"""`textmill reproduce`: rebuild a version from its commit."""

from __future__ import annotations

import logging
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from textmill.cli.output import REFUSED, VERSION_HELP, AsJson, print_json, print_table

if TYPE_CHECKING:
    from textmill.registry.lineage.reproduction import Reproduction


def reproduce(
    version: Annotated[str, Argument(help=VERSION_HELP)],
    force: Annotated[bool, Option("--force", help="Retrain instead of using the weights in DVC's cache.")] = False,
    allow_dirty: Annotated[
        bool, Option("--allow-dirty", help="Continue although the version was built with uncommitted changes.")
    ] = False,
    tolerance: Annotated[float, Option(min=0, help="Maximum difference of a metric that counts as equal.")] = 1e-6,
    as_json: AsJson = False,
) -> None:
    """Rebuild a version from its git commit in a temporary worktree and compare the metrics.

    Exit status: 0 all metrics are equal, 1 error, 3 a metric differs.

    Example: textmill reproduce movie-reviews/3 --force
    """
    from textmill.config.layout import find_layout
    from textmill.registry.lineage.lineage import find_origin
    from textmill.registry.lineage.reproduction import reproduce as run

    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # an exit removes the worktree
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    layout = find_layout()
    origin = find_origin(version, layout)
    try:
        result = run(origin, layout, force=force, allow_dirty=allow_dirty)
    except KeyboardInterrupt:
        print("textmill reproduce: interrupted; the worktree was removed", file=sys.stderr)
        raise Exit(130) from None
    wrong = result.differing(tolerance)
    if as_json:
        print_json({"version": origin.name, "equal": not wrong, "tolerance": tolerance, **asdict(result)})
    else:
        _print_table(origin.name, result, tolerance)
    if wrong:
        raise Exit(REFUSED)


def _print_table(name: str, result: Reproduction, tolerance: float) -> None:
    from rich.console import Console
    from rich.text import Text

    wrong = {metric.name for metric in result.differing(tolerance)}
    rows = []
    for metric in result.figures:
        if metric.name in wrong or _headline(metric.name):
            again = metric.reproduced
            cells = ("-", "-") if again is None else (f"{again:.6f}", f"{again - metric.registered:+.2e}")
            style = "red" if metric.name in wrong else ""
            rows.append([Text(cell, style) for cell in (metric.name, f"{metric.registered:.6f}", *cells)])
    title = f"{name} rebuilt from commit {result.commit[:12]}"
    print_table(("metric", "registered", "reproduced", "difference"), rows, title=title, numeric=range(1, 4))
    console = Console()
    weights = "identical" if result.same_weights else "not identical"
    equal = f"{len(result.figures) - len(wrong)} of {len(result.figures)} metrics are equal"
    console.print(f"  {equal} (within {tolerance:g}); the weights are {weights}.", highlight=False)
    console.print(f"  Stages run: {', '.join(result.ran)}. The others came from DVC's cache.", highlight=False)


def _headline(name: str) -> bool:
    """Return whether a metric is the model's own over all test rows."""
    return name.startswith("test/") and name.count("/") == 1 and not name.endswith(("_low", "_high"))
