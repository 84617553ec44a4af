"""Encoder-decoders of the transformers library, such as Marian, T5 and BART."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.section import Section
from textmill.config.types import Sha256
from textmill.errors import UserError, first_line
from textmill.models.base import FROM_FOLDER, Model
from textmill.models.pretrained_encoder import WEIGHTS_FILE, silence_transformers

if TYPE_CHECKING:
    from textmill.models.hub_network import HubNetwork


class HubEncoderDecoder(Model):
    """Any checkpoint that `AutoModelForSeq2SeqLM` loads, or random weights of such an architecture."""

    name: ClassVar[str] = "hub_encoder_decoder"

    class Config(Section):
        """Options in `conf/model/`.

        Attributes:
            pretrained: Source of the weights (see `FetchConfig.pretrained`).
            pretrained_sha256: Required digest of the weights.
            architecture: Values of the library's configuration (`model_type`, `d_model`, ...) to train
                from scratch, without a pretrained folder.
            max_length: Maximum tokens of a source or a target; experiments use it as `prepare.max_length`.
        """

        pretrained: str | None = None
        pretrained_sha256: Sha256 | None = None
        architecture: dict[str, Any] | None = None
        max_length: int = 512

    config: Config

    def build_encoder_decoder(self, vocabulary_size: int, end: int, pretrained: Path | None) -> HubNetwork:
        """Build the library's model; see `Model.build_encoder_decoder`. `config.json` alone gives random weights.

        Raises:
            UserError: There is neither a folder nor an `architecture`, its files cannot be read, or the
                tokenizer has more tokens than the model.
        """
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        from textmill.models.hub_network import HubNetwork

        auto: Any = AutoModelForSeq2SeqLM
        silence_transformers()
        try:
            if pretrained is not None and (pretrained / WEIGHTS_FILE).is_file():
                backbone = auto.from_pretrained(pretrained, **FROM_FOLDER)
            elif pretrained is not None and (pretrained / "config.json").is_file():
                shape = AutoConfig.from_pretrained(pretrained, **FROM_FOLDER)  # local  # nosec B615
                backbone = auto.from_config(shape, trust_remote_code=False)
            elif self.config.architecture is not None:
                values = {"vocab_size": vocabulary_size, "eos_token_id": end} | self.config.architecture
                backbone = auto.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
            else:
                message = "no pretrained weights and no architecture to train from scratch"
                fix = "Set `pretrained` or `architecture` in conf/model/"
                raise UserError(message, where="model", fix=fix)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            where = str(pretrained) if pretrained is not None else "model.architecture"
            fix = "Choose another `pretrained` in conf/model/"
            raise UserError(
                f"not an encoder-decoder of transformers ({first_line(error)})", where=where, fix=fix
            ) from error
        known = backbone.get_input_embeddings().num_embeddings
        if vocabulary_size > known:
            message = f"the tokenizer has {vocabulary_size} tokens, the model {known}"
            fix = "Use the model's tokenizer (kind: pretrained)"
            raise UserError(message, where="prepare.tokenizer", fix=fix)
        return HubNetwork(backbone.float(), end)
