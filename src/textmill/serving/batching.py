"""Dynamic micro-batching: inputs of different requests that wait at the same time are computed together.

While a worker is free, an input is computed at once (or after a short delay, if one is set). While
all are busy, inputs gather; a worker that becomes free takes the one that has waited longest and
those nearest to it in length, so that little of the batch is padding. Nothing starves: the oldest
always goes first. Everything but the computing itself happens in the event loop's thread.
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
from textmill.serving.limits import Refused, busy
from textmill.serving.loading import LoadedModel
from textmill.serving.metrics import ServingMetrics
from textmill.serving.settings import ServeSettings
from textmill.text.batches import length_batches

Answers = list[dict[str, Any]]

# So many inputs are measured within a tenth of a millisecond or two; more would hold up the event loop.
_FEW = 4
# One batch more than there are workers is handed over, so that none waits for the event loop's thread.
_AHEAD = 1
# Padded size of a batch over the tokens in it. What a batch costs by itself is no more than some ten
# tokens, so a smaller one is better than padding.
_PADDED = 1.1


@dataclass(frozen=True, eq=False)
class _Job:
    """Inputs of one request that are computed together; `tokens` are those of the longest."""

    model: LoadedModel
    values: list[Any]
    tokens: int
    answers: asyncio.Future[Answers]
    arrived: float


class MicroBatcher:
    """Answers inputs in batches, in threads of its own; used from one event loop.

    Args:
        settings: Sizes of a batch, its delay, how many inputs may wait, how many workers.
        metrics: Told about every batch and the inputs that wait.
    """

    def __init__(self, settings: ServeSettings, metrics: ServingMetrics) -> None:
        self.settings = settings
        self.metrics = metrics
        workers = settings.workers or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
        self._free = workers + _AHEAD
        self._jobs: list[_Job] = []
        self._rows = 0
        self._arriving = 0
        self._timer: asyncio.TimerHandle | None = None

    async def answer(self, model: LoadedModel, values: list[Any]) -> Answers:
        """One record an input, in their order, all by this model.

        Raises:
            Refused: 503 when too many inputs wait, 422 when the task does not accept an input.
        """
        settings = self.settings
        before = self._rows + self._arriving
        if before and before + len(values) > settings.max_waiting:
            raise busy("too many inputs wait already; try again")
        lengths = await self._lengths(model, values)
        pieces = self._pieces(lengths)
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
                found = [await jobs[0].answers]
            else:
                found = await asyncio.gather(*(job.answers for job in jobs))
        except UserError as error:
            raise Refused(422, await self._reason(model, values, error)) from error
        finally:
            for job in jobs:
                job.answers.cancel()
        answers: Answers = [{} for _ in values]
        for (rows, _), records in zip(pieces, found, strict=True):
            for row, record in zip(rows, records, strict=True):
                answers[row] = record
        return answers

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _lengths(self, model: LoadedModel, values: list[Any]) -> list[int]:
        """Tokens of each input; they count as waiting meanwhile, as others are admitted in between."""
        if len(values) <= _FEW:
            return model.predictor.lengths(values)
        self._arriving += len(values)
        try:
            return await asyncio.to_thread(model.predictor.lengths, values)
        finally:
            self._arriving -= len(values)

    def _pieces(self, lengths: list[int]) -> list[tuple[list[int], int]]:
        """Positions of inputs that are computed together, and the tokens of their longest."""
        if len(lengths) == 1:
            return [([0], lengths[0])]
        pieces = length_batches(np.array(lengths, np.int64), self.settings.batch_tokens, self.settings.batch_rows)
        return [(rows.tolist(), lengths[rows[0]]) for rows in pieces]

    async def _reason(self, model: LoadedModel, values: list[Any], error: UserError) -> str:
        """The task's complaint about the whole request, in which positions are the client's own."""
        try:
            await asyncio.to_thread(model.predictor.task.parse_inputs, values)
        except UserError as whole:
            return str(whole)
        return str(error)

    def _dispatch(self) -> None:
        """Hand work to free workers, unless it is worth waiting for more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._jobs:
            oldest = self._jobs[0]
            remaining = oldest.arrived + self.settings.batch_delay_ms / 1000 - time.monotonic()
            if remaining > 0 and self._rows < self.settings.batch_rows:
                self._timer = asyncio.get_running_loop().call_later(remaining, self._dispatch)
                break
            self._start(self._take())
        self.metrics.waiting.set(self._rows)

    def _take(self) -> list[_Job]:
        """The job that has waited longest and those like it in length, removed from the queue."""
        oldest = self._jobs[0]
        alike = [job for job in self._jobs[1:] if job.model is oldest.model]
        alike.sort(key=lambda job: abs(job.tokens - oldest.tokens))
        taken, rows, longest = {oldest}, len(oldest.values), oldest.tokens
        tokens = rows * longest
        for job in alike:
            rows_then, longest_then = rows + len(job.values), max(longest, job.tokens)
            padded, tokens_then = rows_then * longest_then, tokens + len(job.values) * job.tokens
            most = min(self.settings.batch_tokens, _PADDED * tokens_then)
            if rows_then > self.settings.batch_rows or padded > most:
                break
            taken.add(job)
            rows, longest, tokens = rows_then, longest_then, tokens_then
        self._jobs = [job for job in self._jobs if job not in taken]
        self._rows -= rows
        return sorted(taken, key=lambda job: job.arrived)

    def _start(self, jobs: list[_Job]) -> None:
        wanted = [job for job in jobs if not job.answers.done()]  # a client may have gone away
        if not wanted:
            return
        self._free -= 1
        loop = asyncio.get_running_loop()

        def work() -> None:
            answers = self._compute(wanted)
            # At the end of the server nobody waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._finish, wanted, answers)

        self._pool.submit(work)

    def _compute(self, jobs: list[_Job]) -> list[Answers | Exception]:
        """Runs in a worker: the answers to each job, or what went wrong with it."""
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
            return [_alone(predict, job) for job in jobs]  # one bad input must not spoil the others
        finally:
            self.metrics.batch_rows.observe(len(values))
            self.metrics.batch_seconds.observe(time.perf_counter() - started)

    def _finish(self, jobs: Sequence[_Job], found: Sequence[Answers | Exception]) -> None:
        self._free += 1
        self._dispatch()
        for job, answers in zip(jobs, found, strict=True):
            if job.answers.done():
                continue
            if isinstance(answers, Exception):
                job.answers.set_exception(answers)
            else:
                job.answers.set_result(answers)


def _alone(predict: Any, job: _Job) -> Answers | Exception:
    try:
        answers: Answers = predict(job.values)
    except Exception as error:
        return error
    return answers
