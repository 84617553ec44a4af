"""Instruction tuning: conversations of which a causal language model learns the assistant's part."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Findings, Metric, Outputs, Section
from textmill.tasks.base import State, Task
from textmill.text import chat
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from textmill.models.base import Model
    from textmill.models.language_model import LanguageModel

_FIX = 'Give a text, or {"messages": [{"role": "user", "content": "..."}]}'


class InstructionTuningConfig(Options):
    """Options of instruction tuning.

    Attributes:
        chat_template: Jinja text that makes a text of a conversation; None takes the tokenizer's own.
        prompts: What the evaluation and the registration ask the model.
        sample_tokens: Tokens of each sample in the report.
    """

    chat_template: str | None = None
    prompts: Annotated[list[str], Field(min_length=1)] = ["Who are you?", "Name three colours."]
    sample_tokens: Annotated[int, Field(ge=1)] = 60


class InstructionTuning(Task):
    """Maximum likelihood of the assistant's answers; what others say is read, but not learned.

    The column `messages` holds conversations as JSON: lists of records with `role` (`system`, `user`
    or `assistant`) and `content`.

    State: `vocabulary_size`; `end_of_text`, the id that ends an answer; `chat_template`; `special_tokens`.
    """

    Config: ClassVar[type[Options]] = InstructionTuningConfig
    config: InstructionTuningConfig

    name = "instruction_tuning"
    text_columns = ("messages",)
    target_columns = ()
    stratify_column = None
    main_metric = "loss"
    monitor = "validation/loss"
    monitor_mode = "min"
    generates = True
    continues = True

    # -- prepare ----------------------------------------------------------------------------

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Nothing but that there is a conversation.

        Raises:
            UserError: The training split has none.
        """
        if not any(len(frame) for frame in frames):
            raise UserError("the training split has no conversation", fix="Give more")
        return {}

    def learn_tokens(self, state: State, tokenizer: Tokenizer) -> State:
        """The vocabulary's size."""
        return {**state, "vocabulary_size": tokenizer.get_vocab_size()}

    def learn_files(self, state: State, tokenizer: Path) -> State:
        """The chat template, the special tokens that it may name, and the id that ends an answer.

        Raises:
            UserError: There is no template, or the tokenizer names no token for the end.
        """
        from tokenizers import Tokenizer

        found, special = chat.read_template(tokenizer)
        template = self.config.chat_template or found
        if template is None:
            raise UserError(
                "the tokenizer has no chat template",
                where=str(tokenizer),
                fix="Choose a model that was made for conversations, or set task.chat_template",
            )
        if "eos_token" not in special:
            raise UserError("the tokenizer names no eos_token", where=str(tokenizer / "tokenizer_config.json"))
        end = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).token_to_id(special["eos_token"])
        return {**state, "end_of_text": end, "chat_template": template, "special_tokens": special}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:  # noqa: ARG002 - nothing is learned
        """Rows that are no conversation, or in which the assistant says nothing."""
        rejects = []
        for position, value in enumerate(frame["messages"].tolist()):
            reason = _problem(value)
            if reason is not None:
                rejects.append(RejectedRow(position, "messages", reason))
        return rejects

    def encode(self, frame: pd.DataFrame, tokenizer: Tokenizer, state: State, max_length: int) -> dict[str, list[Any]]:
        """`input_ids`; `answer`, 1 at tokens of the assistant's; `answer_ids`, these tokens; `length`.

        What is beyond `max_length` is cut off. The first token of a conversation is never predicted.
        """
        columns: dict[str, list[Any]] = {"input_ids": [], "answer": [], "answer_ids": [], "length": []}
        for value in frame["messages"]:
            ids: list[int] = []
            answer: list[int] = []
            pieces = chat.segments(chat.parse_messages(value), state["chat_template"], state["special_tokens"])
            for text, learned in pieces:
                new = tokenizer.encode(text, add_special_tokens=False).ids
                ids += new
                answer += [int(learned)] * len(new)
            ids, answer = ids[:max_length], answer[:max_length]
            columns["input_ids"].append(ids)
            columns["answer"].append(answer)
            columns["answer_ids"].append([token for token, learned in zip(ids[1:], answer[1:], strict=True) if learned])
            columns["length"].append(len(ids))
        return columns

    # -- train ------------------------------------------------------------------------------

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> LanguageModel:
        """The model's decoder over the vocabulary."""
        return model.build_decoder(state["vocabulary_size"], pretrained)

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels` (B, T): -100 wherever the next token is none of the assistant's.

        Rows are filled up at their end, where causal attention does not look.
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

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Mean negative log-likelihood in nats of the answers' tokens.

        Beside it, for each conversation: `nll`, the sum over its answers, and their tokens, `targets`.
        """
        from textmill.models.losses.likelihood import IGNORED, mean_cross_entropy

        model: LanguageModel = network  # type: ignore[assignment]
        labels = batch["labels"]
        states = model.hidden_states(batch["input_ids"]).states
        likelihood, each = mean_cross_entropy(states, model.output_weight, labels)
        return {"loss": likelihood, "nll": each.sum(dim=1), "targets": (labels != IGNORED).sum(dim=1)}

    def validation_figures(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:  # noqa: ARG002
        """`loss` in nats per token and `perplexity`."""
        loss = float(outputs["nll"].sum(dtype=float)) / max(1.0, float(outputs["targets"].sum(dtype=float)))
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}

    # -- evaluate ---------------------------------------------------------------------------

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """`id`, `messages`, `nll` (nats) and `targets` of each conversation."""
        return _likelihoods(outputs["nll"], outputs["targets"], frame)

    def metrics(self, state: State) -> list[Metric]:  # noqa: ARG002 - the same for every model
        """Loss in nats per token of the answers, and perplexity."""
        import numpy as np

        def loss(columns: Mapping[str, NDArray[Any]], index: NDArray[np.intp]) -> NDArray[np.float64]:
            rate: NDArray[np.float64] = columns["nll"][index].sum(axis=1) / columns["targets"][index].sum(axis=1)
            return rate

        return [
            Metric("loss", loss, higher_is_better=False),
            Metric("perplexity", lambda c, i: np.exp(np.minimum(loss(c, i), 700)), higher_is_better=False),
        ]

    @property
    def baseline_columns(self) -> list[str]:
        """The tokens of the answers."""
        return ["answer_ids"]

    def baselines(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame,  # noqa: ARG002
        state: State,
        options: Mapping[str, Any],  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """`unigram`: every token as likely as it is frequent in the answers of the training split."""
        import numpy as np

        counts = np.bincount(np.concatenate(list(train["answer_ids"])), minlength=state["vocabulary_size"]) + 1.0
        surprise = -np.log(counts / counts.sum())

        def predict(frame: pd.DataFrame) -> pd.DataFrame:
            found = [np.asarray(tokens, np.int64) for tokens in frame["answer_ids"]]
            nats = np.array([surprise[tokens].sum() for tokens in found])
            return _likelihoods(nats, np.array([len(tokens) for tokens in found]), frame)

        return {"unigram": predict}

    def report_sections(self, predictions: pd.DataFrame, state: State) -> list[Section]:  # noqa: ARG002
        """None that figures alone could fill; see `examine`."""
        return []

    def examine(self, network: torch.nn.Module, outputs: Outputs, tokenizer: Path, state: State) -> Findings:  # noqa: ARG002
        """Answers to the configured prompts."""
        from tokenizers import Tokenizer

        from textmill.metrics import samples

        model: LanguageModel = network  # type: ignore[assignment]
        prompts = self.prompts(self.parse_inputs(self.config.prompts), state)
        loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        written = samples.draw(model, loaded, prompts, state["end_of_text"], self.config.sample_tokens)
        return Findings([samples.section(written)], samples.figures(written))

    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """The conversations whose answers surprised the model most: loss per token."""
        table = predictions[predictions["targets"] > 0]
        table = table.assign(loss=table["nll"] / table["targets"])[["id", "messages", "loss"]]
        return table.sort_values("loss", ascending=False, ignore_index=True)

    # -- export and serving -----------------------------------------------------------------

    def example_inputs(self) -> list[dict[str, Any]]:
        """The configured prompts."""
        return [{"text": prompt} for prompt in self.config.prompts]

    def parse_inputs(self, values: Sequence[Any]) -> pd.DataFrame:
        """What a user says (a string, or a record with `text`), or records with `messages`, as the column `messages`.

        Raises:
            UserError: There is no input, or one is no conversation.
        """
        import pandas as pd

        if len(values) == 0:
            raise UserError("no input", fix=_FIX)
        asked = [_parse(value, f"input {position}") for position, value in enumerate(values, start=1)]
        return pd.DataFrame({"messages": asked})

    def prompts(self, frame: pd.DataFrame, state: State) -> list[str]:
        """The conversations as the model reads them, up to where it is to speak."""
        template, special = state["chat_template"], state["special_tokens"]
        return [
            chat.render(chat.parse_messages(value), template, special, ask=True) for value in frame["messages"].tolist()
        ]

    def decode(self, outputs: Outputs, state: State) -> list[dict[str, Any]]:  # noqa: ARG002
        """How likely each conversation's answers are: `loss` in nats per token and `perplexity`."""
        losses = (outputs["nll"] / outputs["targets"]).tolist()
        return [{"loss": loss, "perplexity": math.exp(min(loss, 700))} for loss in losses]


def _problem(value: Any) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return "is empty"
    try:
        messages = chat.parse_messages(value)
    except ValueError as error:
        return str(error)
    if not any(message["role"] == "assistant" for message in messages):
        return "has no answer of the assistant's"
    return None


def _parse(value: Any, where: str) -> str:
    if isinstance(value, Mapping):
        if "messages" in value:
            given = value["messages"]
            value = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
            try:
                chat.parse_messages(value)
            except ValueError as error:
                raise UserError(f"the conversation {error}", where=where, fix=_FIX) from error
            return str(value)
        value = value.get("text")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{value!r} is no text", where=where, fix=_FIX)
    return json.dumps([{"role": "user", "content": value}], ensure_ascii=False)


def _likelihoods(nats: NDArray[Any], targets: NDArray[Any], frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    columns = {"id": frame["id"].to_numpy(), "messages": frame["messages"].to_numpy()}
    return pd.DataFrame({**columns, "nll": nats.astype(float), "targets": targets.astype(float)})
