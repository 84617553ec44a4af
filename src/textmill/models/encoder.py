"""A transformers backbone as an encoder: token ids in, hidden states out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from textmill.errors import UserError


class Encoder(nn.Module):
    """Gives a backbone the interface of `Model.build_encoder`.

    Args:
        backbone: A model of the transformers library whose output has `last_hidden_state`.
        pooling: How heads make one vector of a text: `mean` or `cls`.
        head_dropout: What heads drop before their last layer.

    Attributes:
        hidden_size: Width D of the hidden states.
        positions: Tokens for which there are learned positions; None where any number will do.
    """

    def __init__(self, backbone: Any, *, pooling: str = "mean", head_dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone = backbone
        self.hidden_size: int = backbone.config.hidden_size
        self.positions = _learned_positions(backbone)
        self.pooling = pooling
        self.head_dropout = head_dropout

    @property
    def config(self) -> Any:
        """The backbone's own configuration, which `config.json` keeps."""
        return self.backbone.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (B, T, D) of token ids (B, T); the mask is 1 at tokens and 0 at padding.

        Raises:
            UserError: There are not so many positions.
        """
        # A traced graph has no such branch: there `export` gives the limit along.
        if self.positions is not None and not torch.compiler.is_compiling() and input_ids.size(1) > self.positions:
            raise UserError(
                f"{input_ids.size(1)} tokens do not fit the model's {self.positions} positions",
                fix=f"Set prepare.max_length to at most {self.positions}",
            )
        states: Tensor = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters from the input upwards: what comes before the layers, then layer by layer.

        What comes after the last layer (a final norm) belongs to its group.
        """
        stacks = [module for module in self.backbone.modules() if isinstance(module, nn.ModuleList)]
        if not stacks:
            return [list(self.backbone.parameters())]
        layers = max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))
        groups = [list(layer.parameters()) for layer in layers]
        inside = {id(parameter) for group in groups for parameter in group}
        embeddings = {id(p) for m in self.backbone.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        before: list[nn.Parameter] = []
        after: list[nn.Parameter] = []
        seen_layers = False
        for parameter in self.backbone.parameters():
            if id(parameter) in inside:
                seen_layers = True
            elif seen_layers and id(parameter) not in embeddings:
                after.append(parameter)
            else:
                before.append(parameter)
        groups[-1].extend(after)
        return [before, *groups]


def _learned_positions(backbone: nn.Module) -> int | None:
    """Rows of BERT's and its relatives' table of positions, without those before the first token (RoBERTa)."""
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def pool(states: Tensor, attention_mask: Tensor, how: str) -> Tensor:
    """One vector (B, D) a text from hidden states (B, T, D): the mean over its tokens, or the first."""
    if how == "cls":
        return states[:, 0]
    mask = attention_mask.to(states.dtype).unsqueeze(-1)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=torch.finfo(states.dtype).tiny)
