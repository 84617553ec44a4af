"""The folder in which `textmill choose` works on copies of the project."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from textmill.config.layout import Layout

_LOCK = ".lock"  # held for as long as somebody works beside it


@contextmanager
def copies(layout: Layout) -> Iterator[Path]:
    """A folder for the candidates' copies, which is gone afterwards; after a kill the next call removes it."""
    from filelock import FileLock

    layout.choosing.mkdir(parents=True, exist_ok=True)
    with FileLock(layout.choosing.with_suffix(_LOCK)):
        _remove_abandoned(layout.choosing)
        root = Path(tempfile.mkdtemp(dir=layout.choosing))
        held = FileLock(root / _LOCK)
        held.acquire()
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        held.release()


def _remove_abandoned(folder: Path) -> None:
    from filelock import FileLock, Timeout

    for left in folder.iterdir():
        if left.is_dir():
            with suppress(Timeout), FileLock(left / _LOCK, timeout=0):
                shutil.rmtree(left, ignore_errors=True)
