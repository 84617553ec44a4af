"""Temporary folder of one `textmill choose` or `textmill tune`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from textmill.config.layout import Layout

_LOCK = ".lock"  # held while the process that uses the folder lives


@contextmanager
def open_workspace(layout: Layout, parent: Path | None = None) -> Iterator[Path]:
    """Create a folder for the candidates and remove it on exit; after a kill the next call removes it.

    It is in `parent`, by default that of `textmill choose`.
    """
    from filelock import FileLock, Timeout

    parent = parent or layout.choosing
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent.with_suffix(_LOCK)):
        for abandoned in filter(Path.is_dir, parent.iterdir()):
            with suppress(Timeout), FileLock(abandoned / _LOCK, timeout=0):
                shutil.rmtree(abandoned, ignore_errors=True)
        root = Path(tempfile.mkdtemp(dir=parent))
        lock = FileLock(root / _LOCK)
        lock.acquire()
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        lock.release()
