"""Token classification: the entities of a text, such as names, with their positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.abilities import CutsExamples, RealignsTargets
from textmill.tasks.base import State, StepOutput, Task
from textmill.text.alignment import Alignment
from textmill.text.checks import empty_rows
from textmill.text.entities import Entity, Units, read_entities, realigned, tags_of, unit_spans, write_entities
from textmill.text.rejected_rows import RejectedRow
from textmill.text.token_windows import NO_UNIT, token_windows

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from textmill.models.base import Model
    from textmill.tasks.examples.rows import Examples

_IGNORED = -100
"""PyTorch's target without a loss: special tokens, later tokens of a unit, padding."""
_OF_TOKEN = ("tag_ids",)


class TokenClassificationConfig(Options):
    """Options of token classification.

    Attributes:
        labels: Labels of entities in their order; None learns them from the training split, sorted.
        units: Parts of a text that have one tag: `words` and single signs, or what stands between spaces.
        overlap: Tokens that a window of a long text shares with the previous window.
    """

    labels: Annotated[list[str], Field(min_length=1)] | None = None
    units: Units = "words"
    overlap: Annotated[int, Field(ge=0)] = 64


class TokenClassification(Task, RealignsTargets, CutsExamples):
    """The entities of a text, by a tag for each of its units (IOB2; Tjong Kim Sang & Veenstra 1999).

    The first token of a unit scores its tags; the most probable valid sequence of tags gives the entities. A text
    longer than the model is cut into overlapping windows.

    State: `labels` of entities and `tags`, in the order of the network's outputs.
    """

    Config: ClassVar[type[Options]] = TokenClassificationConfig
    config: TokenClassificationConfig

    name = "token_classification"
    evaluator = "textmill.evaluation.evaluators.token_classification.TokenClassificationEvaluator"
    text_columns = ("text",)
    target_columns = ("entities",)
    main_metric = "f1"
    monitor = "validation/f1"

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Return the labels: as configured, or those of the training split, sorted; and the tags.

        Raises:
            UserError: The training split has no entity.
        """
        from textmill.metrics.entities import tag_names

        rows = (row for frame in frames for row in zip(frame["text"], frame["entities"], strict=True))
        learned = sorted({entity.label for text, cell in rows for entity in read_entities(cell, text)})
        if not learned:
            where, fix = "prepare.read.columns.entities", "Map a column with entities"
            raise UserError("no text of the training split has an entity", where=where, fix=fix)
        labels = self.config.labels or learned
        return {"labels": labels, "tags": tag_names(labels)}

    def realign_targets(
        self, raw: Mapping[str, Sequence[str | None]], columns: dict[str, list[str | None]]
    ) -> dict[int, tuple[str, str]]:
        """Rewrite the entities as they stand in the cleaned text, all in one form."""
        problems: dict[int, tuple[str, str]] = {}
        for position, (before, clean) in enumerate(zip(raw["text"], columns["text"], strict=True)):
            if before is None or clean is None:
                continue
            try:
                moved = realigned(read_entities(columns["entities"][position], before), before, clean)
                columns["entities"][position] = write_entities(moved)
            except ValueError as error:
                problems[position] = "entities", str(error)
        return problems

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without text, or with an entity that is not in the text or has an unknown label."""
        rejected = empty_rows(frame, self.text_columns)
        known = state["labels"] if state else self.config.labels
        for row, (text, cell) in enumerate(zip(frame["text"].tolist(), frame["entities"].tolist(), strict=True)):
            if row in rejected:
                continue
            try:
                labels = {entity.label for entity in read_entities(cell, text)}
            except ValueError as error:
                rejected[row] = RejectedRow(row, "entities", str(error))
                continue
            if known and (unknown := sorted(labels - set(known))):
                reason = f"has {unknown[0]!r}, which is none of the labels {', '.join(known[:8])}"
                rejected[row] = RejectedRow(row, "entities", reason)
        return [rejected[row] for row in sorted(rejected)]

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return the joined windows of each row: `input_ids`, and `units`, the unit that begins with each token or -1.

        Also `window_lengths`, `length` (tokens of the text), and, where there are entities, `tag_ids` of the tokens.
        """
        texts = frame["text"].tolist()
        spans = [unit_spans(text, self.config.units) for text in texts]
        windows = token_windows(tokenizer, texts, spans, max_length=max_length, overlap=self.config.overlap)
        columns: dict[str, list[Any]] = {
            "input_ids": [list(chain.from_iterable(row.ids)) for row in windows],
            "length": [row.tokens for row in windows],
            "window_lengths": [[len(window) for window in row.ids] for row in windows],
            "units": [list(chain.from_iterable(row.units)) for row in windows],
        }
        if "entities" in frame:
            place = {tag: position for position, tag in enumerate(state["tags"])}
            cells = zip(texts, frame["entities"].tolist(), spans, strict=True)
            tags = [[place[tag] for tag in tags_of(read_entities(cell, text), row)] for text, cell, row in cells]
            columns["tag_ids"] = [
                [_IGNORED if unit == NO_UNIT else of_row[unit] for unit in units]
                for of_row, units in zip(tags, columns["units"], strict=True)
            ]
        return columns

    def examples(self, table: pa.Table) -> Examples:
        """Return every window of every row."""
        from textmill.tasks.examples.windows import SlidingWindows

        return SlidingWindows(table, of_token=_OF_TOKEN)

    def sequences(self, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Return the windows' token ids."""
        from textmill.tasks.examples.windows import cut

        rows = zip(columns["input_ids"], columns["window_lengths"], strict=True)
        return {"input_ids": [window for ids, lengths in rows for window in cut(ids, lengths)]}

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder with a linear head over the tags of each token."""
        from textmill.models.token_classifier import TokenClassifier

        return TokenClassifier(model.build_encoder(pretrained), len(state["tags"]))

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and any `tag_ids`, all (B, T)."""
        import torch

        from textmill.text.batches import pad, padded_batch

        batch = padded_batch(rows, {})
        if "tag_ids" in rows:
            tags, mask = pad(rows["tag_ids"])
            tags[mask == 0] = _IGNORED
            batch["tag_ids"] = torch.from_numpy(tags)
        return batch

    def target_count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Return the number of tokens with a tag."""
        return int((batch["tag_ids"] != _IGNORED).sum())

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the cross-entropy, the mean over the tokens with a tag, and `logits` (B, T, tags)."""
        from torch.nn.functional import cross_entropy

        outputs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        tags = batch["tag_ids"]
        there = tags != _IGNORED
        total = cross_entropy(outputs["logits"][there].float(), tags[there], reduction="sum")
        return StepOutput(total / there.sum().clamp(min=1), outputs)

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `f1`, `precision` and `recall` of entities, and `loss`."""
        import numpy as np

        from textmill.metrics.categories import softmax
        from textmill.metrics.entities import entity_scores

        true = [read_entities(cell, text) for cell, text in zip(rows["entities"], rows["text"], strict=True)]
        found = [list(row) for row in self.entities(outputs, rows, state)]
        losses = []
        for logits, tags in zip(outputs["logits"], rows["tag_ids"], strict=True):
            there = np.flatnonzero(np.asarray(tags) != _IGNORED)
            shares = softmax(logits[there])[np.arange(len(there)), np.asarray(tags)[there]]
            losses.append(-np.log(np.clip(shares, np.finfo(float).tiny, 1)))
        return entity_scores(found, true) | {"loss": float(np.concatenate(losses).mean())}

    def entities(self, outputs: Outputs, rows: Any, state: State) -> list[dict[Entity, float]]:
        """Return the entities of each cleaned text with their scores."""
        from textmill.metrics.entities import found_entities, unit_logits
        from textmill.tasks.examples.windows import cut

        found, first = [], 0
        logits: NDArray[np.float32] = outputs["logits"]
        for text, lengths, units in zip(rows["text"], rows["window_lengths"], rows["units"], strict=True):
            windows = [logits[first + number] for number in range(len(lengths))]
            first += len(lengths)
            count = len(unit_spans(text, self.config.units))
            values = unit_logits(windows, list(cut(list(units), list(lengths))), count)
            found.append(found_entities(text, self.config.units, values, state["tags"]))
        return found

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return two short texts."""
        return [
            {"text": "The Empire State Building in New York was opened in 1931."},
            {"text": "Returns a Session object, or raises TimeoutError."},
        ]

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return `entities` with `text`, `label`, `start`, `end` and `score`, and `labels`, a text of those that occur.

        Positions count characters of the text before cleaning: `text[start:end]` is always the entity's text.
        """
        records = []
        for found, clean, text in zip(self.entities(outputs, rows, state), rows["text"], raw["text"], strict=True):
            alignment = Alignment(text, clean) if found and text != clean else None
            entities = []
            for one, score in found.items():
                start, end = alignment.given_span(one.start, one.end) if alignment else (one.start, one.end)
                entities.append(
                    {"text": text[start:end], "label": one.label, "start": start, "end": end, "score": score}
                )
            records.append({"labels": ", ".join(sorted({one.label for one in found})), "entities": entities})
        return records
