"""From what the screening found to a recommendation, in words that say how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from textmill.errors import UserError
from textmill.metrics.base import Metric
from textmill.metrics.bootstrap import Bootstrap, PairedTest, paired_test
from textmill.selection.pareto import front
from textmill.selection.question import Question
from textmill.selection.results import Result

_RESAMPLES = 2000


@dataclass(frozen=True)
class Choice:
    """The answer to a question.

    Attributes:
        question: As asked.
        metric: Name of the one that decides.
        results: Every candidate, the best first, those that are out last.
        front: Names on the Pareto front of quality, latency, size and training time.
        best: The one that is advised.
        adopted: The best that the pipeline can train, export and serve; None when there is none.
        sentences: Why, what it costs against the runner-up, and what is not sure.
        versus: The paired difference of the best to each other candidate.
    """

    question: Question
    metric: str
    results: list[Result]
    front: list[str]
    best: Result
    adopted: Result | None
    sentences: list[str]
    versus: dict[str, PairedTest]

    @property
    def words(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)

    @property
    def lines(self) -> str:
        """What `params.yaml` holds to adopt it."""
        if self.adopted is None:
            return ""
        lines = {key: value for key, value in self.adopted.lines.items() if value is not None}
        return yaml.safe_dump(lines, sort_keys=False, allow_unicode=True)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "data": self.question.data,
            "task": self.question.task,
            "metric": self.metric,
            "advice": self.best.name,
            "adopt": self.adopted.name if self.adopted else None,
            "words": self.words,
            "params": self.adopted.lines if self.adopted else None,
            "front": self.front,
            "candidates": [_plain(result, self.versus.get(result.name)) for result in self.results],
        }


def advise(results: list[Result], question: Question, metric: Metric) -> Choice:
    """Rank the candidates and put the advice into words.

    The best is the one with the best figure after its whole recipe: measured, extrapolated, or, where
    neither is there, as measured last. Where that one is done with its recipe and a paired test cannot
    tell one from it that is not, the latter is taken: it is as good already and has more to learn.

    Raises:
        UserError: No candidate is within the limits.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    within = [result for result in results if result.excluded is None and result.rungs]
    if not within:
        raise UserError("no candidate is within the limits", fix="Allow more, or add candidates to conf/candidate/")
    ranked = sorted(within, key=lambda result: _costs(result, sign))  # of equally good ones the quicker to answer
    versus = _paired(ranked, metric)
    rising = [one for one in ranked[1:] if one.share < 1 and one.name in versus and _unclear(versus[one.name])]
    if ranked[0].share >= 1 and rising:
        ranked = [rising[0], *(one for one in ranked if one is not rising[0])]
        versus = _paired(ranked, metric)
    best = ranked[0]
    adopted = next((result for result in ranked if not result.baseline), None)
    sentences = _sentences(ranked, versus, metric, adopted)
    out = [result for result in results if result not in ranked]
    on_front = front({result.name: _costs(result, sign) for result in ranked})
    return Choice(question, metric.name, [*ranked, *out], on_front, best, adopted, sentences, versus)


def _paired(ranked: list[Result], metric: Metric) -> dict[str, PairedTest]:
    """The first against each of the others."""
    best = ranked[0]
    return {
        other.name: paired_test(best.predictions, other.predictions, metric, 0.0, Bootstrap(_RESAMPLES))
        for other in ranked[1:]
        if best.predictions is not None and other.predictions is not None
    }


def promise(result: Result) -> float:
    """The main metric that is counted on."""
    return result.expected if result.expected is not None else result.quality.value


def _costs(result: Result, sign: float) -> list[float]:
    """Figures of which each is better the smaller it is."""
    served = [result.served.latency, result.served.size] if result.served is not None else [0.0, 0.0]
    return [-sign * promise(result), *served, result.train_seconds]


def _sentences(
    ranked: list[Result], versus: dict[str, PairedTest], metric: Metric, adopted: Result | None
) -> list[str]:
    best, others = ranked[0], ranked[1:]
    name = metric.name.replace("_", " ")
    said = [f"Take {best.name} ({best.title}): {_reached(best, name)}."]
    if others:
        said.append(_against(best, others[0], versus.get(others[0].name), name))
    unclear = [other for other in others if other.name in versus and _unclear(versus[other.name])]
    if unclear:
        names = ", ".join(other.name for other in unclear)
        rows = len(best.predictions) if best.predictions is not None else 0
        said.append(f"On {rows} validation rows it cannot be told apart from {names} (paired bootstrap, 95 %).")
        if best.share < 1 and all(other.share >= 1 for other in unclear):
            said.append("These are done with their recipe; it has most of what it can learn still before it.")
    cheaper = [other for other in unclear if _cheaper(other, best)]
    if cheaper:
        said.append(f"Of these, {cheaper[0].name} is cheaper: {_gain(cheaper[0], best)}.")
    stopped = [other for other in others if other.share < 1 and other.expected is None]
    if stopped:
        names = ", ".join(f"{other.name} (after {other.share:.0%} of its recipe)" for other in stopped)
        said.append(f"Stopped early, and so judged by where they were then: {names}.")
    if best.baseline and adopted is not None:
        said.append(
            f"The pipeline trains {best.name} as a baseline in `evaluate` and does not export it; the best that it "
            f"exports is {adopted.name}, {_reached(adopted, name)}."
        )
    return said


def _reached(result: Result, name: str) -> str:
    found = result.quality
    text = f"{name} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] on validation"
    if result.share < 1:
        text += f" after {result.share:.0%} of its recipe"
        if result.expected is not None:
            text += f", {result.expected:.3f} expected at its end"
    return text


def _against(best: Result, other: Result, test: PairedTest | None, name: str) -> str:
    text = f"Against {other.name}"
    if test is not None:
        text += f" it gains {test.gain.value:+.3f} [{test.gain.low:+.3f}, {test.gain.high:+.3f}] {name}"
        text += " as measured now"
    return f"{text}, and costs {_gain(best, other)}."


def _gain(first: Result, second: Result) -> str:
    """What the first costs beside the second."""
    parts = [f"{_time(first.train_seconds)} of training instead of {_time(second.train_seconds)}"]
    if first.served is not None and second.served is not None:
        parts.append(f"{first.served.latency:.3g} ms an answer instead of {second.served.latency:.3g} ms")
        parts.append(f"{first.served.size:.3g} MB instead of {second.served.size:.3g} MB")
    return ", ".join(parts)


def _unclear(test: PairedTest) -> bool:
    return test.gain.low <= 0 <= test.gain.high


def _cheaper(first: Result, second: Result) -> bool:
    if first.served is None or second.served is None:
        return first.train_seconds < second.train_seconds
    return first.served.latency <= second.served.latency and first.served.size <= second.served.size


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
    if result.served is not None:
        plain |= {"latency_ms": round(result.served.latency, 3), "size_mb": round(result.served.size, 3)}
    if test is not None:
        plain["behind_the_best"] = test.gain.as_dict()
    return plain
