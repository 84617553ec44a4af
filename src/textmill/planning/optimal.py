"""Size and data of the language model with the least loss for a budget of operations.

Loss: L(N, D) = E + A / N^alpha + B / D^beta for N parameters and D tokens (Hoffmann et al. 2022, "Training
Compute-Optimal Large Language Models", approach 3), with C = 6 N D operations.
"""

from __future__ import annotations

from dataclasses import dataclass

_FITTED_AT = 1e21
"""Operations about which an error of the exponent turns: the runs of the fit have 1e18 to 1e22 or a little more."""
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Fit:
    """A fit of the loss.

    Attributes:
        source: Publication.
        e: Loss of an endless model on endless data, in nats a token.
        a: Factor of the term of the parameters.
        b: Factor of the term of the tokens.
        alpha: Exponent of the parameters.
        beta: Exponent of the tokens.
        exponent_error: Standard error of the optimal size's exponent, beta / (alpha + beta); None if unknown.
    """

    source: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float
    exponent_error: float | None = None

    @property
    def exponent(self) -> float:
        """Exponent of the optimal size: N grows as C to this power."""
        return self.beta / (self.alpha + self.beta)

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the predicted loss, in nats a token of the fit's own data and vocabulary."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def size(self, flops: float) -> float:
        """Return the optimal number of parameters for a budget."""
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        return float(ratio * (flops / 6) ** self.exponent)


HOFFMANN = Fit("Hoffmann et al. 2022, approach 3", 1.6934, 406.4, 410.7, 0.3392, 0.2849)
BESIROGLU = Fit("Besiroglu et al. 2024, refit of approach 3", 1.8172, 482.01, 2085.43, 0.3478, 0.3658, 0.02)
"""Standard errors: E 0.03, A 124.58, B 1293.23, alpha 0.02, beta 0.02. The original's intervals are too narrow, and
its exponents contradict its approaches 1 and 2; the refit's agree with them."""


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal model for a budget.

    Attributes:
        flops: Budget.
        parameters: Optimal number of parameters.
        parameters_low: Lower end of its 95 % interval.
        parameters_high: Upper end.
        tokens: Optimal number of tokens.
        tokens_low: Lower end of its 95 % interval.
        tokens_high: Upper end.
        source: The fit.
        original_parameters: Optimal number of parameters by the original fit.
        original_tokens: Optimal number of tokens by the original fit.
    """

    flops: float
    parameters: float
    parameters_low: float
    parameters_high: float
    tokens: float
    tokens_low: float
    tokens_high: float
    source: str
    original_parameters: float
    original_tokens: float


def optimum(flops: float, fit: Fit = BESIROGLU, original: Fit = HOFFMANN) -> Optimum:
    """Return the optimal size and data for a budget, with the 95 % interval from the error of the exponent.

    The interval widens with the distance of the budget from those of the fitted runs.
    """
    size = fit.size(flops)
    distance = _NORMAL_95 * (fit.exponent_error or 0.0)
    spread = max(flops / _FITTED_AT, _FITTED_AT / flops) ** distance
    other = original.size(flops)
    return Optimum(
        flops,
        size, size / spread, size * spread,
        flops / 6 / size, flops / 6 / (size * spread), flops / 6 / (size / spread),
        fit.source, other, flops / 6 / other,
    )  # fmt: skip
