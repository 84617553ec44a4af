"""Trained networks to and from a folder: weights as safetensors, architecture as JSON."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError
from textmill.files import write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from textmill.models.base import Model
    from textmill.tasks.base import State, Task

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_FOLDER = "model"


def with_architecture(folder: Path | None) -> Path | None:
    """A folder of pretrained weights; None where there is none, or nothing in it to start from."""
    return folder if folder is not None and (folder / CONFIG_FILE).is_file() else None


def save_network(folder: Path, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors` and, for an encoder of transformers, its `config.json`.

    Args:
        folder: Where to; made when missing.
        network: Tells the architecture.
        weights: What to write; the network's `state_dict` or an average of it.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(storable(weights), folder / WEIGHTS_FILE)
    if (config := architecture_of(network)) is not None:
        write_json(folder / CONFIG_FILE, config)


def storable(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as safetensors takes them: tied ones, which share their memory, stand there once a name."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in weights.items():
        plain = value.detach().cpu().contiguous()
        stored[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return stored


def architecture_of(network: nn.Module) -> dict[str, Any] | None:
    """The configuration of the network's transformers backbone, or None when it has none."""
    for module in network.modules():
        to_dict = getattr(getattr(module, "config", None), "to_dict", None)
        if callable(to_dict):
            values: dict[str, Any] = to_dict()
            values.pop("_name_or_path", None)  # a path of this machine: equal weights must have equal digests
            return values
    return None


@contextmanager
def config_alone(folder: Path) -> Iterator[Path | None]:
    """A folder with the `config.json` of `folder` and no weights, from which a network gets its shape only.

    None where there is no such file.
    """
    if not (folder / CONFIG_FILE).is_file():
        yield None
        return
    with tempfile.TemporaryDirectory() as shape:
        (Path(shape) / CONFIG_FILE).symlink_to((folder / CONFIG_FILE).resolve())
        yield Path(shape)


def load_network(task: Task, model: Model, state: State, trained: Path) -> nn.Module:
    """The trained network, in evaluation mode, on the CPU.

    Args:
        task: Builds the network.
        model: The architecture's plugin, with the options of the training.
        state: The task's state.
        trained: `data/trained`, or another folder with `model/`.

    Raises:
        UserError: A file is missing, or the weights do not fit the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = trained / MODEL_FOLDER
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError("no trained weights here", where=str(path), fix="Run `dvc repro train`")
    with config_alone(folder) as shape:
        network = task.build_network(model, shape, state)
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the trained weights do not fit the network ({reason})", where=str(path), fix="Run `dvc repro train`"
        ) from error
    return network.eval()
