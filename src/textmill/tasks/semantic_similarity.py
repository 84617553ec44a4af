"""Semantic textual similarity: how much two texts mean the same, as a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Metric, Outputs, Section
from textmill.tasks.base import State
from textmill.tasks.sentence_pairs import EMBEDDINGS, FIRST, SECOND, SentencePairs, cosines
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

    def check_targets(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:  # noqa: ARG002
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

    def encode_targets(self, frame: pd.DataFrame, state: State) -> dict[str, list[Any]]:  # noqa: ARG002
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

    def validation_figures(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:  # noqa: ARG002
        """`spearman` and `pearson` of cosine and score, and `loss`, the mean over parts of the split."""
        import numpy as np
        import torch

        from textmill.metrics.correlations import pearson, spearman

        found, actual = _similarities(outputs), np.asarray(rows["scaled_score"], float)
        everything = np.arange(len(actual))[None]
        values = torch.from_numpy(found), torch.from_numpy(actual)
        parts = [slice(start, start + _ROWS) for start in range(0, len(actual), _ROWS)]
        return {
            "loss": float(np.mean([float(self._loss(values[0][part], values[1][part])) for part in parts])),
            "spearman": float(spearman(found, actual, everything)[0]),
            "pearson": float(pearson(found, actual, everything)[0]),
        }

    # -- evaluate ---------------------------------------------------------------------------

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """`id`, both texts, `score` and `similarity`, the cosine."""
        return _predictions(_similarities(outputs), frame)

    def metrics(self, state: State) -> list[Metric]:  # noqa: ARG002
        """Spearman's and Pearson's correlation of cosine and score."""
        from textmill.metrics.correlations import correlation_metrics

        return correlation_metrics("similarity", "score")

    def baselines(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame,  # noqa: ARG002
        state: State,  # noqa: ARG002
        options: Mapping[str, Any],  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """`tfidf`: the cosine of the weighted stems; `word_overlap`: the share of stems that both texts have."""
        from textmill.metrics.baselines.word_vectors import TfidfVectors, overlaps

        def predictor(
            alike: Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]],
        ) -> Callable[[pd.DataFrame], pd.DataFrame]:
            return lambda frame: _predictions(alike(frame[FIRST].tolist(), frame[SECOND].tolist()), frame)

        tfidf = TfidfVectors([*train[FIRST], *train[SECOND]])
        return {"tfidf": predictor(tfidf.cosines), "word_overlap": predictor(overlaps)}

    def report_sections(self, predictions: pd.DataFrame, state: State) -> list[Section]:  # noqa: ARG002
        """The cosine by the score, pair by pair."""
        from textmill.metrics.pictures import scatter

        figure = scatter(predictions["score"].to_numpy(), predictions["similarity"].to_numpy(), "score", "cosine")
        text = "Each point is a pair of the test split. What counts is the order: higher scores farther up."
        return [Section("Cosine and score", text, figures={"similarity": figure})]

    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """All pairs; those farthest from their place in the order of the scores first."""
        places = (predictions[name].rank(pct=True) for name in ("similarity", "score"))
        similarity, score = places
        table = predictions.assign(misplaced_by=(similarity - score).round(4))
        order = table["misplaced_by"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[order].reset_index(drop=True)


def _similarities(outputs: Outputs) -> NDArray[np.float64]:
    return cosines(*(outputs[name] for name in EMBEDDINGS))


def _predictions(similarities: NDArray[np.float64], frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    table: dict[str, Any] = {name: frame[name].to_numpy() for name in ("id", FIRST, SECOND) if name in frame}
    if "score" in frame:
        table["score"] = frame["score"].astype(float).to_numpy()
    return pd.DataFrame({**table, "similarity": similarities})
