"""Language modelling that watches its routers at every training step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from textmill.models.base import Model
from textmill.models.language_model import LanguageModel
from textmill.models.routing.record import RoutingRecord
from textmill.tasks.base import State, StepOutput
from textmill.tasks.language_modelling import LanguageModelling

CAPACITY_FACTOR = 1.25
"""The limit whose overflow is told of routers that have none (Fedus et al. 2021 use 1.0 to 2.0)."""


class WatchedLanguageModelling(LanguageModelling):
    """Adds to every training step's scalars what the routers did, as means over the layers.

    These are `routing/load_entropy`, `routing/load_max_over_mean`, `routing/dropped_share` and
    `routing/confidence` of `balance`; `routing/untouched_share`, the share of tokens that passed
    no expert at all; and `routing/overflow_share`, the share of choices beyond a capacity of 1.25 even shares.
    """

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> LanguageModel:
        """The decoder, with an eye on each of its mixtures."""
        network = super().build_network(model, pretrained, state)
        self._seen: list[dict[str, float]] = []
        for mixture in network.mixtures().values():
            mixture.register_forward_hook(self._watch)
        return network

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> StepOutput:
        """Compute the loss and terms of language modelling, and in training the routers' metrics."""
        self._seen.clear()
        step = super().loss(network, batch)
        if not self._seen:
            return step
        names = self._seen[0]
        means = {name: statistics.fmean(layer[name] for layer in self._seen) for name in names}
        logged = {f"routing/{name}": torch.tensor(mean) for name, mean in means.items()}
        return replace(step, logged={**step.logged, **logged})

    def _watch(self, mixture: nn.Module, _: Any, output: tuple[Tensor, RoutingRecord]) -> None:
        if not mixture.training:
            return
        states, record = output
        load = record.load.double()
        beyond = (load - CAPACITY_FACTOR * load.mean()).clamp(min=0).sum() / load.sum().clamp(min=1)
        untouched = (states.detach() == 0).all(dim=-1).double().mean()
        self._seen.append(balance(record) | {"untouched_share": float(untouched), "overflow_share": float(beyond)})


def balance(record: RoutingRecord) -> dict[str, float]:
    """Compute the balance and confidence of a router; this waits for the device.

    Returns:
        `load_entropy` (1 in perfect balance, 0 if one expert takes all), `load_max_over_mean`,
        `dropped_share`, and `confidence`: the mean over the tokens of the largest probability.
    """
    load = record.load.double()
    shares = load / load.sum().clamp(min=1)
    entropy = torch.special.entr(shares).sum() / torch.tensor(float(len(load))).log()
    metrics = {
        "load_entropy": float(entropy),
        "load_max_over_mean": float(shares.max() * len(load)),
        "dropped_share": float(record.dropped),
    }
    if record.probabilities is not None:
        metrics["confidence"] = float(record.probabilities.max(dim=-1).values.mean())
    return metrics
