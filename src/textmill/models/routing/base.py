"""Base classes of the routers, which choose the experts of each token and their weights."""

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
from textmill.models.ranks import before_this_rank, rank_count
from textmill.models.routing.assignment import Assignment, sort_and_group
from textmill.models.routing.losses import load_balancing_loss, router_z_loss

Coefficient = Annotated[float, Field(ge=0)]
ExpertsPerToken = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Routing:
    """Result of a router for one batch.

    Attributes:
        assignment: The chosen pairs of token and expert.
        probabilities: Probability of each expert, (N, E), for monitoring; None if the router has none.
        losses: Terms of the training loss, by name, multiplied by their coefficients; means over the tokens.
        balance: Products (E,) whose sum, weighted by the experts' shares of the load, is the term
            `load_balancing`; None without it. The load may be that of a larger batch of which this is a part.
    """

    assignment: Assignment
    probabilities: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    balance: Tensor | None = None


@dataclass(frozen=True)
class TokenRule:
    """Rule for single tokens in evaluation, with which other libraries can run the model.

    The k highest scores (`softmax` or `sigmoid` of the logits) are the weights, with `normalised`
    divided by their sum.
    """

    k: int
    score: str
    normalised: bool


class Router(nn.Module, Plugin):
    """Choose among `n_experts` for states of `width`; a plugin chosen in `conf/router/`.

    Attributes:
        looks_ahead: Whether in training a token's experts also depend on later tokens, which leaks a
            little of the future into the training loss. In evaluation such a router decides for each
            token alone, so that metrics are valid and text can be generated, unless
            `causal_in_evaluation` is False.
        causal_in_evaluation: Whether in evaluation a token's experts and output depend on no other token.
        assigns_batch: Whether in training the tokens of a batch are assigned together, so that a batch
            cannot be routed in parts.
        load: Load (E,) of the last training batch, without gradient; None before the first.
        idle: Whether the tokens of the batch do not count, because this rank has no rows of it.
        before: Load (E,) of the earlier micro-batches of the step, of this rank; None at the first.
        step_load: Load (E,) of the whole step: all its micro-batches on all ranks; None if unknown.
        step_tokens: Number of tokens of all micro-batches of the step on all ranks; None: those of the batch.
    """

    looks_ahead: ClassVar[bool] = False
    causal_in_evaluation: ClassVar[bool] = True
    assigns_batch: ClassVar[bool] = False
    load: Tensor | None = None
    idle: bool = False
    before: Tensor | None = None
    step_load: Tensor | None = None
    step_tokens: int | None = None

    def __init__(self, config: Any, width: int, n_experts: int, layer: int) -> None:  # noqa: ARG002 - subclasses use them
        nn.Module.__init__(self)
        Plugin.__init__(self, config)
        self.n_experts = n_experts

    @property
    def experts_per_token(self) -> float:
        """Mean number of experts of a token: the option `k`, or 1 without one."""
        return float(getattr(self.config, "k", 1))

    @property
    def balances_by_loss(self) -> bool:
        """Whether a term of the loss depends on the load of the whole step."""
        return False

    @property
    def token_rule(self) -> TokenRule | None:
        """Rule of evaluation; None if it is not a function of the router's logits alone."""
        return None

    @abstractmethod
    def forward(self, states: Tensor, token_ids: Tensor, capacity_factor: float | None) -> Routing:
        """Route states (B, T, D) of tokens with ids (B, T).

        `capacity_factor` limits the load of an expert, see `ExpertsConfig`; None drops no tokens.
        """

    def capacity(self, n_tokens: int, factor: float | None) -> int | None:
        """Return the maximum tokens of an expert for `n_tokens`, or for those of the whole step where known."""
        if factor is None:
            return None
        return max(1, math.ceil(factor * self.experts_per_token * (self.step_tokens or n_tokens) / self.n_experts))

    def group(self, experts: Tensor, weights: Tensor, capacity_factor: float | None) -> Assignment:
        """Group tokens by their experts (N, k), with weights (N, k); full experts drop the last tokens."""
        capacity = self.capacity(len(experts), capacity_factor)
        before = self.before
        if capacity is not None and rank_count() > 1:  # the rows of the ranks before this one come first
            load = torch.bincount(experts.flatten(), minlength=self.n_experts) * (not self.idle)
            before = before_this_rank(torch.zeros_like(load) if before is None else before.to(load.dtype), load)
        return sort_and_group(experts, weights, self.n_experts, capacity, before)

    def update(self, load: Tensor) -> None:
        """Adapt to the load (E,) of a step: all its micro-batches on all ranks. Training calls it after the step."""


class GatedRouter(Router):
    """A router with a linear gate that scores the experts of each token."""

    class Config(Section):
        """Coefficients of the load-balancing loss, `balance`, and of the router z-loss, `z`."""

        balance: Coefficient = 0.01
        z: Coefficient = 0.001

    def __init__(self, config: Any, width: int, n_experts: int, layer: int) -> None:
        super().__init__(config, width, n_experts, layer)
        self.gate = nn.Linear(width, n_experts, bias=False)

    @property
    def balances_by_loss(self) -> bool:
        """Whether the coefficient of the load-balancing loss is not zero."""
        return bool(self.config.balance)

    def logits(self, states: Tensor) -> Tensor:
        """Return the scores (N, E) of states (B, T, D), always in float32 (Fedus et al. 2021)."""
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
        """Return the routing of tokens that have chosen their experts (N, k) with weights (N, k)."""
        assignment = self.group(experts, weights, capacity_factor)
        return self.with_losses(assignment, logits, probabilities)

    def with_losses(self, assignment: Assignment, logits: Tensor, probabilities: Tensor) -> Routing:
        """Return the routing with its loss terms."""
        balance = None
        if self.training and self.config.balance:
            balance = self.config.balance * self.n_experts * probabilities.mean(dim=0)
        return Routing(assignment, probabilities, self.losses(logits, probabilities, assignment.load), balance)

    def losses(self, logits: Tensor, probabilities: Tensor, load: Tensor) -> dict[str, Tensor]:
        """Return the loss terms whose coefficients are not zero."""
        terms: dict[str, Tensor] = {}
        if not self.training:
            return terms
        if self.config.balance:
            terms["load_balancing"] = self.config.balance * load_balancing_loss(probabilities, load)
        if self.config.z:
            terms["router_z"] = self.config.z * router_z_loss(logits)
        return terms


def build_router(spec: Mapping[str, Any], width: int, n_experts: int, layer: int) -> Router:
    """Build the router of a plugin's options.

    Raises:
        UserError: The class does not exist.
        pydantic.ValidationError: An option is invalid.
    """
    options = dict(spec)
    router = Router.find(str(options.pop(TARGET, "")))
    return router(router.Config.model_validate(options), width, n_experts, layer)
