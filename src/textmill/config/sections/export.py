"""The `export` section: formats and the parity they must keep."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import PluginSpec


class ExportConfig(Section):
    """What the exported folder holds.

    Attributes:
        title: Of the model card.
        onnx_tolerance: Largest allowed absolute difference of ONNX fp32 to PyTorch outputs.
        int8_tolerance: Largest allowed loss of the task's main metric by int8, in its own unit
            (0.005 is half a point of F1).
    """

    task: PluginSpec
    title: str
    onnx_tolerance: Annotated[float, Field(gt=0)] = 1e-4
    int8_tolerance: Annotated[float, Field(gt=0)] = 0.005
