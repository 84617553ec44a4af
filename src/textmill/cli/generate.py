"""`textmill generate`: generate text with a language model."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from textmill.cli.output import AsJson, print_json
from textmill.cli.predict import Model, load_model, read_inputs
from textmill.errors import UserError

if TYPE_CHECKING:
    from textmill.config.sections.generation import GenerationConfig
    from textmill.predicting.text_continuer import TextContinuer


def generate(
    prompts: Annotated[list[str] | None, Argument(help="Prompts to continue.")] = None,
    model: Model = None,
    file: Annotated[Path | None, Option(help="File with one prompt per line; `-` reads standard input.")] = None,
    max_new_tokens: Annotated[int | None, Option(help="Maximum number of generated tokens.")] = None,
    greedy: Annotated[bool, Option("--greedy", help="Always take the most likely token (temperature 0).")] = False,
    temperature: Annotated[
        float | None, Option(help="Sampling temperature; higher is more random, 0 is greedy.")
    ] = None,
    top_k: Annotated[int | None, Option(help="Sample from the K most likely tokens.")] = None,
    top_p: Annotated[
        float | None, Option(help="Sample from the most likely tokens with this total probability.")
    ] = None,
    min_p: Annotated[float | None, Option(help="Drop tokens below this fraction of the highest probability.")] = None,
    repetition_penalty: Annotated[float | None, Option(help="Above 1: fewer repetitions.")] = None,
    beams: Annotated[int | None, Option(help="Number of beams of a beam search.")] = None,
    stop: Annotated[list[str] | None, Option(help="Stop before this text. Repeatable.")] = None,
    seed: Annotated[int | None, Option(help="Random seed.")] = None,
    as_json: AsJson = False,
) -> None:
    r"""Generate text that continues a prompt.

    Defaults of the options are stored with the model.

    Example: textmill generate "To be" --temperature 0.8 --stop "\n\n"
    """
    from textmill.tasks.abilities import ContinuesText

    texts = read_inputs(prompts or [], file, "generate from")
    generator = load_model(model)
    if not isinstance(generator.task, ContinuesText):
        raise UserError("this model answers inputs; it does not generate text", fix="Use `textmill predict`")
    options = {
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
    changes = {name: value for name, value in options.items() if value is not None}
    generation = generator.options.changed(changes, lambda name: f"--{name.replace('_', '-')}")
    if as_json:
        _print_json(generator, texts, generation)
        return
    between = "\n\n" if generator.task.answers_prompt else ""
    if len(texts) == 1:
        _stream(generator, texts[0], between, generation)
    else:
        for text, answer in zip(texts, generator.generate(texts, generation), strict=True):
            print(f"{text}{between}{answer['text']}\n")


def _unescaped(text: str) -> str:
    r"""Replace Python escapes such as `\n` by the characters they stand for."""
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{text!r}: {error.reason}", where="--stop", fix=r"Write \\ for a backslash and \n for a line break"
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


def _stream(generator: TextContinuer, text: str, between: str, options: GenerationConfig) -> None:
    sys.stdout.write(text + between)
    sys.stdout.flush()
    for piece in generator.stream(text, options):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
