"""The page of `textmill init`: what it prints is what the page shows, and its settings are valid."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config.sections.prepare import ReadConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/your-own-data.md", "docs/your-own-data.zh.md")


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: their kind and text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def words(text: str) -> list[str]:
    return re.sub(r"[─│]+", " ", text).split()


@pytest.mark.parametrize("page", PAGES)
def test_init_prints_what_the_page_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "data/own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    script = next(text for kind, text in blocks(page) if kind == "sh" and "textmill init" in text)
    program = re.search(r"<<'END'\n(.*?)^END$", script, re.MULTILINE | re.DOTALL)
    assert program is not None
    subprocess.run([sys.executable, "-c", program[1]], check=True)
    command = re.search(r"^textmill (init .*)$", script, re.MULTILINE)
    assert command is not None
    done = CliRunner().invoke(app, command[1].split(), env={"COLUMNS": "80"}, catch_exceptions=False)
    shown = next(text for kind, text in blocks(page) if kind == "" and text.startswith("Read as"))
    device = "this CPU" if not shutil.which("nvidia-smi") else "a GPU"
    assert words(done.stdout) == words(shown.replace("this CPU", device))


@pytest.mark.parametrize(("page", "separator"), [*zip(PAGES, (";", ","), strict=True)])
def test_settings_of_the_page_are_valid(page: str, separator: str) -> None:
    text = next(text for kind, text in blocks(page) if kind == "yaml" and "separator:" in text)
    assert ReadConfig.model_validate(yaml.safe_load(text)["prepare"]["read"]).separator == separator
