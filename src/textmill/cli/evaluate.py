"""`textmill evaluate`: measure language models on tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from textmill.cli.output import INCONCLUSIVE, MODEL_HELP, REFUSED, AsJson, print_json, print_table
from textmill.errors import UserError

if TYPE_CHECKING:
    from textmill.evaluation.suites import Gain, SuiteRun
    from textmill.metrics.bootstrap import Bootstrap

_CODES = {"pass": 0, "inconclusive": INCONCLUSIVE, "fail": REFUSED}


def evaluate(
    model: Annotated[
        str | None, Argument(help=f"{MODEL_HELP} Or a model of the hub. Default: data/exported/model.")
    ] = None,
    suite: Annotated[Path, Option(help="Task or group file of lm-evaluation-harness; docs/suites.md.")] = Path(),
    against: Annotated[str | None, Option(help="Second model, compared on the same rows.")] = None,
    margin: Annotated[
        float | None, Option(min=0, help="Gate: tolerated loss in the first metric of each task, in its unit.")
    ] = None,
    few_shot: Annotated[int | None, Option(min=0, help="Examples in each prompt. Default: of the task file.")] = None,
    limit: Annotated[int | None, Option(min=2, help="Use the first rows of each task only.")] = None,
    chat: Annotated[bool, Option("--chat", help="Put prompts into the model's chat template.")] = False,
    output: Annotated[Path | None, Option(help="Also write each row's prompts and answers, as JSON Lines.")] = None,
    resamples: Annotated[int, Option(min=100, help="Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, Option(help="Seed of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a language model on tasks of lm-evaluation-harness, with 95 % intervals.

    With --against, a gain is positive where the first model is better. With --margin too, the gate decides.

    Exit status: 0, or of the gate: 3 a task loses more than the margin, 4 there are too few rows to tell.

    Example: textmill evaluate --suite suites/questions.yaml --against models:/chat@champion --margin 0.02
    """
    from textmill.evaluation.suites import compare_runs, require_harness, run_suite
    from textmill.files import atomic_write
    from textmill.metrics.bootstrap import Bootstrap

    if suite == Path():
        raise UserError("no suite", where="--suite", fix="Give a task or group file; docs/suites.md shows one")
    if margin is not None and against is None:
        raise UserError("the gate compares two models", where="--margin", fix="Give the other one by --against")
    require_harness()  # before a model is loaded
    bootstrap = Bootstrap(resamples, seed=seed)
    names = [model or "data/exported/model", *([against] if against else [])]
    options: dict[str, Any] = {"shots": few_shot, "limit": limit, "chat": chat}
    runs = [run_suite(suite, load_harness_model(name), **options) for name in (model, *names[1:])]
    gains = compare_runs(runs[0], runs[1], bootstrap, margin) if against else []
    if output is not None:
        lines = [
            json.dumps({"model": name, **record}, default=str, ensure_ascii=False)
            for name, run in zip(names, runs, strict=True)
            for record in run.requests
        ]
        atomic_write(output, "\n".join(lines) + "\n")
    measured = [_measured(run, bootstrap) for run in runs]
    if as_json:
        results = dict(zip(names, measured, strict=True))
        print_json({"suite": str(suite), "models": results, "gains": [_as_dict(gain) for gain in gains]})
    else:
        _print(names, measured, gains)
    raise Exit(max((_CODES[gain.status] for gain in gains if gain.status), key=[0, 4, 3].index, default=0))


def load_harness_model(model: str | None) -> Any:
    """Load an exported or registered language model, a folder of transformers, or a model of the hub.

    Raises:
        UserError: There is no such model, or it does not continue text.
    """
    from textmill.cli.predict import load_model
    from textmill.config.layout import find_layout
    from textmill.errors import first_line
    from textmill.predicting.exported import SPECIFICATION_FILE
    from textmill.predicting.harness_model import ContinuerModel, transformers_model
    from textmill.predicting.text_continuer import TextContinuer
    from textmill.registry.versions.versions import download

    if model is not None and not model.startswith("models:/") and not (Path(model) / SPECIFICATION_FILE).is_file():
        try:
            return transformers_model(model)
        except Exception as error:  # of transformers, the hub's client or the operating system
            fix = "Give an exported folder, models:/NAME@ALIAS, a transformers folder or a model of the hub"
            raise UserError(f"cannot be loaded ({first_line(error)})", where=model, fix=fix) from error
    remote = model is not None and model.startswith("models:/")
    folder = download(str(model), find_layout()) if remote else Path(model or find_layout().exported / "model")
    predictor = load_model(str(folder))
    if not isinstance(predictor, TextContinuer):
        task = predictor.task.name.replace("_", " ")
        raise UserError(f"a model of {task} does not continue text", where=str(folder), fix="Give a language model")
    return ContinuerModel(predictor, folder)


def _measured(run: SuiteRun, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Return each task's metrics with intervals."""
    return [
        {
            "task": task.name,
            "rows": len(task.rows),
            "few_shot": task.shots,
            "metrics": {name: interval.as_dict() for name, interval in task.intervals(bootstrap).items()},
        }
        for task in run.tasks
    ]


def _as_dict(gain: Gain) -> dict[str, Any]:
    return {"task": gain.task, "metric": gain.metric, **gain.gain.as_dict(), "gate": gain.status}


def _print(names: list[str], measured: list[list[dict[str, Any]]], gains: list[Gain]) -> None:
    for name, tasks in zip(names, measured, strict=True):
        rows = [
            [task["task"], str(task["rows"]), str(task["few_shot"]), metric, f"{found['value']:.4f}", _bounds(found)]
            for task in tasks
            for metric, found in task["metrics"].items()
        ]
        head = ["task", "rows", "few-shot", "metric", "value", "95 % interval"]
        print_table(head, rows, title=name, numeric=(1, 2, 4, 5))
    if gains:
        rows = [
            [each.task, each.metric, f"{each.gain.value:+.4f}", _bounds(each.gain.as_dict()), each.status or ""]
            for each in gains
        ]
        title = f"Gain of {names[0]} over {names[1]}"
        print_table(["task", "metric", "gain", "interval", "gate"], rows, title=title, numeric=(2, 3))


def _bounds(found: dict[str, float]) -> str:
    return f"{found['low']:.4f} to {found['high']:.4f}"
