"""Render conversations with the chat template of a tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from textmill.errors import UserError, first_line
from textmill.files import read_optional

Message = Mapping[str, str]
TEMPLATE_FILE = "chat_template.jinja"
ROLES = ("system", "user", "assistant")
TRIAL_SECONDS = 5
TRIAL_BYTES = 512 << 20
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def read_template(tokenizer: Path) -> tuple[str | None, dict[str, str]]:
    """Return the chat template stored with a tokenizer, if any, and its special tokens by name."""
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
    """Parse a conversation from JSON.

    Raises:
        ValueError: The value is not a valid conversation; the text says why.
    """
    try:
        messages = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(messages, list) or not messages:
        raise ValueError("is not a list of messages")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"has a message without text (number {number})")
        if message.get("role") not in ROLES:
            raise ValueError(f"has the role {message.get('role')!r}, not one of {', '.join(ROLES)} (message {number})")
        if not message["content"].strip():
            raise ValueError(f"has an empty message (number {number})")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def render(messages: Sequence[Message], template: str, special: Mapping[str, str], *, ask: bool) -> str:
    """Render a conversation as one text; with `ask`, the text ends where the assistant's answer begins.

    Raises:
        UserError: The template rejects the conversation.
    """
    from transformers.utils import chat_template_utils

    # Its annotations contradict its results
    render_template: Any = chat_template_utils.render_jinja_template
    try:
        rendered, _ = render_template(
            conversations=[list(messages)], chat_template=template, add_generation_prompt=ask, **special
        )
    except Exception as error:  # a template can raise any error of Python
        reason = first_line(error)
        raise UserError(f"the chat template rejects these messages ({reason})", where=TEMPLATE_FILE) from error
    text: str = rendered[0]
    return text


def try_template(template: str, special: Mapping[str, str], where: str) -> None:
    """Render a short conversation in a process of its own: a template may run for ever or fill the memory.

    A template that only rejects the conversation is accepted here; the rows show which ones it accepts.

    Raises:
        UserError: The template cannot be parsed, or needs too much time or memory.
    """
    trial = {"messages": [{"role": "user", "content": "Hello"}], "template": template, "special": dict(special)}
    command = [sys.executable, "-m", "textmill.text.template_trial"]
    done = subprocess.run(command, input=json.dumps(trial), capture_output=True, text=True)
    fix = "Use another tokenizer or set task.chat_template; it is code from its author"
    if done.returncode < 0 or "MemoryError" in done.stdout:
        limits = f"{TRIAL_SECONDS} s or {TRIAL_BYTES >> 20} MiB"
        raise UserError(f"the chat template needs more than {limits} for one word", where=where, fix=fix)
    if done.returncode:
        raise UserError(f"the chat template cannot be rendered ({done.stderr.strip()[-200:]})", where=where, fix=fix)


def segments(messages: Sequence[Message], template: str, special: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a conversation, each with whether the assistant wrote it and the model learns it.

    Raises:
        UserError: The template rejects it, or changes earlier messages when later ones follow.
    """
    rendered = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = render(messages[:number], template, special, ask=True)
        answered = render(messages[: number + 1], template, special, ask=False)
        if not (asked.startswith(rendered) and answered.startswith(asked)):
            what = "the chat template changes earlier messages when later ones follow, so answers cannot be located"
            fix = "Choose a template that only appends text (task.chat_template)"
            raise UserError(what, where=TEMPLATE_FILE, fix=fix)
        yield asked[len(rendered) :], False
        yield answered[len(asked) :], True
        rendered = answered
