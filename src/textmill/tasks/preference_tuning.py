"""Preference tuning: a causal language model learns which of two answers to prefer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.abilities import AddsColumns
from textmill.tasks.base import State, StepOutput
from textmill.tasks.instruction_tuning import (
    Conversation,
    InstructionTuning,
    InstructionTuningConfig,
    masked_answers,
)
from textmill.text import chat
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch
    from tokenizers import Tokenizer

    from textmill.models.language_model import LanguageModel

PROMPT, CHOSEN, REJECTED = "prompt", "chosen", "rejected"
_SIDES = (
    ("input_ids", "answer", "reference"),
    ("rejected_ids", "rejected_answer", "rejected_reference"),
    ("unrelated_ids", "unrelated_answer", "unrelated_reference"),
)
"""Encoded columns of each conversation of a row: token ids, 1 at tokens of the answer, log-likelihoods of these."""
_TOKENS_PER_BATCH = 4096


class PreferenceTuningConfig(InstructionTuningConfig):
    """Options of preference tuning.

    Attributes:
        method: Loss: `dpo`, `ipo`, `orpo`, `kto` or `simpo`; see `textmill.models.losses.preferences`.
        beta: Strength: how strictly the model keeps to the reference (`dpo`, `ipo`, `kto`), the share of the odds
            ratio (`orpo`), the scale of the difference (`simpo`, usually 2 to 10).
        margin: Lead that `simpo` demands of the chosen answer.
    """

    method: Literal["dpo", "ipo", "orpo", "kto", "simpo"] = "dpo"
    beta: Annotated[float, Field(gt=0)] = 0.1
    margin: Annotated[float, Field(ge=0)] = 0.5


class PreferencePrompt(Conversation):
    """`messages` as JSON; `prompt`, a text or messages, is accepted in their place."""

    @model_validator(mode="before")
    @classmethod
    def _prompt(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and PROMPT in value and "messages" not in value:
            prompt = value[PROMPT]
            return {"messages": chat.messages_or_text(prompt, "user") if isinstance(prompt, str) else prompt}
        return value


class PreferenceTuning(InstructionTuning, AddsColumns):
    """Pairs of answers to a prompt, the chosen one and the rejected one.

    Columns: `prompt`, `chosen` and `rejected`, each a text or JSON messages. A text is a message of the user in
    `prompt`, of the assistant in the answers. `prepare` computes the log-likelihoods of the pretrained model, the
    reference, so that training neither loads nor runs it.

    State: that of `InstructionTuning`.
    """

    Config: ClassVar[type[Options]] = PreferenceTuningConfig
    config: PreferenceTuningConfig

    name = "preference_tuning"
    evaluator = "textmill.evaluation.evaluators.preference_tuning.PreferenceTuningEvaluator"
    text_columns = (PROMPT,)
    target_columns = (CHOSEN, REJECTED)
    text_target_columns = (CHOSEN, REJECTED)
    sequence_columns: ClassVar[Mapping[str, str]] = {"": "input_ids", "_rejected": "rejected_ids"}
    input_model = PreferencePrompt
    main_metric = "accuracy"

    # -- prepare ----------------------------------------------------------------------------

    @classmethod
    def prepared_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that tokens and reference depend on; `kto` needs a further answer to each prompt."""
        without = {"beta", "margin", "prompts", "sample_tokens"}
        without |= {"method"} if options.get("method") != "kto" else set()
        return {name: value for name, value in options.items() if name not in without}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without a prompt or an answer, with unknown roles, or with two equal answers."""
        problems = enumerate(map(_problem, frame[PROMPT], frame[CHOSEN], frame[REJECTED]))
        return [RejectedRow(position, *problem) for position, problem in problems if problem]

    def encode(self, frame: pd.DataFrame, tokenizer: Tokenizer, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return the columns of each conversation and `length`, the positions of a row; a prompt alone has its tokens.

        Conversations are cut after `max_length` tokens. For `kto` the next row's chosen answer is an unrelated one.
        """
        prompts = [chat.messages_or_text(value, "user") for value in frame[PROMPT]]
        if CHOSEN not in frame:
            encoded = list(masked_answers(prompts, tokenizer, state, max_length))
            return {"input_ids": [ids for ids, _ in encoded], "length": [len(ids) for ids, _ in encoded]}
        answers = [[chat.messages_or_text(value, "assistant") for value in frame[name]] for name in (CHOSEN, REJECTED)]
        if self.config.method == "kto":
            answers.append([*answers[0][1:], *answers[0][:1]])
        columns: dict[str, list[Any]] = {}
        for (ids, answer, _), replies in zip(_SIDES, answers, strict=False):
            whole = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
            counted = [sum(message["role"] == "assistant" for message in reply) for reply in replies]
            encoded = list(masked_answers(whole, tokenizer, state, max_length, counted))
            columns[ids], columns[answer] = ([row[part] for row in encoded] for part in (0, 1))
        sequences = [columns[ids] for ids, _, _ in _SIDES if ids in columns]
        columns["length"] = [len(row) * max(map(len, row)) for row in zip(*sequences, strict=True)]
        return columns

    def check_encoded(self, columns: Mapping[str, Sequence[Any]]) -> list[RejectedRow]:
        """Return the rows without a token of an answer, or whose answers are equal as far as they are kept."""
        rejected = []
        chosen, other = (columns.get(name) for name in ("input_ids", "rejected_ids"))
        for position, answers in enumerate(zip(columns["answer"], columns["rejected_answer"], strict=True)):
            empty = [name for name, answer in zip((CHOSEN, REJECTED), answers, strict=True) if not any(answer[1:])]
            if len(empty) == 2:
                reason = "is longer than prepare.max_length: no token of an answer is left"
                rejected.append(RejectedRow(position, PROMPT, reason))
            elif empty:
                rejected.append(RejectedRow(position, empty[0], "has no token: the chat template leaves it out"))
            elif chosen is not None and other is not None and chosen[position] == other[position]:
                reason = "equals the chosen answer in the tokens that prepare.max_length keeps"
                rejected.append(RejectedRow(position, REJECTED, reason))
        return rejected

    def column_adder(
        self, pretrained: Path, state: State, accelerator: str
    ) -> Callable[[Mapping[str, Sequence[Any]]], dict[str, list[Any]]]:
        """Load the reference; the function returns its log-likelihood of each token of the answers, in nats."""
        import numpy as np
        import torch

        from textmill.models.losses.likelihood import IGNORED, negative_log_likelihoods
        from textmill.models.pretrained_decoder import PretrainedDecoder
        from textmill.text.batches import length_batches

        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        model: Any = PretrainedDecoder.from_options().build_decoder(state["vocabulary_size"], pretrained)
        model.eval().to("cpu" if accelerator == "cpu" or device is None else device)

        @torch.inference_mode()
        def likelihoods(sequences: Sequence[Any], answers: Sequence[Any]) -> list[Any]:
            found: list[Any] = [None] * len(sequences)
            for batch in length_batches(np.array(list(map(len, sequences)), np.int64), _TOKENS_PER_BATCH):
                rows = batch.tolist()
                part = {"input_ids": [sequences[row] for row in rows], "answer": [answers[row] for row in rows]}
                tensors = super(PreferenceTuning, self).collate(part)
                labels = tensors["labels"].to(model.output_weight.device)
                states = model.hidden_states(tensors["input_ids"].to(labels.device)).states
                each = -negative_log_likelihoods(states, model.output_weight, labels)
                for row, values, known in zip(rows, each, labels != IGNORED, strict=True):
                    found[row] = values[known].tolist()
            return found

        def columns_of(rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
            sides = [names for names in _SIDES if names[0] in rows]
            return {reference: likelihoods(rows[ids], rows[answer]) for ids, answer, reference in sides}

        return columns_of

    # -- train ------------------------------------------------------------------------------

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `reference` (B, S, T) of a row's S conversations, the chosen one first.

        For `orpo` `all_labels` have every next token. Rows of prompts alone are collated as conversations.
        """
        import torch

        from textmill.models.losses.likelihood import IGNORED

        sides = [names for names in _SIDES if names[0] in rows]
        if len(sides) == 1:
            return super().collate(rows)
        ids, answers, references = (
            [value for row in zip(*(rows[names[part]] for names in sides), strict=True) for value in row]
            if sides[0][part] in rows
            else None
            for part in range(3)
        )
        assert ids is not None and answers is not None, "encoded rows have both"
        batch = super().collate({"input_ids": ids, "answer": answers})
        if references is not None:
            known = torch.tensor([value for values in references for value in values], dtype=torch.float32)
            where = batch["labels"] != IGNORED
            if int(where.sum()) != len(known):
                fix = "Compare versions with the same tokenizer and prepare.max_length"
                raise UserError("the log-likelihoods of the reference model are of other tokens", fix=fix)
            batch["reference"] = torch.zeros(where.shape).masked_scatter_(where, known)
        if self.config.method == "orpo":
            batch["all_labels"] = super().collate({"input_ids": ids})["labels"]
        return {name: each.view(-1, len(sides), each.size(-1)) for name, each in batch.items()}

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the mean loss of the pairs; of prompts alone the likelihood of their tokens.

        Outputs of each pair: `loss`; for both answers the log-likelihoods `chosen` and `rejected`, those of the
        reference, `reference_chosen` and `reference_rejected`, and the tokens, `chosen_tokens` and `rejected_tokens`;
        `divergence`, the sum over the tokens of both of a lower bound of the divergence from the reference.
        """
        import torch

        from textmill.models.losses import preferences
        from textmill.models.losses.likelihood import IGNORED, negative_log_likelihoods

        if batch["input_ids"].ndim == 2:
            return super().loss(network, batch)
        if "reference" not in batch:
            raise UserError("the rows have no log-likelihoods of the reference model", fix="Run `dvc repro prepare`")
        model: LanguageModel = network  # type: ignore[assignment]
        labels, reference = batch["labels"], batch["reference"]
        answered = labels != IGNORED
        targets = labels[:, :2]
        if "all_labels" in batch:
            targets = torch.stack([batch["all_labels"][:, 0], labels[:, 1]], dim=1)
        states = model.hidden_states(batch["input_ids"][:, :2].flatten(0, 1)).states
        nats = negative_log_likelihoods(states, model.output_weight, targets.flatten(0, 1)).view(targets.shape)
        sums, tokens = -(nats * answered[:, :2]).sum(dim=2), answered[:, :2].sum(dim=2)
        known = reference.sum(dim=2)
        losses = self._losses(sums, tokens, known[:, :2], self._divergence(model, batch, known))
        loss = losses.mean()
        if "all_labels" in batch:
            predicted = targets[:, 0] != IGNORED
            loss = loss + nats[:, 0].sum() / predicted.sum()
            losses = losses + nats[:, 0].sum(dim=1) / predicted.sum(dim=1)
        with torch.no_grad():
            apart = preferences.token_divergence(-nats, reference[:, :2]) * answered[:, :2]
            divergence = apart.sum(dim=(1, 2))
            lead = (sums - known[:, :2]) @ sums.new_tensor([1.0, -1.0])
            outputs = {"loss": losses.detach(), "divergence": divergence}
            for side, name in enumerate((CHOSEN, REJECTED)):
                values = sums[:, side].detach(), known[:, side], tokens[:, side]
                outputs |= dict(zip((name, f"reference_{name}", f"{name}_tokens"), values, strict=True))
        return StepOutput(loss, outputs, {"reward_lead": lead.mean()})

    def _losses(
        self, sums: torch.Tensor, tokens: torch.Tensor, known: torch.Tensor, divergence: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the loss of each pair from log-likelihoods (B, 2), numbers of tokens and the reference's."""
        from textmill.models.losses import preferences

        beta, method = self.config.beta, self.config.method
        ratios, means = sums - known, sums / tokens
        if method == "dpo":
            return preferences.dpo(ratios[:, 0], ratios[:, 1], beta)
        if method == "ipo":
            ratios = ratios / tokens
            return preferences.ipo(ratios[:, 0], ratios[:, 1], beta)
        if method == "orpo":
            return preferences.orpo(means[:, 0], means[:, 1], beta)
        if method == "simpo":
            return preferences.simpo(means[:, 0], means[:, 1], beta, self.config.margin)
        assert divergence is not None, "prepared for kto"
        return preferences.kto(ratios[:, 0], ratios[:, 1], divergence, beta)

    def _divergence(
        self, model: LanguageModel, batch: Mapping[str, torch.Tensor], known: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the batch's mean log-ratio of unrelated answers, at least 0, without gradient; for `kto` only."""
        import torch

        from textmill.models.losses.likelihood import negative_log_likelihoods

        if self.config.method != "kto":
            return None
        if batch["input_ids"].size(1) < len(_SIDES):
            raise UserError("the rows have no unrelated answers, which kto needs", fix="Run `dvc repro prepare`")
        with torch.no_grad():
            states = model.hidden_states(batch["input_ids"][:, 2]).states
            nats = negative_log_likelihoods(states, model.output_weight, batch["labels"][:, 2])
            return (-nats.sum(dim=1) - known[:, 2]).mean().clamp(min=0)

    def target_count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Return the number of pairs."""
        return len(batch["input_ids"])

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `loss`, `accuracy`, `reward_accuracy` and `kl`; see the evaluator."""
        from textmill.metrics.preferences import rightness

        lead, tokens = (
            (outputs[CHOSEN] - outputs[REJECTED]),
            outputs[f"{CHOSEN}_tokens"] + outputs[f"{REJECTED}_tokens"],
        )
        reference = outputs[f"reference_{CHOSEN}"] - outputs[f"reference_{REJECTED}"]
        return {
            "loss": float(outputs["loss"].mean(dtype=float)),
            "accuracy": float(rightness(lead).mean()),
            "reward_accuracy": float(rightness(lead - reference).mean()),
            "kl": float(outputs["divergence"].sum(dtype=float) / tokens.sum(dtype=float)),
        }

    # -- serve ------------------------------------------------------------------------------

    def parse_inputs(self, values: Sequence[Any]) -> pd.DataFrame:
        """Return prompts or conversations as a frame with `prompt`; see `Task.parse_inputs`."""
        import pandas as pd

        from textmill.text.inputs import read_inputs

        return pd.DataFrame({PROMPT: [one.messages for one in read_inputs(values, self.input_model)]})

    def prompts(self, frame: pd.DataFrame, state: State) -> list[str]:
        """Return the rendered prompts, up to where the assistant's answer begins."""
        template, special = state["chat_template"], state["special_tokens"]
        conversations = (chat.messages_or_text(value, "user") for value in frame[PROMPT])
        return [chat.render(messages, template, special, ask=True) for messages in conversations]


def _problem(prompt: Any, chosen: Any, rejected: Any) -> tuple[str, str] | None:
    """Return the column at fault and the reason, or None for a pair that can be learned."""
    parsed = []
    for column, value in ((PROMPT, prompt), (CHOSEN, chosen), (REJECTED, rejected)):
        try:
            messages = chat.messages_or_text(value if isinstance(value, str) else "", _role(column))
        except ValueError as error:
            return column, str(error)
        if column != PROMPT and any(message["role"] not in ("assistant", "tool") for message in messages):
            return column, "has a message that is not the assistant's"
        if (messages[-1]["role"] == "assistant") == (column == PROMPT):
            return column, "ends with an answer" if column == PROMPT else "does not end with an answer"
        parsed.append(messages)
    return (REJECTED, "equals the chosen answer") if parsed[1] == parsed[2] else None


def _role(column: str) -> str:
    return "user" if column == PROMPT else "assistant"
