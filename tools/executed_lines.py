"""Run the tests, and fail if they and the processes that they start leave too many lines of `src/` unexecuted.

`python tools/executed_lines.py [--least 90] COMMAND ...` sets `TEXTMILL_COVERAGE` for the command. With it every Python
process of this environment notes which lines it executes, by SlipCover, whose probes remove themselves: on the tests of
`prepare`, `compose` and the gate coverage.py takes 1.5 times the processor time, SlipCover 1.0 times. Copies of the
source in projects of the tests do not count. A process that is killed notes nothing.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "textmill"
FOLDER = "TEXTMILL_COVERAGE"
_TOOLS = str(Path(__file__).resolve().parent)
_START = (
    f"import os, sys; {FOLDER!r} in os.environ and "
    f"(sys.path.append({_TOOLS!r}), __import__('executed_lines'), sys.path.remove({_TOOLS!r}))\n"
)
_LOWEST = 15
_EXCLUDED = ["if TYPE_CHECKING:", 'if __name__ == "__main__":', r"^\s*\.\.\.$", "@abstractmethod"]


def note_lines(folder: Path) -> None:
    """Note the lines of `SOURCE` that this process executes from now on into `folder`."""
    from slipcover import FileMatcher, ImportManager, Slipcover
    from slipcover.importer import SlipcoverLoader

    measured = Slipcover()
    # `python -m` runs what this gives, and SlipCover only looks at what is imported.
    SlipcoverLoader.get_code = lambda self, name: measured.instrument(self.orig_loader.get_code(name))
    ImportManager(measured, FileMatcher(sources=[SOURCE])).__enter__()
    owner = os.getpid()

    def write() -> None:
        if os.getpid() == owner:
            (folder / f"{uuid.uuid4().hex}.json").write_text(json.dumps(measured.get_coverage()), encoding="utf-8")

    atexit.register(write)


def executed_lines(folder: Path) -> dict[str, set[int]]:
    """Return the lines that any process executed, by file."""
    lines: dict[str, set[int]] = {}
    for note in folder.glob("*.json"):
        for name, file in json.loads(note.read_text(encoding="utf-8"))["files"].items():
            lines.setdefault(str(Path(ROOT, name).resolve()), set()).update(file["executed_lines"])
    return lines


def report(folder: Path, least: float) -> bool:
    """Print the share of executed lines and the files with the most others; return whether it is enough."""
    from slipcover import Slipcover

    executed = executed_lines(folder)
    all_files: dict[str, Any] = Slipcover(source=[str(SOURCE)], exclude_also=_EXCLUDED).get_coverage()["files"]
    rows = []
    for name, file in all_files.items():
        path = Path(ROOT, name).resolve()
        lines = {*file["executed_lines"], *file["missing_lines"]}
        rows.append((len(lines - executed.get(str(path), set())), len(lines), path.relative_to(ROOT)))
    missing, total = sum(row[0] for row in rows), sum(row[1] for row in rows)
    share = 100 * (total - missing) / total
    print(f"\nlines of src/ executed: {share:.1f} % of {total}, at least {least:.0f} % are asked for; most others in:")
    for count, lines_of_file, path in sorted(rows, reverse=True)[:_LOWEST]:
        print(f"{count:6d} of {lines_of_file:4d}  {path}")
    return share >= least


def main() -> int:
    """Run the command; return its status, or 1 when too few lines were executed."""
    parser = argparse.ArgumentParser(description="Run tests and count the executed lines of src/.")
    parser.add_argument("--least", type=float, default=90.0, help="least share of lines in percent")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    start = Path(sysconfig.get_paths()["purelib"], "textmill_coverage.pth")
    if not start.is_file() or start.read_text() != _START:
        start.write_text(_START)
    with tempfile.TemporaryDirectory(prefix="textmill-coverage-") as folder:
        status = subprocess.run(arguments.command, env=os.environ | {FOLDER: folder}, cwd=ROOT).returncode
        enough = report(Path(folder), arguments.least)
    return status or int(not enough)


if FOLDER in os.environ:
    note_lines(Path(os.environ[FOLDER]))
elif __name__ == "__main__":
    sys.exit(main())
