"""`tools/pull_request.py`: the comment of a pull request, where there is nothing to compare yet."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.project import build_project

pytestmark = pytest.mark.slow


def test_comment_without_metrics_and_version_says_so(tmp_path: Path, repository_root: Path) -> None:
    project = build_project(tmp_path / "project", repository_root)
    tool = str(repository_root / "tools/pull_request.py")
    done = project.run(sys.executable, tool, "--base", "HEAD", "--output", "report.md")
    assert not done.stderr
    text = (project.root / "report.md").read_text()
    assert "## Metrics\n\nNo metric changed.\n" in text
    assert "## Gate\n\nThe gate did not run: textmill: error: this project has no registered model" in text
    done = project.run(sys.executable, tool, "--base", "no-such-revision")
    assert "`dvc metrics diff` failed: ERROR:" in done.stdout
