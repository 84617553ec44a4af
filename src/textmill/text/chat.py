"""Render conversations with the chat template of a tokenizer."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from textmill.errors import UserError, first_line
from textmill.files import read_optional

Message = Mapping[str, Any]
TEMPLATE_FILE = "chat_template.jinja"
ROLES = ("system", "user", "assistant", "tool")
TRIAL_SECONDS = 5
TRIAL_BYTES = 512 << 20
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FIRST_SIGN = 0xF0000  # of the characters that Unicode assigns to nobody
_SIGN = re.compile("[\U000f0000-\U000ffffd]")
_SIGNS = 0xFFFD
_PIECE = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|.", re.DOTALL)
"""A special token, as templates write them, or one character."""
_THOUGHT = "<think>"


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


def parse_messages(value: str) -> list[dict[str, Any]]:
    """Parse a conversation from JSON; an assistant's message with `tool_calls` needs no text.

    Raises:
        ValueError: The value is not a valid conversation; the text says why.
    """
    try:
        messages = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(messages, list) or not messages:
        raise ValueError("is not a list of messages")
    messages = [_in_usual_words(message) for message in messages]
    for number, message in enumerate(messages, start=1):
        calls = isinstance(message, dict) and message.get("role") == "assistant" and message.get("tool_calls")
        if calls and message.get("content") is None:
            message["content"] = ""
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"has a message without text (number {number})")
        if message.get("role") not in ROLES:
            raise ValueError(f"has the role {message.get('role')!r}, not one of {', '.join(ROLES)} (message {number})")
        if not message["content"].strip() and not calls:
            raise ValueError(f"has an empty message (number {number})")
    return [{name: message[name] for name in _FIELDS if message.get(name) is not None} for message in messages]


def _in_usual_words(message: Any) -> Any:
    """Return a message of the form of ShareGPT, `from` and `value`, with `role` and `content`."""
    if isinstance(message, dict) and {"from", "value"} <= set(message) and not {"role", "content"} & set(message):
        return {"role": _SPEAKERS.get(message["from"], message["from"]), "content": message["value"]}
    return message


def messages_or_text(value: str, role: str) -> list[dict[str, Any]]:
    """Parse messages from JSON; any other text is one message of a role.

    Raises:
        ValueError: The text is empty, or the messages are not valid; the text says why.
    """
    if not value.strip():
        raise ValueError("is empty")
    if value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            parsed = json.loads(value)
            if isinstance(parsed, list) and any(
                isinstance(one, dict) and {"role", "content", "from"} & set(one) for one in parsed
            ):
                role = ""
    return [{"role": role, "content": value}] if role else parse_messages(value)


def render(messages: Sequence[Message], template: str, special: Mapping[str, str], *, ask: bool) -> str:
    """Render a conversation as one text; with `ask`, the text ends where the assistant's answer begins.

    Raises:
        UserError: The template rejects the conversation.
    """
    return _render(messages, template, special, ask=ask)[0]


def _render(
    messages: Sequence[Message], template: str, special: Mapping[str, str], *, ask: bool = False, marked: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation; with `marked`, also return the places of what the template marks as generated."""
    from transformers.utils import chat_template_utils

    # Its annotations contradict its results
    render_template: Any = chat_template_utils.render_jinja_template
    try:
        texts, places = render_template(
            conversations=[list(messages)],
            chat_template=template,
            add_generation_prompt=ask,
            return_assistant_tokens_mask=marked,
            **special,
        )
    except Exception as error:  # a template can raise any error of Python
        reason = first_line(error)
        raise UserError(f"the chat template rejects these messages ({reason})", where=TEMPLATE_FILE) from error
    return texts[0], places[0] if marked else []


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


def answer_spans(
    messages: Sequence[Message], template: str, special: Mapping[str, str], ends: Collection[str]
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation as one text; return it and the place of each answer in it, as [start, end).

    These are the parts that the template marks with `{% generation %}`. Without such marks, an answer begins
    where the text that asks for it ends, or where its thoughts begin, and ends where the next message begins.
    `ends` are texts of tokens that end an answer: one right after the answer belongs to it. Whether the
    template renders earlier messages in another way when later ones follow does not matter.

    Raises:
        UserError: The template rejects the conversation, or changes the last characters of a message.
    """
    if _MARKED.search(template):
        return _render(messages, template, special, marked=True)
    # A sign after a message's last character tells where the template wrote it, whatever it wrote around it
    signed = [_signed(message, number) for number, message in enumerate(messages)]
    text, places = _unsigned(render(signed, template, special, ask=False))
    if text != render(messages, template, special, ask=False):
        what = "the chat template changes the end of a message, so answers cannot be located"
        fix = "Mark the answers in it: {% generation %} ... {% endgeneration %} (task.chat_template)"
        raise UserError(what, where=TEMPLATE_FILE, fix=fix)
    spans = []
    last = -1  # the last message before this one that the text has
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            asked, places_asked = _unsigned(render(signed[:number], template, special, ask=True))
            before = places.get(last, 0)
            start = before + _common(text[before:], asked[places_asked.get(last, 0) :].partition(_THOUGHT)[0])
            answered, places_answered = _unsigned(render(signed[: number + 1], template, special, ask=False))
            anchor = number if number in places and number in places_answered else last
            at = places.get(anchor, 0)
            end = at + _common(text[at:], answered[places_answered.get(anchor, 0) :])
            if not any(token in text[at:end] for token in ends):
                closing = next((token for token in ends if text.startswith(token, at)), "")
                end = max(end, at + len(closing))
            spans.append((start, end))
        if number in places:
            last = number
    return text, spans


def tokens_within(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return 1 for each token, given as a place in the text, with a character in one of the spans, else 0."""
    return [int(any(start < last and first < end for first, last in spans)) for start, end in offsets]


def ends_of_turn(template: str, special: Mapping[str, str]) -> set[str]:
    """Return the first piece that the template writes after an answer, at the end of a conversation and within it.

    These are tokens such as `<|im_end|>`, or plain characters where a template has no such token.
    """
    question, answer = {"role": "user", "content": "Hello"}, _signed({"role": "assistant", "content": "Hi"}, 0)
    found = set()
    for messages in ([question, answer], [question, answer, question]):
        with suppress(UserError):  # a template that rejects these shows no end
            text, places = _unsigned(render(messages, template, special, ask=False))
            piece = _PIECE.match(text[places.get(0, len(text)) :].lstrip())
            found |= {piece[0]} if piece else set()
    return found


def _signed(message: Message, number: int) -> Message:
    """Return the message with a sign after its last character that is not a space, or after its last call's name."""
    content = message["content"]
    end = len(content.rstrip())
    sign = chr(_FIRST_SIGN + number % _SIGNS)
    if end:
        return {**message, "content": content[:end] + sign + content[end:]}
    signed = copy.deepcopy(dict(message))
    with suppress(KeyError, IndexError, TypeError):  # no call of a known form
        call = signed["tool_calls"][-1]
        call = call.get("function", call)
        call["name"] = f"{call['name']}{sign}"
    return signed


def _unsigned(text: str) -> tuple[str, dict[int, int]]:
    """Return a text without signs, and the place of each message's first sign in it."""
    places: dict[int, int] = {}
    for count, sign in enumerate(_SIGN.finditer(text)):
        places.setdefault(ord(sign[0]) - _FIRST_SIGN, sign.start() - count)
    return _SIGN.sub("", text), places


def _common(first: str, second: str) -> int:
    """Return how many characters two texts have in common at their beginning; special tokens count as a whole."""
    length = 0
    for one, other in zip(_PIECE.finditer(first), _PIECE.finditer(second), strict=False):
        if one[0] != other[0]:
            break
        length = one.end()
    return length
