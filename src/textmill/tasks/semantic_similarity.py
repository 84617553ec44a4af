"""Semantic textual similarity: how much two texts mean the same, as a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.base import State
from textmill.tasks.sentence_pairs import EMBEDDINGS, SentencePairs, cosines
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

_ROWS = 1024
"""Of validation for one loss: CoSENT compares all pairs of them."""


class SemanticSimilarityConfig(Options):
    """Options of semantic similarity.

    Attributes:
        lowest: The score of two texts that have nothing in common.
        highest: The score of two texts that mean the same.
        objective: `cosent` ranks the pairs (Su 2022); `regression` makes the cosine the score, on a
            scale from 0 to 1 (Reimers & Gurevych 2019).
        scale: Of CoSENT: cosines are multiplied by this.
    """

    lowest: float = 0.0
    highest: float = 5.0
    objective: Literal["cosent", "regression"] = "cosent"
    scale: Annotated[float, Field(gt=0)] = 20.0

    @model_validator(mode="after")
    def _is_a_range(self) -> SemanticSimilarityConfig:
        if self.lowest >= self.highest:
            raise ValueError("lowest must be below highest")
        return self


class SemanticSimilarity(SentencePairs):
    """Pairs of texts with a score of how alike they are; the cosine of their vectors tells it.

    State: none.
    """

    Config: ClassVar[type[Options]] = SemanticSimilarityConfig
    config: SemanticSimilarityConfig

    name = "semantic_similarity"
    evaluator = "textmill.evaluation.evaluators.semantic_similarity.SemanticSimilarityEvaluator"
    target_columns = ("score",)
    encoded_targets: ClassVar[Mapping[str, str]] = {"scaled_score": "float32"}
    stratify_column = None
    main_metric = "spearman"
    monitor = "validation/spearman"

    # -- prepare ----------------------------------------------------------------------------

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Nothing but that there are scores to be ranked.

        Raises:
            UserError: The training split has one score only.
        """
        if len({score for frame in frames for score in frame["score"].unique()}) < 2:
            raise UserError("all scores of the training split are the same", fix="Give pairs of different scores")
        return {}

    def check_targets(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Rows whose score is missing, no number, or out of range."""
        rejects = []
        for position, value in enumerate(frame["score"].tolist()):
            if (reason := self._problem(value)) is not None:
                rejects.append(RejectedRow(position, "score", reason))
        return rejects

    def _problem(self, value: Any) -> str | None:
        if not isinstance(value, str) or not value.strip():
            return "is missing"
        try:
            number = float(value)
        except ValueError:
            return f"is no number: {value[:40]!r}"
        low, high = self.config.lowest, self.config.highest
        return None if low <= number <= high else f"is {number:g}, not between {low:g} and {high:g}"

    def encode_targets(self, frame: pd.DataFrame, state: State) -> dict[str, list[Any]]:
        """`scaled_score`, between 0 and 1."""
        if "score" not in frame:
            return {}
        low, high = self.config.lowest, self.config.highest
        return {"scaled_score": [(float(score) - low) / (high - low) for score in frame["score"]]}

    # -- train ------------------------------------------------------------------------------

    def pair_loss(self, first: torch.Tensor, second: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """CoSENT or the squared difference of cosine and score."""
        return self._loss((first.float() * second.float()).sum(dim=-1), batch["scaled_score"])

    def _loss(self, alike: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        from textmill.models.losses.pairs import cosent, cosine_regression

        if self.config.objective == "cosent":
            return cosent(alike, scores, self.config.scale)
        return cosine_regression(alike, scores)

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """`spearman` and `pearson` of cosine and score, and `loss`, the mean over parts of the split."""
        import numpy as np
        import torch

        from textmill.metrics.correlations import pearson, spearman

        found, actual = similarities(outputs), np.asarray(rows["scaled_score"], float)
        everything = np.arange(len(actual))[None]
        values = torch.from_numpy(found), torch.from_numpy(actual)
        parts = [slice(start, start + _ROWS) for start in range(0, len(actual), _ROWS)]
        return {
            "loss": float(np.mean([float(self._loss(values[0][part], values[1][part])) for part in parts])),
            "spearman": float(spearman(found, actual, everything)[0]),
            "pearson": float(pearson(found, actual, everything)[0]),
        }


def similarities(outputs: Outputs) -> NDArray[np.float64]:
    """Return the cosine of each pair, shape (n,)."""
    return cosines(*(outputs[name] for name in EMBEDDINGS))
