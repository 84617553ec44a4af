"""Causal language models of the transformers library, such as Llama."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.section import Section
from textmill.config.types import Sha256
from textmill.errors import UserError
from textmill.models.base import FROM_FOLDER, Model
from textmill.models.lora import LoraConfig, add_adapters

if TYPE_CHECKING:
    from textmill.models.language_model import LanguageModel

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"


class PretrainedDecoder(Model):
    """A causal language model, fine-tuned from a folder of weights."""

    name: ClassVar[str] = "pretrained_decoder"

    class Config(Section):
        """Options in `conf/model/`.

        Attributes:
            pretrained: Source of the weights (see `FetchConfig.pretrained`).
            pretrained_sha256: Required digest of the weights.
            lora: Train only low-rank updates of the linear layers; None trains all weights.
        """

        pretrained: str | None = None
        pretrained_sha256: Sha256 | None = None
        lora: LoraConfig | None = None

    config: Config

    def build_decoder(self, vocabulary_size: int, pretrained: Path | None) -> LanguageModel:
        """Load the model of a folder; see `Model.build_decoder`. `config.json` alone gives random weights.

        Raises:
            UserError: There is no folder, its files cannot be read, or the tokenizer has more tokens
                than the model has embeddings.
        """
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForCausalLM

        from textmill.models.hub_language_model import HubLanguageModel

        if pretrained is None or not (pretrained / _CONFIG).is_file():
            raise UserError("no pretrained weights", where="model.pretrained", fix="Name a causal model of the hub")
        automatic: Any = AutoModelForCausalLM
        try:
            if (pretrained / _WEIGHTS).is_file():
                # Frozen weights keep the precision in which they are stored
                dtype = "float32" if self.config.lora is None else "auto"
                backbone = automatic.from_pretrained(pretrained, **FROM_FOLDER, dtype=dtype)
            else:
                shape = AutoConfig.from_pretrained(pretrained, **FROM_FOLDER)  # local  # nosec B615
                backbone = automatic.from_config(shape, trust_remote_code=False)
        except (RuntimeError, ValueError, OSError, KeyError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"transformers cannot load it ({reason})", where=str(pretrained)) from error
        if vocabulary_size > backbone.config.vocab_size:
            message = f"the tokenizer has {vocabulary_size} tokens, the model {backbone.config.vocab_size}"
            fix = "Use the model's tokenizer (prepare.tokenizer.kind: pretrained)"
            raise UserError(message, where=str(pretrained), fix=fix)
        if self.config.lora is not None:
            add_adapters(backbone, self.config.lora)
        model: Any = HubLanguageModel(backbone)
        return model  # type: ignore[no-any-return]
