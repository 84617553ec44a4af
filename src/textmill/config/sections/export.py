"""The `export` section: content of the exported folder and tolerances of its parity checks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from textmill.config.section import Section
from textmill.config.sections.generation import GenerationConfig
from textmill.config.sections.prepare import CleaningConfig, WordsConfig
from textmill.config.types import PluginSpec


class ExportConfig(Section):
    """Options of the export.

    Attributes:
        title: Title of the model card.
        max_length: Longest input in tokens, as in `prepare`.
        cleaning: Cleaning options of `prepare`, also applied to served texts.
        words: Word-splitting options of `prepare`, also applied to new texts.
        onnx_tolerance: Largest allowed absolute difference between fp32 ONNX and PyTorch outputs.
        gguf: Types of weights to write as GGUF, for llama.cpp and ollama; the first that passes its checks serves.
            Only models of the Llama architecture.
        gguf_answers: Test conversations that llama.cpp and PyTorch answer, for a chat model; 0 asks none.
        gguf_margin: Loss of the answers' F1 (0 to 1) that a GGUF file must be shown to stay below.
        int8_tolerance: Largest loss of the main metric by int8, in the metric's unit (0.005 is half a
            point of F1). The int8 graph serves if the test rows show that it loses no more, else fp32.
        checkpoint_tolerance: Largest allowed absolute difference of the logits of a language model
            loaded by transformers.
        generation: Default generation options of a language model.
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
    gguf: tuple[Literal["f16", "q8_0", "q4_1", "q4_0"], ...] = ()
    gguf_answers: Annotated[int, Field(ge=0)] = 200
    gguf_margin: Annotated[float, Field(gt=0, le=1)] = 0.05
