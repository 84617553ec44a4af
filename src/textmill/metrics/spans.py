"""The best passage of a text by its tokens' scores, over one or several windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spans:
    """The best passage of each row, answer or not. All arrays have shape (rows,).

    Attributes:
        start: Position of the first character in the text; 0 where there is no passage.
        end: Position after the last character; 0 where there is no passage.
        score: Sum of the logits of the first and the last token.
        null: The same sum for the token of "no answer", the lowest of the row's windows.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    score: NDArray[np.float64]
    null: NDArray[np.float64]

    @property
    def margin(self) -> NDArray[np.float64]:
        """Score of the passage above that of no answer, shape (rows,)."""
        return self.score - self.null


def best_spans(
    start_logits: NDArray[np.float32],
    end_logits: NDArray[np.float32],
    window_lengths: Sequence[Sequence[int]],
    token_starts: Sequence[Sequence[int]],
    token_ends: Sequence[Sequence[int]],
    longest: int,
) -> Spans:
    """Return the best passage of each row over its windows, and the score of "no answer" (Devlin et al. 2019).

    Args:
        start_logits: Logits of the first token in each window, row after row, NaN at padding; shape (windows, T).
        end_logits: Logits of the last token, likewise.
        window_lengths: Tokens of each window of each row.
        token_starts: First character of each token of all windows of each row; -1 outside the text.
        token_ends: Position after each token's last character, likewise.
        longest: Largest number of tokens of a passage.
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
        highest = sums[windows, place]
        better = highest > score
        score[better], first[better], last[better] = highest[better], place[better], place[better] + distance
    # The best window of each row is the first in a stable order by row and falling score.
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
    """Return the margin above which to give the passage, so that the mean metric is highest.

    Args:
        margin: Margin of each row, shape (rows,).
        answered: Metric of each row if its passage is given, shape (rows,).
        declined: Metric of each row if it is not, shape (rows,).

    Returns:
        The middle between two rows' margins; beyond the outermost where all or none should be given.
    """
    order = np.argsort(-margin, kind="stable")
    gains = np.concatenate([[0.0], np.cumsum((answered - declined)[order])])
    ranked = margin[order]
    # No threshold separates equal margins.
    possible = np.concatenate([[True], ranked[1:] < ranked[:-1], [True]])
    best = int(np.flatnonzero(possible)[gains[possible].argmax()])
    if best == 0:
        return float(ranked[0] + 1)
    if best == len(ranked):
        return float(ranked[-1] - 1)
    return float((ranked[best - 1] + ranked[best]) / 2)


def cross_entropy(logits: NDArray[np.float32], targets: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of one token of each window.

    Args:
        logits: Logits of each token, NaN at padding, shape (windows, T).
        targets: Position of the token in each window.
    """
    from scipy.special import logsumexp

    values = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    return float((logsumexp(values, axis=1) - values[np.arange(len(values)), np.asarray(targets, np.intp)]).mean())


def _flat(values: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(row, np.int64) for row in values])
