"""Encoders of the transformers library, such as BERT, with pretrained or random weights."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import Fraction, Sha256
from textmill.errors import UserError, first_line
from textmill.models.base import FROM_FOLDER, Model
from textmill.models.lora import LoraConfig, add_adapters

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_HIDDEN_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout", "resid_pdrop")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


class PretrainedEncoder(Model):
    """An encoder-only Transformer, fine-tuned from a folder of weights or trained from scratch."""

    name: ClassVar[str] = "pretrained_encoder"

    class Config(Section):
        """Options in `conf/model/`.

        Attributes:
            pretrained: Source of the weights (see `FetchConfig.pretrained`).
            pretrained_sha256: Required digest of the weights.
            architecture: Values of the library's configuration (`model_type`, `hidden_size`, ...) to
                train from scratch, without a pretrained folder.
            layers: Numbers of the pretrained layers to keep, from 0, in their order; None keeps all.
            feed_forward: Units of each pretrained feed-forward network to keep, those with the largest weights; None
                keeps all.
            pooling: How the token vectors of a text are pooled: their mean, or the first.
            dropout: Dropout of the task's head.
            hidden_dropout: Dropout of the encoder's layers; None keeps the architecture's value.
            attention_dropout: Dropout of the attention weights; None keeps the architecture's value.
            frozen_groups: Number of layer groups, from the input upwards, whose weights are frozen;
                the first group is the embeddings.
            lora: Train only low-rank updates of the encoder's linear layers; None trains its weights.
        """

        pretrained: str | None = None
        pretrained_sha256: Sha256 | None = None
        architecture: dict[str, Any] | None = None
        layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
        feed_forward: Annotated[int, Field(ge=1)] | None = None
        pooling: Literal["mean", "cls"] = "mean"
        dropout: Fraction = 0.1
        hidden_dropout: Fraction | None = None
        attention_dropout: Fraction | None = None
        frozen_groups: Annotated[int, Field(ge=0)] = 0
        lora: LoraConfig | None = None

    config: Config

    def build_encoder(self, pretrained: Path | None) -> torch.nn.Module:
        """Build an encoder; see `Model.build_encoder`. `config.json` alone gives random weights.

        Raises:
            UserError: There is neither a folder nor an `architecture`, its files cannot be read, the
                weights do not fit the configuration, or the class is unknown.
        """
        from textmill.models.encoder import Encoder

        silence_transformers()
        architecture = self._architecture(pretrained)
        backbone_class, options = _backbone_class(architecture)
        if pretrained is not None and (pretrained / WEIGHTS_FILE).is_file():
            backbone = _load(backbone_class, architecture, pretrained, options)
            _keep_layers(backbone, self.config.layers)
            _keep_units(backbone, self.config.feed_forward)
        else:
            if self.config.layers is not None:
                architecture.num_hidden_layers = len(self.config.layers)
            if self.config.feed_forward is not None:
                architecture.intermediate_size = self.config.feed_forward
            backbone = backbone_class._from_config(architecture, attn_implementation=_attention(), **options)
        if self.config.lora is not None:
            add_adapters(backbone, self.config.lora)
        encoder = Encoder(backbone, pooling=self.config.pooling, head_dropout=self.config.dropout)
        for group in encoder.layer_groups()[: self.config.frozen_groups]:
            for parameter in group:
                parameter.requires_grad_(False)
        return encoder

    def _architecture(self, pretrained: Path | None) -> Any:
        from transformers import AutoConfig

        if pretrained is not None and (pretrained / CONFIG_FILE).is_file():
            try:
                architecture = AutoConfig.from_pretrained(pretrained, **FROM_FOLDER)  # local  # nosec B615
            except (OSError, ValueError, KeyError) as error:
                message = f"not a configuration that transformers knows ({first_line(error)})"
                fix = "Choose another `pretrained` in conf/model/"
                raise UserError(message, where=str(pretrained / CONFIG_FILE), fix=fix) from error
        elif self.config.architecture is not None:
            values = dict(self.config.architecture)
            try:
                architecture = AutoConfig.for_model(values.pop("model_type", "bert"), **values)
            except (ValueError, TypeError) as error:
                raise UserError(first_line(error), where="model.architecture") from error
        else:
            raise UserError(
                "no pretrained weights and no architecture to train from scratch",
                where=str(pretrained / CONFIG_FILE) if pretrained is not None else "model",
                fix="Set `pretrained` or `architecture` in conf/model/",
            )
        _set_first(architecture, _HIDDEN_DROPOUT, self.config.hidden_dropout)
        _set_first(architecture, _ATTENTION_DROPOUT, self.config.attention_dropout)
        return architecture


def silence_transformers() -> None:
    """Turn off the library's progress bars and its warnings about weights that are deliberately not loaded."""
    from transformers.utils import logging

    library: Any = logging
    library.set_verbosity_error()
    library.disable_progress_bar()


def _backbone_class(architecture: Any) -> tuple[Any, dict[str, Any]]:
    """Return the library's class for a configuration, and options that omit a pooling layer."""
    from transformers import MODEL_MAPPING

    try:
        classes = MODEL_MAPPING[type(architecture)]
    except KeyError as error:
        raise UserError(f"transformers has no encoder for {architecture.model_type!r}", where="model") from error
    backbone_class: Any = classes[0] if isinstance(classes, list | tuple) else classes
    has_pooler = "add_pooling_layer" in inspect.signature(backbone_class).parameters
    return backbone_class, {"add_pooling_layer": False} if has_pooler else {}


def _load(backbone_class: Any, architecture: Any, folder: Path, options: dict[str, Any]) -> Any:
    """Load weights from a folder; every parameter must be there in the right shape."""
    import torch
    from safetensors import SafetensorError

    from textmill.models.heads_to_transformers import restore_states

    try:
        backbone, report = backbone_class.from_pretrained(
            folder,
            config=architecture,
            attn_implementation=_attention(),
            dtype=torch.float32,
            **FROM_FOLDER,
            output_loading_info=True,
            **options,
        )
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        message = f"the weights do not fit the architecture in {CONFIG_FILE} ({first_line(error)})"
        fix = "Fetch them again, or choose another `pretrained` in conf/model/"
        raise UserError(message, where=str(folder / WEIGHTS_FILE), fix=fix) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"the weights do not fit the architecture in {CONFIG_FILE}: {len(missing)} are missing, {missing[0]} first",
            where=str(folder / WEIGHTS_FILE),
            fix="Choose another `pretrained` in conf/model/",
        )
    return restore_states(backbone)


def _keep_layers(backbone: Any, layers: list[int] | None) -> None:
    """Keep some layers of a loaded backbone, as a student begins (Sanh et al. 2019, "DistilBERT")."""
    import torch

    if layers is None:
        return
    stack = _layers_of(backbone, "model.layers")
    if max(layers) >= len(stack):
        what = f"the encoder has layers 0 to {len(stack) - 1}"
        raise UserError(what, where="model.layers", fix="Choose from these, or remove it")
    backbone.encoder.layer = torch.nn.ModuleList([stack[number] for number in layers])
    backbone.config.num_hidden_layers = len(layers)


def _keep_units(backbone: Any, count: int | None) -> None:
    """Keep the units of each feed-forward network whose weights in and out have the largest product of norms."""
    import torch

    if count is None:
        return
    for layer in _layers_of(backbone, "model.feed_forward"):
        before, after = layer.intermediate.dense, layer.output.dense
        if count > before.out_features:
            what = f"the encoder's feed-forward networks have {before.out_features} units"
            raise UserError(what, where="model.feed_forward", fix="Choose at most so many, or remove it")
        strength = before.weight.norm(dim=1) * after.weight.norm(dim=0)
        kept = strength.topk(count).indices.sort().values
        before.weight = torch.nn.Parameter(before.weight.detach()[kept])
        before.bias = torch.nn.Parameter(before.bias.detach()[kept])
        after.weight = torch.nn.Parameter(after.weight.detach()[:, kept])
        before.out_features = after.in_features = count
    backbone.config.intermediate_size = count


def _layers_of(backbone: Any, where: str) -> Any:
    """Return the layers of a backbone that is built as BERT."""
    stack = getattr(getattr(backbone, "encoder", None), "layer", None)
    if stack is None or not hasattr(stack[0], "intermediate"):
        fix = "Remove it, or choose an encoder such as BERT or MiniLM"
        raise UserError(f"a {backbone.config.model_type} encoder cannot be reduced", where=where, fix=fix)
    return stack


def _set_first(architecture: Any, names: tuple[str, ...], value: float | None) -> None:
    """Set the first of `names`, synonyms in different models, that the architecture has."""
    if value is None:
        return
    for name in names:
        if hasattr(architecture, name):
            setattr(architecture, name, value)
            return


def _attention() -> str:
    """Return transformers' name of the attention kernel that trains fastest on this device.

    On CPUs the backward pass of PyTorch's fused attention is slower than that of the plain product
    for texts of a few dozen tokens (229 ms against 133 ms for a step of MiniLM on 2 cores).
    """
    import torch

    return "sdpa" if torch.cuda.is_available() else "eager"
