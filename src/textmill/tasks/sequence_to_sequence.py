"""What the tasks share that write a text about a source: translating it, say, or telling it in short."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.config.sections.generation import GenerationConfig
from textmill.config.types import Fraction
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.abilities import GeneratesText
from textmill.tasks.base import State, StepOutput, Task
from textmill.text.rejected_rows import RejectedRow
from textmill.text.tokens import truncated

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

    from textmill.models.base import Model

TEXTS = "texts"
"""The output that holds what was written."""
_SOURCE_TOKENS_AT_ONCE = 2048


class SequenceToSequenceConfig(Options):
    """Options of a task that writes about a source.

    Attributes:
        end_of_text: The tokenizer's special token that ends a text.
        label_smoothing: Share of each target token spread evenly over the vocabulary (Szegedy et al. 2016).
        max_ratio: A pair in which one text has more than so many times the characters of the other
            is rejected, for then they hardly belong together; None takes all.
        generation: How targets are written.
    """

    end_of_text: str = "<|endoftext|>"
    label_smoothing: Fraction = 0.1
    max_ratio: Annotated[float, Field(gt=1)] | None = None
    generation: GenerationConfig = GenerationConfig(temperature=0.0, beams=5, max_new_tokens=128)


class SequenceToSequence(Task, GeneratesText):
    """Maximum likelihood of a target given its source; the target is written by beam search.

    A subclass names the columns: one of text, the source, and one of targets.

    State: `vocabulary_size`; `end_of_text`, its id.
    """

    Config: ClassVar[type[Options]] = SequenceToSequenceConfig
    config: SequenceToSequenceConfig

    stratify_column = None
    monitor = "validation/loss"
    monitor_mode = "min"

    @property
    def generation(self) -> GenerationConfig:
        """How targets are written, in the evaluation and by the exported model alike."""
        return self.config.generation

    @property
    def source_column(self) -> str:
        """The column of sources."""
        return self.text_columns[0]

    @property
    def target_column(self) -> str:
        """The column of targets, and the name of the answer."""
        return self.target_columns[0]

    # -- prepare ----------------------------------------------------------------------------

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Nothing but that there are pairs.

        Raises:
            UserError: The training split has none.
        """
        if not any(len(frame) for frame in frames):
            raise UserError("the training split has no pair of texts", fix="Give more rows")
        return {}

    def bind_tokenizer(self, state: State, tokenizer: Any, folder: Path) -> State:
        """Return the state with the vocabulary's size and the id that ends a text.

        Raises:
            UserError: The tokenizer has no such token.
        """
        from textmill.text.tokens import special_id

        end = special_id(tokenizer, self.config.end_of_text, "task.end_of_text")
        return {**state, "vocabulary_size": tokenizer.get_vocab_size(), "end_of_text": end}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Pairs with an empty half, or with halves that hardly belong together."""
        rejects: dict[int, RejectedRow] = {}
        for name in (self.source_column, self.target_column):
            empty = frame[name].isna() | (frame[name].astype(str).str.strip() == "")
            for position in empty.to_numpy().nonzero()[0].tolist():
                rejects.setdefault(position, RejectedRow(position, name, "is empty"))
        if self.config.max_ratio is not None:
            sizes = [frame[name].fillna("").astype(str).str.len() for name in (self.source_column, self.target_column)]
            for position, (source, target) in enumerate(zip(*sizes, strict=True)):
                if max(source, target) > self.config.max_ratio * max(1, min(source, target)):
                    reason = (
                        f"has {target} characters for {source} of the source, beyond {self.config.max_ratio:g} times"
                    )
                    rejects.setdefault(position, RejectedRow(position, self.target_column, reason))
        return [rejects[position] for position in sorted(rejects)]

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """`input_ids` of the sources, each with its end; `labels` of the targets, where there are any.

        A text of more than `max_length` tokens is cut: a source keeps its end, a target loses it, lest
        the model learn to break off. `length` is that of both together.
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
                ids = encoding.ids[next(iter(encoding.special_tokens_mask), 0) :]  # without what begins a text
                targets.append([*ids, *([] if ids[-1:] == [end] else [end])][:max_length])
            columns["labels"] = targets
            columns["length"] = [len(source) + len(target) for source, target in zip(sources, targets, strict=True)]
        return columns

    # -- train ------------------------------------------------------------------------------

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """The model's encoder-decoder over the vocabulary."""
        network: torch.nn.Module = model.build_encoder_decoder(
            state["vocabulary_size"], state["end_of_text"], pretrained
        )
        return network

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (B, S), and `labels` (B, T), -100 at padding, where given."""
        from textmill.models.losses.likelihood import IGNORED
        from textmill.text.batches import pad_tensors

        sources, mask = pad_tensors(rows["input_ids"])
        batch = {"input_ids": sources, "attention_mask": mask}
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

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """`loss` in nats per target token, and `perplexity`."""
        loss = float(outputs["nll"].sum(dtype=float)) / float(outputs["targets"].sum(dtype=float))
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}

    # -- serve ------------------------------------------------------------------------------

    def generate(
        self, network: torch.nn.Module, input_ids: Sequence[Sequence[int]], tokenizer: Any, state: State
    ) -> Outputs:
        """Return `texts`: the text generated for each source, computed in batches of like length."""
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
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], given: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return the generated texts under the name of the target column."""
        return [{self.target_column: text} for text in outputs[TEXTS].tolist()]


def _ended(ids: list[int], end: int, max_length: int) -> list[int]:
    """A source with its end, within `max_length`."""
    return ids if ids[-1:] == [end] else [*ids[: max_length - 1], end]
