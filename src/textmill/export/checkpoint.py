"""Export a language model as a transformers checkpoint and compare its logits with the trained model's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError
from textmill.files import read_optional, write_json

if TYPE_CHECKING:
    from textmill.data.prepared import Prepared
    from textmill.models.language_model import LanguageModel
    from textmill.tasks.base import Task

CHECKPOINT_FOLDER = "transformers"
_WINDOWS = 4


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
    with torch.inference_mode():
        difference = float((model(batch["input_ids"])["logits"] - loaded(batch["input_ids"]).logits).abs().max())
    if not difference <= tolerance:
        raise UserError(
            f"logits of the transformers checkpoint differ by {difference:.3g}, more than {tolerance:g}",
            where="export.checkpoint_tolerance",
            fix="Find the layer that differs before you raise the tolerance",
        )
    return {"checkpoint_max_difference": difference}
