"""Semantic textual similarity: how similar two texts are in meaning, as a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.base import State
from textmill.tasks.sentence_pairs import SentencePairs, similarities
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    import pandas as pd
    import torch

_ROWS = 1024
"""Rows of validation for one loss; CoSENT compares all pairs of them."""


class SemanticSimilarityConfig(Options):
    """Options of semantic similarity.

    Attributes:
        lowest: The score of two texts that have nothing in common.
        highest: The score of two texts that mean the same.
        objective: `cosent` ranks the pairs (Su 2022); `regression` fits the cosine to the score, scaled
            to 0 to 1 (Reimers & Gurevych 2019).
        scale: Factor of the cosines in CoSENT.
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
    """Pairs of texts with a score of their similarity, which the cosine of their vectors predicts.

    State: none.
    """

    Config: ClassVar[type[Options]] = SemanticSimilarityConfig
    config: SemanticSimilarityConfig

    name = "semantic_similarity"
    evaluator = "textmill.evaluation.evaluators.semantic_similarity.SemanticSimilarityEvaluator"
    target_columns = ("score",)
    needs_different_targets = True
    encoded_targets: ClassVar[Mapping[str, str]] = {"scaled_score": "float32"}
    main_metric = "spearman"
    monitor = "validation/spearman"

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Check that the scores differ; the state is empty.

        Raises:
            UserError: All scores of the training split are the same.
        """
        if len({score for frame in frames for score in frame["score"].unique()}) < 2:
            fix = "Map a column of different scores"
            raise UserError("all scores of the training split are the same", where="prepare.read.columns", fix=fix)
        return {}

    def check_targets(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows with a score that is missing, not a number, or out of range."""
        reasons = enumerate(map(self._problem, frame["score"].tolist()))
        return [RejectedRow(position, "score", reason) for position, reason in reasons if reason]

    def _problem(self, value: Any) -> str | None:
        if not isinstance(value, str) or not value.strip():
            return "is missing"
        try:
            number = float(value)
        except ValueError:
            return f"is not a number: {value[:40]!r}"
        low, high = self.config.lowest, self.config.highest
        return None if low <= number <= high else f"is {number:g}, not between {low:g} and {high:g}"

    def encode_targets(self, frame: pd.DataFrame, state: State) -> dict[str, list[Any]]:
        """Return `scaled_score`, between 0 and 1."""
        if "score" not in frame:
            return {}
        low, high = self.config.lowest, self.config.highest
        return {"scaled_score": [(float(score) - low) / (high - low) for score in frame["score"]]}

    @property
    def compares_rows(self) -> bool:
        """Whether the objective compares pairs with each other."""
        return self.config.objective == "cosent" and super().compares_rows

    def pair_loss(self, first: torch.Tensor, second: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute CoSENT, or the squared difference of cosine and score."""
        return self._loss((first.float() * second.float()).sum(dim=-1), batch["scaled_score"])

    def _loss(self, cosines: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        from textmill.models.losses.pairs import cosent, cosine_regression

        if self.config.objective == "cosent":
            return cosent(cosines, scores, self.config.scale)
        return cosine_regression(cosines, scores)

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `spearman` and `pearson` of cosine and score, and `loss`, the mean over parts of the split."""
        import numpy as np
        import torch

        from textmill.metrics.correlations import pearson, spearman

        predicted, actual = similarities(outputs), np.asarray(rows["scaled_score"], float)
        all_rows = np.arange(len(actual))[None]
        parts = zip(*(torch.split(torch.from_numpy(values), _ROWS) for values in (predicted, actual)), strict=True)
        return {
            "loss": float(np.mean([float(self._loss(*part)) for part in parts])),
            "spearman": float(spearman(predicted, actual, all_rows)[0]),
            "pearson": float(pearson(predicted, actual, all_rows)[0]),
        }
