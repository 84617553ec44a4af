"""Generate a text about each input with an exported model, by PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.models.base import Model
from textmill.predicting.predictor import Predictor
from textmill.training.loading import config_alone

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from textmill.metrics.base import Outputs
    from textmill.predicting.exported import ExportedModel


class TextGenerator(Predictor):
    """An exported model, in evaluation mode, that generates a text about its input (see `GeneratesText`)."""

    engine_name = "pytorch"

    def __init__(self, exported: ExportedModel, tokenizer: Tokenizer, network: torch.nn.Module) -> None:
        super().__init__(exported, tokenizer, session=None)
        self.network = network

    @classmethod
    def load_verified(cls, folder: Path, exported: ExportedModel, *, threads: int | None = None) -> TextGenerator:
        """Load a folder after its digests were checked; see `load_predictor`."""
        from textmill.data.tokenizing import load_tokenizer

        return cls(exported, load_tokenizer(folder), load_network(folder, exported, threads=threads))

    def outputs_of_ids(self, input_ids: Sequence[Sequence[int]]) -> Outputs:
        """Return the generated texts for tokenised inputs, one per row."""
        task: Any = self.task  # a `GeneratesText`
        outputs: Outputs = task.generate(self.network, input_ids, self.tokenizer, self.exported.state)
        return outputs


def load_network(folder: Path, exported: ExportedModel, *, threads: int | None = None) -> torch.nn.Module:
    """Load an exported network in evaluation mode, on the accelerator if there is one.

    `folder` has `model.safetensors`, and `config.json` for a transformers backbone. `threads` sets
    the threads of PyTorch; None keeps their number.
    """
    import torch

    from textmill.predicting.weights import read_weights
    from textmill.tasks.base import Task

    if threads is not None:
        torch.set_num_threads(threads)
    task = Task.build(exported.task)
    model = Model.build(exported.model)
    with config_alone(folder) as shape:
        network: Any = task.build_network(model, shape, exported.state)
    read_weights(network, folder)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return network.to(device or "cpu").eval()  # type: ignore[no-any-return]
