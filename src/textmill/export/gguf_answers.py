"""Compare greedy answers of llama.cpp on a GGUF file with those of PyTorch, by the known answers of the test split.

llama.cpp multiplies weights of 8 or fewer bits by activations that it rounds to 8 bits, which may exchange words that
are almost as likely. The bits per byte hardly notice; an answer may.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from textmill.config.sections.generation import GenerationConfig
from textmill.metrics import passages
from textmill.metrics.base import Metric, mean_of
from textmill.metrics.bootstrap import Bootstrap, Interval, checked_pair, paired_gain

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from textmill.data.prepared import Prepared
    from textmill.models.language_model import LanguageModel
    from textmill.predicting.llama_cpp import LlamaCpp
    from textmill.tasks.base import Task

TOKENS = 32
"""Tokens of an answer at most, on both sides and in the known answers."""
_LONGEST_PROMPT = 1024
_BATCH = 16
_F1 = Metric("f1", mean_of("f1"))


@dataclass(frozen=True)
class Questions:
    """Held-out conversations up to an answer.

    Attributes:
        prompts: Tokens of each.
        right: The answer of the conversation, its first `TOKENS` tokens.
        answers: PyTorch's greedy answers.
    """

    prompts: list[list[int]]
    right: list[str]
    answers: list[str]


def conversations(task: Task, prepared: Prepared) -> list[list[dict[str, Any]]]:
    """Return the conversations of the test split; one of preferences ends with the chosen answer."""
    from textmill.text import chat

    table = prepared.split("test")
    parts = [(task.text_columns[0], "user"), *((name, "assistant") for name in task.target_columns[:1])]
    columns = [[chat.messages_or_text(text, role) for text in table.column(name).to_pylist()] for name, role in parts]
    return [[message for messages in row for message in messages] for row in zip(*columns, strict=True)]


def questions(
    task: Task, prepared: Prepared, tokenizer: Tokenizer, network: LanguageModel, ends: Collection[int], count: int
) -> Questions:
    """Ask the network `count` questions, spread over the test split; none without a chat template."""
    from textmill.text import chat

    if "chat_template" not in prepared.state or not count:
        return Questions([], [], [])
    room = min(network.architecture.max_length - TOKENS, _LONGEST_PROMPT)
    answered = []
    for messages in conversations(task, prepared):
        last = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        if last and messages[last]["content"].strip():
            answered.append((messages[:last], messages[last]["content"]))
    rows = np.unique(np.linspace(0, len(answered) - 1, min(count, len(answered))).round().astype(int))
    template, special = prepared.state["chat_template"], prepared.state["special_tokens"]
    found = []
    for messages, answer in (answered[row] for row in rows):
        text = chat.render(messages, template, special, ask=True)
        ids, known = (tokenizer.encode(part, add_special_tokens=False).ids for part in (text, answer))
        if len(ids) <= room:
            found.append((ids, _text(tokenizer, known[:TOKENS])))
    found.sort(key=lambda pair: len(pair[0]))
    prompts, right = [ids for ids, _ in found], [text for _, text in found]
    return Questions(prompts, right, ask_pytorch(network, tokenizer, prompts, ends))


def ask_pytorch(
    network: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], ends: Collection[int]
) -> list[str]:
    """Return the network's greedy answers; prompts of similar length follow each other."""
    from textmill.models.generation import generate_tokens

    options, end = GenerationConfig(temperature=0, max_new_tokens=TOKENS), next(iter(ends))
    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        found = generate_tokens(network, prompts[start : start + _BATCH], options, end, other_ends=ends)
        answers += [_text(tokenizer, tokens) for tokens in found]
    return answers


def _text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Return the text of tokens, whose last character llama.cpp leaves out if it is incomplete."""
    text: str = tokenizer.decode(list(tokens))
    return text.rstrip("\ufffd")


def ask_llama_cpp(engine: LlamaCpp, prompts: Sequence[Sequence[int]], parallel: int) -> list[str]:
    """Return llama.cpp's greedy answers, `parallel` of them computed together as in a server."""

    def answer(prompt: Sequence[int]) -> str:
        records = engine.complete({"prompt": list(prompt), "n_predict": TOKENS, "temperature": 0})
        return "".join(choice["text"] for record in records for choice in record["choices"]).rstrip("\ufffd")

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(answer, prompts))


def compare(asked: Questions, answers: Sequence[str], margin: float) -> tuple[dict[str, float], str]:
    """Return numbers for `metrics.json` and what fails, "" if nothing does.

    The answers pass if the rows show that F1 of words loses less than `margin`: the whole paired 95 % interval does.
    """
    theirs, own = (
        pd.DataFrame({"id": range(len(texts)), "f1": passages.scores(texts, [[right] for right in asked.right])[1]})
        for texts in (answers, asked.answers)
    )
    equal = float(np.mean([one.strip() == other.strip() for one, other in zip(answers, asked.answers, strict=True)]))
    if len(answers) > 1:
        change = paired_gain(checked_pair(theirs, own), _F1, -margin, Bootstrap(), 0.025)
    else:
        change = Interval(0.0, -1.0, 1.0)
    numbers = {"answers": float(len(answers)), "answers_equal": equal, "answer_f1": float(theirs["f1"].mean())}
    numbers |= {"answer_f1_pytorch": float(own["f1"].mean()), "answer_change": change.value}
    numbers |= {"answer_change_low": change.low, "answer_change_high": change.high}
    if change.low > -margin:
        return numbers, ""
    bounds = f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}] on {len(answers)} test conversations"
    told = "a loss of more than" if change.high < -margin else "not shown to lose less than"
    return numbers, f"F1 of the answers changes by {bounds}, {told} {margin:g} (export.gguf_margin)"
