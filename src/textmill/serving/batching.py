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
from dataclasses import dataclass
from typing import Any

import numpy as np

from textmill.errors import UserError
from textmill.serving.limits import Refused, busy, estimated_tokens
from textmill.serving.loading import LoadedModel
from textmill.serving.metrics import ServingMetrics
from textmill.serving.settings import ServeSettings
from textmill.training.inference import length_batches

Answers = list[dict[str, Any]]


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
        self._free = workers
        self._jobs: list[_Job] = []
        self._rows = 0
        self._timer: asyncio.TimerHandle | None = None

    async def answer(self, model: LoadedModel, values: list[Any]) -> Answers:
        """One record an input, in their order, all by this model.

        Raises:
            Refused: 503 when too many inputs wait, 422 when the task does not accept an input.
        """
        settings = self.settings
        if self._rows and self._rows + len(values) > settings.max_waiting:
            raise busy("too many inputs wait already; try again")
        lengths = np.fromiter((estimated_tokens(value, model.max_tokens) for value in values), np.int64, len(values))
        pieces = length_batches(lengths, settings.batch_tokens, settings.batch_rows)
        now = time.monotonic()
        loop = asyncio.get_running_loop()
        jobs = [
            _Job(model, [values[row] for row in rows], int(lengths[rows[0]]), loop.create_future(), now)
            for rows in pieces
        ]
        self._jobs += jobs
        self._rows += len(values)
        self._dispatch()
        try:
            found = await asyncio.gather(*(job.answers for job in jobs))
        except UserError as error:
            raise Refused(422, await self._reason(model, values, error)) from error
        finally:
            for job in jobs:
                job.answers.cancel()
        answers: Answers = [{} for _ in values]
        for rows, records in zip(pieces, found, strict=True):
            for row, record in zip(rows, records, strict=True):
                answers[row] = record
        return answers

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

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
        alike = sorted(
            (job for job in self._jobs if job.model is oldest.model),
            key=lambda job: abs(job.tokens - oldest.tokens),
        )
        alike.remove(oldest)
        taken, rows, longest = [oldest], len(oldest.values), oldest.tokens
        for job in alike:
            rows_then, longest_then = rows + len(job.values), max(longest, job.tokens)
            if rows_then > self.settings.batch_rows or rows_then * longest_then > self.settings.batch_tokens:
                break
            taken.append(job)
            rows, longest = rows_then, longest_then
        gone = set(map(id, taken))
        self._jobs = [job for job in self._jobs if id(job) not in gone]
        self._rows -= rows
        return taken

    def _start(self, jobs: list[_Job]) -> None:
        wanted = [job for job in jobs if not job.answers.done()]  # a client may have gone away
        if not wanted:
            return
        self._free -= 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._compute, wanted)
        future.add_done_callback(lambda done: self._finish(wanted, done))

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

    def _finish(self, jobs: Sequence[_Job], done: asyncio.Future[list[Answers | Exception]]) -> None:
        self._free += 1
        if done.cancelled():
            for job in jobs:
                job.answers.cancel()
            return
        for job, answers in zip(jobs, done.result(), strict=True):
            if job.answers.done():
                continue
            if isinstance(answers, Exception):
                job.answers.set_exception(answers)
            else:
                job.answers.set_result(answers)
        self._dispatch()


def _alone(predict: Any, job: _Job) -> Answers | Exception:
    try:
        answers: Answers = predict(job.values)
    except Exception as error:
        return error
    return answers
