"""Losses over unit vectors (B, D) of text pairs, computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss


def in_batch_contrast(
    first: Tensor, second: Tensor, scale: float, *, symmetric: bool, same: Tensor | None = None
) -> Tensor:
    """Contrast each text's partner with those of all other rows of the batch (InfoNCE; van den Oord et al. 2018).

    sentence-transformers calls it multiple negatives ranking (Henderson et al. 2017). The cosines
    are multiplied by `scale`, the inverse temperature. With `symmetric`, partners are also queries,
    and the result is the mean of both losses. `same` (B, B) is true where the partner of another row is
    right too, since a text of the two rows is the same; it is then no negative.
    """
    scores = scale * first.float() @ second.float().T
    if same is not None:
        others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        scores = scores.masked_fill(others, -torch.inf)
    own = torch.arange(len(scores), device=scores.device)
    loss = cross_entropy(scores, own)
    return (loss + cross_entropy(scores.T, own)) / 2 if symmetric else loss


def cosent(cosines: Tensor, scores: Tensor, scale: float) -> Tensor:
    """CoSENT (Su 2022): pairs with a higher score should have a higher cosine; both (B,).

    log(1 + sum of exp(scale * (cos_j - cos_i)) over all i, j with score_i > score_j)
    """
    differences = scale * (cosines.float()[None, :] - cosines.float()[:, None])
    wrong_way = differences[scores[:, None] > scores[None, :]]
    return torch.cat([wrong_way.new_zeros(1), wrong_way]).logsumexp(dim=0)


def cosine_regression(cosines: Tensor, scores: Tensor) -> Tensor:
    """Return the mean squared difference of cosine and score, both (B,); scores are between 0 and 1."""
    return mse_loss(cosines.float(), scores.float())
