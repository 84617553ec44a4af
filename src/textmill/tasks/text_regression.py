"""Text regression: a number for a text, or one of several ordered classes, with an interval."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.abilities import CalibratesWeights, DriftFeatures
from textmill.tasks.base import State, StepOutput, Task
from textmill.text.checks import empty_rows
from textmill.text.rejected_rows import RejectedRow
from textmill.text.tokens import encoded_texts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from textmill.models.base import Model

_QUANTILE = "quantile"
_EXCERPT = 40


class TextRegressionConfig(Options):
    """Options of text regression.

    Attributes:
        classes: Names of ordered classes, the lowest first; None for numbers.
        lowest: Smallest possible number; rows below it are rejected, answers are not lower.
        highest: Largest possible number.
        heteroscedastic: Whether the network also predicts how uncertain each answer is (Gaussian likelihood).
        coverage: Share of the true numbers that the intervals contain.
    """

    classes: Annotated[list[str], Field(min_length=2)] | None = None
    lowest: float | None = None
    highest: float | None = None
    heteroscedastic: bool = False
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9

    @model_validator(mode="after")
    def _is_consistent(self) -> TextRegressionConfig:
        if self.lowest is not None and self.highest is not None and self.lowest >= self.highest:
            raise ValueError("lowest must be below highest")
        if self.classes is not None:
            if len(set(self.classes)) < len(self.classes):
                raise ValueError("a class is listed twice")
            if self.heteroscedastic or self.lowest is not None or self.highest is not None:
                raise ValueError("heteroscedastic, lowest and highest are for numbers, not for classes")
        return self


class TextRegression(Task, CalibratesWeights, DriftFeatures):
    """A number for a text, and the interval that contains the true one with probability `coverage`.

    The network minimises the squared error or, if heteroscedastic, the negative log-likelihood of a normal
    distribution. With `classes` the number is the class's rank, learned by its cumulative probabilities. Split
    conformal prediction calibrates the intervals on validation.

    State: `mean` and `spread` (standard deviation) of the training split; `above`, the share of its rows above each
    boundary between classes, for ordered classes.
    """

    Config: ClassVar[type[Options]] = TextRegressionConfig
    config: TextRegressionConfig

    name = "text_regression"
    evaluator = "textmill.evaluation.evaluators.text_regression.TextRegressionEvaluator"
    text_columns = ("text",)
    target_columns = ("value",)
    main_metric = "spearman"
    monitor = "validation/spearman"

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Return the mean and the spread of the numbers, or the cumulative shares of the classes.

        Raises:
            UserError: All numbers of the training split are the same, or only one class occurs.
        """
        counts = Counter(value for frame in frames for value in self.numbers(frame["value"].tolist()).tolist())
        total = sum(counts.values())
        if len(counts) < 2:
            fix = "Map a column of different values"
            raise UserError("all values of the training split are the same", where="prepare.read.columns", fix=fix)
        if (classes := self.config.classes) is not None:
            above = [sum(n for rank, n in counts.items() if rank > edge) / total for edge in range(len(classes) - 1)]
            return {"mean": 0.0, "spread": 1.0, "above": above}
        mean = math.fsum(value * n for value, n in counts.items()) / total
        return {"mean": mean, "spread": math.sqrt(math.fsum(n * (v - mean) ** 2 for v, n in counts.items()) / total)}

    def numbers(self, values: Sequence[Any]) -> NDArray[np.float64]:
        """Return values as numbers, classes as their ranks from 0."""
        import numpy as np

        classes = self.config.classes
        named = classes and {name: float(rank) for rank, name in enumerate(classes)}
        return np.array([named[str(value).strip()] if named else float(value) for value in values])

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without text, or with a value that is missing, not a number or class, or out of range."""
        rejected = empty_rows(frame, self.text_columns)
        for row, value in enumerate(frame["value"].tolist()):
            if reason := self._problem(value):
                rejected.setdefault(row, RejectedRow(row, "value", reason))
        return [rejected[row] for row in sorted(rejected)]

    def _problem(self, value: Any) -> str | None:
        if not isinstance(value, str) or not value.strip():
            return "is missing"
        if (classes := self.config.classes) is not None:
            known = value.strip() in classes
            return None if known else f"{value[:_EXCERPT]!r} is none of the classes {', '.join(classes[:8])}"
        try:
            number = float(value)
        except ValueError:
            return f"is not a number: {value[:_EXCERPT]!r}"
        low, high = self.config.lowest, self.config.highest
        if not math.isfinite(number):
            return f"is {number}, not a finite number"
        if (low is not None and number < low) or (high is not None and number > high):
            return f"is {number:g}, not between {low} and {high}"
        return None

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return `input_ids`, `length` (tokens), and, where the data has values, `target`, standardised or a rank."""
        columns = encoded_texts(frame["text"].tolist(), tokenizer, max_length)
        if "value" in frame:
            numbers = self.numbers(frame["value"].tolist())
            columns["target"] = ((numbers - state["mean"]) / state["spread"]).tolist()
        return columns

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder with a head for a number or a rank."""
        from textmill.models.regressor import OrdinalRegressor, Regressor

        encoder = model.build_encoder(pretrained)
        if self.config.classes is not None:
            return OrdinalRegressor(encoder, state["above"])
        return Regressor(encoder, heteroscedastic=self.config.heteroscedastic)

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` (B, T), and any `target` (B,)."""
        from textmill.text.batches import padded_batch

        return padded_batch(rows, {"target": "float32"})

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute half the squared error, the normal likelihood's, or the cumulative cross-entropy, and the outputs."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        outputs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        target = batch["target"]
        if "logits" in outputs:
            logits = outputs["logits"].float()
            above = target.unsqueeze(-1) > torch.arange(logits.shape[1], device=logits.device)
            return StepOutput(binary_cross_entropy_with_logits(logits, above.float()), outputs)
        scale = outputs["scale"].float()
        errors = (outputs["location"].float() - target) / scale
        return StepOutput((errors.square() / 2 + scale.log()).mean(), outputs)

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `spearman`, `mean_absolute_error`, `loss` (its half square, standardised) and the `quantile`."""
        import numpy as np

        from textmill.metrics.correlations import spearman
        from textmill.metrics.intervals import conformal_quantile

        actual, location = np.asarray(rows["target"], float), outputs["location"].astype(float)
        errors = np.abs(location - actual)
        return {
            "spearman": float(spearman(location, actual, np.arange(len(actual))[None])[0]),
            "mean_absolute_error": float(errors.mean()) * state["spread"],
            "loss": float((errors**2).mean() / 2),
            _QUANTILE: conformal_quantile(errors / outputs["scale"], self.config.coverage),
        }

    def calibrate_weights(
        self, weights: dict[str, torch.Tensor], metrics: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Return the weights with the interval's quantile of the best validation."""
        return weights | {_QUANTILE: weights[_QUANTILE].new_tensor(metrics[_QUANTILE])} if weights else weights

    def estimates(self, outputs: Outputs, state: State) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return centres and halves of the intervals, in the unit of the data or in ranks, both (n,)."""
        import numpy as np

        location = outputs["location"].astype(float) * state["spread"] + state["mean"]
        return np.clip(location, self.config.lowest, self.config.highest), outputs["radius"] * float(state["spread"])

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return two short reviews."""
        return [{"text": "I love this product"}, {"text": "This product is bad"}]

    def drift_features(self, outputs: Outputs) -> Outputs:
        """Return all outputs but `radius`: it is `scale` times a constant, of which only rounding differs."""
        return {name: values for name, values in outputs.items() if name != "radius"}

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return `value` with `low` and `high`; for classes `label`, their `probabilities`, and `low` and `high`."""
        import numpy as np

        centres, radius = self.estimates(outputs, state)
        low, high = centres - radius, centres + radius
        if (classes := self.config.classes) is None:
            bounds = (np.clip(side, self.config.lowest, self.config.highest).tolist() for side in (low, high))
            names = ("value", "low", "high")
            return [dict(zip(names, row, strict=True)) for row in zip(centres.tolist(), *bounds, strict=True)]
        ranks = (outputs["logits"] > 0).sum(axis=1).tolist()
        above = 1 / (1 + np.exp(-outputs["logits"].astype(float)))
        shares = np.clip(-np.diff(above, axis=1, prepend=1.0, append=0.0), 0, 1).tolist()
        ends = (np.ceil(low), np.floor(high))
        first, last = (np.clip(end, 0, len(classes) - 1).astype(int).tolist() for end in ends)
        return [
            {
                "label": classes[rank],
                "low": classes[min(begin, rank)],
                "high": classes[max(end, rank)],
                "probabilities": dict(zip(classes, row, strict=True)),
            }
            for rank, begin, end, row in zip(ranks, first, last, shares, strict=True)
        ]
