"""`textmill generate`: text that a language model writes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textmill.cli.json_output import print_json
from textmill.cli.predict import load_model, read_inputs
from textmill.errors import UserError

if TYPE_CHECKING:
    from textmill.config.sections.generation import GenerationConfig
    from textmill.predicting.text_continuer import TextContinuer


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="What to go on from.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A folder, or models:/NAME@ALIAS, models:/NAME/VERSION. Default: data/exported/model."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="One prompt a line; `-` reads from a pipe.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens to write at most.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token: temperature 0.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Above 1 bolder, below 1 tamer.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among the K likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest that have this probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens less likely than this times the likeliest.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: rarer repetitions.")] = None,
    beams: Annotated[int | None, typer.Option(help="Beam search with so many beams.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    r"""Let a language model write: textmill generate "To be" --temperature 0.8 --stop "\n\n"."""
    from textmill.tasks.abilities import ContinuesText

    texts = read_inputs(prompts or [], file, "go on from")
    generator = load_model(model)
    if not isinstance(generator.task, ContinuesText):
        raise UserError("this model gives answers, it does not go on from a text", fix="Use `textmill predict`")
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "beams": beams,
        "stop": tuple(map(_unescaped, stop)) if stop else None,
        "seed": seed,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    options = generator.options.changed(chosen, lambda name: f"--{name.replace('_', '-')}")
    if as_json:
        _print_json(generator, texts, options)
    elif len(texts) == 1:
        _stream(generator, texts[0], options)
    else:
        for text, answer in zip(texts, generator.generate(texts, options), strict=True):
            print(f"{text}{answer['text']}\n")


def _unescaped(text: str) -> str:
    r"""Text in which `\n` and its like stand for what they do in Python.

    Raises:
        UserError: A backslash stands before nothing that it could stand for.
    """
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{text!r}: {error.reason}", where="--stop", fix=r"Write \\ for a backslash and \n for the end of a line"
        ) from error


def _print_json(generator: TextContinuer, texts: list[str], options: GenerationConfig) -> None:
    started = time.perf_counter()
    answers = generator.generate(texts, options)
    seconds = time.perf_counter() - started
    tokens = sum(int(answer["tokens"]) for answer in answers)
    document = {
        "answers": [{"prompt": text, **answer} for text, answer in zip(texts, answers, strict=True)],
        "options": options.model_dump(mode="json"),
        "tokens_per_second": round(tokens / seconds, 1),
    }
    print_json(document)


def _stream(generator: TextContinuer, text: str, options: GenerationConfig) -> None:
    sys.stdout.write(text)
    for piece in generator.stream(text, options):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
