"""Try a challenger on live requests: in the shadow of the champion, or as a canary that answers a share of them.

The other model computes the same inputs in a process of its own. The kernel runs it only while a core is idle
(`SCHED_IDLE`), so that no answer waits for it. Both answers make a pair; a sequential test judges the pairs.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import to_json

from textmill.errors import UserError, first_line
from textmill.metrics.sequential import BettingTest
from textmill.predicting.exported import read_specification
from textmill.serving.batching import MicroBatcher
from textmill.serving.limits import RequestError
from textmill.serving.loading import FetchedModel, LoadedModel, ModelSource, load_model
from textmill.serving.watcher import describe
from textmill.text.rejected_rows import excerpt

if TYPE_CHECKING:
    from textmill.serving.metrics import ServingMetrics
    from textmill.serving.settings import ServeSettings

log = logging.getLogger("textmill")

KEY_HEADER = "X-Textmill-Key"
"""Header by which a client chooses what the share of a canary is drawn by, such as a user."""

# Together one false alarm in a hundred. Errors and latency need few observations; quality needs the most.
_FALSE_ALARMS = {"quality": 0.008, "errors": 0.001, "latency": 0.001}
_SLOWER = 2.0  # a challenger that takes more than this multiple of the champion's time in most requests is too slow
_TIMED = 16  # each so many requests, both models are timed
_QUEUED, _TOGETHER = 256, 32
# Requests wait for others: computed together, they take a core less often while a client waits
_GATHERED, _GATHER_SECONDS = 4, 0.25  # times, and how long each
_RECENT = 10_000  # pairs that wait for a label
_RETRY_SECONDS = 5.0
_REFUSED_SECONDS = 60.0  # a pair that cannot be tried is looked at again: the registry may not have answered
_WAIT_SECONDS = 3.0
_LOAD_SECONDS = 600.0


@dataclass(frozen=True)
class TrialPlan:
    """A checked trial.

    Attributes:
        share: Share of the requests that the challenger answers; 0 in the shadow.
        record: Write to the history that the challenger was taken back, and why.
    """

    kind: Literal["shadow", "canary"]
    share: float
    champion: FetchedModel
    challenger: FetchedModel
    record: Callable[[str], None]


def check_pair(champion: FetchedModel, challenger: FetchedModel, where: str) -> None:
    """Refuse a challenger that is the champion, or has another task or other labels.

    Raises:
        UserError: The two cannot be compared.
    """
    if champion.identity.manifest_sha256 == challenger.identity.manifest_sha256:
        fix = "Register another version with `dvc repro`"
        raise UserError(f"the challenger is the champion ({champion.identity})", where=where, fix=fix)
    exported = [read_specification(each.folder) for each in (champion, challenger)]
    first, second = (str(each.task["_target_"]) for each in exported)
    if first != second:
        words = f"{challenger.identity} has the task {_last(second)}, the champion {_last(first)}"
        raise UserError(words, where=where, fix="Give a challenger of the same task")
    ours, theirs = (each.state.get("labels") or [] for each in exported)
    gone = [excerpt(name) for name in ours if name not in theirs]
    new = [excerpt(name) for name in theirs if name not in ours]
    if gone or new:  # answers could not be compared, and clients would get labels that they do not know
        parts = [f"{word} {', '.join(names[:8])}" for word, names in (("lacks", gone), ("adds", new)) if names]
        words = f"{challenger.identity} has other labels than the champion: it {' and '.join(parts)}"
        raise UserError(words, where=where, fix="Promote it first, or give a challenger of the same labels")


def in_share(key: bytes, share: float) -> bool:
    """Return whether a key belongs to the share; the same key always does or never."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8]) < share * 2**64


@dataclass(eq=False)
class Served:
    """The answers to a request; `beside` if the other model shall answer too."""

    model: LoadedModel
    values: list[Any]
    answers: list[dict[str, Any]]
    beside: bool = False
    by_challenger: bool = False
    request: str = ""
    others: list[Any] | None = None
    labels: dict[int, Any] = field(default_factory=dict)


class Trial:
    """One challenger beside one champion, until it is taken back or the champion changes."""

    def __init__(self, plan: TrialPlan, settings: ServeSettings, metrics: ServingMetrics) -> None:
        self.state = "running"
        self.reason = ""
        self.hangs = False  # a thread may never end
        self._plan, self._settings, self._metrics = plan, settings, metrics
        self._tests = {name: BettingTest(alarms) for name, alarms in _FALSE_ALARMS.items()}
        self._better = BettingTest(_FALSE_ALARMS["quality"])
        self._counts: Counter[str] = Counter()
        self._challenger: LoadedModel | None = None
        # Its own threads: a challenger that hangs takes no worker from the champion
        self._batcher = MicroBatcher(settings, metrics)
        self._queue: Queue[Served] = Queue(_QUEUED)
        self._recent: OrderedDict[str, Served] = OrderedDict()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        metrics.trial_running.set(1)
        self._recorder: threading.Thread | None = None
        self._thread = threading.Thread(target=self._work, name="trial", daemon=True)
        self._thread.start()

    async def answer(self, batcher: MicroBatcher, model: LoadedModel, values: list[Any], key: str | None) -> Served:
        """Answer with the champion, or with the challenger for its share; the champion answers if that fails or hangs.

        Raises:
            RequestError: The queue is full, or the inputs are invalid for the champion.
        """
        self.end_for(model)
        challenger = self._challenger
        if self.state != "running":
            return Served(model, values, await batcher.answer(model, values))
        if challenger is None or not in_share(key.encode() if key else to_json(values), self._plan.share):
            return Served(model, values, await batcher.answer(model, values), beside=True)
        limit = self._settings.trial_seconds
        try:
            answers = await asyncio.wait_for(self._batcher.answer(challenger, values), limit)
        except Exception as error:
            began, hung = time.monotonic(), isinstance(error, TimeoutError)
            self.hangs |= hung
            answers = await batcher.answer(model, values)
            self._count("fallback")
            full = isinstance(error, RequestError) and error.status == 503
            if not full and not (hung and time.monotonic() - began > limit):  # else the machine is too busy for either
                self._judge("errors", 1, _late(limit) if hung else first_line(error))
            return Served(model, values, answers)
        self._count("canary")
        return Served(challenger, values, answers, beside=True, by_challenger=True)

    def end_for(self, champion: LoadedModel) -> bool:
        """End if the champion is another one; return whether it is."""
        other = champion.identity != self._plan.champion.identity
        if other:
            self._end(f"the champion is now {champion.identity}")
        return other

    def replace(self, plan: TrialPlan) -> None:
        """End for another trial; a take-back that is being recorded goes on."""
        self._end(f"the challenger is now {plan.challenger.identity}")
        self._batcher.close()
        with self._lock:
            self._recent.clear()

    def compare(self, served: Served, request: str, busy: bool) -> None:
        """Let the other model answer too, unless the server is busy; `request` is the identifier for labels."""
        if not served.beside or self.state != "running":
            return
        served.request = request
        try:
            if busy:
                raise Full
            self._queue.put_nowait(served)
        except Full:
            self._count("dropped")
            return
        if request:
            with self._lock:
                self._recent[request] = served
                while len(self._recent) > _RECENT:
                    self._recent.popitem(last=False)

    def label(self, request: str, position: int, right: Any) -> None:
        """Judge both answers to an input by the right one; the first label of an input counts."""
        with self._lock:
            served = self._recent.get(request)
            if served is None or position in served.labels:
                return
            served.labels[position] = right
            answered = served.others is not None
        if answered:
            self._judge_label(served, position)

    def verdict(self) -> dict[str, Any]:
        """Return state, counts and evidence as JSON values."""
        with self._lock:
            tests = {
                name: {
                    "count": test.count,
                    "mean": round(test.mean, 6),
                    "evidence": float(f"{test.evidence:.4g}"),
                    "alarm_at": round(test.threshold),
                }
                for name, test in self._tests.items()
            }
            compared = self._counts["agreed"] + self._counts["differed"]
            worse = any(test.alarm for test in self._tests.values())
            return {
                "kind": self._plan.kind,
                "share": self._plan.share,
                "champion": str(self._plan.champion.identity),
                "challenger": str(self._plan.challenger.identity),
                "state": self.state,
                "reason": self.reason,
                "verdict": "worse" if worse else "better" if self._better.alarm else "undecided",
                "requests": {name: self._counts[name] for name in ("compared", "dropped", "canary", "fallback")},
                "agreement": round(self._counts["agreed"] / compared, 6) if compared else None,
                **tests,
            }

    def close(self) -> None:
        """Stop; a take-back that is being recorded gets a few seconds."""
        self._stop.set()
        self._batcher.close()
        self._thread.join(_WAIT_SECONDS)
        if self._recorder:
            self._recorder.join(_WAIT_SECONDS)

    def _work(self) -> None:
        """Load the canary, then send waiting requests to the other process until the end."""
        plan, settings = self._plan, self._settings
        if plan.share:
            try:
                self._challenger = load_model(plan.challenger, settings.precision, settings.batch_tokens)
            except Exception as error:
                self._take_back(f"it cannot be loaded: {first_line(error)}")
                return
        log.info("serve: %s %s, compared with %s", plan.kind, plan.challenger.identity, plan.champion.identity)
        number = 0
        process: _IdleProcess | None = None
        while not self._stop.is_set() and self.state == "running":
            batch: list[Served] = []
            process = process or self._start()
            with suppress(Empty):
                batch.append(self._queue.get(timeout=0.2))
                for _ in range(_GATHERED):
                    if self._queue.qsize() < _TOGETHER:
                        self._stop.wait(_GATHER_SECONDS)
                while len(batch) < _TOGETHER:
                    batch.append(self._queue.get_nowait())
            if not batch or process is None:
                continue
            tasks = [
                (each.values, each.by_challenger, (number + index) % _TIMED == 0) for index, each in enumerate(batch)
            ]
            number += len(batch)
            try:
                limit = settings.trial_seconds * len(batch)
                results = self._result(process, process.compute(plan, settings, tasks), limit) or []
            except Exception as error:  # the process is dead, or does not answer: one of its requests is to blame
                batch.sort(key=lambda each: each.by_challenger)
                told = _late(settings.trial_seconds) if isinstance(error, TimeoutError) else first_line(error)
                results = [_Other(None, told, None)]
                process.end()
                process = None
                for _ in batch[1:]:
                    self._count("dropped")
            for one, other in zip(batch, results, strict=False):
                self._pair(one, other)
        if process:
            process.end()

    def _start(self) -> _IdleProcess | None:
        """Start the other process and load both models there; None if the server stops before."""
        process, plan, settings = _IdleProcess(), self._plan, self._settings
        try:
            models = (plan.champion, plan.challenger)
            future = process.pool.submit(_load_both, models, settings.precision, settings.batch_tokens)
            if self._result(process, future, _LOAD_SECONDS):
                return process
        except BrokenExecutor as error:  # such as too little memory for both models
            self._end(f"the process that compares cannot start: {first_line(error)}")
        except Exception as error:
            self._take_back(f"it cannot be loaded: {first_line(error) or _late(_LOAD_SECONDS)}")
        process.end()
        return None

    def _result(self, process: _IdleProcess, future: Future[Any], limit: float) -> Any:
        """Return the result, or None if the server stops before.

        Raises:
            TimeoutError: It takes longer than `limit` seconds. Those in which no core was free do not count.
        """
        started, waited = time.monotonic(), process.waited()
        while not self._stop.is_set():
            with suppress(TimeoutError):
                return future.result(0.2)
            if time.monotonic() - started - (process.waited() - waited) > limit:
                raise TimeoutError
        return None

    def _pair(self, served: Served, other: _Other) -> None:
        self._count("compared")
        if other.answers is None:
            self._judge("errors", -1 if served.by_challenger else 1, other.error)
            return
        self._judge("errors", 0)
        if other.slower is not None:
            self._judge("latency", 1 if other.slower else -1)
        for ours, theirs in zip(served.answers, other.answers, strict=True):
            self._count("agreed" if said(ours) == said(theirs) else "differed")
        with self._lock:
            served.others = other.answers
            positions = list(served.labels)
        for position in positions:
            self._judge_label(served, position)

    def _judge_label(self, served: Served, position: int) -> None:
        assert served.others is not None
        right = said(served.labels[position])
        champion, challenger = (said(answers[position]) == right for answers in (served.answers, served.others))
        if served.by_challenger:
            champion, challenger = challenger, champion
        with self._lock:
            if self.state == "running":
                self._better.add(challenger - champion)
        self._judge("quality", champion - challenger)

    def _judge(self, what: str, difference: int, detail: str = "") -> None:
        with self._lock:
            if self.state != "running":  # the figures stay those of the decision
                return
            test = self._tests[what]
            alarm = test.add(difference)
            self._metrics.trial_evidence.labels(what).set(test.evidence)
        if alarm:
            words = {
                "quality": f"it is right less often by {100 * test.mean:.1f} points on {test.count} labelled inputs",
                "errors": f"it fails where the champion answers: {round(test.total)} of {test.count} ({detail})",
                "latency": f"most of {test.count} answers take over {_SLOWER:g} times the champion's time",
            }
            self._take_back(words[what])

    def _take_back(self, reason: str) -> None:
        if not self._end(reason, "taken back"):
            return

        def record() -> None:
            while True:
                try:
                    self._plan.record(reason)
                    return
                except Exception as error:
                    log.warning("serve: the take-back is not yet in the history (%s)", first_line(error))
                if self._stop.wait(_RETRY_SECONDS):
                    return

        self._recorder = threading.Thread(target=record, name="take-back", daemon=True)
        self._recorder.start()

    def _end(self, reason: str, state: str = "ended") -> bool:
        with self._lock:
            if self.state != "running":
                return False
            self.state, self.reason, self._challenger = state, reason, None
        self._metrics.trial_running.set(0)
        log.warning("serve: the %s %s is %s: %s", self._plan.kind, self._plan.challenger.identity, state, reason)
        return True

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1
        self._metrics.trial.labels(what).inc()


class Trials:
    """Tries the current challenger beside the current champion, one trial after the other.

    A pair that cannot be tried holds nothing up: the champion serves, and one line of the log says why.

    Args:
        kind: Whether the challenger answers.
        share: Share of the requests that the challenger answers; 0 in the shadow.
        champion: Source of the champion.
        challenger: Source of the challenger.
        record: Writes a take-back (version, champion, reason) to the history.
        refuse_taken_back: Raises UserError if the version was taken back before.
    """

    def __init__(
        self,
        kind: Literal["shadow", "canary"],
        share: float,
        champion: ModelSource,
        challenger: ModelSource,
        record: Callable[[str, str, str], None],
        refuse_taken_back: Callable[[str], None],
    ) -> None:
        self.current: Trial | None = None
        self.hangs = False
        self._kind, self._share, self._sources = kind, share, (champion, challenger)
        self._record, self._refuse_taken_back = record, refuse_taken_back
        self._pair: tuple[str, str] | None = None  # versions of the champion and the challenger
        self._refused: tuple[str, str] | None = None
        self._retry_at = 0.0
        self._reason = ""

    def follow(self, served: LoadedModel | None, settings: ServeSettings, metrics: ServingMetrics) -> None:
        """Try another pair if there is one; `served` is the champion, None before it is loaded.

        One thread calls this. A trial of another champion ends, and does not go on if that champion comes back.
        """
        trial = self.current
        if trial and served and trial.end_for(served):
            self._pair = None
        running = trial is not None and trial.state == "running"
        try:
            pair = (served.identity.version if served else self._sources[0].latest(), self._sources[1].latest())
        except Exception as error:
            if not running:
                self._say(error)
            return
        if pair == self._pair or (pair == self._refused and time.monotonic() < self._retry_at):
            return
        try:
            plan = self.plan(*pair)
        except Exception as error:
            self._refused, self._retry_at = pair, time.monotonic() + _REFUSED_SECONDS
            self._say(error)
            return
        if trial:
            trial.replace(plan)
            self.hangs |= trial.hangs
        self._pair, self._refused, self._reason = pair, None, ""
        self.current = Trial(plan, settings, metrics)

    def verdict(self) -> dict[str, Any]:
        """Return the verdict of the current or the last trial; before the first, why there is none."""
        if self.current:
            return self.current.verdict()
        return {"kind": self._kind, "share": self._share, "state": "no challenger", "reason": self._reason}

    def close(self) -> None:
        """Stop the current trial."""
        if self.current:
            self.current.close()
            self.hangs |= self.current.hangs

    def plan(self, current: str, other: str) -> TrialPlan:
        """Fetch both versions and check that they can be compared; raise UserError if not."""
        where = f"--{self._kind}"
        if current == other:  # as after a promotion; no need to fetch them
            raise UserError(f"the challenger is the champion (version {current})", where=where)
        self._refuse_taken_back(other)
        first, second = self._sources[0].fetch(current), self._sources[1].fetch(other)
        check_pair(first, second, where)
        return TrialPlan(self._kind, self._share, first, second, lambda reason: self._record(other, current, reason))

    def _say(self, error: Exception) -> None:
        """Log why nothing is tried, once."""
        reason = describe(error)
        if reason != self._reason:
            log.warning("serve: no other challenger is tried: %s", reason)
        self._reason = reason


def said(answer: Any) -> Any:
    """Return the part of an answer, or of a label, that is right or wrong."""
    if isinstance(answer, dict):
        named = [answer[name] for name in ("label", "labels", "answer", "text") if name in answer]
        answer = named[0] if named else answer
    if isinstance(answer, list):
        return sorted(map(str, answer))
    return answer.strip() if isinstance(answer, str) else answer


@dataclass(frozen=True)
class _Other:
    """The other model's answers, or its error; `slower` if both models were timed."""

    answers: list[Any] | None
    error: str
    slower: bool | None


class _IdleProcess:
    """A process that computes while a core is idle."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _become_idle)
        self._number = self.pool.submit(os.getpid)

    def compute(self, plan: TrialPlan, settings: ServeSettings, tasks: Sequence[Any]) -> Future[list[_Other]]:
        """Return the future of the other model's answers; see `_compute`."""
        return self.pool.submit(
            _compute, plan.champion, plan.challenger, settings.precision, settings.batch_tokens, tasks
        )

    def waited(self) -> float:
        """Return the seconds for which a thread of it could run and no core was free; 0 where the system tells not."""
        threads = Path(f"/proc/{self._number.result()}/task").glob("*/schedstat") if self._number.done() else ()
        seconds = 0.0
        for thread in threads:
            with suppress(OSError, IndexError):  # the thread has ended
                seconds = max(seconds, int(thread.read_text().split()[1]) / 1e9)
        return seconds

    def end(self) -> None:
        """End it, whatever it computes."""
        with suppress(Exception):
            os.kill(self._number.result(0), signal.SIGKILL)
        self.pool.shutdown(wait=False, cancel_futures=True)


def _become_idle() -> None:
    """Take only idle time of the processor, leave signals to the server, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # another system than Linux
        os.nice(19)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _compute(
    champion: FetchedModel,
    challenger: FetchedModel,
    precision: Literal["auto", "int8", "fp32"],
    batch_tokens: int,
    tasks: Sequence[tuple[list[Any], bool, bool]],
) -> list[_Other]:
    """Return the other model's answers to requests; runs in the idle process.

    Requests that are not timed are computed together; one by one if that fails, so that one has the error.
    """

    def predict(by_challenger: bool, values: list[Any]) -> tuple[list[Any], float]:
        model = champion if by_challenger else challenger
        predictor = _load(model, precision, batch_tokens).predictor
        started = time.process_time()
        answers = predictor.predict(values)
        return answers, time.process_time() - started

    def alone(values: list[Any], by_challenger: bool, both: bool) -> _Other:
        try:
            answers, seconds = predict(by_challenger, values)
            slower = None
            if both:
                known = predict(not by_challenger, values)[1]
                slow, fast = (known, seconds) if by_challenger else (seconds, known)
                slower = slow > _SLOWER * fast
            return _Other(answers, "", slower)
        except Exception as error:
            return _Other(None, first_line(error), None)

    found: dict[int, _Other] = {}
    for side in (False, True):
        group = [number for number, (_, by_challenger, both) in enumerate(tasks) if by_challenger == side and not both]
        with suppress(Exception):
            answers = iter(predict(side, [value for number in group for value in tasks[number][0]])[0] if group else ())
            found |= {number: _Other([next(answers) for _ in tasks[number][0]], "", None) for number in group}
    return [found.get(number) or alone(*task) for number, task in enumerate(tasks)]


def _load_both(
    models: Sequence[FetchedModel], precision: Literal["auto", "int8", "fp32"], batch_tokens: int
) -> list[str]:
    """Load the models of the idle process; return their names."""
    return [str(_load(model, precision, batch_tokens).identity) for model in models]


@lru_cache(maxsize=2)
def _load(model: FetchedModel, precision: Literal["auto", "int8", "fp32"], batch_tokens: int) -> LoadedModel:
    return load_model(model, precision, batch_tokens)


def _late(seconds: float) -> str:
    return f"no answer within {seconds:g} s"


def _last(target: str) -> str:
    return target.rpartition(".")[2]
