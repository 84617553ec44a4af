"""Losses over the vectors of text pairs, (B, D) and of length 1 each; all are computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss


def in_batch_contrast(first: Tensor, second: Tensor, scale: float, *, symmetric: bool) -> Tensor:
    """Each text's own partner against those of all other rows of the batch (InfoNCE; van den Oord et al. 2018).

    Known to sentence-transformers as multiple negatives ranking (Henderson et al. 2017).

    Args:
        first: Vectors of the texts that look for a partner.
        second: Those of their partners, in the same order.
        scale: The cosines are multiplied by this: the inverse of the temperature.
        symmetric: Whether partners look for their texts too; the mean of both losses.
    """
    scores = scale * first.float() @ second.float().T
    own = torch.arange(len(scores), device=scores.device)
    loss = cross_entropy(scores, own)
    return (loss + cross_entropy(scores.T, own)) / 2 if symmetric else loss


def cosent(cosines: Tensor, scores: Tensor, scale: float) -> Tensor:
    """CoSENT (Su 2022): pairs of a higher score shall have the higher cosine, whatever its size.

    log(1 + sum of exp(scale * (cos_j - cos_i)) over all i, j with score_i > score_j)

    Args:
        cosines: Of each pair, shape (B,).
        scores: Of each pair, shape (B,).
        scale: The cosines are multiplied by this.
    """
    differences = scale * (cosines.float()[None, :] - cosines.float()[:, None])
    wrong_way = differences[scores[:, None] > scores[None, :]]
    return torch.cat([wrong_way.new_zeros(1), wrong_way]).logsumexp(dim=0)


def cosine_regression(cosines: Tensor, scores: Tensor) -> Tensor:
    """Mean squared difference of cosine and score, both (B,); scores lie between 0 and 1."""
    return mse_loss(cosines.float(), scores.float())
