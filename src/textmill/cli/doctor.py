"""`textmill doctor`: find what is wrong with the project and its surroundings, and repair it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from typer import Exit, Option

from textmill.cli.output import AsJson, print_json
from textmill.errors import UserError, first_line

if TYPE_CHECKING:
    from textmill.cli.health.finding import Finding, Health


def doctor(
    fix: Annotated[bool, Option("--fix", help="Repair what can be repaired without a decision of yours.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check environment, outputs, cache, store, runs, registry, leftovers, disk, GPU and clock.

    Each problem has its remedy. `--fix` deletes only what no process uses and no version needs.

    Exit status: 0 nothing is wrong, 1 something is (and --fix could not repair it).

    Example: textmill doctor --fix
    """
    subjects = _check()
    findings = [finding for subject in subjects for finding in subject.findings]
    if fix:
        for finding in findings:
            _repair(finding)
    wrong = [finding for finding in findings if finding.outcome != "repaired"]
    if as_json:
        print_json({"wrong": len(wrong), "subjects": [_as_dict(subject) for subject in subjects]})
    else:
        _print(subjects, len(wrong), any(finding.repair for finding in wrong) and not fix)
    raise Exit(int(bool(wrong)))


def _check() -> list[Health]:
    from textmill.cli.health import machine, project, tracking
    from textmill.config import resolved
    from textmill.config.layout import find_layout
    from textmill.config.sections.runtime import RuntimeConfig

    layout = find_layout()
    runtime = resolved.read(layout.resolved).runtime if layout.resolved.is_file() else RuntimeConfig()
    store, client = tracking.check_store(layout, runtime)
    return [
        machine.check_environment(layout),
        project.check_outputs(layout),
        project.check_cache(layout),
        store,
        tracking.check_runs(layout, client),
        tracking.check_registry(client),
        project.check_leftovers(layout, client),
        machine.check_disk(layout, runtime),
        machine.check_gpu(runtime),
        machine.check_clock(layout, runtime),
    ]


def _repair(finding: Finding) -> None:
    if finding.repair is None:
        return
    try:
        finding.repair()
        finding.outcome = "repaired"
    except UserError as error:
        finding.outcome = f"not repaired: {error}"
    except Exception as error:  # the other repairs must run
        finding.outcome = f"not repaired: {first_line(error)}"


def _as_dict(subject: Health) -> dict[str, Any]:
    findings = [
        {"what": one.what, "remedy": one.remedy, "fixable": one.repair is not None, "outcome": one.outcome}
        for one in subject.findings
    ]
    return {"subject": subject.subject, "summary": subject.summary, "findings": findings}


def _print(subjects: list[Health], wrong: int, fixable: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for subject in subjects:
        mark, style = ("wrong", "red") if subject.findings else ("ok", "green")
        console.print(Text.assemble("  ", (f"{mark:<6}", style), f"{subject.subject}: {subject.summary}"))
        for finding in subject.findings:
            console.print(Text(f"         {finding.what}."))
            console.print(Text(f"         → {finding.outcome or finding.remedy}"))
    if wrong:
        console.print(f"\n  {wrong} to repair." + (" `textmill doctor --fix` repairs some of it." if fixable else ""))
