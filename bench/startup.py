"""Wall time of what a user waits for: the command's help, `dvc repro` with nothing to do, and the
fixed cost of every stage on a small project.

The fixed cost is the wall time of the stage's whole process less its work, and the work is what the
same stage takes when it runs a second time in one process, with every library loaded.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

STAGES = {"compose": 1.5, "fetch": 1.5, "prepare": 1.5, "train": 6, "evaluate": 6, "export": 6, "register": 6}
REPEATS = 3


def seconds(command: list[str], cwd: Path) -> float:
    """Median wall time of a command, in seconds; one warming run is not counted."""
    taken = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def work(stage: str, cwd: Path) -> float:
    """Median seconds of a stage in a process that has run it before."""
    command = [sys.executable, str(Path(__file__).resolve()), "--work", stage]
    done = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def repeat_here(stage: str) -> float:
    """Run a stage again and again in this process and working folder; median seconds but for the first time."""
    from textmill.config import resolved
    from textmill.config.layout import find_layout

    sys.argv = sys.argv[:1]
    main = importlib.import_module(f"textmill.stages.{stage}").main
    taken = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        layout = find_layout()
        if stage == "compose":
            main()
        else:
            config = resolved.read(layout.resolved)
            main(config.section(stage), config.runtime, layout)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def main() -> None:
    """Print both tables."""
    from support.project import build_project

    binaries = Path(sys.executable).parent
    rows: list[tuple[str, float, float | None]] = [
        ("`textmill --help`", seconds([str(binaries / "textmill"), "--help"], ROOT), 0.3),
        ("bare `python -c pass`, for comparison", seconds([sys.executable, "-c", "pass"], ROOT), None),
    ]
    stages = []
    with tempfile.TemporaryDirectory() as folder:
        project = build_project(Path(folder) / "project", ROOT)
        project.repro()
        rows.append(("`dvc repro`, nothing to do", seconds([str(binaries / "dvc"), "repro"], project.root), 2.0))
        rows.append(("`dvc status`, for comparison", seconds([str(binaries / "dvc"), "status"], project.root), None))
        for stage, limit in STAGES.items():
            command = [sys.executable, "-m", f"textmill.stages.{stage}"]
            stages.append((stage, seconds(command, project.root), work(stage, project.root), limit))
    print(f"| what | seconds, median of {REPEATS} | goal |\n|---|---:|---:|")
    for name, taken, goal in rows:
        print(f"| {name} | {taken:.2f} | {f'≤ {goal}' if goal else ''} |")
    print("\nThe work is measured by a second run in one process, on 240 short rows; the rest is fixed cost.\n")
    print("| stage | whole process, s | its work, s | fixed cost, s | goal |\n|---|---:|---:|---:|---:|")
    for stage, whole, inner, limit in stages:
        print(f"| `{stage}` | {whole:.2f} | {inner:.2f} | **{whole - inner:.2f}** | ≤ {limit} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(repeat_here(sys.argv[2])))
    else:
        main()
