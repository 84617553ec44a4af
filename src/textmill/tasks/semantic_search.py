"""Semantic search: a query finds its document among all others by the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.base import State
from textmill.tasks.sentence_pairs import EMBEDDINGS, FIRST, SECOND, SentencePairs

if TYPE_CHECKING:
    import pandas as pd
    import torch

_TEXT_OF = {"query_id": FIRST, "document_id": SECOND}

_ROWS = 64
"""Rows of validation for one loss; the others are negatives, as in a training batch."""


class SemanticSearchConfig(Options):
    """Options of semantic search.

    Attributes:
        scale: Factor of the cosines before the softmax over a batch.
        symmetric: Whether the loss also ranks the queries of each document.
    """

    scale: Annotated[float, Field(gt=0)] = 20.0
    symmetric: bool = True


class SemanticSearch(SentencePairs):
    """Queries (`text_a`) with their documents (`text_b`); all other documents are negatives.

    A document that stands in many rows is one document: it counts as found in any of them, and is never a
    negative of its own queries.

    State: none.
    """

    Config: ClassVar[type[Options]] = SemanticSearchConfig
    config: SemanticSearchConfig

    name = "semantic_search"
    evaluator = "textmill.evaluation.evaluators.semantic_search.SemanticSearchEvaluator"
    target_columns = ()
    encoded_targets: ClassVar[Mapping[str, str]] = {"query_id": "int64", "document_id": "int64"}
    main_metric = "mean_reciprocal_rank"
    monitor = "validation/mean_reciprocal_rank"

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Check the number of pairs; the state is empty.

        Raises:
            UserError: The training split has fewer than two pairs.
        """
        if sum(len(frame) for frame in frames) < 2:
            fix = "Add rows to the source; a query needs other documents to compare with"
            raise UserError("the training split has fewer than two pairs", where="prepare.read", fix=fix)
        return {}

    def encode_targets(self, frame: pd.DataFrame, state: State) -> dict[str, list[Any]]:
        """Return `query_id` and `document_id`: equal numbers for equal texts."""
        return {name: [_digest(text) for text in frame[column]] for name, column in _TEXT_OF.items()}

    def pair_loss(self, first: torch.Tensor, second: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the contrastive loss with the other rows of the batch as negatives, unless a text is the same."""
        from textmill.models.losses.pairs import in_batch_contrast

        equal = [ids[:, None] == ids for name in _TEXT_OF if (ids := batch.get(name)) is not None]
        same = equal[0] | equal[1] if equal else None
        return in_batch_contrast(first, second, self.config.scale, symmetric=self.config.symmetric, same=same)

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `mean_reciprocal_rank` and `recall_at_1` over the split, and `loss`, the mean over its parts."""
        import numpy as np
        import torch

        from textmill.metrics.retrieval import reciprocal_rank, search_embeddings

        first, second = (outputs[name] for name in EMBEDDINGS)
        ranking = search_embeddings(first, second, rows["document_id"])
        ids = {name: torch.tensor(rows[name]) for name in _TEXT_OF}
        parts = [slice(start, start + _ROWS) for start in range(0, len(first), _ROWS)]
        vectors = torch.from_numpy(first), torch.from_numpy(second)
        losses = [
            self.pair_loss(vectors[0][part], vectors[1][part], {name: of[part] for name, of in ids.items()})
            for part in parts
        ]
        return {
            "loss": float(np.mean([float(loss) for loss in losses])),
            "mean_reciprocal_rank": reciprocal_rank(ranking),
            "recall_at_1": float((ranking.rank <= 1).mean()),
        }

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a query with its document, and with another text."""
        query = "Return the shortest path between two nodes."
        return [
            {FIRST: query, SECOND: "The path is found by breadth-first search from the source until it is reached."},
            {FIRST: query, SECOND: "Missing values are replaced by the mean of their column."},
        ]


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
