"""Write a network as ONNX graphs: fp32, and int8 for CPUs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

INPUTS = ("input_ids", "attention_mask")
# Gelu is one operator since opset 20. Attention is one since 23, but then int8 cannot quantise its inside.
OPSET = 20

_ORT_DOMAIN = "com.microsoft"
_WEIGHT_LEVELS = 63
_ACTIVATION_LEVELS = 127
_ZERO_POINT = 128
_SMALLEST = 1e-12  # a row of zeros has a scale too


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
    _keep_rows_apart(graph)
    return graph


def _keep_rows_apart(graph: onnx.ModelProto) -> None:
    """Repeat the first row where ONNX Runtime adds up one row alone in another order: its bits are then the same.

    These are products and sums of a matrix (B, K), and sums over the tokens of (B, T, K).
    """
    import numpy as np
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.graph.value_info}
    bounds = {f"rows.{number}": numpy_helper.from_array(np.array([number]), f"rows.{number}") for number in (0, 1)}
    bounds["rows.all"] = numpy_helper.from_array(np.array([np.iinfo(np.int64).max]), "rows.all")

    def depends_on_rows(node: onnx.NodeProto) -> bool:
        second = constants.get(node.input[1]) if len(node.input) > 1 else None
        rank = ranks.get(node.input[0]) if node.input else None
        if node.op_type == "Gemm":
            return True
        if second is None or rank is None:
            return False
        if node.op_type == "MatMul":
            return rank == 2
        axes = numpy_helper.to_array(second).tolist() if node.op_type.startswith("Reduce") else []
        return (rank, axes) in [(2, [1]), (2, [-1]), (3, [1]), (3, [-2])]

    nodes = []
    for node in graph.graph.node:
        if not depends_on_rows(node):
            nodes.append(node)
            continue
        values, output = node.input[0], node.output[0]
        first, more, repeated = f"{output}_first", f"{output}_more", f"{output}_repeated"
        node.input[0], node.output[0] = more, repeated
        nodes += [
            helper.make_node("Slice", [values, "rows.0", "rows.1", "rows.0"], [first]),
            helper.make_node("Concat", [first, values], [more], axis=0),
            node,
            helper.make_node("Slice", [repeated, "rows.1", "rows.all", "rows.0"], [output]),
        ]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend(bounds.values())


def write_int8(fp32: Path, target: Path) -> None:
    """Write the graph with int8 weights and activations in its products with a weight matrix.

    A weight has one scale for each output, an activation one for each row (token). So a row's answer
    depends on no other row, and the sums, of integers, are exact in any order. Weights have 7 bits:
    without VNNI a processor adds pairs of products in 16 bits, and 2 * 255 * 63 fits. What is small and
    decides the answer stays in float32: embeddings, norms, the inside of attention, and a head that is a Gemm.
    """
    import onnx

    graph = onnx.load(fp32)
    quantiser = _Quantiser(graph)
    nodes = [new for node in graph.graph.node for new in quantiser.nodes_of(node)]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    weights = [weight for weight in (*graph.graph.initializer, *quantiser.constants.values()) if weight.name in read]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(weights)
    graph.opset_import.append(onnx.helper.make_opsetid(_ORT_DOMAIN, 1))
    onnx.save(graph, target)


class _Quantiser:
    """Replaces products of activations (..., K) with weight matrices (K, N) by products of integers."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self._weights = {weight.name: weight for weight in graph.graph.initializer}
        self._quantised: set[str] = set()
        self.constants: dict[str, onnx.TensorProto] = {}

    def nodes_of(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes that replace `node`: itself if it is not such a product."""
        from onnx import helper, numpy_helper

        weight = self._weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2:
            return [node]
        import numpy as np

        (values, name), output = node.input, node.output[0]
        matrix = numpy_helper.to_array(weight)
        scale = np.maximum(np.abs(matrix).max(axis=0), _SMALLEST) / _WEIGHT_LEVELS
        levels = np.rint(matrix / scale).astype(np.int8)
        product = [
            f"{values}_int8",
            self._constant(f"{name}_int8", levels),
            self._constant("int8.unit", np.float32(1)),
            self._constant(f"{name}_scale", scale.astype(np.float32)),
            self._constant("int8.zero_point", np.uint8(_ZERO_POINT)),
        ]
        width = self._constant(f"int8.width_{matrix.shape[1]}", np.array([matrix.shape[1]]))
        return [
            *self._rows_of(values, matrix.shape[0]),
            helper.make_node("MatMulIntegerToFloat", product, [f"{output}_units"], domain=_ORT_DOMAIN),
            helper.make_node("Mul", [f"{output}_units", f"{values}_scale"], [f"{output}_rows"]),
            helper.make_node("Shape", [values], [f"{output}_axes"], end=-1),
            helper.make_node("Concat", [f"{output}_axes", width], [f"{output}_shape"], axis=0),
            helper.make_node("Reshape", [f"{output}_rows", f"{output}_shape"], [output]),
        ]

    def _rows_of(self, values: str, width: int) -> list[onnx.NodeProto]:
        """Return nodes that quantise activations by row, once: `VALUES_int8` (rows, K), `VALUES_scale` (rows, 1)."""
        import numpy as np
        from onnx import helper, numpy_helper

        if values in self._quantised:
            return []
        self._quantised.add(values)
        last, rows = (
            self._constant("int8.last", np.array([-1])),
            self._constant(f"int8.rows_{width}", np.array([-1, width])),
        )
        least = self._constant("int8.least", np.float32(_SMALLEST))
        step = self._constant("int8.step", np.float32(1 / _ACTIVATION_LEVELS))
        zero = numpy_helper.from_array(np.array([_ZERO_POINT], np.uint8))
        (matrix, high, low, below, most, scale, scales, count, zeros) = (
            f"{values}_{name}"
            for name in ("matrix", "high", "low", "below", "most", "scale", "scales", "count", "zeros")
        )
        return [
            helper.make_node("Reshape", [values, rows], [matrix]),
            helper.make_node("ReduceMax", [matrix, last], [high]),
            helper.make_node("ReduceMin", [matrix, last], [low]),
            helper.make_node("Neg", [low], [below]),
            helper.make_node("Max", [high, below, least], [most]),
            helper.make_node("Mul", [most, step], [scale]),
            helper.make_node("Reshape", [scale, last], [scales]),
            helper.make_node("Shape", [scales], [count]),
            helper.make_node("ConstantOfShape", [count], [zeros], value=zero),
            helper.make_node("QuantizeLinear", [matrix, scales, zeros], [f"{values}_int8"], axis=0),
        ]

    def _constant(self, name: str, values: Any) -> str:
        import numpy as np
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name


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
