"""Evaluate language modelling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from numpy.typing import NDArray

from textmill.data.tokenizing import load_tokenizer
from textmill.errors import UserError
from textmill.evaluation.evaluator import Evaluator, ExaminesNetwork, Report
from textmill.metrics import routing, samples
from textmill.metrics.base import Metric, Outputs, Section
from textmill.metrics.likelihood import likelihood_metrics, rate
from textmill.tasks.base import State
from textmill.tasks.language_modelling import LanguageModelling, bytes_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class LanguageModellingEvaluator(Evaluator, ExaminesNetwork):
    """Measures bits per byte, which can be compared across tokenizers."""

    task: LanguageModelling
    baseline_columns = ["input_ids"]

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, `nll` (nats), `targets` and `bytes` of each window."""
        return _table(outputs["nll"], frame, state)

    def metrics(self, state: State) -> list[Metric]:
        """Return bits per byte, loss (nats per token) and perplexity."""
        per_byte = rate("nll", "bytes")
        return [
            Metric("bits_per_byte", lambda c, i: per_byte(c, i) / math.log(2), higher_is_better=False),
            *likelihood_metrics(),
        ]

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit interpolated Kneser-Ney models: `unigram`, and `kneser_ney` of the best order on validation."""
        from textmill.metrics.baselines import ngrams

        size = state["vocabulary_size"]
        fitted = ngrams.fit_baselines(list(train["input_ids"]), list(validation["input_ids"]), size, options)

        def predictor(model: ngrams.KneserNey) -> Callable[[pd.DataFrame], pd.DataFrame]:
            return lambda frame: _table(model.negative_log_likelihoods(list(frame["input_ids"])), frame, state)

        return {name: predictor(model) for name, model in fitted.items()}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return the windows with the most bits per byte; sections come from `examine`."""
        table = pd.DataFrame(
            {
                "id": predictions["id"],
                "bits_per_byte": predictions["nll"] / math.log(2) / predictions["bytes"],
                "loss": predictions["nll"] / predictions["targets"],
            }
        )
        return Report(errors=table.sort_values("bits_per_byte", ascending=False, ignore_index=True))

    def examine(self, network: torch.nn.Module, outputs: Outputs, tokenizer: Path, state: State) -> Report:
        """Return samples for the configured prompts with their repetition, and the load of the experts."""
        sections: list[Section] = []
        metrics: dict[str, float] = {}
        model: Any = network
        config, loaded = self.task.config, load_tokenizer(tokenizer)
        try:
            drawn = samples.draw(model, loaded, config.prompts, state["end_of_text"], config.sample_tokens)
        except UserError as error:  # a router that reads later tokens cannot generate
            sections.append(Section("Samples", f"None: {error}"))
        else:
            sections.append(samples.section(drawn))
            metrics |= samples.sample_metrics(drawn)
        if "expert_load" in outputs:
            sections.append(routing.section(outputs))
            metrics |= routing.routing_metrics(outputs)
        return Report(sections, metrics=metrics)


def _table(nats: NDArray[Any], frame: pd.DataFrame, state: State) -> pd.DataFrame:
    columns = {"id": frame["id"].to_numpy(), "nll": nats.astype(float), "targets": frame["length"].to_numpy()}
    return pd.DataFrame({**columns, "bytes": bytes_of(list(frame["input_ids"]), state)})
