"""The best passage of a text by the scores of its tokens, over one or several windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spans:
    """The best passage of each row, whether or not it should be given. All of shape (rows,).

    Attributes:
        start: Position of its first character in the text; 0 where there is no passage.
        end: Position after its last one; 0 where there is no passage.
        score: Sum of the logits of its first and its last token.
        null: The same sum of the token that stands for no answer, the least over the row's windows.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    score: NDArray[np.float64]
    null: NDArray[np.float64]

    @property
    def margin(self) -> NDArray[np.float64]:
        """By how much the passage is preferred to no answer, shape (rows,)."""
        return self.score - self.null


def best_spans(
    start_logits: NDArray[np.float32],
    end_logits: NDArray[np.float32],
    window_lengths: Sequence[Sequence[int]],
    token_starts: Sequence[Sequence[int]],
    token_ends: Sequence[Sequence[int]],
    longest: int,
) -> Spans:
    """The best passage of each row over all its windows, and the score of "no answer" (Devlin et al. 2019).

    Args:
        start_logits: Of the windows, row after row, NaN at padding; shape (windows, T).
        end_logits: The same for the last token.
        window_lengths: Tokens of each window of each row.
        token_starts: For each row the first character of each token of all its windows, -1 for
            tokens that are no part of the text.
        token_ends: The position after the last one.
        longest: Tokens of a passage at most.
    """
    counts = np.array([len(lengths) for lengths in window_lengths], np.int64)
    shape = start_logits.shape
    lengths = np.fromiter((length for row in window_lengths for length in row), np.int64, shape[0])
    inside = np.arange(shape[1]) < lengths[:, None]
    begins, stops = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    begins[inside] = _flat(token_starts)
    stops[inside] = _flat(token_ends)
    usable = begins >= 0
    starts = np.where(usable, start_logits, -np.inf).astype(np.float64)
    ends = np.where(usable, end_logits, -np.inf).astype(np.float64)
    windows = np.arange(shape[0])
    score, first, last = np.full(shape[0], -np.inf), np.zeros(shape[0], np.int64), np.zeros(shape[0], np.int64)
    for distance in range(min(longest, shape[1])):
        sums = starts[:, : shape[1] - distance] + ends[:, distance:]
        place = sums.argmax(axis=1)
        found = sums[windows, place]
        better = found > score
        score[better], first[better], last[better] = found[better], place[better], place[better] + distance
    # The best window of each row: a stable order by row and falling score, of which the first is taken
    row = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((windows, -score, row))
    best = order[np.cumsum(counts) - counts]
    null = np.minimum.reduceat(start_logits[:, 0].astype(np.float64) + end_logits[:, 0], np.cumsum(counts) - counts)
    none = ~np.isfinite(score[best])  # a text without tokens
    return Spans(
        start=np.where(none, 0, begins[best, first[best]]),
        end=np.where(none, 0, stops[best, last[best]]),
        score=np.where(none, null - 1, score[best]),
        null=null,
    )


def best_margin(margin: NDArray[np.float64], answered: NDArray[np.float64], declined: NDArray[np.float64]) -> float:
    """The margin above which the passage should be given, so that the mean figure is highest.

    Args:
        margin: Of each row, shape (rows,).
        answered: The figure of each row if its passage is given.
        declined: The figure if it is not.

    Returns:
        Halfway between two rows' margins; beyond the outermost where all or none should be given.
    """
    order = np.argsort(-margin, kind="stable")
    gains = np.concatenate([[0.0], np.cumsum((answered - declined)[order])])
    ranked = margin[order]
    # between equal margins no line can be drawn
    possible = np.concatenate([[True], ranked[1:] < ranked[:-1], [True]])
    best = int(np.flatnonzero(possible)[gains[possible].argmax()])
    if best == 0:
        return float(ranked[0] + 1)
    if best == len(ranked):
        return float(ranked[-1] - 1)
    return float((ranked[best - 1] + ranked[best]) / 2)


def cross_entropy(logits: NDArray[np.float32], targets: Sequence[int]) -> float:
    """Mean over windows of the negative log-likelihood of one token each.

    Args:
        logits: NaN at padding, shape (windows, T).
        targets: The token of each window.
    """
    from scipy.special import logsumexp

    values = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    return float((logsumexp(values, axis=1) - values[np.arange(len(values)), np.asarray(targets, np.intp)]).mean())


def _flat(values: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(row, np.int64) for row in values])
