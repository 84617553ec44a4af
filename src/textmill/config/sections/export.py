"""The `export` section: what the exported folder must know, and the parity it must keep."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from textmill.config.section import Section
from textmill.config.sections.generation import GenerationConfig
from textmill.config.sections.prepare import CleaningConfig, WordsConfig
from textmill.config.types import PluginSpec


class ExportConfig(Section):
    """What the exported folder holds.

    Attributes:
        task: The `textmill.tasks.base.Task` plugin.
        model: The `textmill.models.base.Model` plugin that was trained.
        title: Of the model card.
        max_length: Tokens of a text that the model sees, as in `prepare`.
        cleaning: As in `prepare`, so that served texts are cleaned like training ones.
        words: As in `prepare`, so that new texts are split into words like training ones.
        onnx_tolerance: Largest allowed absolute difference of ONNX fp32 to PyTorch outputs.
        int8_tolerance: Largest allowed loss of the task's main metric by int8, in its own unit
            (0.005 is half a point of F1).
        checkpoint_tolerance: Largest allowed absolute difference of the logits of a language model
            loaded by transformers.
        generation: How a language model writes unless it is asked otherwise.
    """

    task: PluginSpec
    model: PluginSpec
    title: str
    max_length: Annotated[int, Field(ge=8)] = 256
    cleaning: CleaningConfig = CleaningConfig()
    words: WordsConfig = WordsConfig()
    onnx_tolerance: Annotated[float, Field(gt=0)] = 1e-4
    checkpoint_tolerance: Annotated[float, Field(gt=0)] = 1e-3
    generation: GenerationConfig = GenerationConfig()
    int8_tolerance: Annotated[float, Field(gt=0)] = 0.005
