"""Attention within the documents of packed rows, in memory that grows with the length and not with its square."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


@dataclass(frozen=True)
class Documents:
    """The documents of packed rows, in groups of similar length.

    Attributes:
        groups: For each group, the places (N, L) of its documents' tokens in the rows one after the other; a shorter
            document repeats its last token, which causal attention of its other tokens does not see.
        slots: The place of each token (B·T) in the groups one after the other.
    """

    groups: list[Tensor]
    slots: Tensor


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the number and sizes of groups differ between batches
def group_documents(document_ids: Tensor) -> Documents:
    """Group the documents of rows (B, T); the longest of a group is less than twice as long as the shortest.

    Without values, as in a plan, each row counts as one document: as much memory, and at least as many operations.
    """
    if isinstance(document_ids, FakeTensor):
        tokens = torch.arange(document_ids.numel())
        return Documents([tokens.view_as(document_ids)], tokens)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = begins.flatten().nonzero().squeeze(1)
    sizes = torch.diff(starts, append=starts.new_tensor([document_ids.numel()]))
    kinds = torch.frexp(sizes.double()).exponent  # the number of binary digits
    slots = torch.empty(document_ids.numel(), dtype=torch.int64, device=document_ids.device)
    groups: list[Tensor] = []
    offset = 0
    for kind in torch.unique(kinds).tolist():
        start, size = starts[kinds == kind, None], sizes[kinds == kind, None]
        index = torch.arange(int(size.max()), device=starts.device)
        places = start + torch.minimum(index, size - 1)
        own = (index < size).flatten().nonzero().squeeze(1)
        slots[places.flatten()[own]] = offset + own
        groups.append(places)
        offset += places.numel()
    return Documents(groups, slots)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # see above
def attend_within(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    """Compute causal attention within each document by PyTorch's fused kernels, which need no mask for it.

    Args:
        query: (B, H, T, d_k).
        key: (B, K, T, d_k); each key head serves H / K query heads.
        value: (B, K, T, d_v).
        documents: Of the rows.

    Returns:
        (B, H, T, d_v).
    """
    batch, heads, length, _ = query.shape
    tokens = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]
    attended: list[Tensor] = []
    for places in documents.groups:
        chosen = [
            each.index_select(0, places.flatten()).view(*places.shape, *each.shape[1:]).transpose(1, 2)
            for each in tokens
        ]
        output = F.scaled_dot_product_attention(
            chosen[0], chosen[1], chosen[2], is_causal=places.size(1) > 1, enable_gqa=heads != key.size(1)
        )
        attended.append(output.transpose(1, 2).flatten(0, 1))
    output = torch.cat(attended).index_select(0, documents.slots)
    return output.view(batch, length, heads, -1).transpose(1, 2)
