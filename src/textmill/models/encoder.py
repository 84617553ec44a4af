"""A backbone of the transformers library as an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from textmill.errors import UserError


class Encoder(nn.Module):
    """Give a backbone, whose output has `last_hidden_state`, the interface of `Model.build_encoder`.

    Attributes:
        hidden_size: Width D of the hidden states.
        positions: Number of learned positions; None without a limit.
        pooling: How heads pool the token vectors of a text: `mean` or `cls`.
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
        """The backbone's configuration, written to `config.json`."""
        return self.backbone.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return hidden states (B, T, D) of token ids (B, T); the mask is 1 at tokens and 0 at padding.

        Raises:
            UserError: The input has more tokens than the model has positions.
        """
        # A traced graph cannot branch; `export` stores the limit with it
        if self.positions is not None and not torch.compiler.is_compiling() and input_ids.size(1) > self.positions:
            fix = f"Set prepare.max_length to at most {self.positions}"
            raise UserError(f"{input_ids.size(1)} tokens do not fit the model's {self.positions} positions", fix=fix)
        states: Tensor = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters from the input upwards: those before the layers, then layer by layer.

        Parameters after the last layer (a final norm) belong to its group.
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


def keep_tokens(network: nn.Module, kept: list[int]) -> None:
    """Reduce the vocabulary of each encoder in a network to the rows `kept` of its embedding, in their order."""
    for encoder in [module for module in network.modules() if isinstance(module, Encoder)]:
        old = encoder.backbone.get_input_embeddings()
        first = kept.index(old.padding_idx) if old.padding_idx in kept else None
        new = nn.Embedding(len(kept), old.embedding_dim, first, device=old.weight.device, dtype=old.weight.dtype)
        with torch.no_grad():
            new.weight.copy_(old.weight[kept])
        new.weight.requires_grad_(old.weight.requires_grad)
        encoder.backbone.set_input_embeddings(new)
        encoder.config.vocab_size = len(kept)


def _learned_positions(backbone: nn.Module) -> int | None:
    """Return the number of BERT's learned positions, without those before the first token (RoBERTa)."""
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def pool(states: Tensor, attention_mask: Tensor, how: str) -> Tensor:
    """Pool hidden states (B, T, D) of texts into vectors (B, D): their mean, or the first token's (`cls`)."""
    if how == "cls":
        return states[:, 0]
    mask = attention_mask.to(states.dtype).unsqueeze(-1)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=torch.finfo(states.dtype).tiny)


def linear_head(width: int, n_outputs: int) -> nn.Linear:
    """Return a linear output layer, initialised as in BERT: weights of deviation 0.02, biases 0."""
    layer = nn.Linear(width, n_outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
