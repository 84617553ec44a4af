"""Evaluate instruction tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from textmill.data.tokenizing import load_tokenizer
from textmill.evaluation.evaluator import Evaluator, ExaminesNetwork, Report
from textmill.metrics import samples
from textmill.metrics.base import Metric, Outputs
from textmill.metrics.likelihood import likelihood_metrics
from textmill.tasks.base import State
from textmill.tasks.instruction_tuning import InstructionTuning

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class InstructionTuningEvaluator(Evaluator, ExaminesNetwork):
    """Measures the likelihood of the assistant's answers."""

    task: InstructionTuning
    baseline_columns = ["answer_ids"]

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return `id`, `messages`, `nll` (nats) and `targets` of each conversation."""
        return _table(outputs["nll"], outputs["targets"], frame)

    def metrics(self, state: State) -> list[Metric]:
        """Return loss in nats per token of the answers, and perplexity."""
        return likelihood_metrics()

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Fit `unigram`: each token has its frequency in the training answers as its probability, add-one smoothed."""
        counts = np.bincount(np.concatenate(list(train["answer_ids"])), minlength=state["vocabulary_size"]) + 1.0
        nats_of_token = -np.log(counts / counts.sum())

        def predict(frame: pd.DataFrame) -> pd.DataFrame:
            answers = [np.asarray(tokens, np.int64) for tokens in frame["answer_ids"]]
            nats = np.array([nats_of_token[tokens].sum() for tokens in answers])
            return _table(nats, np.array([len(tokens) for tokens in answers]), frame)

        return {"unigram": predict}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return the conversations whose answers have the highest loss; sections come from `examine`."""
        table = predictions[predictions["targets"] > 0]
        table = table.assign(loss=table["nll"] / table["targets"])[["id", "messages", "loss"]]
        return Report(errors=table.sort_values("loss", ascending=False, ignore_index=True))

    def examine(self, network: torch.nn.Module, outputs: Outputs, tokenizer: Path, state: State) -> Report:
        """Return answers to the configured prompts."""
        model: Any = network
        config, loaded = self.task.config, load_tokenizer(tokenizer)
        prompts = self.task.prompts(self.task.parse_inputs(config.prompts), state)
        ends = state.get("end_ids", ())
        drawn = samples.draw(model, loaded, prompts, state["end_of_text"], config.sample_tokens, ends)
        return Report([samples.section(drawn)], metrics=samples.sample_metrics(drawn))


def _table(nats: NDArray[Any], targets: NDArray[Any], frame: pd.DataFrame) -> pd.DataFrame:
    columns = {"id": frame["id"].to_numpy(), "messages": frame["messages"].to_numpy()}
    return pd.DataFrame({**columns, "nll": nats.astype(float), "targets": targets.astype(float)})
