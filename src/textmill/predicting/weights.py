"""Read and write a network's weights in a folder that transformers can load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.files import write_json
from textmill.training.loading import storable

if TYPE_CHECKING:
    from torch import nn


def write_weights(network: nn.Module, folder: Path) -> None:
    """Write `model.safetensors` in float32, and `config.json` for a transformers backbone.

    The backbone's weights keep their names in the backbone, so that `AutoModel.from_pretrained`
    loads the folder and training can start from it. The head's weights keep their full names.
    """
    import torch
    from safetensors.torch import save_file

    prefix, backbone = backbone_of(network)
    weights = {
        name.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    save_file(storable(weights), folder / "model.safetensors", metadata={"format": "pt"})
    if backbone is not None:
        config = backbone.config.to_dict() | {"architectures": [type(backbone).__name__], "dtype": "float32"}
        config.pop("_name_or_path", None)
        write_json(folder / "config.json", _plain(config, torch.dtype))


def read_weights(network: nn.Module, folder: Path) -> None:
    """Load the weights of `write_weights` into a network of the same architecture."""
    from safetensors.torch import load_file

    prefix, _ = backbone_of(network)
    stored = load_file(folder / "model.safetensors")
    network.load_state_dict({name: stored[name.removeprefix(prefix)] for name in network.state_dict()})


def backbone_of(network: nn.Module) -> tuple[str, Any]:
    """Return the prefix of the backbone's weight names and the transformers model, or ("", None)."""
    from transformers import PreTrainedModel

    for name, module in network.named_modules():
        if isinstance(module, PreTrainedModel):
            return (f"{name}." if name else ""), module
    return "", None


def _plain(value: Any, kind: type) -> Any:
    """Convert to JSON values; a PyTorch type becomes its name."""
    if isinstance(value, dict):
        return {str(key): _plain(inner, kind) for key, inner in value.items()}
    return str(value).removeprefix("torch.") if isinstance(value, kind) else value
