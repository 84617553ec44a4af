"""The check of natural inputs: one clear error with the number of the input, whatever the value is."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from textmill.errors import UserError
from textmill.tasks.instruction_tuning import Conversation
from textmill.tasks.language_modelling import Prompt
from textmill.text.inputs import Input, read_inputs, texts_model

TEXT, PAIR = texts_model("text"), texts_model("premise", "hypothesis")


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no text of its own")


def nested(depth: int = 5_000) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


WRONG = {
    "none": None,
    "number": 3,
    "long number": 10**5_000,
    "nan": float("nan"),
    "bytes": b"\xff",
    "list": [["a"]],
    "nested": nested(),
    "nested field": {"text": nested()},
    "long number in a field": {"text": 10**5_000},
    "half a surrogate pair": "a\ud800",
    "half in a field": {"text": "\udfff"},
    "other keys": {1: "a", None: "b", "\ud800": "c"},
    "many keys": {f"key {number}": "a" for number in range(10_000)},
    "tuple": ("a",),
    "set": {"a"},
    "row": pd.DataFrame({"text": ["a"]}).iloc[0],
    "missing": {"text": pd.NA},
    "hostile": Hostile(),
    "hostile field": {"text": Hostile()},
}


@pytest.mark.parametrize("model", [TEXT, PAIR, Prompt, Conversation], ids=lambda model: model.__name__)
@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_wrong_input_is_told_by_its_number_in_one_line(value: Any, model: type[Input]) -> None:
    good = [{"role": "user", "content": "good"}] if model is Conversation else "good"
    with pytest.raises(UserError, match=r"^input 3: ") as caught:
        read_inputs([*[dict.fromkeys(model.model_fields, good)] * 2, value], model)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.encode()) < 400


@pytest.mark.parametrize(
    "messages",
    ["[" * 100_000, [b"x"], [{"role": "user", "content": b"x"}], [{"role": [], "content": "x"}]],
    ids=["deep", "bytes", "content", "role"],
)
def test_wrong_conversation_is_told_by_its_number(messages: Any) -> None:
    with pytest.raises(UserError, match=r"^input 1: messages: "):
        read_inputs([{"messages": messages}], Conversation)


@pytest.mark.parametrize(
    "values",
    [None, 3, "text", b"text", {"text": "a"}, iter("ab"), pd.DataFrame({"text": ["a"]})],
    ids=lambda values: type(values).__name__,
)
def test_inputs_that_are_not_a_list_are_refused(values: Any) -> None:
    with pytest.raises(UserError, match="not a list of inputs but a "):
        read_inputs(values, TEXT)


def test_series_and_last_of_many() -> None:
    assert [each.model_dump() for each in read_inputs(pd.Series(["a", "b"]), TEXT)] == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(UserError, match=r"^input 10000: the text is not a text: 'None'"):
        read_inputs([*["a text"] * 9_999, {"text": None}], TEXT)
