"""Answer the requests of lm-evaluation-harness with a Textmill model, or with one that transformers loads.

Tokens, truncation, windows of long texts and stops are the harness's own (Gao et al. 2021); only the network is
ours. Each request is computed alone, so that no figure depends on a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from textmill.config.sections.generation import GenerationConfig

if TYPE_CHECKING:
    from textmill.predicting.text_continuer import TextContinuer

_NAMES = {"num_beams": "beams"}
_IGNORED = ("attention_mask", "do_sample", "use_cache")


class ContinuerModel(HFLM):  # type: ignore[misc]
    """A `TextContinuer` as a model of the harness.

    Args:
        continuer: The model.
        folder: Folder of its `tokenizer.json` and `tokenizer_config.json`.
    """

    def __init__(self, continuer: TextContinuer, folder: Path) -> None:
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)  # local  # nosec B615
        if tokenizer.eos_token is None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(continuer.exported.state["end_of_text"]))
        self.continuer = continuer
        # All that the harness reads of a loaded model
        config: Any = PreTrainedConfig()
        config.max_position_embeddings = continuer.model.architecture.max_length
        described = SimpleNamespace(
            config=config,
            device=continuer.model.output_weight.device,
            name_or_path=str(folder),
        )
        super().__init__(described, backend="causal", tokenizer=tokenizer, batch_size=1)

    def _model_call(self, inps: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return the logits (1, T, V) after each token."""
        with torch.inference_mode():
            logits: torch.Tensor = self.continuer.model(inps)["logits"]
        return logits.float()

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: Sequence[str], **options: Any
    ) -> torch.Tensor:
        """Return prompt and continuation, shape (1, T).

        Raises:
            UserError: The task names an option of generation that Textmill lacks.
        """
        changes = {_NAMES.get(name, name): value for name, value in options.items() if name not in _IGNORED}
        fixed = {"max_new_tokens": max_length - context.size(1), "stop": tuple(filter(None, stop))}
        chosen = GenerationConfig(temperature=0).changed(changes | fixed, "generation_kwargs.{}".format)
        tokens = self.continuer.continued(context[0].tolist(), chosen)
        return torch.cat([context, context.new_tensor([tokens])], dim=1)


def transformers_model(name: str) -> HFLM:
    """Load a folder or a model of the hub in float32 as a model of the harness, one request at a time."""
    device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    return HFLM(name, backend="causal", dtype="float32", device=device, batch_size=1)
