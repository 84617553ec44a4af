"""Re-ranking: how well a document answers a query, by a network that reads both at once (a cross-encoder)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.base import State, StepOutput, Task
from textmill.tasks.sentence_pairs import FIRST, SECOND
from textmill.text.checks import empty_rows
from textmill.text.label_lists import read_flag
from textmill.text.pair_windows import pair_windows
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

    from textmill.models.base import Model

RELEVANT, FIRST_RANK = "relevant", "first_rank"


class ReRankingConfig(Options):
    """Options of re-ranking.

    Attributes:
        depth: Documents of the first stage that are ranked again; later ones keep their place.
        first_stage: Whether the data has the column `first_rank`, a document's rank in the first stage, from 1.
        max_query: Largest number of tokens of a query; longer ones are cut.
    """

    depth: Annotated[int, Field(ge=2)] = 10
    first_stage: bool = True
    max_query: Annotated[int, Field(ge=4)] = 64


class ReRanking(Task):
    """Pairs of a query (`text_a`) and a document (`text_b`), which the network reads at once (Nogueira & Cho 2019).

    Rows of one query are the documents that a first stage, such as a search by vectors, gave for it. `relevant` is 1
    for those that answer the query. The loss is the binary cross-entropy of each pair.

    State: none.
    """

    Config: ClassVar[type[Options]] = ReRankingConfig
    config: ReRankingConfig

    name = "re_ranking"
    evaluator = "textmill.evaluation.evaluators.re_ranking.ReRankingEvaluator"
    text_columns = (FIRST, SECOND)
    target_columns: tuple[str, ...] = (RELEVANT, FIRST_RANK)
    main_metric = "mean_reciprocal_rank"
    monitor = "validation/mean_reciprocal_rank"

    def __init__(self, config: ReRankingConfig) -> None:
        super().__init__(config)
        if not config.first_stage:
            self.target_columns = (RELEVANT,)

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Check that there are relevant and other documents; the state is empty.

        Raises:
            UserError: All documents of the training split are relevant, or none is.
        """
        if len({read_flag(cell) for frame in frames for cell in frame[RELEVANT].unique()}) < 2:
            where, fix = f"prepare.read.columns.{RELEVANT}", "Map a column of 0 and 1"
            raise UserError("the training split has no relevant or no other documents", where=where, fix=fix)
        return {}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without one of the texts, or with an unusable target."""
        rejected = empty_rows(frame, self.text_columns)
        for row, values in enumerate(frame[list(self.target_columns)].to_dict("records")):
            try:
                read_flag(values[RELEVANT])
            except ValueError as error:
                rejected.setdefault(row, RejectedRow(row, RELEVANT, str(error)))
            rank = str(values.get(FIRST_RANK, "1")).strip()
            if not rank.isdecimal() or int(rank) < 1:
                rejected.setdefault(row, RejectedRow(row, FIRST_RANK, f"is {rank[:40]!r}, not a rank from 1"))
        return [rejected[row] for row in sorted(rejected)]

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return `input_ids` of both texts, the document cut, and `length`, the tokens of both.

        With targets also `target` (0 or 1), `query_key`, equal for rows of one query, and `candidate_rank`.
        """
        pairs = list(zip(frame[FIRST].tolist(), frame[SECOND].tolist(), strict=True))
        windows = pair_windows(tokenizer, pairs, max_length=max_length, most_first=self.config.max_query, overlap=0)
        columns: dict[str, list[Any]] = {
            "input_ids": [row.ids[0] for row in windows],
            "length": [len(row.ids[0]) for row in windows],
        }
        if RELEVANT in frame:
            columns["target"] = [float(read_flag(cell)) for cell in frame[RELEVANT]]
            columns["query_key"] = [_key(query) for query, _ in pairs]
            columns["candidate_rank"] = self.first_ranks(frame)
        return columns

    def first_ranks(self, frame: pd.DataFrame) -> list[int]:
        """Return the rank of each document in the first stage; 1 where there is no such column."""
        there = self.config.first_stage and FIRST_RANK in frame
        return [int(rank) for rank in frame[FIRST_RANK]] if there else [1] * len(frame)

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder with a pooled linear score of the pair."""
        from textmill.models.sequence_classifier import SequenceClassifier

        return SequenceClassifier(model.build_encoder(pretrained), 1)

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` (B, T), and any `target` (B,)."""
        from textmill.text.batches import padded_batch

        return padded_batch(rows, {"target": "float32"})

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the binary cross-entropy, and `logits` (B, 1)."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        outputs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits = outputs["logits"].float().squeeze(-1)
        return StepOutput(binary_cross_entropy_with_logits(logits, batch["target"]), outputs)

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `mean_reciprocal_rank` and `recall_at_1` of the relevant documents, and `loss`."""
        import numpy as np

        from textmill.metrics.label_sets import log_losses
        from textmill.metrics.retrieval import reranked

        relevant, logits = np.asarray(rows["target"]) > 0, outputs["logits"][:, 0].astype(float)
        ranks = reranked(rows["query_key"], logits, relevant, np.asarray(rows["candidate_rank"]), self.config.depth)
        own = ranks[relevant]
        return {
            "mean_reciprocal_rank": float((1 / own).mean()) if len(own) else 0.0,
            "recall_at_1": float((own <= 1).mean()) if len(own) else 0.0,
            "loss": float(log_losses(outputs["logits"], relevant[:, None]).mean()),
        }

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a query with its document, and with another text."""
        query = "Return the shortest path between two nodes."
        return [
            {FIRST: query, SECOND: "The path is found by breadth-first search from the source until it is reached."},
            {FIRST: query, SECOND: "Missing values are replaced by the mean of their column."},
        ]

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return the `score` of each pair, between 0 and 1: documents of one query are sorted by it."""
        from textmill.metrics.label_sets import probabilities

        return [{"score": score} for score in probabilities(outputs["logits"])[:, 0].tolist()]


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
