"""Wall time of what a user waits for: the command's help, `dvc repro` with nothing to do, and the
fixed cost of every stage (its wall time on a pipeline so small that its work takes no time).
"""

from __future__ import annotations

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


def main() -> None:
    """Print the table."""
    from support.project import build_project

    binaries = Path(sys.executable).parent
    rows = [("`textmill --help`", seconds([str(binaries / "textmill"), "--help"], ROOT), 0.3)]
    rows.append(("bare `python -c pass`, for comparison", seconds([sys.executable, "-c", "pass"], ROOT), None))
    with tempfile.TemporaryDirectory() as folder:
        project = build_project(Path(folder) / "project", ROOT)
        project.repro()
        rows.append(("`dvc repro`, nothing to do", seconds([str(binaries / "dvc"), "repro"], project.root), 2.0))
        rows.append(("`dvc status`, for comparison", seconds([str(binaries / "dvc"), "status"], project.root), None))
        for stage, limit in STAGES.items():
            command = [sys.executable, "-m", f"textmill.stages.{stage}"]
            rows.append((f"stage `{stage}` on 240 short rows", seconds(command, project.root), limit))
    print("| what | seconds, median of 3 | goal |\n|---|---:|---:|")
    for name, taken, limit in rows:
        print(f"| {name} | {taken:.2f} | {f'≤ {limit}' if limit else ''} |")


if __name__ == "__main__":
    main()
