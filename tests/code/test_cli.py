"""What every verb of `textmill` has: help, `--json`, and its exit codes."""

from __future__ import annotations

import json
import math
import re

import pytest
import typer
from typer.testing import CliRunner

from textmill import __version__
from textmill.cli.main import app
from textmill.cli.output import print_json

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_verb_explains_itself(verb: str) -> None:
    command = COMMANDS[verb]
    assert len(command.help) > 30
    options = [option for option in command.params if option.param_type_name == "option"]
    assert [option.name for option in command.params if not option.help] == []
    assert "--json" in [name for option in options for name in option.opts]
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert all(option.opts[0] in shown.stdout for option in options)


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_wrong_usage_ends_with_2(verb: str) -> None:
    done = CliRunner().invoke(app, [verb, "--no-such-option"])
    assert done.exit_code == 2
    assert "--no-such-option" in done.stderr


def test_json_is_what_other_programs_read(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "größer", "numbers": [1.5, math.nan, -math.inf]})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    told = capsys.readouterr().out
    assert "größer" in told
    assert json.loads(told, parse_constant=refuse) == {"text": "größer", "numbers": [1.5, None, None]}


def test_help_groups_commands_in_order_of_use() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    panels = re.findall(r"^╭─ (\w+) ─", shown, flags=re.MULTILINE)
    assert panels == ["Options", "Make", "Judge", "Serve", "Inspect"]
    for earlier, later in [("compare", "promote"), ("promote", "rollback"), ("predict", "serve"), ("serve", "lineage")]:
        assert re.search(rf"│ {earlier} .*│ {later} ", shown, flags=re.DOTALL)
    assert all(re.search(rf"│ {command} ", shown) for command in COMMANDS)


def test_version_is_the_packages() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"textmill {__version__}\n")
