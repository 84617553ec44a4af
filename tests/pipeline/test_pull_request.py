"""`tools/pull_request.py`: the comment of a pull request, after a real run of the pipeline."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from support.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def report(project: Project, tool: Path, base: str) -> str:
    done = project.run(sys.executable, str(tool), "--base", base, "--output", "report.md")
    assert "Traceback" not in done.stderr
    return (project.root / "report.md").read_text()


def test_comment_has_changed_metrics_and_each_check_of_the_gate(project: Project, repository_root: Path) -> None:
    tool = repository_root / "tools/pull_request.py"
    base = project.run("git", "rev-parse", "HEAD").stdout.strip()
    nothing = report(project, tool, base)
    assert "No metric changed." in nothing
    assert "The gate did not run: textmill: error:" in nothing, "the copy's store has no version"

    project.edit("params.yaml", "seed: 17", "seed: 18")
    project.repro()
    text = report(project, tool, base)
    assert re.search(r"^\| data/evaluation/metrics.json +\| test.weighted_f1.value +\|", text, re.MULTILINE)
    assert re.search(r"^\*\*Version 1 (passes|does not pass|cannot tell)", text, re.MULTILINE)
    assert "| check | result | why |" in text
    assert text.index("## Metrics") < text.index("## Gate")
