"""Every expert gets the same number of tokens, assigned as well as can be."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from textmill.models.routing.assignment import sort_and_group
from textmill.models.routing.base import Coefficient, GatedRouter, Routing


class Base(GatedRouter):
    """Balanced assignment of experts: maximise the sum of scores (Lewis et al. 2021, "BASE layers").

    In training the linear assignment problem is solved for `group` tokens at a time, on the CPU;
    the solution depends on later tokens. In evaluation each token takes its best expert, as in
    the paper. The weight is the sigmoid of the score.
    """

    looks_ahead = True

    class Config(GatedRouter.Config):
        """Options.

        Attributes:
            group: Tokens that are assigned together; the time grows faster than their number.
        """

        group: Annotated[int, Field(ge=2)] = 256
        balance: Coefficient = 0.0
        z: Coefficient = 0.0

    config: Config

    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:  # noqa: ARG002
        """Route; see `Router.forward`."""
        logits = self.logits(states)
        if self.training:
            groups = torch.split(logits.detach().cpu(), self.config.group)
            chosen = np.concatenate([balanced_assignment(scores.numpy()) for scores in groups])
            experts = torch.from_numpy(chosen).to(logits.device)[:, None]
        else:
            experts = logits.argmax(dim=-1, keepdim=True)
        weights = logits.gather(1, experts).sigmoid()
        capacity = self.capacity(len(logits), capacity_factor)
        assignment = sort_and_group(experts, weights, self.n_experts, capacity)
        probabilities = logits.softmax(dim=-1)
        return Routing(assignment, probabilities, self.losses(logits, probabilities, assignment.load))


def balanced_assignment(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """The expert of each token, (N,), that maximises the sum of scores (N, E) with at most ⌈N / E⌉ tokens each."""
    from scipy.optimize import linear_sum_assignment

    n_tokens, n_experts = scores.shape
    places = -(-n_tokens // n_experts)
    _, columns = linear_sum_assignment(np.repeat(scores, places, axis=1), maximize=True)
    experts: NDArray[np.intp] = columns // places
    return experts
