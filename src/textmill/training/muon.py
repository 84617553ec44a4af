"""Muon: momentum with an orthogonalised update (Jordan et al. 2024), and AdamW for the other parameters.

Reference: https://kellerjordan.github.io/posts/muon/; scaled to large models in Liu et al. 2025, "Muon is
Scalable for LLM Training". `torch.optim.Muon` accepts only matrices, one at a time. Here matrices of one shape
are orthogonalised together, and stacks of experts' matrices are accepted. AdamW steps are in the same optimizer,
so that one schedule, one state and one checkpoint serve all. A matrix that is divided over ranks is gathered,
orthogonalised as a whole by each rank, and cut again. `tests/model/test_muon.py` compares with PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from textmill.training.distributed import like, local, whole

ORTHOGONAL = "orthogonal"
"""Key of a parameter group: whether Muon updates its matrices or stacks of matrices."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_SMALLEST_NORM = 1e-7


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return approximately U V^T of each matrix U S V^T, by five steps of a quintic Newton-Schulz iteration.

    The singular values end between about 0.7 and 1.2, which is close enough to 1 for an update. The iteration
    needs the range of bfloat16, and its precision suffices.

    Args:
        matrices: Shape (N, rows, columns).
        dtype: Format of the products: bfloat16, or float32 where that is faster.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    update = matrices.to(dtype)
    update = update.mT if tall else update
    update = update / update.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(_STEPS):
        gram = update @ update.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        update = torch.baddbmm(update, polynomial, update, beta=a)
    return update.mT if tall else update


class Muon(torch.optim.AdamW):
    """AdamW with Muon for groups marked `ORTHOGONAL`.

    The update of a matrix is scaled by 0.2 sqrt(max(rows, columns)), which gives it the root mean square of an
    AdamW update (Liu et al. 2025), so that AdamW's learning rates and weight decay fit both.

    Args:
        groups: Parameter groups; those with `ORTHOGONAL` true hold tensors of two or more dimensions.
        momentum: Nesterov momentum of Muon.
        dtype: Format of the orthogonalisation.
        options: Options of `torch.optim.AdamW`; learning rate and weight decay are those of groups without their own.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
        **options: Any,
    ) -> None:
        super().__init__([{ORTHOGONAL: False, **group} for group in groups], **options)
        self.momentum = momentum
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        all_groups = self.param_groups
        for group in all_groups:
            if group[ORTHOGONAL]:
                self._step_orthogonal(group)
        self.param_groups = [group for group in all_groups if not group[ORTHOGONAL]]
        try:
            super().step()
        finally:
            self.param_groups = all_groups
        return loss

    def _step_orthogonal(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape[-2:], []).append(parameter)
        for (rows, columns), parameters in by_shape.items():
            directions = [whole(self._direction(parameter)).view(-1, rows, columns) for parameter in parameters]
            updates = torch.split(orthogonalise(torch.cat(directions), self.dtype), [len(one) for one in directions])
            rate = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
            torch._foreach_mul_([local(each) for each in parameters], 1 - group["lr"] * group["weight_decay"])
            for parameter, update in zip(parameters, updates, strict=True):
                own = local(like(parameter, update.reshape(parameter.shape)))
                local(parameter).add_(own, alpha=-rate)

    def _direction(self, parameter: Tensor) -> Tensor:
        """Return the gradient with Nesterov momentum."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            # AdamW loads all states and expects the number of steps in each.
            state["step"] = torch.zeros((), dtype=torch.float32, device=gradient.device)
            state["momentum"] = torch.zeros_like(gradient)
        state["step"] += 1
        average: Tensor = state["momentum"].lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(average, self.momentum)
