"""Muon: momentum whose update is made orthogonal (Jordan et al. 2024), beside AdamW for the rest.

Reference: https://kellerjordan.github.io/posts/muon/; scaled to large models in Liu et al. 2025,
"Muon is Scalable for LLM Training". `torch.optim.Muon` takes one matrix at a time and matrices only;
here matrices of one shape are orthogonalised together, stacks of experts' matrices are taken as they
are, and the other parameters take their AdamW step in the same optimizer, so that one schedule, one
state and one checkpoint hold them all. `tests/model/test_muon.py` holds the steps equal to PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ORTHOGONAL = "orthogonal"
"""Key of a parameter group: whether its members, matrices or stacks of matrices, step by Muon."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_SMALLEST_NORM = 1e-7


def orthogonalise(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T, by five steps of a quintic Newton-Schulz iteration.

    Singular values end between 0.7 and 1.2 or so, which is as good as 1 for an update. Computed in
    bfloat16, whose range the iteration needs and whose precision suffices.

    Args:
        matrices: Shape (N, rows, columns).
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.bfloat16()
    found = found.mT if tall else found
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(_STEPS):
        gram = found @ found.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, polynomial, found, beta=a)
    return found.mT if tall else found


class Muon(torch.optim.AdamW):
    """AdamW in which groups marked `ORTHOGONAL` step by Muon instead.

    A matrix's update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the root mean square
    of an AdamW update (Liu et al. 2025): learning rates and weight decay of AdamW fit both.

    Args:
        groups: Parameter groups; those with `ORTHOGONAL` true hold tensors of two dimensions or more.
        lr: Learning rate of groups that name none.
        momentum: Of Muon; Nesterov's.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Decoupled, of groups that name none.
        fused: AdamW's fused kernel.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        fused: bool = True,
    ) -> None:
        marked = [{ORTHOGONAL: False, **group} for group in groups]
        super().__init__(marked, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        everything = self.param_groups
        for group in everything:
            if group[ORTHOGONAL]:
                self._step_orthogonal(group)
        self.param_groups = [group for group in everything if not group[ORTHOGONAL]]
        try:
            super().step()
        finally:
            self.param_groups = everything
        return loss

    def _step_orthogonal(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape[-2:], []).append(parameter)
        for (rows, columns), parameters in by_shape.items():
            directions = [self._direction(parameter).view(-1, rows, columns) for parameter in parameters]
            updates = torch.split(orthogonalise(torch.cat(directions)), [len(one) for one in directions])
            rate = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.add_(update.view_as(parameter), alpha=-rate)

    def _direction(self, parameter: Tensor) -> Tensor:
        """The gradient led on by Nesterov's momentum."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            # AdamW, which loads all states, looks for the steps in each of them.
            state["step"] = torch.zeros((), dtype=torch.float32, device=gradient.device)
            state["momentum"] = torch.zeros_like(gradient)
        state["step"] += 1
        average: Tensor = state["momentum"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(average, self.momentum)
