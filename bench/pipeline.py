"""Wall time of the whole default pipeline, every stage run anew; prints Markdown.

It runs in a fresh clone, downloads included.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 300
_STAGE = re.compile(r"^(\w+): done in ([\d.]+) s$", re.MULTILINE)


def main() -> None:
    """Run it once and print the seconds of every stage."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
        environment = os.environ | {"PYTHONPATH": str(copy / "src")}
        started = time.perf_counter()
        done = subprocess.run(
            [str(Path(sys.executable).parent / "dvc"), "repro"],
            cwd=copy,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        whole = time.perf_counter() - started
    print("| stage | seconds |\n|---|---:|")
    for stage, taken in _STAGE.findall(done.stderr):
        print(f"| {stage} | {float(taken):.1f} |")
    print(f"| **`dvc repro`, total** | **{whole:.0f}** (goal ≤ {LIMIT}) |")


if __name__ == "__main__":
    main()
