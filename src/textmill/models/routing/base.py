"""What every router answers: which tokens go to which experts, and with what weight."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from pydantic import Field
from torch import Tensor, nn

from textmill.config.plugins import TARGET, Plugin
from textmill.config.section import Section
from textmill.models.routing.assignment import Assignment, sort_and_group
from textmill.models.routing.losses import load_balancing_loss, router_z_loss

Coefficient = Annotated[float, Field(ge=0)]
ExpertsPerToken = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Routing:
    """A router's answer for one batch.

    Attributes:
        assignment: Which token goes where.
        probabilities: What the router thought of each expert, (N, E), to be watched; None where
            it does not think.
        losses: Terms of the training loss, by name, multiplied by their coefficients.
    """

    assignment: Assignment
    probabilities: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenRule:
    """How a token alone decides in evaluation: the rule by which other libraries can run the model.

    Attributes:
        k: Experts of a token, those with the largest scores.
        score: `softmax` or `sigmoid` of the logits.
        normalised: Whether the k scores are divided by their sum.
    """

    k: int
    score: str
    normalised: bool


class Router(nn.Module, Plugin):
    """Chooses experts for tokens; a plugin chosen in `conf/router/`.

    Args:
        config: Its options.
        width: Of the hidden states, D.
        n_experts: E.
        layer: Counted from 0.

    Attributes:
        looks_ahead: In training, where a token goes depends on later tokens too, which leaks a
            little of the future into the training loss. In evaluation such a router decides for
            each token alone, so that figures are honest and text can be generated, unless
            `causal_in_evaluation` says that it cannot.
        causal_in_evaluation: Whether in evaluation a token's experts and output depend on no other token.
    """

    looks_ahead: ClassVar[bool] = False
    causal_in_evaluation: ClassVar[bool] = True

    def __init__(self, config: Any, width: int, n_experts: int, layer: int) -> None:  # noqa: ARG002 - subclasses use them
        nn.Module.__init__(self)
        Plugin.__init__(self, config)
        self.n_experts = n_experts

    @property
    def experts_per_token(self) -> float:
        """Experts that a token passes, on average."""
        return 1.0

    @property
    def token_rule(self) -> TokenRule | None:
        """The rule of evaluation, or None where it is no function of the router's logits alone."""
        return None

    @abstractmethod
    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:
        """Route states (B, T, D) of tokens with ids (B, T).

        `capacity_factor` limits what an expert takes, see `ExpertsConfig`; None drops nothing.
        """

    def capacity(self, n_tokens: int, factor: float | None) -> int | None:
        """Most tokens that an expert takes of `n_tokens`."""
        if factor is None:
            return None
        return max(1, math.ceil(factor * self.experts_per_token * n_tokens / self.n_experts))

    def update(self, load: Tensor) -> None:
        """Adapt to the load (E,) of a training step; called once after it."""


class GatedRouter(Router):
    """A router with a linear gate that scores the experts for each token."""

    class Config(Section):
        """Options.

        Attributes:
            balance: Coefficient of the load-balancing loss.
            z: Coefficient of the router z-loss.
        """

        balance: Coefficient = 0.01
        z: Coefficient = 0.001

    def __init__(self, config: Any, width: int, n_experts: int, layer: int) -> None:
        super().__init__(config, width, n_experts, layer)
        self.gate = nn.Linear(width, n_experts, bias=False)

    def logits(self, states: Tensor) -> Tensor:
        """Scores (N, E) of states (B, T, D), in float32 whatever the precision (Fedus et al. 2021)."""
        with torch.autocast(states.device.type, enabled=False):
            return F.linear(states.flatten(0, 1).float(), self.gate.weight.float())

    def routing(
        self,
        experts: Tensor,
        weights: Tensor,
        logits: Tensor,
        probabilities: Tensor,
        capacity_factor: float | None,
    ) -> Routing:
        """The answer when each token has chosen its experts (N, k) with weights (N, k)."""
        capacity = self.capacity(len(logits), capacity_factor)
        assignment = sort_and_group(experts, weights, self.n_experts, capacity)
        return Routing(assignment, probabilities, self.losses(logits, probabilities, assignment.load))

    def losses(self, logits: Tensor, probabilities: Tensor, load: Tensor) -> dict[str, Tensor]:
        """Those loss terms whose coefficients are not zero."""
        terms: dict[str, Tensor] = {}
        if not self.training:
            return terms
        if self.config.balance:
            terms["load_balancing"] = self.config.balance * load_balancing_loss(probabilities, load)
        if self.config.z:
            terms["router_z"] = self.config.z * router_z_loss(logits)
        return terms


def build_router(spec: Mapping[str, Any], width: int, n_experts: int, layer: int) -> Router:
    """The router that a plugin's options name.

    Raises:
        UserError: There is no such class.
        pydantic.ValidationError: An option is wrong.
    """
    options = dict(spec)
    router = Router.find(str(options.pop(TARGET, "")))
    return router(router.Config.model_validate(options), width, n_experts, layer)
