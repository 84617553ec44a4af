"""Extractive summarisation: a text shortened to some of its own sentences or lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.metrics.base import Outputs
from textmill.tasks.base import State, StepOutput
from textmill.tasks.summary_texts import SummaryTexts, SummaryTextsConfig
from textmill.text.checks import empty_rows
from textmill.text.rejected_rows import RejectedRow
from textmill.text.sentences import unit_spans, unit_texts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from textmill.models.base import Model

_TEMPERATURE = 5.0
"""Temperature of the target distribution over units, in points of ROUGE."""
_NO_UNIT = -1
_GAIN = ("rouge1", "rouge2")


class ExtractiveSummarisationConfig(SummaryTextsConfig):
    """Options of extractive summarisation.

    Attributes:
        selected: Units of a summary.
    """

    selected: Annotated[int, Field(ge=1)] = 3


class ExtractiveSummarisation(SummaryTexts):
    """Scores every unit of a text and selects the best, in the text's order.

    A pretrained encoder reads the whole text, so that a unit's score depends on its context (Liu & Lapata
    2019, "Text summarization with pretrained encoders"). The score is the mean over the unit's tokens.
    Training minimises the cross-entropy between the softmax of the scores and the softmax of each unit's
    ROUGE with the references (ListNet; Cao et al. 2007).
    """

    Config: ClassVar[type[Options]] = ExtractiveSummarisationConfig
    config: ExtractiveSummarisationConfig

    name = "extractive_summarisation"
    evaluator = "textmill.evaluation.evaluators.extractive_summarisation.ExtractiveSummarisationEvaluator"
    monitor = "validation/gain"

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without a text or a summary, and texts without a unit to select."""
        rejected = empty_rows(frame, ["text", "summary"])
        for position, text in enumerate(frame["text"].tolist()):
            if position not in rejected and not unit_spans(text, self.config.units):
                rejected[position] = RejectedRow(position, "text", f"has no {self.config.units} to select")
        return [rejected[position] for position in sorted(rejected)]

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return `input_ids`, `length`, and `units`: the unit of each token, -1 for none.

        With summaries also `gains`: the mean of ROUGE-1 and -2 of each unit alone, 0 to 100. A text is cut
        after `max_length` tokens; units beyond cannot be selected.
        """
        texts = frame["text"].tolist()
        columns: dict[str, list[Any]] = {"input_ids": [], "units": [], "length": []}
        for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
            ids = encoding.ids[:max_length]
            columns["input_ids"].append(ids)
            columns["length"].append(len(ids))
            columns["units"].append(_units_of_tokens(encoding, unit_spans(text, self.config.units))[:max_length])
        if "summary" in frame:
            columns["gains"] = self._gains(frame)
        return columns

    def _gains(self, frame: pd.DataFrame) -> list[list[float]]:
        from textmill.metrics import rouge

        gains = []
        for text, references in zip(frame["text"].tolist(), rouge.references_of(frame, "summary"), strict=True):
            units = unit_texts(text, self.config.units)
            gains.append(rouge.scores(units, [references] * len(units), _GAIN).mean(axis=1).tolist())
        return gains

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder with a linear score of each token."""
        from textmill.models.token_scorer import TokenScorer

        return TokenScorer(model.build_encoder(pretrained))

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `units` (B, T), and `gains` (B, units), NaN at padding."""
        import numpy as np
        import torch

        from textmill.text.batches import padded_batch

        batch = padded_batch(rows, {})
        if "gains" in rows:
            units = np.full(tuple(batch["input_ids"].shape), _NO_UNIT, np.int64)
            gains = np.full((len(units), max(map(len, rows["gains"]))), np.nan, np.float32)
            for row, (of_tokens, of_units) in enumerate(zip(rows["units"], rows["gains"], strict=True)):
                units[row, : len(of_tokens)] = of_tokens
                gains[row, : len(of_units)] = of_units
            batch |= {"units": torch.from_numpy(units), "gains": torch.from_numpy(gains)}
        return batch

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the cross-entropy between the distributions of scores and gains, and `scores` (B, T, 1)."""
        import torch

        outputs = network(batch["input_ids"], batch["attention_mask"])
        units, gains = batch["units"], batch["gains"]
        places, outside = units.clamp(min=0), units == _NO_UNIT
        of_tokens = outputs["scores"].squeeze(-1).float().masked_fill(outside, 0)
        sums, counts = (
            gains.new_zeros(gains.shape).scatter_add(1, places, values) for values in (of_tokens, (~outside).float())
        )
        absent = (counts == 0) | gains.isnan()
        scores = (sums / counts.clamp(min=1)).masked_fill(absent, -torch.inf)
        target = (gains / _TEMPERATURE).masked_fill(absent, -torch.inf).softmax(dim=1)
        each = -(target * scores.log_softmax(dim=1).masked_fill(absent, 0)).sum(dim=1)
        return StepOutput(each.mean(), {"scores": outputs["scores"]})

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `gain`, the mean of the selected units' gains, and `loss`, its distance from the best selection."""
        import numpy as np

        selected, best = [], []
        for scores, units, gains in zip(outputs["scores"], rows["units"], rows["gains"], strict=True):
            positions = self._select(_unit_scores(scores, units, len(gains)))
            selected.append(np.mean([gains[position] for position in positions]))
            best.append(np.mean(sorted(gains)[-len(positions) :]))
        return {"gain": float(np.mean(selected)), "loss": float(np.mean(best) - np.mean(selected))}

    def selections(
        self, outputs: Outputs, texts: Sequence[str], units: Sequence[Sequence[int]]
    ) -> list[tuple[list[str], list[float]]]:
        """Return the selected units of each text in its order, and their scores."""
        selections = []
        for text, scores, of_tokens in zip(texts, outputs["scores"], units, strict=True):
            all_units = unit_texts(text, self.config.units)
            values = _unit_scores(scores, of_tokens, len(all_units))
            positions = self._select(values)
            selections.append(([all_units[p] for p in positions], [float(values[p]) for p in positions]))
        return selections

    def _select(self, values: NDArray[np.float64]) -> list[int]:
        """Return the best units in the text's order; the first one where no unit has a score."""
        import numpy as np

        best = [int(position) for position in np.argsort(-values, kind="stable")[: self.config.selected]]
        return sorted(position for position in best if np.isfinite(values[position])) or [0]

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return `summary`, its `sentences` and their `scores`, for each row."""
        return [
            {"summary": " ".join(texts), "sentences": texts, "scores": scores}
            for texts, scores in self.selections(outputs, rows["text"], rows["units"])
        ]


def _units_of_tokens(encoding: Any, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return the unit in which each token begins, or `_NO_UNIT`."""
    units, unit = [], 0
    for (start, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        while unit < len(spans) and spans[unit][1] <= start:
            unit += 1
        inside = not special and end > start and unit < len(spans) and spans[unit][0] <= start
        units.append(unit if inside else _NO_UNIT)
    return units


def _unit_scores(scores: NDArray[np.float32], units: Sequence[int], count: int) -> NDArray[np.float64]:
    """Return the mean score over each unit's tokens; NaN for a unit that was cut off."""
    import numpy as np

    of_tokens = np.asarray(units)
    seen = of_tokens != _NO_UNIT
    values = scores[: len(of_tokens), 0].astype(float)[seen]
    sums = np.bincount(of_tokens[seen], values, minlength=count)
    counts = np.bincount(of_tokens[seen], minlength=count)
    return np.where(counts > 0, sums / np.maximum(1, counts), np.nan)
