"""The shared part of tasks over pairs of texts: each text becomes a vector, independent of its partner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from textmill.metrics.base import Outputs
from textmill.tasks.abilities import ComparesRows
from textmill.tasks.base import State, StepOutput, Task
from textmill.text.checks import empty_rows
from textmill.text.inputs import Input, Text
from textmill.text.rejected_rows import RejectedRow
from textmill.text.tokens import truncated

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from textmill.models.base import Model

FIRST, SECOND = "text_a", "text_b"
EMBEDDINGS = ("sentence_embedding_a", "sentence_embedding_b")


class TextPair(Input):
    """`text_a` and `text_b`; a text alone (a string, or a record with `text`) has an empty partner."""

    text_a: Text
    text_b: Text = ""

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and FIRST not in value and "text" in value:
            value = value["text"]
        elif isinstance(value, Mapping) and SECOND not in value:
            raise ValueError(f"neither a text nor a pair among {sorted(map(str, value))}")
        return {FIRST: value} if isinstance(value, str) else value

    @classmethod
    def form(cls) -> str:
        """Return the expected form, for an error message."""
        return 'Give a text, {"text": "..."}, or {"text_a": "...", "text_b": "..."}'


class SentencePairs(Task, ComparesRows):
    """Two texts a row, `text_a` and `text_b`, which the network reads one at a time.

    An input may also be one text alone; the answer is then its vector.

    Attributes:
        encoded_targets: NumPy's type names of the encoded targets, by column.
    """

    text_columns = (FIRST, SECOND)
    input_model = TextPair
    sequence_columns: ClassVar[Mapping[str, str]] = {"_a": "input_ids", "_b": "pair_ids"}
    encoded_targets: ClassVar[Mapping[str, str]] = {}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without one of the texts, or with an unusable target; the first reason of each."""
        rejected = empty_rows(frame, self.text_columns)
        for row in self.check_targets(frame, state):
            rejected.setdefault(row.row, row)
        return [rejected[position] for position in sorted(rejected)]

    def check_targets(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows with an unusable target; none by default."""
        return []

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return `input_ids` and `pair_ids` of the two texts, `length`, the tokens of both, and the encoded target.

        An absent text has no tokens.
        """
        input_ids, pair_ids = (_encoded(frame[name].tolist(), tokenizer, max_length) for name in self.text_columns)
        lengths = [len(first) + len(second) for first, second in zip(input_ids, pair_ids, strict=True)]
        return {"input_ids": input_ids, "pair_ids": pair_ids, "length": lengths, **self.encode_targets(frame, state)}

    def encode_targets(self, frame: pd.DataFrame, state: State) -> dict[str, list[Any]]:
        """Return encoded targets by name, where the frame has them; none by default."""
        return {}

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder with a vector for each text."""
        from textmill.models.sentence_encoder import SentenceEncoder

        return SentenceEncoder(model.build_encoder(pretrained))

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask` (B, T), `pair_ids` and `pair_mask` (B, S), and targets (B,)."""
        from textmill.text.batches import pad_tensors, padded_batch

        batch = padded_batch(rows, self.encoded_targets)
        batch["pair_ids"], batch["pair_mask"] = pad_tensors(rows["pair_ids"])
        return batch

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the loss, and `sentence_embedding_a` and `sentence_embedding_b` (B, D)."""
        outputs = self.embed(network, batch)
        first, second = outputs.values()
        return StepOutput(self.pair_loss(first, second, batch), outputs)

    @property
    def compares_rows(self) -> bool:
        """Whether the loss is `pair_loss`; a subclass with its own `loss` averages over rows."""
        return type(self).loss is SentencePairs.loss

    def embed(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute `sentence_embedding_a` and `sentence_embedding_b` (B, D) of a batch."""
        first = network(batch["input_ids"], batch["attention_mask"])["sentence_embedding"]
        second = network(batch["pair_ids"], batch["pair_mask"])["sentence_embedding"]
        return dict(zip(EMBEDDINGS, (first, second), strict=True))

    def compared_targets(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the encoded targets."""
        return {name: batch[name] for name in self.encoded_targets}

    def compare(self, vectors: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute `pair_loss`."""
        first, second = vectors.values()
        return self.pair_loss(first, second, targets)

    def pair_loss(self, first: torch.Tensor, second: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss of a batch of pairs of vectors, both (B, D). A subclass overrides this or `loss`."""
        raise NotImplementedError

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a pair with the same meaning, and one with different meanings."""
        return [
            {FIRST: "A man is playing a guitar.", SECOND: "Someone plays the guitar."},
            {FIRST: "A man is playing a guitar.", SECOND: "The train was late again."},
        ]

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return `similarity`, the cosine of the two vectors; for a text alone its vector, `embedding` (D)."""
        alone = missing(outputs[EMBEDDINGS[1]])
        answers: list[dict[str, Any]] = [{"embedding": row} for row in outputs[EMBEDDINGS[0]].tolist()]
        pairs = (~alone).nonzero()[0]
        of_pairs = self.pair_answers({name: values[pairs] for name, values in outputs.items()}, state)
        for row, answer in zip(pairs.tolist(), of_pairs, strict=True):
            answers[row] = answer
        return answers

    def pair_answers(self, outputs: Outputs, state: State) -> list[dict[str, Any]]:
        """Return the answers to rows of two texts."""
        return [{"similarity": cosine} for cosine in similarities(outputs).tolist()]


def similarities(outputs: Outputs) -> NDArray[np.float64]:
    """Return the cosine of each pair's two vectors of length 1, shape (n,)."""
    import numpy as np

    first, second = (np.asarray(outputs[name], float) for name in EMBEDDINGS)
    return (first * second).sum(axis=1)  # type: ignore[no-any-return]


def missing(embeddings: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows, shape (n,), have no vector for want of a text; see `Predictor.outputs_of_ids`."""
    import numpy as np

    return np.isnan(embeddings).all(axis=1)  # type: ignore[no-any-return]


def _encoded(texts: list[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    encodings = tokenizer.encode_batch_fast(texts)
    return [truncated(encoding, max_length) if text else [] for text, encoding in zip(texts, encodings, strict=True)]
