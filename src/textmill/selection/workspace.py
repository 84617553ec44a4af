"""Temporary folder of one `textmill choose`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from textmill.config.layout import Layout

_LOCK = ".lock"  # held while the process that uses the folder lives


@contextmanager
def open_workspace(layout: Layout) -> Iterator[Path]:
    """Create a folder for the candidates and remove it on exit; after a kill the next call removes it."""
    from filelock import FileLock

    layout.choosing.mkdir(parents=True, exist_ok=True)
    with FileLock(layout.choosing.with_suffix(_LOCK)):
        _remove_abandoned(layout.choosing)
        root = Path(tempfile.mkdtemp(dir=layout.choosing))
        lock = FileLock(root / _LOCK)
        lock.acquire()
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        lock.release()


def _remove_abandoned(folder: Path) -> None:
    from filelock import FileLock, Timeout

    for path in folder.iterdir():
        if path.is_dir():
            with suppress(Timeout), FileLock(path / _LOCK, timeout=0):
                shutil.rmtree(path, ignore_errors=True)
