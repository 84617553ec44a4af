"""Conversations as a model was taught to read them: the chat template of its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from textmill.errors import UserError
from textmill.files import read_optional

Message = Mapping[str, str]
TEMPLATE_FILE = "chat_template.jinja"
ROLES = ("system", "user", "assistant")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def read_template(tokenizer: Path) -> tuple[str | None, dict[str, str]]:
    """The chat template that lies beside a tokenizer, if any, and its special tokens by name."""
    config = read_optional(tokenizer / "tokenizer_config.json")
    special = {}
    for name in _SPECIAL:
        token = config.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            special[name] = token
    path = tokenizer / TEMPLATE_FILE
    template = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    return (template if isinstance(template, str) else None), special


def parse_messages(value: str) -> list[dict[str, str]]:
    """A conversation from JSON.

    Raises:
        ValueError: It is none; the text says why.
    """
    try:
        messages = json.loads(value)
    except ValueError:
        raise ValueError("is no JSON") from None
    if not isinstance(messages, list) or not messages:
        raise ValueError("is no list of messages")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"has a message without text (number {number})")
        if message.get("role") not in ROLES:
            raise ValueError(f"has the role {message.get('role')!r}, none of {', '.join(ROLES)} (message {number})")
        if not message["content"].strip():
            raise ValueError(f"has an empty message (number {number})")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def render(messages: Sequence[Message], template: str, special: Mapping[str, str], *, ask: bool) -> str:
    """A conversation as one text; with `ask` it ends where the assistant is to speak.

    Raises:
        UserError: The template refuses the conversation.
    """
    from jinja2.exceptions import TemplateError
    from transformers.utils import chat_template_utils

    # the library's own annotations contradict its results
    render_template: Any = chat_template_utils.render_jinja_template
    try:
        rendered, _ = render_template(
            conversations=[list(messages)], chat_template=template, add_generation_prompt=ask, **special
        )
    except TemplateError as error:
        raise UserError(f"the chat template refuses these messages ({error})", where=TEMPLATE_FILE) from error
    text: str = rendered[0]
    return text


def segments(messages: Sequence[Message], template: str, special: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """A conversation cut into texts, each with whether the assistant wrote it: what a model must learn.

    Raises:
        UserError: The template refuses it, or changes earlier messages when later ones follow.
    """
    told = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = render(messages[:number], template, special, ask=True)
        answered = render(messages[: number + 1], template, special, ask=False)
        if not (asked.startswith(told) and answered.startswith(asked)):
            raise UserError(
                "the chat template writes a conversation otherwise once it goes on, so answers cannot be told apart",
                where=TEMPLATE_FILE,
                fix="Choose a template that only adds to what stands there (task.chat_template)",
            )
        yield asked[len(told) :], False
        yield answered[len(asked) :], True
        told = answered
