"""The progress of a training: a bar on a terminal, lines in a log elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

log = logging.getLogger("textmill")

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_OF_BAR = 3.0


class Progress:
    """A display of the progress, by default none. Amounts are in samples."""

    def begin(self, total: int, done: int) -> None:
        """Start, or continue after `done` samples."""

    def advance(self, done: int, loss: float, tokens: int) -> None:
        """Show the samples so far, the last loss, and the mean speed since it was last shown, from all `tokens`."""

    def show_validation(self, metrics: Mapping[str, float], is_best: bool) -> None:
        """Show the metrics of a validation."""

    def end(self) -> None:
        """End the display; may be called twice."""


def make_progress(how: Literal["auto", "bar", "plain"], visible: bool = True) -> Progress:
    """Return the display `how`, or for `auto` a bar on a terminal and lines elsewhere; none unless `visible`."""
    if not visible:
        return Progress()
    bar = how == "bar" or (how == "auto" and sys.stderr.isatty())
    return BarProgress() if bar else PlainProgress()


def describe(metrics: Mapping[str, float], is_best: bool) -> str:
    """Return a validation's metrics in one line."""
    text = ", ".join(f"{name.removeprefix('validation/')} {value:.4f}" for name, value in metrics.items())
    return f"validation: {text}{' (best so far)' if is_best else ''}"


class PlainProgress(Progress):
    """Logs a line about every ten seconds and at each validation."""

    def __init__(self) -> None:
        self._total = 0
        self._first = 0
        self._started = 0.0
        self._last_line = 0.0
        self._last_tokens: int | None = None

    def begin(self, total: int, done: int) -> None:
        """Start the clock."""
        self._total, self._first = total, done
        self._started = self._last_line = time.monotonic()
        if done:
            log.info("continuing after %s of %s samples", f"{done:,}", f"{total:,}")

    def advance(self, done: int, loss: float, tokens: int) -> None:
        """Log a line if the last one is ten seconds old."""
        now = time.monotonic()
        if self._last_tokens is None:  # a resumed training has counted tokens before
            self._last_tokens, self._last_line = tokens, now
            return
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        speed = f"{(tokens - self._last_tokens) / (now - self._last_line):,.0f}"
        self._last_tokens, self._last_line = tokens, now
        left = (now - self._started) / max(1, done - self._first) * max(0, self._total - done)
        share = 100 * done / max(1, self._total)
        log.info("%3.0f %%  loss %.4f  %s tokens/s  %s left", min(100.0, share), loss, speed, _duration(left))

    def show_validation(self, metrics: Mapping[str, float], is_best: bool) -> None:
        """Log the metrics."""
        log.info("%s", describe(metrics, is_best))


class BarProgress(Progress):
    """A bar of the rich library with loss, tokens per second and remaining time."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._speed = 0.0
        self._since: tuple[float, int] | None = None

    def begin(self, total: int, done: int) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("train"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("train", total=total, completed=done, loss=float("nan"), speed=0.0)
        self._bar.start()

    def advance(self, done: int, loss: float, tokens: int) -> None:
        """Update the bar; its speed is the mean of the last seconds."""
        now = time.monotonic()
        if self._since is None:
            self._since = now, tokens
        elif now - self._since[0] >= _SECONDS_OF_BAR:
            self._speed = (tokens - self._since[1]) / (now - self._since[0])
            self._since = now, tokens
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, loss=loss, speed=self._speed)

    def show_validation(self, metrics: Mapping[str, float], is_best: bool) -> None:
        """Print the metrics above the bar."""
        if self._bar is not None:
            self._bar.console.print(describe(metrics, is_best), highlight=False)

    def end(self) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
