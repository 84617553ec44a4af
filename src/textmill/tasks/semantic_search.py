"""Semantic search: a text finds the one that belongs to it among all others, by the nearness of their vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

_ROWS = 64
"""Of validation for one loss: each has the others for rivals, as in a batch of training."""


class SemanticSearchConfig(Options):
    """Options of semantic search.

    Attributes:
        scale: Cosines are multiplied by this before the softmax over a batch.
        symmetric: Whether documents look for their queries too.
    """

    scale: Annotated[float, Field(gt=0)] = 20.0
    symmetric: bool = True


class SemanticSearch(SentencePairs):
    """Queries (`text_a`) beside the documents that they look for (`text_b`); the other documents are the wrong ones.

    State: none.
    """

    Config: ClassVar[type[Options]] = SemanticSearchConfig
    config: SemanticSearchConfig

    name = "semantic_search"
    evaluator = "textmill.evaluation.evaluators.semantic_search.SemanticSearchEvaluator"
    target_columns = ()
    stratify_column = None
    main_metric = "mean_reciprocal_rank"
    monitor = "validation/mean_reciprocal_rank"

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Nothing but that there are pairs.

        Raises:
            UserError: The training split has fewer than two.
        """
        if sum(len(frame) for frame in frames) < 2:
            raise UserError("the training split has fewer than two pairs", fix="Give more")
        return {}

    # -- train ------------------------------------------------------------------------------

    def pair_loss(self, first: torch.Tensor, second: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Contrast with the other rows of the batch."""
        from textmill.models.losses.pairs import in_batch_contrast

        return in_batch_contrast(first, second, self.config.scale, symmetric=self.config.symmetric)

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """`mean_reciprocal_rank` and `recall_at_1` among the documents of the validation split.

        And `loss`, the mean over parts of the split.
        """
        import numpy as np
        import torch

        from textmill.metrics.retrieval import reciprocal_rank, search_embeddings

        first, second = (outputs[name] for name in EMBEDDINGS)
        found = search_embeddings(first, second)
        vectors = torch.from_numpy(first), torch.from_numpy(second)
        parts = [slice(start, start + _ROWS) for start in range(0, len(first), _ROWS)]
        return {
            "loss": float(np.mean([float(self.pair_loss(vectors[0][part], vectors[1][part], {})) for part in parts])),
            "mean_reciprocal_rank": reciprocal_rank(found),
            "recall_at_1": float((found.rank <= 1).mean()),
        }

    # -- serve ------------------------------------------------------------------------------

    def example_inputs(self) -> list[dict[str, Any]]:
        """A question with an answer, and with another text."""
        query = "Return the shortest path between two nodes."
        return [
            {FIRST: query, SECOND: "The path is found by breadth-first search from the source until it is reached."},
            {FIRST: query, SECOND: "Missing values are replaced by the mean of their column."},
        ]
