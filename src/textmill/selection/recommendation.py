"""Rank the candidates of a screening and explain the recommended one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from textmill.errors import UserError
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, PairedTest, paired_test
from textmill.selection.pareto import pareto_front
from textmill.selection.problem import Problem
from textmill.selection.results import Result, on_common_rows

_RESAMPLES = 2000


@dataclass(frozen=True)
class Recommendation:
    """The candidates, ranked, and the one to train.

    Attributes:
        results: All candidates: the ranked ones, best first, then the excluded ones.
        front: Names on the Pareto front of quality, latency, size and training time.
        best: The recommended candidate.
        adopted: The best candidate that the pipeline can train, export and serve, or None.
        sentences: The reasons, the costs compared with the runner-up, and what is uncertain.
        versus: Candidate name -> paired test of the best against it.
    """

    problem: Problem
    metric: str
    results: list[Result]
    front: list[str]
    best: Result
    adopted: Result | None
    sentences: list[str]
    versus: dict[str, PairedTest]

    @property
    def text(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    @property
    def params_yaml(self) -> str:
        """The whole text of a `params.yaml` that adopts the candidate; empty without one.

        `experiment: null` stays: without the key the lines would add to the experiment that a project names.
        """
        if self.adopted is None:
            return ""
        return yaml.safe_dump(self.adopted.params, sort_keys=False, allow_unicode=True)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "data": self.problem.data,
            "task": self.problem.task,
            "metric": self.metric,
            "advice": self.best.name,
            "adopt": self.adopted.name if self.adopted else None,
            "words": self.text,
            "params": self.adopted.params if self.adopted else None,
            "front": self.front,
            "candidates": [_plain(result, self.versus.get(result.name)) for result in self.results],
        }


def recommend(results: list[Result], problem: Problem, metric: Metric) -> Recommendation:
    """Rank the candidates and explain the best.

    Candidates are ranked by the metric expected after their full training, or else by the last
    measurement. An unfinished candidate replaces a finished best if a paired test finds no
    difference: it is as good already and has more to learn.

    Raises:
        UserError: No candidate is within the limits.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    eligible = [result for result in results if result.excluded is None and result.rungs]
    if not eligible:
        raise UserError(
            "no candidate is within the limits", fix="Raise the limits, or add candidates to conf/candidate/"
        )
    ranked = sorted(eligible, key=lambda result: _costs(result, sign))  # equal quality: the faster first
    versus = _paired_tests(ranked, metric)
    unfinished = [one for one in ranked[1:] if one.share < 1 and one.name in versus and _unclear(versus[one.name])]
    if ranked[0].share >= 1 and unfinished:
        ranked = [unfinished[0], *(one for one in ranked if one is not unfinished[0])]
        versus = _paired_tests(ranked, metric)
    adopted = next((result for result in ranked if not result.baseline), None)
    sentences = _sentences(ranked, versus, metric, adopted)
    excluded = [result for result in results if result not in ranked]
    front = pareto_front({result.name: _costs(result, sign) for result in ranked})
    return Recommendation(problem, metric.name, [*ranked, *excluded], front, ranked[0], adopted, sentences, versus)


def _paired_tests(ranked: list[Result], metric: Metric) -> dict[str, PairedTest]:
    best = ranked[0]
    return {
        other.name: paired_test(*on_common_rows(best.predictions, other.predictions), metric, Bootstrap(_RESAMPLES))
        for other in ranked[1:]
        if best.predictions is not None and other.predictions is not None
    }


def _costs(result: Result, sign: float) -> list[float]:
    """Return quality, latency, size and training time as values to minimise."""
    serving = [result.serving.latency, result.serving.size] if result.serving is not None else [0.0, 0.0]
    predicted = result.expected if result.expected is not None else result.quality.value
    return [-sign * predicted, *serving, result.train_seconds]


def _sentences(
    ranked: list[Result], versus: dict[str, PairedTest], metric: Metric, adopted: Result | None
) -> list[str]:
    best, others = ranked[0], ranked[1:]
    name = metric.name.replace("_", " ")
    sentences = [f"Recommended: {best.name} ({best.title}), {_quality(best, name)}."]
    if others:
        sentences.append(_comparison(best, others[0], versus.get(others[0].name), name))
    unclear = [other for other in others if other.name in versus and _unclear(versus[other.name])]
    if unclear:
        names = ", ".join(other.name for other in unclear)
        rows = min(len(one.predictions) for one in (best, *unclear) if one.predictions is not None)
        sentences.append(
            f"On {rows} validation rows the difference from {names} is not significant (paired bootstrap, 95 %)."
        )
        if best.share < 1 and all(other.share >= 1 for other in unclear):
            sentences.append(f"Their training is complete; {best.name} may improve with the rest of its training.")
    cheaper = [other for other in unclear if _cheaper(other, best)]
    if cheaper:
        sentences.append(f"{cheaper[0].name} is cheaper: {_cost_comparison(cheaper[0], best)}.")
    stopped = [other for other in others if other.share < 1 and other.expected is None]
    if stopped:
        names = ", ".join(f"{other.name} (after {other.share:.0%} of its training)" for other in stopped)
        sentences.append(f"Stopped early and ranked by the last measurement: {names}.")
    if best.baseline and adopted is not None:
        told = "does not train" if best.asked else "trains"
        rest = "" if best.asked else " as a baseline in `evaluate` and does not export it"
        sentences.append(
            f"The pipeline {told} {best.name}{rest}; the best that it exports is {adopted.name}, "
            f"{_quality(adopted, name)}."
        )
    return sentences


def _quality(result: Result, name: str) -> str:
    quality = result.quality
    text = f"{name} {quality.value:.3f} [{quality.low:.3f}, {quality.high:.3f}] on validation"
    if result.share < 1:
        text += f" after {result.share:.0%} of its training"
        if result.expected is not None:
            text += f", {result.expected:.3f} expected at the end"
    return text


def _comparison(best: Result, other: Result, test: PairedTest | None, name: str) -> str:
    measured = ""
    if test is not None:
        measured = f"{test.gain.value:+.3f} [{test.gain.low:+.3f}, {test.gain.high:+.3f}] {name} as measured now, "
    return f"Compared with {other.name}: {measured}{_cost_comparison(best, other)}."


def _cost_comparison(first: Result, second: Result) -> str:
    parts = [f"{_time(first.train_seconds)} of training instead of {_time(second.train_seconds)}"]
    if first.serving is not None and second.serving is not None:
        parts.append(f"{first.serving.latency:.3g} ms latency instead of {second.serving.latency:.3g} ms")
        parts.append(f"{first.serving.size:.3g} MB instead of {second.serving.size:.3g} MB")
    return ", ".join(parts)


def _unclear(test: PairedTest) -> bool:
    return test.gain.low <= 0 <= test.gain.high


def _cheaper(first: Result, second: Result) -> bool:
    if first.serving is None or second.serving is None:
        return first.train_seconds < second.train_seconds
    return first.serving.latency <= second.serving.latency and first.serving.size <= second.serving.size


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min"


def _plain(result: Result, test: PairedTest | None) -> dict[str, Any]:
    plain: dict[str, Any] = {"name": result.name, "title": result.title, "excluded": result.excluded}
    if result.rungs:
        plain |= {
            "quality": result.quality.as_dict(),
            "share": round(result.share, 4),
            "expected": None if result.expected is None else round(result.expected, 6),
            "training_seconds": round(result.train_seconds, 2),
            "rungs": [
                {
                    "share": round(rung.share, 4),
                    "samples": rung.samples,
                    "quality": rung.quality.as_dict(),
                    "seconds": round(rung.seconds, 2),
                }
                for rung in result.rungs
            ],
        }
    if result.serving is not None:
        plain |= {"latency_ms": round(result.serving.latency, 3), "size_mb": round(result.serving.size, 3)}
    if test is not None:
        plain["behind_the_best"] = test.gain.as_dict()
    return plain
