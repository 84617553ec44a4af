"""Evaluate tasks that generate a text from a source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textmill.evaluation.evaluator import ExaminesNetwork, Report
from textmill.metrics.base import Outputs
from textmill.metrics.likelihood import validation_metrics
from textmill.tasks.base import State

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class ReportsReferenceLoss(ExaminesNetwork):
    """Adds the loss of the references, which generated texts do not show."""

    def examine(self, network: torch.nn.Module, outputs: Outputs, tokenizer: Path, state: State) -> Report:
        """Return the loss in nats per token of the references."""
        return Report(metrics={"loss": validation_metrics(outputs)["loss"]})
