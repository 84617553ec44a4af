"""BLEU and chrF of a set of texts, resampled quickly: counts for each text, summed for each draw.

The counts and the formula over their sums are sacrebleu's own (Post 2018), so that a metric equals the one
that its command prints, with the same signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.metrics.base import Columns, Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLEU, _CHRF = "bleu_count_", "chrf_count_"
_TOKENIZERS = {"zh": "zh"}
"""Sacrebleu's tokenizers for languages without spaces between words."""


def signatures(language: str | None) -> dict[str, str]:
    """Return sacrebleu's names of its settings by metric; `language` decides how BLEU splits words."""
    names = {}
    for name, metric in (("bleu", _bleu(language)), ("chrf", _chrf())):
        metric._extract_corpus_statistics(["a"], [["a"]])  # counts the references, which the signature includes
        names[name] = str(metric.get_signature())
    return names


def count_columns(
    predictions: Sequence[str], references: Sequence[Sequence[str]], language: str | None
) -> dict[str, NDArray[np.int64]]:
    """Return columns of counts for the metrics, one row a text.

    Args:
        predictions: Texts to measure, n of them.
        references: For each reference translator n texts.
        language: ISO 639-1 code of the texts.
    """
    columns: dict[str, NDArray[np.int64]] = {}
    for prefix, metric in ((_BLEU, _bleu(language)), (_CHRF, _chrf())):
        counts = np.asarray(metric._extract_corpus_statistics(list(predictions), [list(of) for of in references]))
        columns |= {f"{prefix}{number}": values.astype(np.int64) for number, values in enumerate(counts.T)}
    return columns


def metrics(language: str | None) -> list[Metric]:
    """Return `bleu` and `chrf`, 0 to 100, over tables with the columns of `count_columns`."""
    bleu, chrf = _bleu(language), _chrf()

    def score_bleu(sums: list[int]) -> float:
        return float(bleu._compute_score_from_stats(sums).score)

    def score_chrf(sums: list[int]) -> float:
        return float(chrf._compute_score_from_stats(sums).score)

    return [_metric("bleu", _BLEU, score_bleu), _metric("chrf", _CHRF, score_chrf)]


def sentence_chrf(columns: Columns) -> NDArray[np.float64]:
    """Return chrF of each text alone, shape (n,)."""
    chrf = _chrf()
    return np.array([chrf._compute_f_score(row) for row in _counts(columns, _CHRF).tolist()])


def _metric(name: str, prefix: str, score: Any) -> Metric:
    def over_draws(columns: Columns, index: NDArray[np.intp]) -> NDArray[np.float64]:
        counts = _counts(columns, prefix)
        # Multiplying by each draw's number of each row avoids a huge gather.
        times = np.stack([np.bincount(rows, minlength=len(counts)) for rows in index])
        return np.array([score(sums) for sums in (times @ counts).tolist()])

    return Metric(name, over_draws)


def _counts(columns: Columns, prefix: str) -> NDArray[np.int64]:
    """Return the counts of a metric, shape (rows, counts)."""
    names = [name for name in columns if name.startswith(prefix)]
    return np.stack([columns[name] for name in sorted(names, key=lambda name: int(name.removeprefix(prefix)))], axis=1)


def _bleu(language: str | None) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=_TOKENIZERS.get(language or "", "13a"))


def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
