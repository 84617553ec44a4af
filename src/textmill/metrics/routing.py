"""Metrics and report section of a mixture of experts: balance, dropped tokens, confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from textmill.metrics.base import Outputs, Section

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_PREFIX = "routing/"


def shares(outputs: Outputs) -> NDArray[np.float64]:
    """Return each expert's share of its layer's tokens, shape (layers, experts), from `expert_load`."""
    load: NDArray[np.float64] = outputs["expert_load"].sum(axis=0, dtype=float)
    share: NDArray[np.float64] = load / np.maximum(load.sum(axis=1, keepdims=True), 1)
    return share


def routing_metrics(outputs: Outputs) -> dict[str, float]:
    """Return means over the layers.

    Returns:
        `routing/load_entropy` (1 in perfect balance, 0 if one expert takes all),
        `routing/load_max_over_mean`, `routing/dropped_share`, and, where the router has
        probabilities, `routing/confidence`: the mean of each token's largest probability.
    """
    table = layer_table(outputs)
    means = {f"{_PREFIX}{name}": float(table[name].mean()) for name in table if name != "layer"}
    return {name: value for name, value in means.items() if np.isfinite(value)}


def layer_table(outputs: Outputs) -> pd.DataFrame:
    """Return one row a layer with experts."""
    import pandas as pd

    share = shares(outputs)
    experts = share.shape[1]
    logarithms = np.log(share, out=np.zeros_like(share), where=share > 0)
    return pd.DataFrame(
        {
            "layer": np.arange(len(share)),
            "load_entropy": -(share * logarithms).sum(axis=1) / np.log(experts),
            "load_max_over_mean": share.max(axis=1) * experts,
            "dropped_share": outputs["dropped"].mean(axis=0, dtype=float),
            "confidence": outputs["confidence"].mean(axis=0, dtype=float),
        }
    )


def section(outputs: Outputs) -> Section:
    """Return the section with the share of each expert."""
    import pandas as pd

    share = shares(outputs)
    layers, experts = np.indices(share.shape)
    flat = pd.DataFrame({"layer": layers.ravel(), "expert": experts.ravel(), "share": share.ravel()})
    text = "Share of a layer's tokens that the router sends to each expert; all shares are equal in perfect balance."
    table = layer_table(outputs).dropna(axis="columns")
    return Section("Experts", text, table, {"expert_load": heat_map(share)}, {"expert_load": flat})


def heat_map(share: NDArray[np.float64]) -> Figure:
    """Plot layers by experts, each cell a share of the layer's tokens."""
    from matplotlib.figure import Figure

    layers, experts = share.shape
    figure = Figure(figsize=(1.5 + 0.6 * experts, 1.2 + 0.45 * layers), layout="constrained")
    axes = figure.add_subplot()
    highest = max(2 / experts, float(share.max()))
    image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=highest)
    axes.set(xlabel="expert", ylabel="layer", xticks=range(experts), yticks=range(layers))
    for layer, row in enumerate(share):
        for expert, value in enumerate(row):
            tone = "white" if value < highest / 2 else "black"
            axes.text(expert, layer, f"{value:.2f}", ha="center", va="center", color=tone, fontsize=8)
    figure.colorbar(image, label="share of tokens")
    return figure
