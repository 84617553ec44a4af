"""How large the models are that are measured on a GPU, and how they are run there."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        device: `cuda` or `cpu`.
        shape: Changes of the GPT-2-sized model.
        vocabulary: Its tokens.
        rows: Of a batch of its whole contexts.
        steps: Timed, after as many untimed ones.
        character_shape: Of the model of characters: nanoGPT's layers, heads, width, context and dropout.
        character_rows: Of its batches.
        character_steps: Of its training.
    """

    device: str
    shape: dict[str, Any]
    vocabulary: int
    rows: int
    steps: int
    character_shape: dict[str, Any]
    character_rows: int
    character_steps: int

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is used; on a CPU it takes minutes."""
        return self.device == "cuda"


FULL = Size(
    device="cuda",
    shape={},
    vocabulary=50_304,  # GPT-2's 50,257, rounded up to a multiple of 64 as nanoGPT does
    rows=32,
    steps=20,
    character_shape={"n_layers": 6, "n_heads": 6, "width": 384, "max_length": 256, "dropout": 0.2},
    character_rows=64,
    character_steps=1500,
)
QUICK = Size(
    device="cpu",
    shape={"n_layers": 2, "n_heads": 2, "width": 32, "hidden_width": 64, "max_length": 32},
    vocabulary=300,
    rows=2,
    steps=2,
    character_shape={"n_layers": 2, "n_heads": 2, "width": 32, "max_length": 32, "dropout": 0.2},
    character_rows=4,
    character_steps=6,
)


def loss_in_chunks(model: Any, tokens: Any) -> Any:
    """As in the pipeline's training: the logits a chunk at a time, the routers' terms added."""
    from textmill.models.losses.likelihood import mean_cross_entropy

    hidden = model.hidden_states(tokens[:, :-1])
    return mean_cross_entropy(hidden.states, model.output_weight, tokens[:, 1:])[0] + sum(
        model.auxiliary_losses(hidden.routing).values()
    )


def autocast(size: Size) -> Any:
    """Products in bfloat16."""
    import torch

    return torch.autocast(size.device, dtype=torch.bfloat16)


def wait(size: Size) -> None:
    """Until the device has done all that it was given."""
    import torch

    if size.device == "cuda":
        torch.cuda.synchronize()


def forget() -> None:
    """Free what the last model took, its compiled kernels among it."""
    import torch

    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def tell(row: str) -> None:
    """Print a row of a table, and let whoever waits see it too."""
    print(row, flush=True)
    print(row, file=sys.stderr)
