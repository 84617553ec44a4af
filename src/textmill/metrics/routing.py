"""How a mixture of experts used its experts: balance, dropped tokens, confidence, and a heat map."""

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
    """Each expert's share of its layer's tokens, shape (layers, experts), from `expert_load`."""
    load: NDArray[np.float64] = outputs["expert_load"].sum(axis=0, dtype=float)
    share: NDArray[np.float64] = load / np.maximum(load.sum(axis=1, keepdims=True), 1)
    return share


def routing_metrics(outputs: Outputs) -> dict[str, float]:
    """Means over the layers.

    Returns:
        `routing/load_entropy` (1 in perfect balance, 0 if one expert takes all),
        `routing/load_max_over_mean`, `routing/dropped_share`, and, where the router has
        probabilities, `routing/confidence`: the mean of a token's largest.
    """
    table = layer_table(outputs)
    found = {f"{_PREFIX}{name}": float(table[name].mean()) for name in table if name != "layer"}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def layer_table(outputs: Outputs) -> pd.DataFrame:
    """A row a layer with experts."""
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
    """A part of the report."""
    import pandas as pd

    share = shares(outputs)
    flat = pd.DataFrame(
        [
            {"layer": layer, "expert": expert, "share": value}
            for layer, row in enumerate(share)
            for expert, value in enumerate(row)
        ]
    )
    text = "Share of a layer's tokens that each expert was meant for; in perfect balance all are alike."
    table = layer_table(outputs)
    return Section(
        "Experts",
        text,
        table.dropna(axis="columns"),
        figures={"expert_load": heat_map(share)},
        plots={"expert_load": flat},
    )


def heat_map(share: NDArray[np.float64]) -> Figure:
    """Layers by experts, each cell a share of the layer's tokens."""
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
