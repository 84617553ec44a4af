"""Measure how far new texts are from a model's training data.

Each measure has an effect, in its own unit, and a p-value. It is flagged if the effect reaches its
limit *and* the p-value is significant at 1 % over all measures (Holm 1979): with many rows the
smallest difference is significant, with few rows chance alone has large effects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from textmill.evaluation.reference import (
    Reference,
    TextReference,
    categories,
    features,
    fields,
    length_counts,
    unseen_shares,
    word_lists,
)
from textmill.metrics.holm import holm

if TYPE_CHECKING:
    import pandas as pd

    from textmill.metrics.base import Outputs

MIN_ROWS = 30
"""Fewer new rows give the verdict `too few rows`."""

_ALPHA = 0.01
# Limits of the effects. A population stability index of 0.2 is a shift in credit scoring (Siddiqi 2006).
_STABILITY = 0.2
_UNSEEN = 0.05
_DIVERGENCE = 0.02
_DISCRIMINATION = 0.65

_WORDS = 1000
_DRAWS = 1000
_SIZES = 1.03
_EXPECTED = 5.0
_FOLDS = 5
_OTHER = "(other)"

Verdict = Literal["drift", "no drift", "too few rows"]


@dataclass(frozen=True)
class Measure:
    """One comparison of new rows with training rows.

    Attributes:
        subject: Compared quantity, such as `length of text` or `answer label`.
        limit: Smallest effect that counts as drift.
        words: Explanation of the effect.
        flagged: Whether effect and p-value both indicate drift.
    """

    subject: str
    name: str
    effect: float
    limit: float
    p_value: float
    words: str
    flagged: bool = False


@dataclass(frozen=True)
class Shares:
    """Two distributions over the same bins, to plot side by side."""

    subject: str
    bins: list[str]
    reference: list[float]
    new: list[float]


@dataclass(frozen=True)
class Drift:
    """The result of a comparison.

    Attributes:
        reference_rows: Number of training rows.
        verdict: `drift` if a measure is flagged.
        measures: Measures, flagged ones first, then by effect divided by limit.
        shares: Distributions to plot.
        new_words: Occurrences of the most frequent words of the new texts that training lacks.
        outputs: Raw outputs of reference and new rows, shapes (rows, dimensions), to plot; None if
            the reference has none.
    """

    rows: int
    reference_rows: int
    verdict: Verdict
    measures: list[Measure]
    shares: list[Shares]
    new_words: dict[str, int]
    outputs: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the data of plots."""
        return {
            "verdict": self.verdict,
            "rows": self.rows,
            "reference_rows": self.reference_rows,
            "measures": [asdict(measure) for measure in self.measures],
            "new_words": self.new_words,
        }


def measure_drift(
    reference: Reference,
    frame: pd.DataFrame,
    targets: Mapping[str, Sequence[Any]],
    outputs: Outputs,
    answers: Sequence[Mapping[str, Any]],
    alpha: float = _ALPHA,
) -> Drift:
    """Compare new rows with a reference.

    Args:
        reference: Statistics of the model's training data.
        frame: Cleaned text columns of the new rows.
        targets: Known targets of the new rows, by column.
        outputs: Raw outputs of the model for the new rows; empty if the reference has none.
        answers: Natural answers of the model for the new rows.
        alpha: Probability of a false alarm over all measures.
    """
    measures: list[Measure] = []
    shares: list[Shares] = []
    new_words: Counter[str] = Counter()
    for name, known in reference.texts.items():
        words = word_lists(frame[name], reference.splitter)
        counted = Counter(word for text in words for word in text)
        new_words.update({word: count for word, count in counted.items() if word not in known.words})
        lengths = length_counts(frame[name].str.len().to_numpy(), known.edges)
        measures.append(_stability(f"length of {name}", known.lengths, lengths))
        shares.append(_shares(f"length of {name}, in characters", _bin_names(known.edges), known.lengths, lengths))
        measures += [
            _unseen(name, known, reference.held_out, words),
            _divergence(name, known, counted, words if alpha < _ALPHA else None),
        ]
    for kind, then, now in (
        ("target", reference.targets, categories(targets)),
        ("answer", reference.answers, categories(fields(answers))),
    ):
        for name in sorted(then.keys() & now.keys()):
            names = [*then[name], *(value for value in now[name] if value not in then[name])]
            before, after = ([side[name].get(value, 0) for value in names] for side in (then, now))
            measures.append(_stability(f"{kind} {name}", before, after))
            shares.append(_shares(f"{kind} {name}", names, before, after))
    both = (np.asarray(reference.outputs, np.float64), features(outputs)) if outputs else None
    if both is not None:
        measures.append(_discrimination(*both))
    measures = _flagged(measures, alpha)
    drifted = any(measure.flagged for measure in measures)
    return Drift(
        rows=len(frame),
        reference_rows=reference.rows,
        verdict="too few rows" if len(frame) < MIN_ROWS else "drift" if drifted else "no drift",
        measures=measures,
        shares=shares,
        new_words=dict(new_words.most_common(20)),
        outputs=both,
    )


def _flagged(measures: Sequence[Measure], alpha: float) -> list[Measure]:
    """Apply Holm's procedure and the limits of the effects; sort flagged measures first."""
    adjusted = holm([measure.p_value for measure in measures])
    judged = [
        replace(measure, flagged=p_value <= alpha and measure.effect >= measure.limit)
        for measure, p_value in zip(measures, adjusted, strict=True)
    ]
    return sorted(judged, key=lambda measure: (not measure.flagged, -measure.effect / measure.limit))


def _stability(subject: str, reference: Sequence[int], new: Sequence[int]) -> Measure:
    """Return the population stability index of counts in bins, with their chi-squared test; rare bins are one."""
    from scipy.stats import chi2_contingency

    table = _without_rare_bins(np.array([reference, new], np.float64))
    smoothed = table + 0.5
    one, other = smoothed / smoothed.sum(axis=1, keepdims=True)
    index = float(((other - one) * np.log(other / one)).sum())
    p_value = float(chi2_contingency(table).pvalue) if table.shape[1] > 1 and table.sum(axis=1).all() else 1.0
    moved = float(np.abs(one - other).sum() / 2)
    words = f"{moved:.0%} of the rows would have to change bins"
    return Measure(subject, "population stability index", index, _STABILITY, p_value, words)


def _without_rare_bins(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Join the rarest bins until each has `_EXPECTED` expected new rows: the test errs with fewer (Cochran 1954)."""
    expected = table.sum(axis=0) * table[1].sum() / max(table.sum(), 1.0)
    order = np.argsort(expected, kind="stable")
    rare = int((expected < _EXPECTED).sum())
    if rare:
        rare = max(rare, int(np.searchsorted(np.cumsum(expected[order]), _EXPECTED)) + 1)
    joined = table[:, order[:rare]].sum(axis=1, keepdims=True)
    return np.concatenate([table[:, order[rare:]], joined[:, joined.sum(axis=0) > 0]], axis=1)


def _unseen(name: str, known: TextReference, held_out: int, words: Sequence[Sequence[str]]) -> Measure:
    """Test for a larger share of unseen words per text than in held-out rows, by Welch's test."""
    from scipy.stats import ttest_ind_from_stats

    shares = unseen_shares(words, known.words)
    mean = float(shares.mean()) if len(shares) else 0.0
    p_value = 1.0
    if len(shares) > 1 and held_out > 1:
        spread = max(float(shares.std(ddof=1)), 1e-9)
        then = (known.unseen_mean, max(known.unseen_variance**0.5, 1e-9), held_out)
        p_value = float(
            ttest_ind_from_stats(mean, spread, len(shares), *then, equal_var=False, alternative="greater").pvalue
        )
    text = f"{mean:.1%} of a text's words were not in training; in held-out texts {known.unseen_mean:.1%}"
    return Measure(f"words of {name}", "more unseen words", mean - known.unseen_mean, _UNSEEN, p_value, text)


def _divergence(
    name: str, known: TextReference, counted: Counter[str], texts: Sequence[Sequence[str]] | None
) -> Measure:
    """Return the Jensen-Shannon divergence (bits; Lin 1991) of known words, minus its expectation by chance.

    The expectation is that of equally many words drawn from training. Unseen words have their own measure.
    With `texts`, chance includes the draw of the training words and that words repeat within a text: many looks need
    p-values that hold far below 1 %.
    """
    from scipy.stats import gamma

    subject, effect_name = f"words of {name}", "word divergence"
    frequent = list(known.words)[:_WORDS]
    then = np.array([known.words[word] for word in frequent] + [0.0])
    then[-1] = sum(known.words.values()) - then.sum()
    now = np.array([counted.get(word, 0) for word in frequent] + [0.0])
    total = sum(count for word, count in counted.items() if word in known.words)
    now[-1] = total - now.sum()
    if not total or not then.sum():
        return Measure(subject, effect_name, 0.0, _DIVERGENCE, 1.0, "there are no known words to compare")
    expected = then / then.sum()
    observed = float(_jensen_shannon(expected, now[None] / total)[0])
    if texts is None:
        chance = _jensen_shannon(expected, np.random.default_rng(0).multinomial(total, expected, _DRAWS) / total)
    else:
        effect_of_texts = _design_effect(texts, known)
        sizes = (_size_below(size / effect_of_texts) for size in (then.sum(), total))
        chance = _chance_of_two(tuple(expected.tolist()), *sizes)
    p_value = float((1 + (chance >= observed).sum()) / (1 + _DRAWS))
    if texts is not None and observed > chance.max():  # the draws end at 0.001: beyond, their gamma approximation
        scale = float(chance.var() / chance.mean())
        p_value = min(p_value, float(gamma.sf(observed, float(chance.mean()) / scale, scale=scale)))
    text = f"{observed:.3f} bits apart; chance alone gives {chance.mean():.3f}"
    return Measure(subject, effect_name, observed - float(chance.mean()), _DIVERGENCE, p_value, text)


@lru_cache(maxsize=64)
def _chance_of_two(shares: tuple[float, ...], *sizes: int) -> NDArray[np.float64]:
    """Return divergences between two draws of these sizes from one distribution, shape (draws,)."""
    random = np.random.default_rng(1)
    draws = [random.multinomial(size, shares, _DRAWS) / size for size in sizes]
    return _jensen_shannon(draws[0], draws[1])


def _size_below(size: float) -> int:
    """Return the next of few sizes below, so that the draws of one look serve others: at most 3 % fewer words."""
    return max(1, int(_SIZES ** int(np.log(max(size, 1.0)) / np.log(_SIZES))))


def _design_effect(texts: Sequence[Sequence[str]], known: TextReference) -> float:
    """Return how much more word counts vary than multinomial ones, mean over words (Rao & Scott 1981); at least 1."""
    squares: Counter[str] = Counter()
    products: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    lengths = []
    for text in texts:
        counts = Counter(word for word in text if word in known.words)
        lengths.append(counts.total())
        for word, count in counts.items():
            totals[word] += count
            squares[word] += count * count
            products[word] += count * lengths[-1]
    total, squared = sum(lengths), sum(length * length for length in lengths)
    if len(totals) < 2:
        return 1.0
    excess = 0.0
    for word, count in totals.items():
        share = count / total
        excess += (squares[word] - 2 * share * products[word] + share * share * squared) / count
    return max(1.0, excess / (len(totals) - 1))


def _jensen_shannon(one: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the divergence of `one`, a row or as many, from each row of `others`, in bits."""
    from scipy.spatial.distance import jensenshannon

    return np.asarray(jensenshannon(np.broadcast_to(one, others.shape), others, base=2, axis=1) ** 2, np.float64)


def _discrimination(reference: NDArray[np.float64], new: NDArray[np.float64]) -> Measure:
    """Run the classifier two-sample test (Lopez-Paz & Oquab 2017) on the model's raw outputs.

    A logistic regression over the outputs and their products separates new from reference rows. The
    effect is its cross-validated area under the ROC curve; the p-value is the Mann-Whitney test's.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    subject, name = "raw outputs", "telling apart (AUC)"
    if min(len(reference), len(new)) < _FOLDS:
        return Measure(subject, name, 0.5, _DISCRIMINATION, 1.0, "there are too few rows")
    new = new[np.random.default_rng(0).permutation(len(new))[: len(reference)]]
    rows = np.concatenate([reference, new])
    is_new = np.repeat([0, 1], [len(reference), len(new)])
    scaled = StandardScaler().fit_transform(rows)
    squared = StandardScaler().fit_transform(PolynomialFeatures(2, include_bias=False).fit_transform(scaled))
    classifier = LogisticRegression(C=0.1, class_weight="balanced", solver="newton-cholesky")
    scores = np.empty(len(rows))
    for others, fold in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(squared, is_new):
        scores[fold] = classifier.fit(squared[others], is_new[others]).decision_function(squared[fold])
    test = mannwhitneyu(scores[is_new == 1], scores[is_new == 0], alternative="greater")
    area = float(test.statistic) / (len(new) * len(reference))
    text = f"a classifier on the model's outputs ranks {area:.0%} of new and held-out pairs correctly; chance is 50%"
    return Measure(subject, name, area, _DISCRIMINATION, float(test.pvalue), text)


def _bin_names(edges: Sequence[float]) -> list[str]:
    if not edges:
        return ["all"]
    inner = [f"{low:.0f} to {high:.0f}" for low, high in pairwise(edges)]
    return [f"up to {edges[0]:.0f}", *inner, f"over {edges[-1]:.0f}"]


def _shares(subject: str, bins: list[str], reference: Sequence[int], new: Sequence[int], most: int = 15) -> Shares:
    """Convert counts to shares; merge bins after the first `most` into one."""
    one, other = (np.asarray(counts, float) / max(1, sum(counts)) for counts in (reference, new))
    if len(bins) > most:
        bins = [*bins[:most], _OTHER]
        one, other = (np.append(side[:most], side[most:].sum()) for side in (one, other))
    return Shares(subject, bins, one.tolist(), other.tolist())
