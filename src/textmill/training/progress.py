"""How far training is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

log = logging.getLogger("textmill")

_SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """What training tells while it runs. Amounts are in samples."""

    def begin(self, total: int, done: int) -> None:
        """Training starts, or goes on after `done` samples."""

    def advance(self, done: int, loss: float, tokens_per_second: float) -> None:
        """So many samples are done."""

    def validated(self, figures: Mapping[str, float], is_best: bool) -> None:
        """A validation is over."""

    def end(self) -> None:
        """Training is over, however it ended; may be called twice."""


def make_progress(how: Literal["auto", "bar", "plain"], speaks: bool = True) -> Progress:
    """A bar on a terminal and plain lines elsewhere, unless `how` says which; nothing when not `speaks`."""
    if not speaks:
        return SilentProgress()
    bar = how == "bar" or (how == "auto" and sys.stderr.isatty())
    return BarProgress() if bar else PlainProgress()


def describe(figures: Mapping[str, float], is_best: bool) -> str:
    """A validation's figures in one line."""
    text = ", ".join(f"{name.removeprefix('validation/')} {value:.4f}" for name, value in figures.items())
    return f"validation: {text}{' (best so far)' if is_best else ''}"


class SilentProgress:
    """Says nothing."""

    def begin(self, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, done: int, loss: float, tokens_per_second: float) -> None:
        """Nothing."""

    def validated(self, figures: Mapping[str, float], is_best: bool) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class PlainProgress:
    """Logs a line about every ten seconds and at each validation."""

    def __init__(self) -> None:
        self._total = 0
        self._first = 0
        self._started = 0.0
        self._told = 0.0

    def begin(self, total: int, done: int) -> None:
        """Start the clock."""
        self._total, self._first = total, done
        self._started = self._told = time.monotonic()
        if done:
            log.info("going on after %s of %s samples", f"{done:,}", f"{total:,}")

    def advance(self, done: int, loss: float, tokens_per_second: float) -> None:
        """Tell, when the last line is ten seconds old."""
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        left = (now - self._started) / max(1, done - self._first) * max(0, self._total - done)
        share = 100 * done / max(1, self._total)
        speed = f"{tokens_per_second:,.0f}"
        log.info("%3.0f %%  loss %.4f  %s tokens/s  %s left", min(100.0, share), loss, speed, _duration(left))

    def validated(self, figures: Mapping[str, float], is_best: bool) -> None:
        """Tell the figures."""
        log.info("%s", describe(figures, is_best))

    def end(self) -> None:
        """Nothing is open."""


class BarProgress:
    """A bar of the rich library with loss, tokens a second and the time left."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def begin(self, total: int, done: int) -> None:
        """Draw the bar."""
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

    def advance(self, done: int, loss: float, tokens_per_second: float) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, loss=loss, speed=tokens_per_second)

    def validated(self, figures: Mapping[str, float], is_best: bool) -> None:
        """Print the figures above the bar."""
        if self._bar is not None:
            self._bar.console.print(describe(figures, is_best), highlight=False)

    def end(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
