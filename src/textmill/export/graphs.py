"""Write a network as ONNX graphs: fp32, and int8 for CPUs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask")
# Gelu is one operator since opset 20. Attention is one since 23, but then int8 cannot quantise its inside.
OPSET = 20

# Matrix products take most of the time. Quantised embedding tables (Gather) would make the file
# smaller, but cost MiniLM half a point of F1 and saved no time. The head's product is a Gemm: it is
# small and stays exact, because its rounding errors would directly change the answer.
_QUANTIZED = ["MatMul"]


def output_names(network: nn.Module) -> list[str]:
    """Return the names of the network's outputs, in order."""
    import torch

    with torch.inference_mode():
        return list(network(**dict(zip(INPUTS, _example(), strict=True))))


def write_fp32(network: nn.Module, names: Sequence[str], target: Path) -> None:
    """Write the network's graph, weights included, with dynamic numbers of rows and tokens.

    `network` is in float32 on the CPU; `names` are its `output_names`.
    """
    import onnx
    import torch

    class Positional(torch.nn.Module):
        """Returns a tuple: ONNX outputs are a sequence, not a mapping."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
            outputs = self.network(input_ids=input_ids, attention_mask=attention_mask)
            return tuple(outputs[name] for name in names)

    graph = _trace(Positional(), _example(), INPUTS, names, dynamic_axes=(0, 1))
    _name_axes(graph)
    onnx.save(graph, target)


def write_head(head: nn.Module, width: int, names: Sequence[str], output: str, target: Path) -> None:
    """Write the graph of a head with one input (B, `width`) for each of `names`; B is dynamic."""
    import onnx
    import torch

    example = tuple(torch.full((2, width), 0.5) for _ in names)
    onnx.save(_trace(head, example, names, [output], dynamic_axes=(0,)), target)


def _trace(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    dynamic_axes: Sequence[int],
) -> onnx.ModelProto:
    import torch

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(dict.fromkeys(dynamic_axes, torch.export.Dim.DYNAMIC) for _ in inputs),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    graph: onnx.ModelProto = program.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]  # paths of this machine: the same network must give the same file
    return graph


def write_int8(fp32: Path, target: Path) -> None:
    """Write the graph with int8 weights per channel and dynamically quantised activations."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(fp32, target, op_types_to_quantize=_QUANTIZED, per_channel=True, weight_type=QuantType.QInt8)


def _example() -> tuple[Tensor, Tensor]:
    """Return token ids and mask; tracing would take an axis of size 0 or 1 for static."""
    import torch

    ids = torch.ones((2, 7), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


def _name_axes(graph: onnx.ModelProto) -> None:
    """Rename the dynamic axes from the tracer's symbols to `batch` and `sequence`."""
    symbols = [axis.dim_param for axis in graph.graph.input[0].type.tensor_type.shape.dim]
    names = dict(zip(symbols, ("batch", "sequence"), strict=True))
    for value in (*graph.graph.input, *graph.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            axis.dim_param = names.get(axis.dim_param, axis.dim_param)
    del graph.graph.value_info[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' logs and warnings, which address their own developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
