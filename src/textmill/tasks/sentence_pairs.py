"""What tasks over pairs of texts share: each text becomes a vector of its own, apart from its partner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.base import State, Task
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
_FIX = 'Give a text, {"text": "..."}, or {"text_a": "...", "text_b": "..."}'


class SentencePairs(Task):
    """Two texts a row, `text_a` and `text_b`, which the network reads one at a time.

    Whoever asks may also give one text alone, and gets its vector.

    Attributes:
        encoded_targets: Names of the encoded targets, with numpy's names of their types.
    """

    text_columns = (FIRST, SECOND)
    sequence_columns: ClassVar[Mapping[str, str]] = {"_a": "input_ids", "_b": "pair_ids"}
    encoded_targets: ClassVar[Mapping[str, str]] = {}

    # -- prepare ----------------------------------------------------------------------------

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Rows without one of the texts, or with a target that cannot be used; the first reason of each."""
        found: dict[int, RejectedRow] = {}
        for name in self.text_columns:
            empty = frame[name].isna() | (frame[name].astype(str).str.strip() == "")
            for position in empty.to_numpy().nonzero()[0].tolist():
                found.setdefault(position, RejectedRow(position, name, "is empty"))
        for reject in self.check_targets(frame, state):
            found.setdefault(reject.row, reject)
        return [found[position] for position in sorted(found)]

    def check_targets(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:  # noqa: ARG002
        """Rows whose target cannot be used; none by default."""
        return []

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """`input_ids` and `pair_ids` of the two texts, and `length`: the tokens of both together.

        And the encoded target where there is one. A text that is not given has no token.
        """
        input_ids, pair_ids = (_encoded(frame[name].tolist(), tokenizer, max_length) for name in self.text_columns)
        lengths = [len(first) + len(second) for first, second in zip(input_ids, pair_ids, strict=True)]
        return {"input_ids": input_ids, "pair_ids": pair_ids, "length": lengths, **self.encode_targets(frame, state)}

    def encode_targets(self, frame: pd.DataFrame, state: State) -> dict[str, list[Any]]:  # noqa: ARG002
        """Encoded targets by name, where the frame has them; none by default."""
        return {}

    # -- train ------------------------------------------------------------------------------

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:  # noqa: ARG002
        """The model's encoder with a vector for each text."""
        from textmill.models.sentence_encoder import SentenceEncoder

        return SentenceEncoder(model.build_encoder(pretrained))

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (B, T), `pair_ids` and `pair_mask` (B, S), and the targets (B,).

        Padding is id 0 whatever the tokenizer's padding token is: the mask keeps it from being seen.
        """
        import numpy as np
        import torch

        batch: dict[str, torch.Tensor] = {}
        for ids, mask in (("input_ids", "attention_mask"), ("pair_ids", "pair_mask")):
            padded, seen = _padded(rows[ids])
            batch |= {ids: torch.from_numpy(padded), mask: torch.from_numpy(seen)}
        for name, kind in self.encoded_targets.items():
            if name in rows:
                batch[name] = torch.from_numpy(np.asarray(rows[name], kind))
        return batch

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The loss as `loss`, beside `sentence_embedding_a` and `sentence_embedding_b` (B, D)."""
        outputs = self.embed(network, batch)
        first, second = outputs.values()
        return {"loss": self.pair_loss(first, second, batch), **outputs}

    def embed(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`sentence_embedding_a` and `sentence_embedding_b` (B, D) of a batch."""
        first = network(batch["input_ids"], batch["attention_mask"])["sentence_embedding"]
        second = network(batch["pair_ids"], batch["pair_mask"])["sentence_embedding"]
        return dict(zip(EMBEDDINGS, (first, second), strict=True))

    def pair_loss(self, first: torch.Tensor, second: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss of a batch of pairs of vectors, both (B, D); a task with another `loss` needs none."""
        raise NotImplementedError

    # -- export and serving -----------------------------------------------------------------

    def example_inputs(self) -> list[dict[str, Any]]:
        """Two pairs, of which one says the same twice."""
        return [
            {FIRST: "A man is playing a guitar.", SECOND: "Someone plays the guitar."},
            {FIRST: "A man is playing a guitar.", SECOND: "The train was late again."},
        ]

    def parse_inputs(self, values: Sequence[Any]) -> pd.DataFrame:
        """Texts, or records with `text` or with `text_a` and `text_b`, as a frame with both columns.

        A text alone has an empty partner.

        Raises:
            UserError: There is no input, or one is empty or of another kind.
        """
        import pandas as pd

        if len(values) == 0:
            raise UserError("no input", fix=_FIX)
        pairs = [_parse(value, f"input {position}") for position, value in enumerate(values, start=1)]
        return pd.DataFrame(pairs, columns=list(self.text_columns))

    def decode(self, outputs: Outputs, state: State) -> list[dict[str, Any]]:
        """`similarity`, the cosine of the two vectors; for a text alone its vector, `embedding` (D)."""
        alone = missing(outputs[EMBEDDINGS[1]])
        answers: list[dict[str, Any]] = [{"embedding": row} for row in outputs[EMBEDDINGS[0]].tolist()]
        pairs = (~alone).nonzero()[0]
        found = self.decode_pairs({name: values[pairs] for name, values in outputs.items()}, state)
        for row, answer in zip(pairs.tolist(), found, strict=True):
            answers[row] = answer
        return answers

    def decode_pairs(self, outputs: Outputs, state: State) -> list[dict[str, Any]]:  # noqa: ARG002
        """The answers to rows of two texts."""
        return [{"similarity": alike} for alike in cosines(*(outputs[name] for name in EMBEDDINGS)).tolist()]


def cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Cosines, shape (n,), of the rows of two matrices of vectors of length 1, both (n, D)."""
    import numpy as np

    return (np.asarray(first, float) * np.asarray(second, float)).sum(axis=1)  # type: ignore[no-any-return]


def missing(embeddings: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows, shape (n,), have no vector because there was no text; see `Predictor.outputs_of_ids`."""
    import numpy as np

    return np.isnan(embeddings).all(axis=1)  # type: ignore[no-any-return]


def _encoded(texts: list[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    encodings = tokenizer.encode_batch_fast(texts)
    return [truncated(encoding, max_length) if text else [] for text, encoding in zip(texts, encodings, strict=True)]


def _padded(sequences: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids filled up with 0 to the longest, and 1 where there is a token; both (B, T)."""
    import numpy as np

    lengths = np.fromiter((len(ids) for ids in sequences), np.int64, len(sequences))
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    padded = np.zeros(mask.shape, np.int64)
    padded[mask] = np.concatenate([np.asarray(ids, np.int64) for ids in sequences])
    return padded, mask.astype(np.int64)


def _parse(value: Any, where: str) -> tuple[str, str]:
    if isinstance(value, Mapping):
        if FIRST in value and SECOND in value:
            return _text(value[FIRST], where), _text(value[SECOND], where)
        if "text" not in value:
            raise UserError(f"neither a text nor a pair among {sorted(map(str, value))}", where=where, fix=_FIX)
        value = value["text"]
    return _text(value, where), ""


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{value!r} is no text", where=where, fix=_FIX)
    if not value.strip():
        raise UserError("the text is empty", where=where, fix="Give at least one word")
    return value
