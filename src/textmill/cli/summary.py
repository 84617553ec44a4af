"""`textmill summary`: show the results of the last pipeline run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from textmill.cli.output import AsJson, print_json, print_table
from textmill.errors import UserError

_PREDICT = 'textmill predict "I love this product" "This product is bad"'
_GENERATE = 'textmill generate "To be"'
_NEXT = (
    "mlflow ui                # compare runs on http://127.0.0.1:5000",
    "dvc exp run -S train.max_epochs=1 && dvc exp show",
)


def summary(as_json: AsJson = False) -> None:
    """Show the metrics of model and baselines, the registered version and what to try next."""
    from textmill.config.layout import find_layout

    layout = find_layout()
    metrics = _read(layout.evaluation / "metrics.json")
    registered = _read(layout.registered / "registered.json")
    if as_json:
        print_json({"metrics": metrics, "registered": registered})
        return
    specification = layout.exported / "model" / "textmill.json"
    generates = specification.is_file() and _read(specification).get("generation") is not None
    _print_table(metrics, registered, _GENERATE if generates else _PREDICT)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError("the pipeline has not completed", where=str(path), fix="Run `make repro`")
    return json.loads(path.read_text(encoding="utf-8"))


def _print_table(metrics: dict[str, Any], registered: dict[str, Any], first: str) -> None:
    from rich.console import Console

    baselines = metrics["baselines"]
    columns = ["metric", "this model", "95 % interval", *(name.replace("_", " ") for name in baselines)]
    rows = [
        [
            name.replace("_", " "),
            _value(metric),
            _interval(metric),
            *(_value(baseline.get(name)) for baseline in baselines.values()),
        ]
        for name, metric in metrics["test"].items()
        if isinstance(metric, dict) and "value" in metric and "/" not in name
    ]
    print_table(columns, rows, title="On the test split", numeric=range(1, len(columns)))
    console = Console()
    version = f"{registered['name']} version {registered['version']}"
    console.print(f"  Registered as [bold]{version}[/bold], alias {registered['alias']}.")
    console.print("\n  Try next, after `source .venv/bin/activate`:", highlight=False)
    for command in (first, *_NEXT):
        console.print(f"    {command}", highlight=False, markup=False, soft_wrap=True)


def _interval(metric: dict[str, float]) -> str:
    return f"{metric['low']:.3f} to {metric['high']:.3f}" if "low" in metric else ""


def _value(metric: Any) -> str:
    return f"{metric['value']:.4f}" if isinstance(metric, dict) else "-"
