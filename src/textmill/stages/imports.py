"""Importing large libraries quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Pause the garbage collector while large libraries are imported, and spare it their objects after.

    An import makes hundreds of thousands of objects that live to the end; looking through them
    again and again takes about a fifth of the time of importing PyTorch, Lightning and MLflow.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # Lightning asks for whole collections
        gc.enable()
