"""`textmill winrate`: compare the answers of two models, judged by an endpoint or by people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from textmill.cli.output import MODEL_HELP, AsJson, print_json, print_table
from textmill.errors import UserError

if TYPE_CHECKING:
    from openai import OpenAI

    from textmill.evaluation.win_rates import Duel, WinRate


def winrate(
    first: Annotated[str | None, Argument(help=MODEL_HELP)] = None,
    second: Annotated[str | None, Argument(help="Model to compare with, as above.")] = None,
    prompts: Annotated[
        Path | None, Option(help='JSON Lines with a "prompt" each: a text, or what the model reads.')
    ] = None,
    judge: Annotated[str | None, Option(help="Address of an OpenAI-compatible endpoint, with its /v1.")] = None,
    judge_model: Annotated[str | None, Option(help="Model of the endpoint that judges.")] = None,
    key_variable: Annotated[str | None, Option(help="Environment variable with the endpoint's key.")] = None,
    sheet: Annotated[Path | None, Option(help="CSV for people: written, or read if no models are given.")] = None,
    seed: Annotated[int, Option(help="Seed of the order in the sheet and of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Tell how often the first model's answer is better than the second's, with a 95 % interval; ties count half.

    An endpoint judges each prompt in both orders. There is no default judge.

    Example: textmill winrate models:/chat@challenger models:/chat@champion --prompts asked.jsonl --sheet judge.csv
    """
    from textmill.evaluation.win_rates import ask_judge, read_sheet, write_sheet
    from textmill.metrics.bootstrap import Bootstrap

    if (judge is None) == (sheet is None):
        raise UserError("no judge, or two", where="textmill winrate", fix="Give either --judge or --sheet")
    bootstrap = Bootstrap(seed=seed)
    if first is None and sheet is not None:
        names, result = read_sheet(sheet, bootstrap)
        _show(names, result, as_json)
        return
    if first is None or second is None or prompts is None:
        raise UserError("two models and their prompts are needed", where="textmill winrate", fix="Give --prompts too")
    client = _client(judge, judge_model, key_variable) if judge is not None else None
    if sheet is not None and sheet.exists():
        fix = "Leave the models out to read it, or give another file"
        raise UserError("exists already", where=str(sheet), fix=fix)
    duels = _duels(first, second, prompts)
    if client is not None:
        _show([first, second], ask_judge(duels, client, str(judge_model), bootstrap), as_json)
    elif sheet is not None:
        write_sheet(duels, sheet, [first, second], seed)
        told = {"sheet": str(sheet), "rows": len(duels)}
        text = f"  {sheet}: write 1, 2 or tie into the column verdict, then run textmill winrate --sheet {sheet}"
        print_json(told) if as_json else print(text)


def _client(judge: str, model: str | None, variable: str | None) -> OpenAI:
    """Return a client of the endpoint that the user named.

    Raises:
        UserError: The model is not named, the key's variable is not set, or the package is missing.
    """
    from textmill.errors import hide

    if model is None:
        raise UserError("the judge needs a model", where="--judge-model", fix="Name a model of the endpoint")
    key = os.environ.get(variable, "") if variable else "none"
    if not key:
        raise UserError(f"{variable} is not set", where="--key-variable", fix="Set it to the endpoint's key")
    hide(key)
    try:
        import openai
    except ImportError as error:
        fix = "Run pip install --constraint constraints.txt -e '.[suite]'"
        raise UserError("the package openai is not installed", where="--judge", fix=fix) from error
    return openai.OpenAI(base_url=judge, api_key=key)


def _duels(first: str, second: str, prompts: Path) -> list[Duel]:
    """Return the prompts with both models' answers, which have the generation options of their export."""
    from textmill.cli.predict import load_model
    from textmill.evaluation.win_rates import Duel

    asked = _prompts(prompts)
    answers = []
    for name in (first, second):
        model = load_model(name)
        found = [model.predict([value])[0] for value in asked.values()]  # alone, so that no answer depends on a batch
        if "text" not in found[0]:
            raise UserError("does not generate text", where=name, fix="Give a model that generates text")
        answers.append([str(answer["text"]) for answer in found])
    shown = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in asked.values())
    return [Duel(*each) for each in zip(asked, shown, *answers, strict=True)]


def _prompts(file: Path) -> dict[str, Any]:
    """Return the prompts by their number in the file."""
    if not file.is_file():
        raise UserError("no such file", where=str(file), fix='Write a JSON object with "prompt" into each line')
    found = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError('not a JSON object with "prompt"', where=f"{file}:{number}") from error
        if not prompt:
            raise UserError("the prompt is empty", where=f"{file}:{number}")
        found[str(number)] = prompt
    if len(found) < 2:
        raise UserError(f"{len(found)} prompts, at least 2 are needed", where=str(file))
    return found


def _show(names: list[str], result: WinRate, as_json: bool) -> None:
    if as_json:
        print_json({"models": names, **result.as_dict()})
        return
    rate = result.rate
    row = [
        f"{rate.value:.3f}",
        f"{rate.low:.3f} to {rate.high:.3f}",
        *map(str, (result.wins, result.ties, result.losses)),
    ]
    head = ["win rate", "95 % interval", "wins", "ties", "losses"]
    print_table(head, [row], title=f"{names[0]} against {names[1]}", numeric=range(5))
    if result.by_position is not None:
        print(f"  {result.by_position} verdicts followed the position; {result.unreadable} replies could not be read")
