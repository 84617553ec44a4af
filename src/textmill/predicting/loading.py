"""Load an exported folder as the predictor for its task."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textmill.config import plugins
from textmill.errors import UserError
from textmill.predicting.exported import read_specification, verify
from textmill.predicting.predictor import Predictor, open_session
from textmill.tasks.abilities import ContinuesText
from textmill.tasks.base import Task

if TYPE_CHECKING:
    from textmill.predicting.exported import ExportedModel
    from textmill.predicting.text_continuer import TextContinuer
    from textmill.predicting.text_generator import TextGenerator

Precision = Literal["auto", "int8", "fp32"]

Engine = Literal["auto", "pytorch", "llama_cpp"]

_KEPT_WORDS = 50_000
"""Words whose tokens a predictor remembers: about 15 MB."""


def load_predictor(
    folder: Path, precision: Precision = "auto", *, threads: int | None = None, engine: Engine = "pytorch"
) -> Predictor:
    """Check an exported folder against its manifest and load it.

    Args:
        folder: Folder with `textmill.json`, `tokenizer.json`, `manifest.json` and the graphs.
        precision: Graph to load; `auto` is the one that the export decided to serve. Ignored by a model
            that generates text.
        engine: What computes a model that continues prompts. `auto` is llama.cpp where the folder has a GGUF file,
            the package `xllamacpp` is installed and there is no GPU, else PyTorch.
        threads: Threads of ONNX Runtime, PyTorch or llama.cpp; None uses one for each core.

    Returns:
        A `TextContinuer` for a model that continues prompts, a `TextGenerator` for one that
        generates a text about its input, a `Predictor` for all others.

    Raises:
        UserError: The folder is incomplete, was modified, or has no such graph or GGUF file.
    """
    exported = read_specification(folder)
    verify(folder)
    if exported.generation is not None:
        from textmill.predicting.text_continuer import TextContinuer
        from textmill.predicting.text_generator import TextGenerator

        if _uses_llama_cpp(engine, exported, folder):
            from textmill.predicting.llama_cpp import LlamaCppContinuer

            return LlamaCppContinuer(exported, folder, next(iter(exported.gguf.values())), threads)
        task = Task.find(str(exported.task[plugins.TARGET]))
        kind: type[TextContinuer | TextGenerator] = TextContinuer if issubclass(task, ContinuesText) else TextGenerator
        return kind.load_verified(folder, exported, threads=threads)
    chosen = exported.resolved(precision)
    if chosen not in exported.graphs:
        raise UserError(f"no {chosen} graph here", where=str(folder), fix=f"Choose among {sorted(exported.graphs)}")
    from textmill.data.tokenizing import load_tokenizer
    from textmill.data.word_table import with_word_table

    head = open_session(folder / exported.head, threads) if exported.head is not None else None
    graph = open_session(folder / exported.graphs[chosen], threads)
    return Predictor(exported, with_word_table(load_tokenizer(folder), _KEPT_WORDS), graph, head=head)


def _uses_llama_cpp(engine: Engine, exported: ExportedModel, folder: Path) -> bool:
    if engine == "llama_cpp" and not exported.gguf:
        fix = "Set export.gguf to [q8_0] and run `dvc repro`, or choose the engine pytorch"
        raise UserError("no GGUF file here that the engine llama_cpp could load", where=str(folder), fix=fix)
    if engine != "auto" or not exported.gguf:
        return engine == "llama_cpp"
    import torch

    return find_spec("xllamacpp") is not None and not torch.cuda.is_available()
