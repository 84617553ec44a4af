"""Semantic search: a text finds the one that belongs to it among all others, by the nearness of their vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Metric, Outputs, Section
from textmill.tasks.base import State
from textmill.tasks.sentence_pairs import EMBEDDINGS, FIRST, SECOND, SentencePairs

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from textmill.metrics.retrieval import Found

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

    def pair_loss(self, first: torch.Tensor, second: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:  # noqa: ARG002
        """Contrast with the other rows of the batch."""
        from textmill.models.losses.pairs import in_batch_contrast

        return in_batch_contrast(first, second, self.config.scale, symmetric=self.config.symmetric)

    def validation_figures(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:  # noqa: ARG002
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

    # -- evaluate ---------------------------------------------------------------------------

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """`id`, both texts, `prediction` (the document found first), `rank` of the own one and its `similarity`."""
        from textmill.metrics.retrieval import search_embeddings

        return _predictions(search_embeddings(*(outputs[name] for name in EMBEDDINGS)), frame)

    def metrics(self, state: State) -> list[Metric]:  # noqa: ARG002
        """Mean reciprocal rank, recall at 1 and at 10, among the documents of all rows."""
        from textmill.metrics.retrieval import retrieval_metrics

        return retrieval_metrics()

    def baselines(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame,
        state: State,  # noqa: ARG002
        options: Mapping[str, Any],
        seed: int,  # noqa: ARG002
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """`bm25`, its constants chosen on validation, and `tfidf`."""
        from textmill.metrics import retrieval

        fitted = retrieval.word_search(train, validation, FIRST, SECOND, options)

        def predictor(found_in: Callable[[pd.DataFrame], Found]) -> Callable[[pd.DataFrame], pd.DataFrame]:
            return lambda frame: _predictions(found_in(frame), frame)

        return {name: predictor(found_in) for name, found_in in fitted.items()}

    def report_sections(self, predictions: pd.DataFrame, state: State) -> list[Section]:  # noqa: ARG002
        """Shares of the rows by the rank of their own document."""
        import numpy as np
        import pandas as pd

        edges = [1, 2, 5, 10, 100]
        names = ["first", "second", "third to 5th", "6th to 10th", "11th to 100th", "later"]
        place = np.searchsorted(edges, predictions["rank"].to_numpy(), side="left")
        counts = np.bincount(place, minlength=len(names))
        table = pd.DataFrame({"own document": names, "rows": counts, "share": (counts / len(predictions)).round(4)})
        text = f"Each of {len(predictions)} queries looks for its own document among the documents of all of them."
        return [Section("Where the own document is found", text, table)]

    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """The queries that found another document first; those whose own came last before the others."""
        wrong = predictions[predictions["rank"] > 1]
        return wrong.sort_values(["rank", "id"], ascending=[False, True], kind="stable", ignore_index=True)

    # -- export and serving -----------------------------------------------------------------

    def example_inputs(self) -> list[dict[str, Any]]:
        """A question with an answer, and with another text."""
        query = "Return the shortest path between two nodes."
        return [
            {FIRST: query, SECOND: "The path is found by breadth-first search from the source until it is reached."},
            {FIRST: query, SECOND: "Missing values are replaced by the mean of their column."},
        ]


def _predictions(found: Found, frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    documents = frame[SECOND].to_numpy(dtype=object)
    return pd.DataFrame(
        {
            "id": frame["id"].to_numpy(),
            FIRST: frame[FIRST].to_numpy(),
            SECOND: documents,
            "prediction": documents[found.best],
            "rank": found.rank,
            "similarity": found.score,
        }
    )
