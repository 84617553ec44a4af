"""Textual entailment and other relations of two texts: one label for a pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Metric, Outputs, Section
from textmill.tasks.base import State
from textmill.tasks.sentence_pairs import FIRST, SECOND, SentencePairs
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from textmill.models.base import Model
    from textmill.models.sentence_encoder import PairClassifier


class TextualEntailmentConfig(Options):
    """Options of textual entailment.

    Attributes:
        labels: The labels in their order; None learns them from the training split, sorted.
    """

    labels: Annotated[list[str], Field(min_length=2)] | None = None


class TextualEntailment(SentencePairs):
    """One label for a pair of texts, by a softmax over u, v and |u - v| of their vectors.

    The texts are read apart, so that vectors can be kept and compared with many others.

    State: `labels`, the names in the order of the network's outputs.
    """

    Config: ClassVar[type[Options]] = TextualEntailmentConfig
    config: TextualEntailmentConfig

    name = "textual_entailment"
    target_columns = ("label",)
    encoded_targets: ClassVar[Mapping[str, str]] = {"label_id": "int64"}
    stratify_column = "label"
    main_metric = "weighted_f1"
    monitor = "validation/weighted_f1"

    # -- prepare ----------------------------------------------------------------------------

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """The labels: as configured, or those of the training split, sorted.

        Raises:
            UserError: The training split has fewer than two labels.
        """
        found = {label.strip() for frame in frames for label in frame["label"].dropna().unique()}
        if len(found) < 2:
            raise UserError(f"the training split has {len(found)} label(s)", fix="Give pairs of at least two labels")
        return {"labels": self.config.labels or sorted(found)}

    def check_targets(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Rows whose label is missing or none of the known ones."""
        known = state["labels"] if state else self.config.labels
        rejects = []
        for position, value in enumerate(frame["label"].tolist()):
            if not isinstance(value, str) or not value.strip():
                rejects.append(RejectedRow(position, "label", "is missing"))
            elif known and value.strip() not in known:
                reason = f"{value[:60]!r} is none of the labels {', '.join(known[:8])}"
                rejects.append(RejectedRow(position, "label", reason))
        return rejects

    def encode_targets(self, frame: pd.DataFrame, state: State) -> dict[str, list[Any]]:
        """`label_id`, the label's position."""
        if "label" not in frame:
            return {}
        return {"label_id": [state["labels"].index(label.strip()) for label in frame["label"]]}

    # -- train ------------------------------------------------------------------------------

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """The model's encoder with a head over two vectors."""
        from textmill.models.sentence_encoder import PairClassifier

        return PairClassifier(model.build_encoder(pretrained), len(state["labels"]))

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Cross-entropy as `loss`, beside the vectors (B, D) and `logits` (B, labels)."""
        from torch.nn.functional import cross_entropy

        outputs = self.embed(network, batch)
        classifier: PairClassifier = network  # type: ignore[assignment]
        logits = classifier.pair_head(*outputs.values())
        return {"loss": cross_entropy(logits, batch["label_id"]), **outputs, "logits": logits}

    def validation_figures(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """`weighted_f1`, `macro_f1`, `accuracy` and `loss` (cross-entropy)."""
        import numpy as np
        from scipy.special import log_softmax

        from textmill.metrics import categories

        actual = np.asarray(rows["label_id"], np.intp)
        predicted = outputs["logits"].argmax(axis=1)
        counts = categories.count(actual, predicted, np.arange(len(actual))[None], len(state["labels"]))
        return {
            "weighted_f1": float(categories.weighted_f1(counts)[0]),
            "macro_f1": float(categories.macro_f1(counts)[0]),
            "accuracy": float(categories.accuracy(counts)[0]),
            "loss": -float(log_softmax(outputs["logits"].astype(float), axis=1)[np.arange(len(actual)), actual].mean()),
        }

    # -- evaluate ---------------------------------------------------------------------------

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """`id`, both texts, `label`, `prediction`, `confidence` and `probability_LABEL` of each row."""
        return _predictions(_softmax(outputs["logits"]), frame, state["labels"])

    def metrics(self, state: State) -> list[Metric]:
        """Weighted F1, macro F1, accuracy, Matthews correlation, calibration, log loss and those of each label."""
        from textmill.metrics.categories import category_metrics

        return category_metrics(state["labels"])

    @property
    def baseline_columns(self) -> list[str]:
        """The pair as one text is what the word baselines look at."""
        return ["id", "label", "words"]

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """`majority`, and `tfidf_logistic_regression` over the words of both texts together."""
        from textmill.metrics.baselines import word_baselines

        def predictor(
            probabilities: Callable[[pd.DataFrame], NDArray[np.float64]],
        ) -> Callable[[pd.DataFrame], pd.DataFrame]:
            return lambda frame: _predictions(probabilities(frame), frame, state["labels"])

        fitted = word_baselines.fit(train, validation, state["labels"], options, seed)
        return {name: predictor(probabilities) for name, probabilities in fitted.items()}

    def report_sections(self, predictions: pd.DataFrame, state: State) -> list[Section]:
        """Confusion matrix, figures of each label, calibration."""
        from textmill.metrics.category_sections import category_sections

        return category_sections(predictions, state["labels"])

    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """The wrong predictions, the most confident first."""
        wrong = predictions[predictions["label"] != predictions["prediction"]]
        table = wrong[["id", FIRST, SECOND, "label", "prediction", "confidence"]]
        return table.sort_values(["confidence", "id"], ascending=[False, True], kind="stable", ignore_index=True)

    # -- export and serving -----------------------------------------------------------------

    def decode_pairs(self, outputs: Outputs, state: State) -> list[dict[str, Any]]:
        """`label`, its `probability`, and the `probabilities` of all labels, for each pair."""
        labels = state["labels"]
        return [
            {"label": labels[best], "probability": row[best], "probabilities": dict(zip(labels, row, strict=True))}
            for row in _softmax(outputs["logits"]).tolist()
            for best in [max(range(len(labels)), key=row.__getitem__)]
        ]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities over the labels, in double precision."""
    from scipy.special import softmax

    found: NDArray[np.float64] = softmax(logits.astype(float), axis=1)
    return found


def _predictions(probabilities: NDArray[np.float64], frame: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Rows of `frame` beside their most probable label; shape of `probabilities` (rows, labels)."""
    import numpy as np
    import pandas as pd

    table: dict[str, Any] = {name: frame[name].to_numpy() for name in ("id", FIRST, SECOND) if name in frame}
    if "label" in frame:
        table["label"] = frame["label"].str.strip().to_numpy()
    table["prediction"] = np.asarray(labels, dtype=object)[probabilities.argmax(axis=1)]
    table["confidence"] = probabilities.max(axis=1)
    return pd.DataFrame(table | {f"probability_{label}": probabilities[:, i] for i, label in enumerate(labels)})
