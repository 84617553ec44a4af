"""Dynamic micro-batching: inputs of concurrent requests are computed together.

While a worker is free, an input is computed at once, or after a delay if one is set. While all
workers are busy, inputs queue. A free worker takes the oldest input and those closest to it in length, so
that a batch has little padding. No input starves: the oldest always goes first. Everything but the
computation runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from textmill.errors import UserError
from textmill.serving.limits import RequestError, unavailable
from textmill.serving.loading import LoadedModel
from textmill.serving.metrics import ServingMetrics
from textmill.serving.settings import ServeSettings
from textmill.text.batches import length_batches

Answers = list[dict[str, Any]]

# Tokenizing so many inputs takes 0.1 to 0.2 ms; more would block the event loop.
_FEW_INPUTS = 4
# Batches queued in the pool beyond the number of workers, so that no worker waits for the event loop.
_QUEUED_BATCHES = 1
# Maximum padded size of a batch over its tokens. The fixed cost of a batch is about that of ten tokens, so a
# smaller batch is better than more padding.
_MAX_PADDING_RATIO = 1.1


@dataclass(frozen=True, eq=False)
class _Job:
    """Inputs of one request that are computed together; `tokens` is the length of the longest."""

    model: LoadedModel
    values: list[Any]
    tokens: int
    answers: asyncio.Future[Answers]
    arrived: float


class MicroBatcher:
    """Computes inputs in batches, in its own threads; used from one event loop."""

    def __init__(self, settings: ServeSettings, metrics: ServingMetrics) -> None:
        self.settings = settings
        self.metrics = metrics
        workers = settings.workers or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
        self._free = workers + _QUEUED_BATCHES
        self._jobs: list[_Job] = []
        self._rows = self._shown = 0
        self._tokenizing = 0
        self._timer: asyncio.TimerHandle | None = None

    async def answer(self, model: LoadedModel, values: list[Any]) -> Answers:
        """Return one record for each input, in order, all from this model.

        Raises:
            RequestError: 503 if the queue is full, 422 if the task rejects an input.
        """
        settings = self.settings
        queued = self._rows + self._tokenizing
        if queued and queued + len(values) > settings.max_waiting:
            raise unavailable("the queue is full; try again")
        lengths = await self._lengths(model, values)
        pieces = self._split(lengths)
        now = time.monotonic()
        loop = asyncio.get_running_loop()
        jobs = [
            _Job(model, [values[row] for row in rows], tokens, loop.create_future(), now) for rows, tokens in pieces
        ]
        self._jobs += jobs
        self._rows += len(values)
        self._dispatch()
        try:
            if len(jobs) == 1:
                results = [await jobs[0].answers]
            else:
                results = await asyncio.gather(*(job.answers for job in jobs))
        except UserError as error:
            raise RequestError(422, await self._reason(model, values, error)) from error
        finally:
            for job in jobs:
                job.answers.cancel()
        answers: Answers = [{} for _ in values]
        for (rows, _), records in zip(pieces, results, strict=True):
            for row, record in zip(rows, records, strict=True):
                answers[row] = record
        return answers

    @property
    def busy(self) -> bool:
        """Whether inputs wait for a worker."""
        return bool(self._jobs)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _lengths(self, model: LoadedModel, values: list[Any]) -> list[int]:
        """Return the tokens of each input. Meanwhile the inputs count as queued, since other requests are admitted."""
        if len(values) <= _FEW_INPUTS:
            return model.predictor.lengths(values)
        self._tokenizing += len(values)
        try:
            return await asyncio.to_thread(model.predictor.lengths, values)
        finally:
            self._tokenizing -= len(values)

    def _split(self, lengths: list[int]) -> list[tuple[list[int], int]]:
        """Split inputs into jobs: positions of the inputs, and the length of the longest."""
        if len(lengths) == 1:
            return [([0], lengths[0])]
        pieces = length_batches(np.array(lengths, np.int64), self.settings.batch_tokens, self.settings.batch_rows)
        return [(rows.tolist(), lengths[rows[0]]) for rows in pieces]

    async def _reason(self, model: LoadedModel, values: list[Any], error: UserError) -> str:
        """Return the task's error for the whole request, with positions as the client numbered them."""
        try:
            await asyncio.to_thread(model.predictor.task.parse_inputs, values)
        except UserError as whole:
            return str(whole)
        return str(error)

    def _dispatch(self) -> None:
        """Start batches on free workers, unless the delay for more inputs is running."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._jobs:
            oldest = self._jobs[0]
            remaining = oldest.arrived + self.settings.batch_delay_ms / 1000 - time.monotonic()
            if remaining > 0 and self._rows < self.settings.batch_rows:
                self._timer = asyncio.get_running_loop().call_later(remaining, self._dispatch)
                break
            self._start(self._take_batch())
        self.metrics.waiting.inc(self._rows - self._shown)  # a trial's batcher counts there too
        self._shown = self._rows

    def _take_batch(self) -> list[_Job]:
        """Remove the oldest job and those closest to it in length from the queue; return them."""
        oldest = self._jobs[0]
        others = [job for job in self._jobs[1:] if job.model is oldest.model]
        others.sort(key=lambda job: abs(job.tokens - oldest.tokens))
        batch, rows, longest = {oldest}, len(oldest.values), oldest.tokens
        tokens = rows * longest
        for job in others:
            new_rows, new_longest = rows + len(job.values), max(longest, job.tokens)
            new_tokens = tokens + len(job.values) * job.tokens
            limit = min(self.settings.batch_tokens, _MAX_PADDING_RATIO * new_tokens)
            if new_rows > self.settings.batch_rows or new_rows * new_longest > limit:
                break
            batch.add(job)
            rows, longest, tokens = new_rows, new_longest, new_tokens
        self._jobs = [job for job in self._jobs if job not in batch]
        self._rows -= rows
        return sorted(batch, key=lambda job: job.arrived)

    def _start(self, jobs: list[_Job]) -> None:
        active = [job for job in jobs if not job.answers.done()]  # a client may have disconnected
        if not active:
            return
        self._free -= 1
        loop = asyncio.get_running_loop()

        def work() -> None:
            answers = self._compute(active)
            # The event loop may be closed when the server stops.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._finish, active, answers)

        self._pool.submit(work)

    def _compute(self, jobs: list[_Job]) -> list[Answers | Exception]:
        """Compute the answers, or an error, for each job; runs in a worker."""
        started = time.perf_counter()
        predict = jobs[0].model.predictor.predict
        values = [value for job in jobs for value in job.values]
        try:
            answers = predict(values)
            ends = np.cumsum([len(job.values) for job in jobs]).tolist()
            return [answers[end - len(job.values) : end] for job, end in zip(jobs, ends, strict=True)]
        except Exception as error:
            if len(jobs) == 1:
                return [error]
            return [_compute_alone(predict, job) for job in jobs]  # one bad input must not fail the others
        finally:
            self.metrics.batch_rows.observe(len(values))
            self.metrics.batch_seconds.observe(time.perf_counter() - started)

    def _finish(self, jobs: Sequence[_Job], results: Sequence[Answers | Exception]) -> None:
        self._free += 1
        self._dispatch()
        for job, answers in zip(jobs, results, strict=True):
            if job.answers.done():
                continue
            if isinstance(answers, Exception):
                job.answers.set_exception(answers)
            else:
                job.answers.set_result(answers)


def _compute_alone(predict: Any, job: _Job) -> Answers | Exception:
    try:
        answers: Answers = predict(job.values)
    except Exception as error:
        return error
    return answers
