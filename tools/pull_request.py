"""Write the comment of a pull request: `python tools/pull_request.py --base REV [--output report.md]`.

It has the changed metrics (`dvc metrics diff`) and the gate's verdict (`textmill promote --dry-run`). It runs no stage:
run `dvc repro` first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_HEAD_LINES = 2
VERDICTS = {0: "passes", 3: "does not pass", 4: "cannot tell: too little data"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment in the working folder."""
    program = Path(sys.executable).with_name(command[0])
    return subprocess.run([program, *command[1:]], capture_output=True, text=True)


def metrics(base: str) -> str:
    """Return the changed metrics as a Markdown table, or why there are none."""
    done = run("dvc", "metrics", "diff", "--md", base)
    if done.returncode:
        return f"`dvc metrics diff` failed: {last_line(done.stderr)}\n"
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    return done.stdout if len(rows) > _HEAD_LINES else "No metric changed.\n"


def gate() -> str:
    """Return the gate's verdict with each check as Markdown."""
    done = run("textmill", "promote", "--dry-run", "--json")
    if done.returncode not in VERDICTS or not done.stdout:
        return f"The gate did not run: {last_line(done.stderr)}\n"
    document: dict[str, Any] = json.loads(done.stdout)
    checks = document["decision"]["checks"] if document.get("decision") else document.get("checks", [])
    rows = [f"| {each['name']} | {each['status']} | {each['words']} |" for each in checks]
    head = f"**Version {document['version']} {VERDICTS[done.returncode]}.** {document.get('words') or ''}".strip()
    table = "\n".join(["| check | result | why |", "|---|---|---|", *rows]) if rows else ""
    return f"{head}\n\n{table}\n"


def last_line(text: str) -> str:
    """Return the last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


def report(base: str) -> str:
    """Return the whole comment."""
    return f"## Metrics\n\n{metrics(base)}\n## Gate\n\n{gate()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="git revision to compare with")
    parser.add_argument("--output", type=Path, help="file; default: standard output")
    options = parser.parse_args()
    text = report(options.base)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        print(text)
