"""Instruction tuning: a causal language model learns the assistant's part of conversations."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.files import read_optional
from textmill.metrics.base import Outputs
from textmill.tasks.base import State, StepOutput
from textmill.tasks.language_modelling import CausalTask
from textmill.text import chat
from textmill.text.inputs import Input, not_blank
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch
    from tokenizers import Tokenizer

    from textmill.models.language_model import LanguageModel

log = logging.getLogger("textmill")


class InstructionTuningConfig(Options):
    """Options of instruction tuning.

    Attributes:
        chat_template: Jinja template that renders a conversation; None takes the tokenizer's own.
        prompts: Questions that evaluation and registration ask the model.
        sample_tokens: Tokens of each sample in the report.
    """

    chat_template: str | None = None
    prompts: Annotated[list[str], Field(min_length=1)] = ["Who are you?", "Name three colours."]
    sample_tokens: Annotated[int, Field(ge=1)] = 60


_MESSAGE = {
    "type": "object",
    "properties": {"role": {"enum": list(chat.ROLES)}, "content": {"type": "string"}},
    "required": ["role", "content"],
}


class Conversation(Input):
    """`messages` as JSON; a text alone (a string, or a record with `text`) is a message of the user."""

    messages: Annotated[str, WithJsonSchema({"type": "array", "items": _MESSAGE})]

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, value: Any) -> Any:
        text = value.get("text") if isinstance(value, Mapping) and "messages" not in value else value
        if isinstance(text, str):
            value = {"messages": [{"role": "user", "content": not_blank(text)}]}
        if isinstance(value, Mapping) and isinstance(value.get("messages"), list):
            value = {"messages": json.dumps(value["messages"], ensure_ascii=False, default=lambda _: None)}
        return value

    @field_validator("messages")
    @classmethod
    def _is_a_conversation(cls, messages: str) -> str:
        chat.parse_messages(messages)
        return messages

    @classmethod
    def form(cls) -> str:
        """Return the expected form, for an error message."""
        return 'Give a text, or {"messages": [{"role": "user", "content": "..."}]}'


class InstructionTuning(CausalTask):
    """Maximum likelihood of the assistant's answers, given all earlier messages.

    The column `messages` holds conversations as JSON: lists of records with `role` (`system`, `user`
    or `assistant`) and `content`.

    A tool's result has the role `tool`; an answer with `tool_calls` needs no text.

    State: `vocabulary_size`; `end_of_text`, the id that ends a text; `end_ids`, those that end an answer;
    `chat_template`; `special_tokens`.
    """

    Config: ClassVar[type[Options]] = InstructionTuningConfig
    config: InstructionTuningConfig

    name = "instruction_tuning"
    evaluator = "textmill.evaluation.evaluators.instruction_tuning.InstructionTuningEvaluator"
    text_columns = ("messages",)
    input_model = Conversation
    main_metric = "loss"
    answers_prompt = True

    def bind_tokenizer(self, state: State, tokenizer: Tokenizer, folder: Path) -> State:
        """Return the state with the vocabulary's size, the chat template with its special tokens, and the end's id.

        Raises:
            UserError: There is no template, or the tokenizer names no token that ends an answer.
        """
        own, special = chat.read_template(folder)
        template = self.config.chat_template or own
        if template is None:
            fix = "Choose a chat model, or set task.chat_template"
            raise UserError("the tokenizer has no chat template", where=str(folder), fix=fix)
        if "eos_token" not in special:
            where, fix = str(folder / "tokenizer_config.json"), "Choose a tokenizer that names one"
            raise UserError("the tokenizer names no eos_token", where=where, fix=fix)
        chat.try_template(template, special, str(folder))
        ends = _ends(tokenizer, template, special, folder)
        _tell_missing_end(template, special, [str(tokenizer.id_to_token(end)) for end in ends])
        return {
            **state,
            "vocabulary_size": tokenizer.get_vocab_size(),
            "end_of_text": tokenizer.token_to_id(special["eos_token"]),
            "end_ids": ends,
            "chat_template": template,
            "special_tokens": special,
        }

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows that are not a conversation, or have no message of the assistant."""
        reasons = enumerate(map(_problem, frame["messages"].tolist()))
        return [RejectedRow(position, "messages", reason) for position, reason in reasons if reason]

    def encode(self, frame: pd.DataFrame, tokenizer: Tokenizer, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return `input_ids`; `answer`, 1 at tokens of the assistant; `answer_ids`, these tokens; `length`.

        Conversations are cut after `max_length` tokens. The first token of each is never predicted. A token with
        any character of an answer is one of the assistant.
        """
        columns: dict[str, list[Any]] = {"input_ids": [], "answer": [], "answer_ids": [], "length": []}
        conversations = [chat.parse_messages(value) for value in frame["messages"]]
        for ids, answer in masked_answers(conversations, tokenizer, state, max_length):
            columns["input_ids"].append(ids)
            columns["answer"].append(answer)
            columns["answer_ids"].append([token for token, learned in zip(ids[1:], answer[1:], strict=True) if learned])
            columns["length"].append(len(ids))
        return columns

    def check_encoded(self, columns: Mapping[str, Sequence[Any]]) -> list[RejectedRow]:
        """Return the conversations without a token of an answer."""
        reason = "has no token of an answer: prepare.max_length cuts it away, or the chat template leaves it out"
        empty = (position for position, ids in enumerate(columns["answer_ids"]) if not ids)
        return [RejectedRow(position, "messages", reason) for position in empty]

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels` (B, T): -100 where the next token is not the assistant's.

        Padding is at the end, where causal attention ignores it.
        """
        import numpy as np
        import torch

        from textmill.models.losses.likelihood import IGNORED

        sequences = [np.asarray(ids, np.int64) for ids in rows["input_ids"]]
        answers = rows.get("answer") or [np.ones(len(ids), np.int64) for ids in sequences]
        shape = (len(sequences), max(1, *(len(ids) - 1 for ids in sequences)))
        input_ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        for row, (ids, answer) in enumerate(zip(sequences, answers, strict=True)):
            input_ids[row, : len(ids) - 1] = ids[:-1]
            labels[row, : len(ids) - 1] = np.where(np.asarray(answer)[1:] == 1, ids[1:], IGNORED)
        return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the mean negative log-likelihood, in nats, of the answers' tokens.

        Outputs of each conversation: `nll`, the sum over its answers, and `targets`, their number of tokens.
        """
        from textmill.models.losses.likelihood import IGNORED, mean_cross_entropy

        model: LanguageModel = network  # type: ignore[assignment]
        labels = batch["labels"]
        states = model.hidden_states(batch["input_ids"]).states
        likelihood, each = mean_cross_entropy(states, model.output_weight, labels)
        return StepOutput(likelihood, {"nll": each.sum(dim=1), "targets": (labels != IGNORED).sum(dim=1)})

    def target_count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Return the number of target tokens."""
        from textmill.models.losses.likelihood import count_targets

        return count_targets(batch["labels"])

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `loss` in nats per token and `perplexity`."""
        from textmill.metrics.likelihood import validation_metrics

        return validation_metrics(outputs)

    def prompts(self, frame: pd.DataFrame, state: State) -> list[str]:
        """Return the rendered conversations, up to where the assistant's next message begins."""
        template, special = state["chat_template"], state["special_tokens"]
        conversations = map(chat.parse_messages, frame["messages"].tolist())
        return [chat.render(messages, template, special, ask=True) for messages in conversations]


def masked_answers(
    conversations: Sequence[Sequence[chat.Message]],
    tokenizer: Tokenizer,
    state: State,
    max_length: int,
    counted: Sequence[int | None] | None = None,
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the tokens of each conversation, at most `max_length`, and 1 for each token of its answers, else 0.

    `counted` is the number of the last answers that count in each conversation; None counts all.
    """
    ends = [str(tokenizer.id_to_token(end)) for end in state.get("end_ids", [state["end_of_text"]])]
    template, special = state["chat_template"], state["special_tokens"]
    located = [chat.answer_spans(messages, template, special, ends) for messages in conversations]
    encodings = tokenizer.encode_batch([text for text, _ in located], add_special_tokens=False)
    for number, (encoding, (_, spans)) in enumerate(zip(encodings, located, strict=True)):
        last = None if counted is None else counted[number]
        spans = spans if last is None else spans[len(spans) - last :]
        yield encoding.ids[:max_length], chat.tokens_within(encoding.offsets[:max_length], spans)


def _ends(tokenizer: Tokenizer, template: str, special: Mapping[str, str], folder: Path) -> list[int]:
    """Return the ids of the tokens that end an answer: the tokenizer's, the model's, the chat template's."""
    of_model = read_optional(folder / "generation_config.json").get("eos_token_id") or []
    added = tokenizer.get_added_tokens_decoder()
    names = {token.content: number for number, token in added.items()}
    ends = {tokenizer.token_to_id(special["eos_token"]), *(of_model if isinstance(of_model, list) else [of_model])}
    ends |= {names[text] for text in chat.ends_of_turn(template, special) if text in names}
    return sorted(end for end in ends if isinstance(end, int) and tokenizer.id_to_token(end) is not None)


def _tell_missing_end(template: str, special: Mapping[str, str], ends: list[str]) -> None:
    """Warn if an answer in a conversation is not followed by a token that ends it."""
    messages = [{"role": role, "content": "Hello"} for role in ("user", "assistant", "user")]
    with suppress(UserError):  # not a conversation that this template accepts
        text, spans = chat.answer_spans(messages, template, special, ends)
        answer = "".join(text[start:end] for start, end in spans).rstrip()
        if not any(answer.endswith(end) for end in ends):
            log.warning("prepare: no end token follows an answer in this chat template: the model learns no end")


def _problem(value: Any) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return "is empty"
    try:
        messages = chat.parse_messages(value)
    except ValueError as error:
        return str(error)
    if not any(message["role"] == "assistant" for message in messages):
        return "has no message of the assistant"
    return None
