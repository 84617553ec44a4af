"""`textmill plan`: predict what a training takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from textmill.cli.output import AsJson, print_json, print_table
from textmill.errors import UserError

if TYPE_CHECKING:
    from textmill.config.layout import Layout
    from textmill.planning.plan import Plan


_TIMES = 10
"""Operations of the predicted training, as a multiple of the largest tracked one's."""


def plan(
    settings: Annotated[
        list[str] | None, Argument(help="Name of a file in conf/experiment/, or KEY=VALUE as for a stage.")
    ] = None,
    device: Annotated[
        list[str] | None, Option(help="Device of conf/hardware/. Repeatable. Default: all of them.")
    ] = None,
    devices: Annotated[int, Option(min=1, max=1024, help="Largest number of devices.")] = 1024,
    tokens: Annotated[
        float | None, Option(help="Training tokens, such as 1e9, in place of the prepared data's.")
    ] = None,
    budget: Annotated[
        float | None, Option(help="Floating-point operations for the optimal size. Default: those of this training.")
    ] = None,
    probe: Annotated[bool, Option("--probe/--no-probe", help="Measure this machine with real steps.")] = True,
    fresh: Annotated[bool, Option("--fresh", help="Measure again, even where the speed is remembered.")] = False,
    from_runs: Annotated[
        str | None, Option(help="MLflow experiment: fit loss and learning rate to its finished trainings.")
    ] = None,
    plot: Annotated[Path | None, Option(help="With --from-runs: file for a plot, such as scaling.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict operations, memory, time, energy and cost of a training before it runs.

    On this machine at most 20 s of real steps give the speed. On the devices of conf/hardware/ the peak rates do,
    for 1 to 1,024 of them under DDP and FSDP. Needs the prepared data: `dvc repro prepare`.

    With --from-runs it predicts bits per byte and learning rate of a training of --budget operations, by default ten
    times the largest one, from smaller trainings that were tracked.

    Example: textmill plan train.max_epochs=4 --device h100
    """
    from textmill.config.layout import find_layout
    from textmill.stages.imports import quick_imports

    layout = find_layout()
    if (tokens is not None and tokens <= 0) or (budget is not None and budget <= 0):
        raise UserError("must be above 0", where="--tokens" if tokens is not None and tokens <= 0 else "--budget")
    if from_runs is not None:
        _scale(from_runs, budget, plot, layout, as_json=as_json)
        return
    overrides = [each if "=" in each else f"experiment={each}" for each in settings or ()]
    with quick_imports():
        from textmill.planning.report import report
    document, made = report(
        layout, overrides, device or [], devices, tokens=tokens, budget=budget, probe=probe, fresh=fresh
    )
    if as_json:
        print_json(document)
    else:
        _print(document, made, every=bool(device))


def _scale(experiment: str, budget: float | None, plot: Path | None, layout: Layout, *, as_json: bool) -> None:
    """Print the prediction from tracked trainings."""
    from dataclasses import asdict

    from textmill.config import resolved
    from textmill.config.sections.runtime import RuntimeConfig
    from textmill.planning.scaling import Scaling
    from textmill.registry.runs.trainings import METRIC, read_trainings

    runtime = resolved.read(layout.resolved).runtime if layout.resolved.is_file() else RuntimeConfig()
    law = Scaling(read_trainings(experiment, layout, runtime))
    found = law.predict(budget or _TIMES * law.points[-1].flops)
    if plot is not None:
        law.plot(found.flops, METRIC).savefig(plot)
    if as_json:
        print_json({"trainings": [asdict(point) for point in law.points], "prediction": asdict(found)})
        return
    rows = [
        [point.name, f"{point.flops:.3g}", f"{point.rate:.3g}", f"{point.loss:.4f}", f"{value:.4f}"]
        for point, value in zip(law.points, law.fitted(), strict=True)
    ]
    columns = ("training", "FLOPs", "learning rate", METRIC.replace("_", " "), "fitted")
    print_table(columns, rows, title=f"{len(rows)} trainings of {experiment}", numeric=range(1, 5))
    print(
        f"  With {found.flops:.3g} FLOPs: {found.loss:.3f} {METRIC.replace('_', ' ')} "
        f"[{found.loss_low:.3f}, {found.loss_high:.3f}]\n"
        f"  at a learning rate of {found.rate:.2g} [{found.rate_low:.2g}, {found.rate_high:.2g}]"
    )


def _shortened(forecasts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one device of each kind, and 8 and the largest number of them with the faster strategy."""
    largest = max(each["devices"] for each in forecasts)
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for each in forecasts:
        key = each["device"], each["devices"]
        if each["devices"] in (1, 8, largest):
            best[key] = min(best.get(key, each), each, key=lambda one: (not one["fits"], one["seconds"]))
    return list(best.values())


def _print(document: dict[str, Any], made: Plan | None, *, every: bool) -> None:
    from textmill.planning.plan import duration, gigabytes

    work = document["work"]
    rows = [
        ["parameters", f"{work['parameters']:,}"],
        ["active for a token", f"{work['active_parameters']:,}"],
        ["steps", f"{work['steps']:,}"],
        ["positions, with padding", f"{work['positions']:,}"],
        ["FLOPs per position", f"{work['flops_per_position']:.4g}"],
        ["FLOPs of the training", f"{work['flops']:.4g}"],
    ]
    print_table(("work", ""), rows, numeric=(1,))
    parts = [[name, gigabytes(size)] for name, size in document["memory"].items() if size]
    total = gigabytes(sum(document["memory"].values()))
    print_table(("memory at the peak", ""), [*parts, ["total", total]], numeric=(1,))
    if made is not None:
        here = document["here"]
        rows = [
            ["start", duration(made.startup_seconds)],
            ["steps", duration(made.training_seconds)],
            ["validations", duration(made.validation_seconds)],
            ["total", duration(made.seconds)],
            ["largest batch that fits", f"{made.largest_positions:,} positions"],
        ]
        if here["kilowatt_hours"] is not None:
            rows.append(["energy, estimated by share of the device", f"{here['kilowatt_hours']:.4g} kWh"])
        if here["cost"] is not None:
            rows.append(["cost, by the example of the catalogue", f"${here['cost']:.4g}"])
        print_table((f"on {made.machine}, {made.precision}", ""), rows, numeric=(1,))
    rows = [
        [
            each["device"], f"{each['devices']:,}", each["strategy"].upper(), duration(each["seconds"]),
            f"{each['communication_seconds'] / each['step_seconds']:.0%}", gigabytes(each["memory"]),
            "yes" if each["fits"] else "no", f"{each['kilowatt_hours']:.2g}",
            "-" if each["cost"] is None else f"{each['cost']:.2g}",
        ]
        for each in (document["forecasts"] if every else _shortened(document["forecasts"]))
    ]  # fmt: skip
    columns = ("device", "devices", "strategy", "time", "waiting", "memory each", "fits", "kWh", "cost in $")
    title = "steps on the devices of conf/hardware/, from peak rates"
    print_table(columns, rows, title=title, numeric=(1, 3, 4, 5, 7, 8), fixed=range(9))
    if (best := document["optimum"]) is not None:
        print(
            f"  Compute-optimal for {best['flops']:.3g} FLOPs ({best['source']}):\n"
            f"  {best['parameters']:.3g} parameters [{best['parameters_low']:.2g}, {best['parameters_high']:.2g}] on "
            f"{best['tokens']:.3g} tokens [{best['tokens_low']:.2g}, {best['tokens_high']:.2g}]"
        )
