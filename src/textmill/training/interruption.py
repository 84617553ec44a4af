"""Signals that end a training: a checkpoint at the end of the step, then the exit."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger("textmill")

SECONDS_FOR_A_STEP = 1.5
"""Longest wait for the end of a step; a scheduler may send SIGKILL some seconds after its signal."""
_TERMINATED = 143
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that Slurm sends before pre-emption if asked by `--signal`."""


class Interruption:
    """Waits for the end of the current step when a signal asks to stop, but not for long, and not twice.

    SIGTERM and the warnings of Slurm exit with status 143, Ctrl-C raises KeyboardInterrupt. An ignored signal stays
    ignored.

    Attributes:
        requested: The signal that arrived; None before.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._writing = False
        self._handlers: dict[int, Any] = {}

    def install(self) -> None:
        """Handle the signals from now on; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread() or self._handlers:
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, *_WARNINGS):
            before = signal.getsignal(number)
            if before != signal.SIG_IGN:
                self._handlers[number] = before
                signal.signal(number, self._expire if number == signal.SIGALRM else self._request)

    def __enter__(self) -> Interruption:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Restore the earlier handlers."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Finish the block before a signal ends the training."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False

    def leave(self, step: int, checkpoint: bool) -> None:
        """End the training if a signal asked for it.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SystemExit: With status 143 after another signal.
        """
        if self.requested is None:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        state = f"wrote a checkpoint at step {step}" if checkpoint else f"at step {step}, after the last checkpoint"
        log.info("%s: %s; the next run continues from there", signal.Signals(self.requested).name, state)
        if self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(_TERMINATED)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = number
        signal.setitimer(signal.ITIMER_REAL, 1e-3 if again else SECONDS_FOR_A_STEP)

    def _expire(self, _number: int, _frame: FrameType | None) -> None:
        if self._writing:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
        elif self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        elif self.requested is not None:
            raise SystemExit(_TERMINATED)
