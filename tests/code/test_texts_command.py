"""Texts on the command line that begin with a minus, and names of metrics that MLflow takes."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from textmill.cli.output import TextsCommand
from textmill.evaluation.measurements import mlflow_names

app = typer.Typer()


@app.command(cls=TextsCommand)
def command(texts: list[str], as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    typer.echo(f"{as_json} {texts}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-5 stars, never again"], "False ['-5 stars, never again']"),
        (["-5", "--json", "- no -"], "True ['-5', '- no -']"),
        (["--", "--json"], "False ['--json']"),
        (["-not an option", "a"], "False ['-not an option', 'a']"),
    ],
)
def test_text_with_a_minus_is_a_text(arguments: list[str], told: str) -> None:
    assert CliRunner().invoke(app, arguments).stdout.strip() == told


@pytest.mark.parametrize("option", ["--jsn", "-x", "--model=a"])
def test_misspelt_option_is_an_error(option: str) -> None:
    done = CliRunner().invoke(app, [option, "-5 stars"])
    assert (done.exit_code, "No such option" in done.stderr) == (2, True)


def test_mlflow_names_tell_signs_apart() -> None:
    names = [
        "test/f1/😀",
        "test/f1/😡",
        "test/f1/C",
        "test/f1/C#",
        "test/f1/C++",
        "test/f1/C&&",
        "test/f1/n/a",
        "test/f1",
    ]
    told = mlflow_names(names)
    assert len(set(told.values())) == len(names)
    assert told["test/f1/😀"] == "test/f1/grinning face"
    assert [told[name] for name in ("test/f1/C", "test/f1/C#", "test/f1/n/a", "test/f1")] == [
        "test/f1/C",
        "test/f1/C_",
        "test/f1/n/a",
        "test/f1",
    ]
