"""A test that may be looked at after each observation: betting against "the mean is at most zero".

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2023. The capital of
a gambler who bets a share `b` on each difference `d` in [-1, 1] is the product of `1 + b d`. While the mean of
each difference, given those before, is at most zero, the expected capital does not grow. By Ville's inequality it
ever reaches `1 / a` with a probability of at most `a`: looking at any time and stopping early costs nothing.
"""

from __future__ import annotations

import math

# Two models that disagree on q rows, one of them worse by g, are told apart fastest by the share g / q. It is
# unknown, so the stake is divided: large shares for rare disagreements, small ones for frequent.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.95)


class BettingTest:
    """Evidence that the mean of differences in [-1, 1] is above zero.

    Args:
        false_alarms: Probability that `alarm` is ever set although the mean is at most zero.
    """

    def __init__(self, false_alarms: float) -> None:
        self.threshold = 1 / false_alarms
        self.count = 0
        self.total = 0.0
        self.alarm = False
        self._capital = [0.0] * len(_SHARES)  # logarithms

    @property
    def evidence(self) -> float:
        """Return the capital: 1 at the beginning, `threshold` for an alarm."""
        most = max(self._capital)
        return math.exp(min(most, 300.0)) * sum(math.exp(each - most) for each in self._capital) / len(_SHARES)

    @property
    def mean(self) -> float:
        """Return the mean of the differences, 0 without any."""
        return self.total / self.count if self.count else 0.0

    def add(self, difference: float) -> bool:
        """Add a difference in [-1, 1]; return whether there was an alarm by now. An alarm stays."""
        self.count += 1
        self.total += difference
        if difference:
            self._capital = [
                each + math.log1p(share * difference) for each, share in zip(self._capital, _SHARES, strict=True)
            ]
            self.alarm = self.alarm or self.evidence >= self.threshold
        return self.alarm
