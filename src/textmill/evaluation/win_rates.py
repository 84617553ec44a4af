"""Win rates of two models: which answer to a prompt is better, as an endpoint or people say.

Judges favour a position (Zheng et al. 2023). An endpoint is asked twice, in both orders, and a win counts half
where its verdict follows the position. People see each prompt once, each model first in half of them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from textmill.errors import UserError, first_line
from textmill.files import atomic_write, read_json, write_json
from textmill.metrics.base import Metric, mean_of
from textmill.metrics.bootstrap import Bootstrap, Interval, intervals

if TYPE_CHECKING:
    from openai import OpenAI

_ASK = (
    "Two assistants answered the same request. Decide which answer is better: more correct, more helpful, to the "
    "point. Length and order do not count. Reply with one word: A, B or TIE."
)
_VERDICT = re.compile(r"\W*(?:answer\W+)?(A|B|TIE)\W*", re.IGNORECASE)
_SCORES = {"A": 1.0, "TIE": 0.5, "B": 0.0}
_TYPED = {"1": 1.0, "2": 0.0, "tie": 0.5}
_COLUMNS = ["id", "prompt", "answer_1", "answer_2", "verdict"]
_FORMULA = ("=", "+", "-", "@")


@dataclass(frozen=True)
class Duel:
    """A prompt with the answers of two models."""

    id: str
    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class WinRate:
    """The result of a comparison.

    Attributes:
        rate: Share of prompts that the first model wins, ties count half; with interval.
        wins: Prompts that the first model wins.
        ties: Prompts without a winner.
        losses: Prompts that the second model wins.
        by_position: Prompts whose winner changed with the order of the answers; None for people.
        unreadable: Replies of the judge that were no verdict, counted as ties; None for people.
    """

    rate: Interval
    wins: int
    ties: int
    losses: int
    by_position: int | None = None
    unreadable: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        return {**vars(self), "rate": self.rate.as_dict()}


def ask_judge(duels: Sequence[Duel], client: OpenAI, model: str, bootstrap: Bootstrap) -> WinRate:
    """Ask an endpoint about each prompt in both orders. Equal answers are a tie and cost no request.

    Raises:
        UserError: The endpoint cannot be reached or refuses, or more than half of its replies are no verdict.
    """
    scores, by_position, replies, unreadable = [], 0, 0, 0
    for duel in duels:
        if duel.first.strip() == duel.second.strip():
            scores.append(0.5)
            continue
        both = [_asked(client, model, duel.prompt, *pair) for pair in ((duel.first, duel.second), _swapped(duel))]
        replies += 2
        unreadable += both.count(None)
        straight, swapped = (0.5 if score is None else score for score in both)
        scores.append((straight + 1 - swapped) / 2)
        by_position += straight == swapped != 0.5
    if unreadable * 2 > replies:
        fix = "Name a model that follows instructions"
        raise UserError(f"{unreadable} of {replies} replies are none of A, B, TIE", where=model, fix=fix)
    return _counted(scores, bootstrap, by_position, unreadable)


def _swapped(duel: Duel) -> tuple[str, str]:
    return duel.second, duel.first


def _asked(client: OpenAI, model: str, prompt: str, one: str, two: str) -> float | None:
    """Return 1 where the first of two answers is better, 0 where it is worse, 0.5 for a tie, None if unreadable."""
    import openai

    text = f"[Request]\n{prompt}\n\n[Answer A]\n{one}\n\n[Answer B]\n{two}\n\nWhich is better: A, B or TIE?"
    messages: Any = [{"role": "system", "content": _ASK}, {"role": "user", "content": text}]
    try:
        reply = client.chat.completions.create(model=model, messages=messages, temperature=0)
    except openai.OpenAIError as error:
        where = str(client.base_url)
        raise UserError(f"the judge gives no answer ({first_line(error)})", where=where, fix="Check --judge") from error
    lines = (reply.choices[0].message.content or "").strip().splitlines() if reply.choices else []
    found = _VERDICT.fullmatch(lines[-1]) if lines else None
    return _SCORES[found[1].upper()] if found else None


def write_sheet(duels: Sequence[Duel], file: Path, names: Sequence[str], seed: int) -> None:
    """Write a CSV for people, in random order and without names; `FILE.key.json` beside it tells who is who."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(duels))
    swapped = {duels[row].id: bool(place % 2) for place, row in enumerate(order.tolist())}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    for row in rng.permutation(order).tolist():
        duel = duels[row]
        answers = _swapped(duel) if swapped[duel.id] else (duel.first, duel.second)
        writer.writerow([duel.id, *map(_harmless, (duel.prompt, *answers)), ""])
    atomic_write(file, "\ufeff" + text.getvalue())
    write_json(_key(file), {"models": list(names), "swapped": swapped})


def read_sheet(file: Path, bootstrap: Bootstrap) -> tuple[list[str], WinRate]:
    """Return the models' names and the result of a sheet whose column `verdict` has 1, 2 or tie in each row.

    Raises:
        UserError: The sheet or its key is missing, a row is missing, repeated or unknown, or has no verdict.
    """
    key = read_json(_key(file)) if _key(file).is_file() else None
    if key is None or not file.is_file():
        fix = "Write a sheet by `textmill winrate FIRST SECOND --prompts FILE --sheet FILE`"
        raise UserError("no sheet with its .key.json here", where=str(file), fix=fix)
    scores: dict[str, float] = {}
    for line, row in _rows(file):
        name, verdict = str(row.get("id")), str(row.get("verdict") or "").strip().lower()
        if name not in key["swapped"] or name in scores:
            state = "repeated" if name in scores else "unknown"
            raise UserError(f"the id {name!r} is {state}", where=f"{file}:{line}", fix="Leave the column id as it was")
        if verdict not in _TYPED:
            message = f"the verdict is {verdict!r}" if verdict else "has no verdict"
            raise UserError(message, where=f"{file}:{line}", fix="Write 1, 2 or tie")
        scores[name] = 1 - _TYPED[verdict] if key["swapped"][name] else _TYPED[verdict]
    if missing := [name for name in key["swapped"] if name not in scores]:
        raise UserError(f"{len(missing)} rows are missing, such as {missing[0]!r}", where=str(file))
    return key["models"], _counted(list(scores.values()), bootstrap)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        dialect = csv.Sniffer().sniff(text.partition("\n")[0], ",;\t")
        reader = csv.DictReader(io.StringIO(text, newline=""), dialect=dialect)
        for row in reader:
            yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"not a CSV ({first_line(error)})", where=str(file), fix="Save it as CSV in UTF-8") from error


def _key(file: Path) -> Path:
    return file.with_name(f"{file.name}.key.json")


def _harmless(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _counted(
    scores: list[float], bootstrap: Bootstrap, by_position: int | None = None, unreadable: int | None = None
) -> WinRate:
    values = np.array(scores)
    rate = intervals(pd.DataFrame({"score": values}), [Metric("win_rate", mean_of("score"))], bootstrap)["win_rate"]
    wins, ties, losses = (int(each.sum()) for each in (values > 0.5, values == 0.5, values < 0.5))
    return WinRate(rate, wins, ties, losses, by_position, unreadable)
