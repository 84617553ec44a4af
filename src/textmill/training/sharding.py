"""Fully sharded data parallel (Rajbhandari et al. 2020, "ZeRO") by PyTorch's `fully_shard`, as a strategy of Lightning.

Lightning's `FSDPStrategy` joins the weights of a module in one flat vector before the optimizer sees them: weight
decay, Muon and the average of the weights would no longer know matrices. `fully_shard` keeps each weight as a `DTensor`
of its own shape, so that they choose as without sharding. Lightning's `ModelParallelStrategy` runs `fully_shard` too,
but its checkpoints are not those of the other strategies.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from textmill.models.attention import CrossAttention
from textmill.training.distributed import as_divided
from textmill.training.layers import layer_stack

_STEPS = ("training_step", "validation_step")


class ShardedStrategy(DDPStrategy):
    """Divides weights, gradients and the optimizer's state over all ranks, each weight by its first axis.

    The module of Lightning is the root: its weights outside the layers are gathered for a whole step, so that the
    task's loss may call any method of the network. A layer is gathered for its own forward and backward pass.
    """

    def configure_ddp(self) -> None:
        """Divide the module's weights, before the optimizer is built."""
        module = self.lightning_module
        assert module is not None
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        shard(module, mesh)
        self.checkpoint_io.mesh = mesh  # type: ignore[attr-defined]

    def model_to_device(self) -> None:
        """Do nothing: the layers move to the device one by one while they are divided."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Load a checkpoint after the weights have been divided."""
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write this rank's part of the checkpoint."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights of a checkpoint, divided or whole."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = checkpoint["state_dict"]
        divided = {name: as_divided(own[name], value) if name in own else value for name, value in state.items()}
        self.lightning_module.load_state_dict(divided, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizer's state of a checkpoint, divided or whole."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {
                    name: as_divided(parameters[number], each) if each.shape == parameters[number].shape else each
                    for name, each in values.items()
                }
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the weights of `module.network` over the ranks of `mesh`.

    The module's steps gather what lies outside the layers. A layer's attention to a source is gathered by itself,
    since a decoder computes its keys and values before it runs the layer.
    """
    # A warning of operations in place on keys and values, of which there are none
    warnings.filterwarnings("ignore", ".*returned a view tensor.*")
    for layer in layer_stack(module.network):  # type: ignore[arg-type]
        for part in layer.modules():
            if isinstance(part, CrossAttention):
                fully_shard(part, mesh=mesh)
                register_fsdp_forward_method(part, "keys_and_values")
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for name in _STEPS:
        register_fsdp_forward_method(module, name)
