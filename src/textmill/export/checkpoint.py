"""Export a model as a transformers checkpoint and compare its outputs with the trained model's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError
from textmill.files import read_optional, write_json

if TYPE_CHECKING:
    from torch import nn

    from textmill.data.prepared import Prepared
    from textmill.models.language_model import LanguageModel
    from textmill.tasks.base import Task

CHECKPOINT_FOLDER = "transformers"
_WINDOWS = 4
_ROWS = 16
_TOKENIZER_SETTINGS = "tokenizer_config.json"
_POOLING = {"mean_tokens": "mean", "cls_token": "cls"}


def write_checkpoint(
    model: LanguageModel, task: Task, prepared: Prepared, folder: Path, tolerance: float
) -> dict[str, float]:
    """Write weights, configuration and tokenizer if transformers has the architecture.

    `model` is in evaluation mode, in float32, on the CPU.

    Returns:
        `checkpoint_max_difference`; empty if transformers lacks the architecture and nothing was written.

    Raises:
        UserError: A logit of the test examples differs by more than `tolerance`.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from textmill.models.to_transformers import matching_model_type, save_as_transformers
    from textmill.tasks.abilities import examples_of

    if matching_model_type(model) is None:
        return {}
    library: Any = logging
    library.disable_progress_bar()
    end = prepared.state["end_of_text"]
    save_as_transformers(model, folder, bos_token_id=end, eos_token_id=end, pad_token_id=end)
    for path in prepared.tokenizer_folder.iterdir():
        shutil.copyfile(path, folder / path.name)
    if ends := prepared.state.get("end_ids"):
        file = folder / "generation_config.json"
        write_json(file, read_optional(file) | {"eos_token_id": ends})
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)  # local  # nosec B615
    loaded.eval()
    examples = examples_of(task, prepared.split("test"))
    batch = task.collate(examples.__getitems__(list(range(min(_WINDOWS, len(examples))))))
    ids = batch["input_ids"].flatten(0, -2)
    with torch.inference_mode():
        difference = float((model(ids)["logits"] - loaded(ids).logits).abs().max())
    return _required(difference, tolerance)


def write_encoder(network: nn.Module, task: Task, state: dict[str, Any], folder: Path, max_length: int) -> None:
    """Write weights, configuration and the settings of the tokenizer, which is in the folder, for the ecosystem.

    transformers' auto class loads the encoder with its head where the library has the architecture, else
    the encoder alone. `SentenceTransformer` loads a network of sentence vectors. `network` is as in
    `write_checkpoint`.
    """
    from textmill.models.heads_to_transformers import to_transformers
    from textmill.models.pretrained_encoder import silence_transformers
    from textmill.models.sentence_encoder import SentenceEncoder
    from textmill.predicting.weights import write_weights

    silence_transformers()
    model = to_transformers(network, [str(label) for label in state.get("labels", [])], task.problem_type)
    if model is None:
        write_weights(network, folder)
    else:
        model.config.name_or_path = ""
        model.save_pretrained(folder)
    settings = read_optional(folder / _TOKENIZER_SETTINGS)
    # Trained without segments, so that a pipeline must pass none
    settings |= {"model_max_length": max_length, "model_input_names": ["input_ids", "attention_mask"]}
    write_json(folder / _TOKENIZER_SETTINGS, settings)
    if isinstance(network, SentenceEncoder):
        _describe_sentence_encoder(network, folder, max_length)


def check_encoder(
    network: nn.Module, task: Task, prepared: Prepared, folder: Path, tolerance: float
) -> dict[str, float]:
    """Load the checkpoint of `write_encoder` with its head and compare the outputs for test examples.

    Returns:
        `checkpoint_max_difference`; empty if transformers cannot load the head.

    Raises:
        UserError: An output differs by more than `tolerance`.
    """
    import torch
    import transformers

    from textmill.tasks.abilities import examples_of

    name = auto_class(folder)
    if not name:
        return {}
    loaded: Any = getattr(transformers, name).from_pretrained(folder, local_files_only=True)  # local  # nosec B615
    examples = examples_of(task, prepared.split("test"))
    batch = task.collate(examples.__getitems__(list(range(min(_ROWS, len(examples))))))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        ours, theirs = network(**inputs), loaded.eval()(**inputs)
    # A head under another name, or several outputs of which transformers knows some
    pairs = {key: values for key, values in ours.items() if hasattr(theirs, key)}
    pairs = pairs or {"logits": next(iter(ours.values()))}
    differences = []
    for key, values in pairs.items():
        other = theirs[key].clone()
        if key != "logits":
            other[:, 0] += loaded.config.no_answer_bias
        differences.append(float((values - other)[~values.isnan()].abs().max()))  # NaN at padding
    return _required(max(differences), tolerance)


def auto_class(folder: Path) -> str:
    """Return the name of transformers' auto class that loads the folder with its head, or an empty text."""
    architecture = str((read_optional(folder / "config.json").get("architectures") or [""])[0])
    _, is_head, head = architecture.partition("For")
    return f"AutoModelFor{head}" if is_head else ""


def _required(difference: float, tolerance: float) -> dict[str, float]:
    if not difference <= tolerance:
        raise UserError(
            f"outputs of the transformers checkpoint differ by {difference:.3g}, more than {tolerance:g}",
            where="export.checkpoint_tolerance",
            fix="Find the layer that differs before you raise the tolerance",
        )
    return {"checkpoint_max_difference": difference}


def _describe_sentence_encoder(network: Any, folder: Path, max_length: int) -> None:
    """Write the files by which sentence-transformers knows pooling and normalisation."""
    package = "sentence_transformers.models"
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write_json(
        folder / "modules.json",
        [{"idx": n, "name": str(n), "path": p, "type": f"{package}.{kind}"} for n, (kind, p) in enumerate(modules)],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    modes = {f"pooling_mode_{name}": how == network.pooling for name, how in _POOLING.items()}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": network.hidden_size, **modes})
