"""Evaluate preference tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from textmill.evaluation.evaluator import Report
from textmill.evaluation.evaluators.instruction_tuning import InstructionTuningEvaluator
from textmill.metrics.base import Metric, Outputs
from textmill.metrics.preferences import preference_metrics, rightness
from textmill.tasks.base import State
from textmill.tasks.preference_tuning import CHOSEN, PROMPT, REJECTED

_COLUMNS = ("id", PROMPT, CHOSEN, REJECTED)


class PreferenceTuningEvaluator(InstructionTuningEvaluator):
    """Measures which answer of a pair the model finds more likely, and how far it is from the reference."""

    baseline_columns = ["id"]

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """Return the texts, `right` and `right_per_token` (1, 0 or a half), `divergence` (nats), `targets`, rewards.

        A reward is the log-likelihood of an answer less the reference's; `targets` are the tokens of both.
        """
        sums = [np.asarray(outputs[name], float) for name in (CHOSEN, REJECTED)]
        tokens = [np.asarray(outputs[f"{name}_tokens"], float) for name in (CHOSEN, REJECTED)]
        known = [np.asarray(outputs[f"reference_{name}"], float) for name in (CHOSEN, REJECTED)]
        per_token = sums[0] / tokens[0] - sums[1] / tokens[1]
        table = _table(
            frame, sums[0] - sums[1], per_token, np.asarray(outputs["divergence"], float), tokens[0] + tokens[1]
        )
        return table.assign(chosen_reward=sums[0] - known[0], rejected_reward=sums[1] - known[1])

    def metrics(self, state: State) -> list[Metric]:
        """Return accuracy by likelihood and by likelihood per token, and `kl` in nats per token."""
        return preference_metrics()

    def baselines(
        self, train: pd.DataFrame, validation: pd.DataFrame, state: State, options: Mapping[str, Any], seed: int
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Return `reference`, the model before tuning, and the `longer` and the `shorter` answer by characters."""

        def reference(frame: pd.DataFrame) -> pd.DataFrame:
            chosen, rejected = frame["reference"], frame["rejected_reference"]
            lead, per_token = (chosen.map(of) - rejected.map(of) for of in (np.sum, np.mean))
            return _table(
                frame, lead.to_numpy(), per_token.to_numpy(), np.zeros(len(frame)), chosen.map(len).to_numpy()
            )

        def by_length(sign: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
            def predict(frame: pd.DataFrame) -> pd.DataFrame:
                lead = sign * (frame[CHOSEN].str.len() - frame[REJECTED].str.len()).to_numpy()
                return _table(frame, lead, lead, np.zeros(len(frame)), np.ones(len(frame)))

            return predict

        return {"reference": reference, "longer": by_length(1), "shorter": by_length(-1)}

    def report(self, predictions: pd.DataFrame, state: State) -> Report:
        """Return accuracy and lead by rewards, and the wrong pairs, those whose rejected answer gained most first."""
        lead = predictions["chosen_reward"] - predictions["rejected_reward"]
        wrong = predictions.assign(reward_lead=lead)[predictions["right"] < 1]
        metrics = {"reward_accuracy": float(rightness(lead.to_numpy()).mean()), "reward_lead": float(lead.mean())}
        errors = wrong[[*_COLUMNS, "reward_lead"]].sort_values("reward_lead", ignore_index=True)
        return Report(errors=errors, metrics=metrics)


def _table(
    frame: pd.DataFrame, lead: NDArray[Any], per_token: NDArray[Any], divergence: NDArray[Any], targets: NDArray[Any]
) -> pd.DataFrame:
    texts = {name: frame[name].to_numpy() for name in _COLUMNS}
    values = {"right": rightness(lead), "right_per_token": rightness(per_token), "divergence": divergence}
    return pd.DataFrame({**texts, **values, "targets": np.asarray(targets, float)})
