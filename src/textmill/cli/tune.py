"""`textmill tune`: search settings by many trainings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from textmill.cli.choose import changes_of, quantity
from textmill.cli.output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from textmill.selection.tune import Outcome

_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_SHOWN = 10


def tune(
    settings: Annotated[
        list[str] | None, Argument(help="Name of a file in conf/experiment/, or KEY=VALUE as for a stage.")
    ] = None,
    space: Annotated[str, Option(help="Name of a file in conf/tune/: the settings to vary.")] = "default",
    trials: Annotated[
        int | None, Option(min=1, help="Trials of the study, over all calls. Default: 20 without --budget.")
    ] = None,
    budget: Annotated[
        str | None, Option(help="Time of all trials of the study, such as 90s or 2h; the last one ends its training.")
    ] = None,
    study: Annotated[str | None, Option(help="Name of the study. Default: EXPERIMENT-SPACE.")] = None,
    storage: Annotated[
        str | None, Option(help="Address of the study's database. Default: the tracking store's.")
    ] = None,
    adopt: Annotated[str | None, Option(help="Write the best trial as conf/experiment/NAME.yaml.")] = None,
    force: Annotated[bool, Option("--force", help="Overwrite an experiment of this name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search the best settings by many trainings, and stop those early that fall behind.

    The same command continues a study that was cut off. Several processes may work on one study.
    Needs the extra: pip install -e '.[tune]'.

    Example: textmill tune shakespeare --space language_model --trials 30 --adopt tuned
    """
    import logging
    import sys

    from textmill.config.layout import find_layout
    from textmill.processes import exit_on_signals
    from textmill.selection.study import require_optuna
    from textmill.stages.imports import quick_imports

    exit_on_signals()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("textmill").setLevel(logging.WARNING)  # a line per trial, not per validation
    require_optuna()
    layout = find_layout()
    changes = changes_of([each if "=" in each else f"experiment={each}" for each in settings or ()], "settings")
    seconds = quantity("--budget", budget, _SECONDS)
    with quick_imports():
        from textmill.selection.tune import DEFAULT_TRIALS, Budget
        from textmill.selection.tune import tune as run

    limit = Budget(trials or (None if seconds else DEFAULT_TRIALS), seconds)
    try:
        outcome = run(changes, space, limit, layout, name=study, storage=storage)
    except KeyboardInterrupt:
        print("textmill tune: interrupted; the same command continues the study", file=sys.stderr)
        sys.exit(130)
    written = _adopt(outcome, adopt, force=force) if adopt else None
    if as_json:
        print_json(_document(outcome) | ({"adopted": written} if written else {}))
    else:
        _print(outcome, written)


def _adopt(outcome: Outcome, name: str, *, force: bool) -> str:
    from textmill.config.layout import find_layout
    from textmill.errors import UserError
    from textmill.registry.lineage.adoption import adopt as write

    if outcome.best is None:
        raise UserError("no trial trained to the end", where=f"study {outcome.name}", fix="Raise --trials or --budget")
    layout = find_layout()
    return str(write(outcome.best.user_attrs["run_id"], name, layout, force=force).path.relative_to(layout.root))


def _document(outcome: Outcome) -> dict[str, Any]:
    trials = [
        {
            "number": each.number,
            "state": each.state.name.lower(),
            "value": each.value if each.state.name == "COMPLETE" else None,
            "validations": list(each.intermediate_values.values()),
            "seconds": each.user_attrs.get("seconds"),
            "settings": each.params,
            "run_id": each.user_attrs.get("run_id"),
        }
        for each in outcome.trials
    ]
    return {
        "study": outcome.name,
        "metric": outcome.metric,
        "run_id": outcome.run_id,
        "best": outcome.best and outcome.best.number,
        "trials": trials,
    }


def _print(outcome: Outcome, written: str | None) -> None:
    if outcome.best is None:
        print(f"No trial of the study {outcome.name} has trained to the end.")
        return
    states = [each.state.name for each in outcome.trials]
    keys = list(outcome.best.params)
    rows = [
        [str(each.number), f"{each.value:.4f}", *(_cell(each.params[key]) for key in keys)]
        for each in outcome.ranked[:_SHOWN]
    ]
    counts = f"{len(outcome.ranked)} complete, {states.count('PRUNED')} pruned, {states.count('FAIL')} failed"
    title = f"{outcome.name}: {len(states)} trials, {counts}"
    names = [key.rpartition(".")[2].replace("_", " ") for key in keys]
    print_table(("trial", outcome.metric.replace("_", " "), *names), rows, title=title, numeric=range(9))
    if written:
        print(f"  Wrote {written} with the settings of trial {outcome.best.number}. Run it with:")
        print(f"    dvc exp run -S experiment={written.rpartition('/')[2].removesuffix('.yaml')}")
    else:
        print("  To write the best trial as an experiment of conf/:")
        print(f"    textmill adopt {outcome.best.user_attrs['run_id']} NAME")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
