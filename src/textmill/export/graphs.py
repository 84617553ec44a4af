"""A network as ONNX graphs: fp32, and int8 for fast processors without a GPU."""

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
# Gelu is one operator from 20 on. From 23 on attention is one too, but then int8 cannot reach into it.
OPSET = 20

# Matrix products hold the time. Embedding tables (Gather) would make the file smaller, but rounding
# them cost MiniLM half a point of F1 and gained no time. The head's own product is a Gemm: it is
# tiny, and left exact because its rounding errors would go straight into the answer.
_QUANTIZED = ["MatMul"]


def output_names(network: nn.Module) -> list[str]:
    """Names of what the network returns, in its order."""
    import torch

    with torch.inference_mode():
        return list(network(**dict(zip(INPUTS, _example(), strict=True))))


def write_fp32(network: nn.Module, names: Sequence[str], target: Path) -> None:
    """Write the network's graph with a free number of rows and of tokens.

    Args:
        network: In evaluation mode, in float32, on the CPU.
        names: Of its outputs, as by `output_names`.
        target: The file; the weights are within it.
    """
    import onnx
    import torch

    class Positional(torch.nn.Module):
        """ONNX outputs are a sequence, not a mapping."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
            outputs = self.network(input_ids=input_ids, attention_mask=attention_mask)
            return tuple(outputs[name] for name in names)

    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            Positional().eval(),
            _example(),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(names),
            dynamic_shapes=(free, free),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    graph = program.model_proto
    _name_axes(graph)
    for node in graph.graph.node:
        del node.metadata_props[:]  # traces of this machine's paths: the same network must give the same file
    onnx.save(graph, target)


def write_head(head: nn.Module, width: int, names: Sequence[str], output: str, target: Path) -> None:
    """Write the graph of what judges several vectors at once, with a free number of rows.

    Args:
        head: Takes as many vectors (B, D) as there are `names`; in evaluation mode, on the CPU.
        width: D.
        names: Of its inputs.
        output: Name of its output.
        target: The file.
    """
    import onnx
    import torch

    example = tuple(torch.full((2, width), 0.5) for _ in names)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            head.eval(),
            example,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=[output],
            dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in names),
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    graph = program.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]
    onnx.save(graph, target)


def write_int8(fp32: Path, target: Path) -> None:
    """Write the graph with 8-bit weights per channel; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(fp32, target, op_types_to_quantize=_QUANTIZED, per_channel=True, weight_type=QuantType.QInt8)


def _example() -> tuple[Tensor, Tensor]:
    """Token ids and mask of sizes that are neither 0 nor 1, which tracing would take for fixed."""
    import torch

    ids = torch.ones((2, 7), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


def _name_axes(graph: onnx.ModelProto) -> None:
    """Call the free axes `batch` and `sequence` instead of the tracer's own symbols."""
    symbols = [axis.dim_param for axis in graph.graph.input[0].type.tensor_type.shape.dim]
    names = dict(zip(symbols, ("batch", "sequence"), strict=True))
    for value in (*graph.graph.input, *graph.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            axis.dim_param = names.get(axis.dim_param, axis.dim_param)
    del graph.graph.value_info[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' advice, which is for their own authors."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
