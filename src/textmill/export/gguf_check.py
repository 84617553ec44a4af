"""Check a GGUF file through llama.cpp, the engine that serves it, against the trained model in PyTorch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.export import gguf_answers
from textmill.predicting.llama_cpp import LlamaCpp

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from textmill.data.prepared import Prepared
    from textmill.models.language_model import LanguageModel
    from textmill.tasks.base import Task

LIMITS = {"f16": 0.005, "q8_0": 0.005, "q4_1": 0.02, "q4_0": 0.02}
"""Largest relative change of the bits per byte; the whole 95 % interval must be within it."""
_LINES = 10_000
_CONVERSATIONS = 50
_TEXTS, _TEXT_TOKENS = 40, 48
_PROMPTS, _CONTINUED = 8, 24
_SLOTS = 4
_TIE = 0.02
"""Nats by which float16 may exchange two tokens that are as likely."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Sample:
    """What the checks read: lines of the corpus, conversations with an open end, and tokens.

    Attributes:
        lines: Lines of the prepared texts.
        conversations: Messages that end with a question; empty without a chat template.
        rendered: The prompts of the conversations, as this model reads them.
        texts: Tokens of whole characters whose likelihood is compared.
        prompts: Tokens that are continued.
    """

    lines: list[str]
    conversations: list[list[dict[str, Any]]]
    rendered: list[str]
    texts: list[list[int]]
    prompts: list[list[int]]


def sample(task: Task, prepared: Prepared, tokenizer: Tokenizer) -> Sample:
    """Take the sample from the prepared splits: the test split first."""
    from textmill.text import chat

    template, special = prepared.state.get("chat_template"), prepared.state.get("special_tokens", {})
    conversations: list[list[dict[str, Any]]] = []
    if template is not None:
        for messages in gguf_answers.conversations(task, prepared)[:_CONVERSATIONS]:
            last = max((n for n, message in enumerate(messages) if message["role"] == "user"), default=None)
            if last is not None:
                conversations.append(list(messages[: last + 1]))
                if messages[0]["role"] == "user":
                    conversations.append([{"role": "system", "content": "Be brief."}, *messages[: last + 1]])
    rendered = [chat.render(messages, template, special, ask=True) for messages in conversations] if template else []
    lines = list(islice(_lines(task, prepared), _LINES))
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(lines, add_special_tokens=False)]
    texts = [ids for line in encoded if len(ids := _whole(line[:_TEXT_TOKENS], tokenizer)) > 1][:_TEXTS]
    prompts = [encoding.ids for encoding in tokenizer.encode_batch(rendered, add_special_tokens=False)] or texts
    return Sample(lines, conversations, rendered, texts, [ids[-256:] for ids in prompts[:_PROMPTS]])


def _whole(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Return the tokens before the first one that is not of whole characters, whose likelihood llama.cpp tells not."""
    cut = (place for place, token in enumerate(ids) if "\ufffd" in tokenizer.decode([token]))
    return ids[: next(cut, len(ids))]


def _lines(task: Task, prepared: Prepared) -> Iterator[str]:
    from textmill.text import chat

    for name in ("test", "validation", "train"):
        table = prepared.split(name)
        for column in task.text_columns:
            for text in table.column(column).to_pylist():
                chats = chat.messages_or_text(text, "user") if "chat_template" in prepared.state else []
                parts = [str(message["content"]) for message in chats] or [str(text)]
                yield from (line for part in parts for line in part.splitlines() if line.strip())


@dataclass(frozen=True)
class Verdict:
    """The result of the checks of one file.

    Attributes:
        numbers: Values for `metrics.json`, without the type of the weights.
        problems: What failed, one line each.
    """

    numbers: dict[str, float]
    problems: list[str]


def check_gguf(
    path: Path,
    kind: str,
    taken: Sample,
    tokenizer: Tokenizer,
    network: LanguageModel,
    ends: Collection[int],
    questions: gguf_answers.Questions | None = None,
    margin: float = 0.05,
) -> Verdict:
    """Compare llama.cpp on a file with the network in float32.

    Token ids of all lines and texts of all templates must be equal; the bits per byte within `LIMITS`; with `f16` the
    greedy continuations too, but for tokens that are as likely within 0.02 nats. The answers to `questions` must not
    lose `margin` of F1.
    """
    asked = questions.prompts if questions else []
    longest = max(map(len, asked), default=0) + gguf_answers.TOKENS
    room = max(max(map(len, taken.prompts), default=1) + _CONTINUED, _TEXT_TOKENS, longest) + 8
    room = min(room, network.architecture.max_length)
    prompts = [ids[: room - _CONTINUED] for ids in taken.prompts]
    engine = LlamaCpp(path, _SLOTS, room)
    expected = [encoding.ids for encoding in tokenizer.encode_batch(taken.lines, add_special_tokens=False)]
    pairs = zip(expected, engine.tokenize(taken.lines), strict=True)
    lines = [line for line, (ours, theirs) in zip(taken.lines, pairs, strict=True) if ours != theirs]
    problems = [f"{len(lines)} of {len(expected)} lines have other tokens, such as {lines[0][:60]!r}"] if lines else []
    numbers = {"lines": float(len(expected)), "lines_differ": float(len(lines))}
    rendered = engine.render(taken.conversations)
    differ = sum(ours != theirs for ours, theirs in zip(taken.rendered, rendered, strict=True))
    if differ:
        problems.append(f"the chat template renders {differ} of {len(rendered)} conversations as other texts")
    numbers |= {"conversations": float(len(rendered)), "conversations_differ": float(differ)}
    change = _change_of_bits(engine, taken.texts, network)
    numbers |= {"bits_per_byte_change": change[0], "change_low": change[1], "change_high": change[2]}
    if not max(abs(change[1]), abs(change[2])) <= LIMITS[kind]:
        told = f"{change[0]:+.2%} [{change[1]:+.2%}, {change[2]:+.2%}]"
        problems.append(f"the bits per byte change by {told}, more than {LIMITS[kind]:.1%}")
    wrong = sum(not _continues(engine, network, ids, ends) for ids in prompts)
    numbers |= {"continuations": float(len(prompts)), "continuations_differ": float(wrong)}
    if wrong and kind == "f16":
        problems.append(f"{wrong} of {len(prompts)} greedy continuations differ")
    if questions and asked:
        answers = gguf_answers.ask_llama_cpp(engine, asked, _SLOTS)
        found, problem = gguf_answers.compare(questions, answers, margin)
        numbers |= found
        problems += [problem] if problem else []
    return Verdict(numbers, problems)


def _change_of_bits(engine: LlamaCpp, texts: Sequence[Sequence[int]], network: Any) -> tuple[float, float, float]:
    """Return the relative change of the bits of the texts and its 95 % interval, by a bootstrap over texts.

    The bytes are the same on both sides, so that it is also the change of the bits per byte.
    """
    import torch

    def theirs(slot: int) -> list[tuple[int, float]]:
        mine = range(slot, len(texts), _SLOTS)
        return [(number, -sum(engine.log_likelihoods(texts[number], slot))) for number in mine]

    with ThreadPoolExecutor(_SLOTS) as pool:
        found = dict(pair for pairs in pool.map(theirs, range(_SLOTS)) for pair in pairs)
    ours = np.zeros(len(texts))
    with torch.inference_mode():
        for number, ids in enumerate(texts):
            scores = network(torch.tensor([list(ids)]))["logits"][0, :-1].float().log_softmax(-1)
            ours[number] = -float(scores.gather(1, torch.tensor(list(ids[1:]))[:, None]).sum())
    values = np.array([found[number] for number in range(len(texts))])
    rows = np.random.default_rng(0).integers(0, len(texts), (_RESAMPLES, len(texts)))
    low, high = np.quantile(values[rows].sum(1) / ours[rows].sum(1) - 1, [0.025, 0.975])
    return float(values.sum() / ours.sum() - 1), float(low), float(high)


def _continues(engine: LlamaCpp, network: Any, prompt: Sequence[int], ends: Collection[int]) -> bool:
    """Return whether each token of llama.cpp's greedy continuation is one that the network finds the likeliest."""
    import torch

    tokens = engine.greedy(prompt, _CONTINUED)
    with torch.inference_mode():
        scores = network(torch.tensor([[*prompt, *tokens]]))["logits"][0].float().log_softmax(-1)
    places = scores[len(prompt) - 1 : -1]
    chosen = places.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    ended = len(tokens) == _CONTINUED or tokens[-1] in ends
    return ended and bool((places.max(dim=-1).values - chosen <= _TIE).all())
