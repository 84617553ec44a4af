"""The shared part of tasks that generate a text from a source: translation and summarisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.config.sections.generation import GenerationConfig
from textmill.config.types import Fraction
from textmill.metrics.base import Outputs
from textmill.tasks.abilities import GeneratesText
from textmill.tasks.base import State, StepOutput, Task
from textmill.text.checks import empty_rows
from textmill.text.rejected_rows import RejectedRow
from textmill.text.tokens import truncated

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

    from textmill.models.base import Model

TEXTS = "texts"
"""The output that holds generated texts."""
_SOURCE_TOKENS_AT_ONCE = 2048


class SequenceToSequenceConfig(Options):
    """Options of a task that generates a text from a source.

    Attributes:
        end_of_text: Special token of the tokenizer that ends a text.
        label_smoothing: Share of each target token spread evenly over the vocabulary (Szegedy et al. 2016).
        max_ratio: Largest ratio of the characters of both texts; pairs beyond are rejected, as they are
            probably not a pair. None keeps all.
        generation: Options of generation.
    """

    end_of_text: str = "<|endoftext|>"
    label_smoothing: Fraction = 0.1
    max_ratio: Annotated[float, Field(gt=1)] | None = None
    generation: GenerationConfig = GenerationConfig(temperature=0.0, beams=5, max_new_tokens=128)


class SequenceToSequence(Task, GeneratesText):
    """Maximum likelihood of a target given its source; beam search generates the target.

    A subclass names one text column, the source, and one target column.

    State: `vocabulary_size`; `end_of_text`, its id.
    """

    Config: ClassVar[type[Options]] = SequenceToSequenceConfig
    config: SequenceToSequenceConfig

    monitor = "validation/loss"
    monitor_mode = "min"

    @property
    def generation(self) -> GenerationConfig:
        """Options of generation, for the evaluation and the exported model."""
        return self.config.generation

    @property
    def source_column(self) -> str:
        """The column of sources."""
        return self.text_columns[0]

    @property
    def target_column(self) -> str:
        """The column of targets, and the name of the answer."""
        return self.target_columns[0]

    def bind_tokenizer(self, state: State, tokenizer: Any, folder: Path) -> State:
        """Return the state with the vocabulary's size and the id that ends a text.

        Raises:
            UserError: The tokenizer has no token `end_of_text`.
        """
        from textmill.text.tokens import special_id

        end = special_id(tokenizer, self.config.end_of_text, "task.end_of_text")
        return {**state, "vocabulary_size": tokenizer.get_vocab_size(), "end_of_text": end}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return pairs with an empty text, or with lengths beyond `max_ratio`."""
        names, ratio = (self.source_column, self.target_column), self.config.max_ratio
        rejected = empty_rows(frame, names)
        if ratio is not None:
            sizes = [frame[name].fillna("").astype(str).str.len() for name in names]
            for position, (source, target) in enumerate(zip(*sizes, strict=True)):
                if max(source, target) > ratio * max(1, min(source, target)):
                    reason = f"has {target} characters for {source} of the source, beyond {ratio:g} times"
                    rejected.setdefault(position, RejectedRow(position, self.target_column, reason))
        return [rejected[position] for position in sorted(rejected)]

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return `input_ids` of the sources with their end, `labels` of any targets, and `length` of both.

        A text of more than `max_length` tokens is cut. A source keeps its end of text; a target loses it,
        so that the model does not learn to stop early.
        """
        end = state["end_of_text"]
        sources = [
            _ended(truncated(encoding, max_length), end, max_length)
            for encoding in tokenizer.encode_batch_fast(frame[self.source_column].tolist())
        ]
        columns: dict[str, list[Any]] = {"input_ids": sources, "length": [len(ids) for ids in sources]}
        if self.target_column in frame:
            targets = []
            for encoding in tokenizer.encode_batch_fast(frame[self.target_column].tolist()):
                ids = encoding.ids[next(iter(encoding.special_tokens_mask), 0) :]  # drops a token that begins a text
                targets.append([*ids, *([] if ids[-1:] == [end] else [end])][:max_length])
            columns["labels"] = targets
            columns["length"] = [len(source) + len(target) for source, target in zip(sources, targets, strict=True)]
        return columns

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder-decoder over the vocabulary."""
        network: torch.nn.Module = model.build_encoder_decoder(
            state["vocabulary_size"], state["end_of_text"], pretrained
        )
        return network

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask` (B, S), and with targets `labels` (B, T), -100 at padding."""
        from textmill.models.losses.likelihood import IGNORED
        from textmill.text.batches import pad_tensors, padded_batch

        batch = padded_batch(rows, {})
        if "labels" in rows:
            labels, there = pad_tensors(rows["labels"])
            batch["labels"] = labels.masked_fill(there == 0, IGNORED)
        return batch

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the cross-entropy per target token, smoothed in training; `nll` and `targets` of each row."""
        from textmill.models.losses.likelihood import IGNORED

        model: Any = network
        smoothing = self.config.label_smoothing if network.training else 0.0
        loss, each = model.likelihood(batch["input_ids"], batch["attention_mask"], batch["labels"], smoothing)
        return StepOutput(loss, {"nll": each.sum(dim=1), "targets": (batch["labels"] != IGNORED).sum(dim=1)})

    def target_count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Return the number of target tokens."""
        from textmill.models.losses.likelihood import count_targets

        return count_targets(batch["labels"])

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `loss`, in nats per target token, and `perplexity`."""
        from textmill.metrics.likelihood import validation_metrics

        return validation_metrics(outputs)

    def generate(
        self, network: torch.nn.Module, input_ids: Sequence[Sequence[int]], tokenizer: Any, state: State
    ) -> Outputs:
        """Return `texts`: the text generated for each source, computed in batches of similar length."""
        import numpy as np

        from textmill.text.batches import length_batches, pad_tensors

        model: Any = network
        device = next(network.parameters()).device
        lengths = np.fromiter((len(ids) for ids in input_ids), np.int64, len(input_ids))
        texts = np.empty(len(input_ids), dtype=object)
        for rows in length_batches(lengths, _SOURCE_TOKENS_AT_ONCE):
            sources, mask = pad_tensors([input_ids[row] for row in rows])
            generated = model.generate(sources.to(device), mask.to(device), self.config.generation)
            texts[rows] = [text.strip() for text in tokenizer.decode_batch(generated)]
        return {TEXTS: texts.astype(str)}

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return the generated texts under the name of the target column."""
        return [{self.target_column: text} for text in outputs[TEXTS].tolist()]


def _ended(ids: list[int], end: int, max_length: int) -> list[int]:
    """Return a source with its end of text, within `max_length`."""
    return ids if ids[-1:] == [end] else [*ids[: max_length - 1], end]
