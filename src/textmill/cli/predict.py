"""`textmill predict`: predict with an exported or registered model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from typer import Argument, Option

from textmill.cli.output import MODEL_HELP, AsJson, print_json, print_table
from textmill.errors import UserError
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from textmill.predicting.loading import Precision

Column = Annotated[list[str] | None, Option(help="TASK-COLUMN=FILE-COLUMN, where the names differ. Repeatable.")]
Model = Annotated[str | None, Option(help=f"{MODEL_HELP} Default: data/exported/model.")]

_SHOWN_WORDS = 4
_MAX_NUMBERS = 4  # of a vector in the table; `--json` prints all


def predict(
    texts: Annotated[
        list[str] | None, Argument(help="Inputs; a JSON record where the task has several fields.")
    ] = None,
    model: Model = None,
    file: Annotated[
        Path | None, Option(help="Table, as `textmill init` reads it; any other file: an input per line; `-`: stdin.")
    ] = None,
    column: Column = None,
    precision: Annotated[str, Option(help="Graph that predicts: int8, fp32, or auto (chosen by export).")] = "auto",
    explain: Annotated[
        bool, Option("--explain", help="Tell which words decided: each is left out, and the probability compared.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predict the answers to inputs.

    Example: textmill predict "I love this product" "This product is bad"
    """
    from textmill.evaluation.new_texts import read_inputs_of

    lines = file is None or str(file) == "-" or (file.exists() and not file.is_file())  # a pipe is no table
    inputs: list[Any] = read_inputs(texts or [], file) if lines else list(texts or [])
    predictor = load_model(model, precision)
    rejected: dict[int, RejectedRow] = {}
    names = predictor.task.text_columns
    if file is not None and not lines:
        for number, (_, row) in enumerate(
            read_inputs_of(file, predictor.task, predictor.exported.cleaning, columns_from(column)), start=len(inputs)
        ):
            if isinstance(row, RejectedRow):
                rejected[number] = row
                inputs.append(row.excerpt)
            else:
                inputs.append(row[names[0]] if len(names) == 1 else {name: row[name] for name in names})
    good = [number for number in range(len(inputs)) if number not in rejected]
    values = [_parsed(inputs[number]) for number in good]
    answers = predictor.predict(values) if good else []
    if explain:
        for value, answer in zip(values, answers, strict=True):
            gains = predictor.explain(value, answer)
            answer["why"] = gains if as_json else _why(gains)
    by_number = dict(zip(good, answers, strict=True))
    if as_json:
        errors = {number: {"line": row.row, "error": f"{row.column} {row.reason}"} for number, row in rejected.items()}
        print_json([{"input": text, **(by_number | errors)[number]} for number, text in enumerate(inputs)])
    elif answers:
        _print_table([inputs[number] for number in good], answers)
    for row in rejected.values():
        print(f"textmill predict: no answer for {row}", file=sys.stderr)
    if not answers:
        raise UserError("no input has an answer", where=str(file), fix="Check the file and --column")


def columns_from(pairs: list[str] | None) -> dict[str, str]:
    """Return the pairs of --column, TASK-COLUMN=FILE-COLUMN, as a mapping.

    Raises:
        UserError: One has another form.
    """
    columns = {}
    for text in pairs or []:
        name, sign, other = text.partition("=")
        if not (name and sign and other):
            raise UserError(f"cannot read {text!r}", where="--column", fix="Write TASK-COLUMN=FILE-COLUMN")
        columns[name] = other
    return columns


def _why(gains: list[dict[str, Any]]) -> str:
    from textmill.text.occlusion import shown_gains

    return shown_gains([each["word"] for each in gains], [each["gain"] for each in gains], _SHOWN_WORDS)


def read_inputs(texts: list[str], file: Path | None, purpose: str = "predict") -> list[str]:
    """Return the given texts and the non-blank lines of a file (`-`: standard input).

    Raises:
        UserError: There is no input, or the file is not UTF-8.
    """
    nothing = UserError(f"nothing to {purpose}", fix="Give texts, or a file with one per line (--file)")
    if file is None:
        if not texts:
            raise nothing
        return texts
    stream = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        lines = [line.rstrip("\r") for line in stream.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        line = stream[: error.start].count(b"\n") + 1
        raise UserError("not UTF-8", where=f"{file}:{line}", fix="Save the file as UTF-8") from error
    inputs = texts + [line for line in lines if line.strip()]
    if not inputs:
        raise nothing
    return inputs


def _parsed(text: Any) -> Any:
    """Return a JSON record parsed, anything else unchanged."""
    if isinstance(text, str) and text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def load_model(model: str | None, precision: str = "auto") -> Any:
    """Load an exported model from a folder or a registered version; None loads the project's model.

    Raises:
        UserError: There is no such model or precision.
    """
    from textmill.config.layout import find_layout
    from textmill.config.resolved import trust_project
    from textmill.predicting.loading import load_predictor
    from textmill.registry.versions.versions import download

    if precision not in ("auto", "int8", "fp32"):
        raise UserError(f"no precision {precision!r}", where="--precision", fix="Use auto, int8 or fp32")
    if model is None:
        folder = find_layout().exported / "model"
    elif model.startswith("models:/"):
        folder = download(model, find_layout())
    else:
        folder = Path(model)
    trust_project()
    return load_predictor(folder, cast("Precision", precision))


def _print_table(inputs: list[Any], answers: list[dict[str, Any]]) -> None:
    rows = ([_shown(text), *map(_shown, answer.values())] for text, answer in zip(inputs, answers, strict=True))
    print_table(["input", *answers[0]], rows)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return "  ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, list) and len(value) > _MAX_NUMBERS:
        return f"{' '.join(map(_shown, value[:_MAX_NUMBERS]))} ... ({len(value)} numbers)"
    return str(value)
