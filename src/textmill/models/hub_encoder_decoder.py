"""Encoder-decoders of the transformers library: Marian, T5, BART and their relatives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.section import Section
from textmill.config.types import Sha256
from textmill.errors import UserError
from textmill.models.base import Model

if TYPE_CHECKING:
    from textmill.models.hub_network import HubNetwork


class HubEncoderDecoder(Model):
    """Any checkpoint that `AutoModelForSeq2SeqLM` loads, or fresh weights of such a shape."""

    name: ClassVar[str] = "hub_encoder_decoder"

    class Config(Section):
        """Options in `conf/model/`.

        Attributes:
            pretrained: Where `fetch` takes the weights from (see `FetchConfig.pretrained`).
            pretrained_sha256: The digest that they must have.
            architecture: Values of the library's own configuration (`model_type`, `d_model`, ...) for
                training from scratch; used when there is no pretrained folder.
            max_length: Tokens of a source or a target, for `prepare.max_length` of the experiments.
        """

        pretrained: str | None = None
        pretrained_sha256: Sha256 | None = None
        architecture: dict[str, Any] | None = None
        max_length: int = 512

    config: Config

    def build_encoder_decoder(self, vocabulary_size: int, end: int, pretrained: Path | None) -> HubNetwork:
        """The library's model (see `Model.build_encoder_decoder`); a folder with `config.json` alone gives its shape.

        Raises:
            UserError: There is neither a folder nor an `architecture`, its files cannot be read, or the
                tokenizer has more tokens than the model.
        """
        from transformers import AutoConfig, AutoModelForSeq2SeqLM
        from transformers.utils import logging

        from textmill.models.hub_network import HubNetwork

        library: Any = logging
        auto: Any = AutoModelForSeq2SeqLM
        library.set_verbosity_error()
        library.disable_progress_bar()
        try:
            if pretrained is not None and (pretrained / "model.safetensors").is_file():
                backbone = auto.from_pretrained(pretrained, local_files_only=True)
            elif pretrained is not None and (pretrained / "config.json").is_file():
                backbone = auto.from_config(AutoConfig.from_pretrained(pretrained, local_files_only=True))
            elif self.config.architecture is not None:
                values = {"vocab_size": vocabulary_size, "eos_token_id": end} | self.config.architecture
                backbone = auto.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
            else:
                raise UserError(
                    "no pretrained weights and no architecture to train from scratch",
                    where="model",
                    fix="Set `pretrained` or `architecture` in conf/model/",
                )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"no encoder-decoder that transformers can load ({reason})",
                where=str(pretrained) if pretrained is not None else "model.architecture",
                fix="Choose another `pretrained` in conf/model/",
            ) from error
        known = backbone.get_input_embeddings().num_embeddings
        if vocabulary_size > known:
            raise UserError(
                f"the tokenizer has {vocabulary_size} tokens, the model {known}",
                where="prepare.tokenizer",
                fix="Use the model's own tokenizer (kind: pretrained)",
            )
        return HubNetwork(backbone.float(), end)
