"""Save and load trained networks: weights as safetensors, architecture as JSON."""

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
    """Return the folder if it has pretrained weights, else None."""
    return folder if folder is not None and (folder / CONFIG_FILE).is_file() else None


def save_network(folder: Path, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors` and, for a backbone of transformers, its `config.json` into a folder, made if missing.

    `weights` are those of the network's `state_dict`, or an average of them.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(storable(weights), folder / WEIGHTS_FILE)
    if (config := architecture_of(network)) is not None:
        write_json(folder / CONFIG_FILE, config)


def storable(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in the form that safetensors accepts: tied ones, which share memory, are copied."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in weights.items():
        plain = value.detach().cpu().contiguous()
        stored[name] = plain.clone() if plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    return stored


def architecture_of(network: nn.Module) -> dict[str, Any] | None:
    """Return the configuration of the network's transformers backbone, or None without one."""
    for module in network.modules():
        to_dict = getattr(getattr(module, "config", None), "to_dict", None)
        if callable(to_dict):
            values: dict[str, Any] = to_dict()
            values.pop("_name_or_path", None)  # a path of this machine would change the digest
            return values
    return None


@contextmanager
def config_alone(folder: Path) -> Iterator[Path | None]:
    """Open a folder with only `config.json` of `folder`, to build a network's shape; None without the file."""
    if not (folder / CONFIG_FILE).is_file():
        yield None
        return
    with tempfile.TemporaryDirectory() as shape:
        (Path(shape) / CONFIG_FILE).symlink_to((folder / CONFIG_FILE).resolve())
        yield Path(shape)


def load_network(task: Task, model: Model, state: State, trained: Path) -> nn.Module:
    """Return the trained network of the folder `data/trained`, or another with `model/`: evaluation mode, on the CPU.

    `model` has the options of the training. Weights that training kept frozen in a lower precision become
    float32, so that the network answers as its export, in which the updates are merged.

    Raises:
        UserError: A file is missing, or the weights do not fit the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder, fix = trained / MODEL_FOLDER, "Run `dvc repro train`"
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError("no trained weights", where=str(path), fix=fix)
    with config_alone(folder) as shape:
        network = task.build_network(model, shape, state)
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the trained weights do not fit the network ({reason})", where=str(path), fix=fix) from error
    return network.float().eval()
