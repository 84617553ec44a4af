"""`textmill summary`: show the results of the last pipeline run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.cli.output import AsJson, print_json, print_table
from textmill.errors import UserError
from textmill.files import read_optional

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from textmill.config.layout import Layout

_GOOD_EXAMPLE, _LONGEST_EXAMPLE = 50, 200
"""Characters of the input that a hint shows."""
_NEXT = (
    "textmill report          # the report of the evaluation",
    "mlflow ui                # compare runs on http://127.0.0.1:5000/#/experiments/{experiment}/runs",
    "dvc exp run -S train.max_epochs=1 && dvc exp show",
)


def summary(as_json: AsJson = False) -> None:
    """Show the metrics of model and baselines, the registered version and what to try next."""
    from textmill.config.layout import find_layout

    layout = find_layout()
    metrics = _read(layout.evaluation / "metrics.json")
    registered = _read(layout.registered / "registered.json")
    now = _registry_now(registered, layout)
    warnings = read_optional(layout.evaluation / "figures.json").get("warnings", [])
    if as_json:
        print_json({"warnings": warnings, "metrics": metrics, "registered": {**registered, **now}})
        return
    experiment = str(now.get("experiment") or "EXPERIMENT")
    _print_table(metrics, _standing(registered, now), _command(layout), experiment, warnings)


def _command(layout: Layout) -> str:
    """Return the command that asks the exported model, with an input of its own test split."""
    from textmill.tasks.abilities import ContinuesText
    from textmill.tasks.base import Task

    specification = read_optional(layout.exported / "model" / "textmill.json")
    inputs = read_optional(layout.exported / "examples.json").get("inputs", [])
    if not specification or not inputs:
        return "textmill predict TEXT"
    task = Task.find(str(specification["task"]["_target_"]))
    texts = [next(iter(row.values())) if len(row) == 1 else json.dumps(row, ensure_ascii=False) for row in inputs]
    text = min((text for text in texts if text.strip()), key=lambda text: abs(len(text) - _GOOD_EXAMPLE))
    if len(text) > _LONGEST_EXAMPLE:
        return "textmill predict --file FILE"
    return f"textmill {'generate' if issubclass(task, ContinuesText) else 'predict'} {shlex.quote(text)}"


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError("the pipeline has not completed", where=str(path), fix="Run `make repro`")
    return json.loads(path.read_text(encoding="utf-8"))


def _registry_now(registered: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Return what the registry says now of the version that this folder's `register` made.

    The folder may be of an experiment that others followed, so the aliases may be of other versions.
    """
    from textmill.config.sections.runtime import RuntimeConfig
    from textmill.registry.runs.addresses import find_version
    from textmill.registry.runs.store import UnreachableError, open_client
    from textmill.registry.versions.versions import configured_uri

    name, number = str(registered["name"]), str(registered["version"])
    try:
        with open_client(RuntimeConfig(tracking_uri=configured_uri(layout)), layout) as client:
            find_version(f"{name}/{number}", client, layout)
            aliases = {alias: str(of) for alias, of in client.get_registered_model(name).aliases.items()}
            run = _run(str(registered["run_id"]), client)
    except UnreachableError as error:
        return {"alias": None, "aliases": None, "problem": str(error)}
    except UserError as error:
        return {"alias": None, "aliases": {}, "problem": str(error)}
    experiment = run.info.experiment_id if run else None
    alias = next(iter(_own(aliases, number)), None)
    return {"alias": alias, "aliases": aliases, "problem": None, "experiment": experiment}


def _run(run_id: str, client: MlflowClient) -> Run | None:
    """Return the run, or None if it was deleted."""
    from textmill.registry.runs.addresses import find_run

    try:
        return find_run(run_id, client)
    except UserError:
        return None


def _own(aliases: dict[str, str], number: str) -> list[str]:
    """Return the aliases of a version; one that was promoted is no challenger any more."""
    own = sorted(alias for alias, of in aliases.items() if of == number)
    return [alias for alias in own if alias != "challenger" or "champion" not in own]


def _standing(registered: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe the version of this folder, and which version `textmill promote` means."""
    name, number = registered["name"], str(registered["version"])
    version = f"[bold]{name} version {number}[/bold]"
    if now["problem"]:
        again = "" if now["aliases"] is None else " `dvc repro --force register` registers it again."
        return f"  Registered as {version}. {now['problem']}{again}"
    own = _own(now["aliases"], number)
    text = f"  Registered as {version}, alias {' and '.join(own)}." if own else f"  Registered as {version}, no alias."
    challenger = now["aliases"].get("challenger")
    if challenger != number and "champion" not in own:
        other = f"version {challenger}, from another run" if challenger else "none"
        text += f"\n  The challenger is {other}. To promote this version: textmill promote {name}/{number}"
    return text


def _print_table(metrics: dict[str, Any], standing: str, first: str, experiment: str, warnings: list[str]) -> None:
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
    for warning in warnings:
        console.print(f"  Warning: {warning}", style="bold red", highlight=False, markup=False, soft_wrap=True)
    console.print(standing, highlight=False, soft_wrap=True)
    console.print("\n  Try next, after `source .venv/bin/activate`:", highlight=False)
    for command in (first, *_NEXT):
        console.print(
            f"    {command.replace('{experiment}', experiment)}", highlight=False, markup=False, soft_wrap=True
        )


def _interval(metric: dict[str, float]) -> str:
    return f"{metric['low']:.3f} to {metric['high']:.3f}" if "low" in metric else ""


def _value(metric: Any) -> str:
    return f"{metric['value']:.4f}" if isinstance(metric, dict) else "-"
