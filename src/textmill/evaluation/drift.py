"""How far new texts are from those a model was trained on.

Each measure has an effect, in a unit of its own, and a p-value. A measure is flagged when its
effect reaches a limit *and* chance is ruled out at 1 % over all measures (Holm 1979): with many rows
the smallest difference is beyond chance, with few rows chance alone has large effects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
"""Fewer new rows say nothing."""

_ALPHA = 0.01
_STABILITY = 0.2
"""Of the population stability index; from here on credit scoring speaks of a shift (Siddiqi 2006)."""
_UNSEEN = 0.05
_DIVERGENCE = 0.02
_DISCRIMINATION = 0.65
_WORDS = 1000
_DRAWS = 1000
_FOLDS = 5
_OTHER = "(other)"

Verdict = Literal["drift", "no drift", "too few rows"]


@dataclass(frozen=True)
class Measure:
    """One comparison.

    Attributes:
        subject: What is compared: `length of text`, `answer label`.
        name: Of the effect.
        effect: How large the difference is.
        limit: From which it counts.
        p_value: Of a difference this large by chance.
        flagged: Whether effect and p-value both say drift.
        words: The same for people.
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
    """Two distributions over the same bins, to be drawn side by side."""

    subject: str
    bins: list[str]
    reference: list[float]
    new: list[float]


@dataclass(frozen=True)
class Drift:
    """All that was found.

    Attributes:
        rows: New rows.
        reference_rows: Training rows that they are held against.
        verdict: `drift` when a measure is flagged.
        measures: Flagged ones first, then by effect over limit.
        shares: Distributions to draw.
        new_words: Frequent words of the new texts that training did not have: word, occurrences.
        outputs: Raw outputs of reference and new rows, for a picture; shapes (rows, dimensions);
            None where the reference has none.
    """

    rows: int
    reference_rows: int
    verdict: Verdict
    measures: list[Measure]
    shares: list[Shares]
    new_words: dict[str, int]
    outputs: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values, without what is only drawn."""
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
) -> Drift:
    """Hold new rows against a reference.

    Args:
        reference: Of the model's training data.
        frame: The new rows' text columns, cleaned.
        targets: Their targets by column, where they are known.
        outputs: The model's raw outputs for them; left out where the reference has none.
        answers: The same as natural answers.
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
        measures += [_unseen(name, known, reference.held_out, words), _divergence(name, known, counted)]
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
    measures = _flagged(measures)
    enough = len(frame) >= MIN_ROWS
    drifted = any(measure.flagged for measure in measures)
    return Drift(
        rows=len(frame),
        reference_rows=reference.rows,
        verdict="too few rows" if not enough else "drift" if drifted else "no drift",
        measures=measures,
        shares=shares,
        new_words=dict(new_words.most_common(20)),
        outputs=both,
    )


def _flagged(measures: Sequence[Measure]) -> list[Measure]:
    """Holm's procedure over the p-values, and the limits of the effects; flagged ones first."""
    adjusted = holm([measure.p_value for measure in measures])
    judged = [
        replace(measure, flagged=p_value <= _ALPHA and measure.effect >= measure.limit)
        for measure, p_value in zip(measures, adjusted, strict=True)
    ]
    return sorted(judged, key=lambda found: (not found.flagged, -found.effect / found.limit))


def _stability(subject: str, reference: Sequence[int], new: Sequence[int]) -> Measure:
    """Population stability index of counts in bins, and the chi-squared test of the same."""
    from scipy.stats import chi2_contingency

    table = np.array([reference, new], np.float64)
    table = table[:, table.sum(axis=0) > 0]
    smoothed = table + 0.5
    one, other = smoothed / smoothed.sum(axis=1, keepdims=True)
    index = float(((other - one) * np.log(other / one)).sum())
    p_value = float(chi2_contingency(table).pvalue) if table.shape[1] > 1 and table.sum(axis=1).all() else 1.0
    moved = float(np.abs(one - other).sum() / 2)
    words = f"{moved:.0%} of the rows would have to change their bin"
    return Measure(subject, "population stability index", index, _STABILITY, p_value, words)


def _unseen(name: str, known: TextReference, held_out: int, words: Sequence[Sequence[str]]) -> Measure:
    """More unseen words than held-out rows had: Welch's test of the shares in single texts."""
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
    told = f"{mean:.1%} of a text's words were not in training; of held-out texts it were {known.unseen_mean:.1%}"
    return Measure(f"words of {name}", "more unseen words", mean - known.unseen_mean, _UNSEEN, p_value, told)


def _divergence(name: str, known: TextReference, counted: Counter[str]) -> Measure:
    """Jensen-Shannon divergence (in bits; Lin 1991) of known words beyond that of as many words drawn at random.

    Words that training did not have are left to the measure of unseen words.
    """
    frequent = list(known.words)[:_WORDS]
    then = np.array([known.words[word] for word in frequent] + [0.0])
    then[-1] = sum(known.words.values()) - then.sum()
    now = np.array([counted.get(word, 0) for word in frequent] + [0.0])
    total = sum(count for word, count in counted.items() if word in known.words)
    now[-1] = total - now.sum()
    if not total or not then.sum():
        return Measure(
            f"words of {name}", "word divergence", 0.0, _DIVERGENCE, 1.0, "there are no known words to compare"
        )
    expected = then / then.sum()
    found = float(_jensen_shannon(expected, now[None] / total)[0])
    draws = np.random.default_rng(0).multinomial(total, expected, _DRAWS) / total
    chance = _jensen_shannon(expected, draws)
    p_value = float((1 + (chance >= found).sum()) / (1 + _DRAWS))
    told = f"{found:.3f} bits apart, where chance alone gives {chance.mean():.3f}"
    effect = found - float(chance.mean())
    return Measure(f"words of {name}", "word divergence", effect, _DIVERGENCE, p_value, told)


def _jensen_shannon(one: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The divergence of `one` to each row of `others`, in bits."""
    from scipy.spatial.distance import jensenshannon

    return np.asarray(jensenshannon(np.broadcast_to(one, others.shape), others, base=2, axis=1) ** 2, np.float64)


def _discrimination(reference: NDArray[np.float64], new: NDArray[np.float64]) -> Measure:
    """Classifier two-sample test (Lopez-Paz & Oquab 2017) on the model's raw outputs.

    A logistic regression over the outputs and their products learns to tell new rows from reference
    rows; its area under the curve on rows it did not see is the effect, Mann and Whitney's test of
    the same scores the p-value.
    """
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    subject, name = "raw outputs", "telling apart (AUC)"
    if min(len(reference), len(new)) < _FOLDS:
        return Measure(subject, name, 0.5, _DISCRIMINATION, 1.0, "there are too few rows")
    chooser = np.random.default_rng(0)
    new = new[chooser.permutation(len(new))[: len(reference)]]
    rows = np.concatenate([reference, new])
    is_new = np.repeat([0, 1], [len(reference), len(new)])
    classifier = make_pipeline(
        StandardScaler(),
        PolynomialFeatures(2, include_bias=False),
        StandardScaler(),
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=500),
    )
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(classifier, rows, is_new, cv=folds, method="decision_function")
    test = mannwhitneyu(scores[is_new == 1], scores[is_new == 0], alternative="greater")
    area = float(test.statistic) / (len(new) * len(reference))
    told = f"a classifier tells new from held-out rows by the model's outputs in {area:.0%} of the pairs; chance is 50%"
    return Measure(subject, name, area, _DISCRIMINATION, float(test.pvalue), told)


def _bin_names(edges: Sequence[float]) -> list[str]:
    if not edges:
        return ["all"]
    inner = [f"{low:.0f} to {high:.0f}" for low, high in pairwise(edges)]
    return [f"up to {edges[0]:.0f}", *inner, f"over {edges[-1]:.0f}"]


def _shares(subject: str, bins: list[str], reference: Sequence[int], new: Sequence[int], most: int = 15) -> Shares:
    """Counts as shares; of many bins the first ones, the rest in one."""
    one, other = (np.asarray(counts, float) / max(1, sum(counts)) for counts in (reference, new))
    if len(bins) > most:
        bins = [*bins[:most], _OTHER]
        one, other = (np.append(side[:most], side[most:].sum()) for side in (one, other))
    return Shares(subject, bins, one.tolist(), other.tolist())
