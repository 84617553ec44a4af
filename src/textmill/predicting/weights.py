"""A network's weights in a folder that transformers can read too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.files import write_json
from textmill.training.loading import storable

if TYPE_CHECKING:
    from torch import nn


def write_weights(network: nn.Module, folder: Path) -> None:
    """Write `model.safetensors` in float32, and `config.json` when there is a transformers backbone.

    The backbone's weights bear the names that they have in the backbone itself, so that
    `AutoModel.from_pretrained(folder)` finds them, and training can start from an exported folder
    as from any pretrained one. The head's weights keep their names in the whole network.
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
    """Load what `write_weights` wrote into a network of the same form."""
    from safetensors.torch import load_file

    prefix, _ = backbone_of(network)
    stored = load_file(folder / "model.safetensors")
    network.load_state_dict({name: stored[name.removeprefix(prefix)] for name in network.state_dict()})


def backbone_of(network: nn.Module) -> tuple[str, Any]:
    """The transformers model within the network and what its weights' names begin with, or ("", None)."""
    from transformers import PreTrainedModel

    for name, module in network.named_modules():
        if isinstance(module, PreTrainedModel):
            return (f"{name}." if name else ""), module
    return "", None


def _plain(value: Any, kind: type) -> Any:
    """JSON values: PyTorch's types by their names."""
    if isinstance(value, dict):
        return {str(key): _plain(inner, kind) for key, inner in value.items()}
    return str(value).removeprefix("torch.") if isinstance(value, kind) else value
