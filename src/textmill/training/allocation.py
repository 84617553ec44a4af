"""Keep freed memory for the next step."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST_BLOCK = 32 << 20
"""The limit of glibc."""
_MOST_KEPT = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, as the allocators that PyTorch's tuning guide recommends do.

    By default glibc returns large blocks to the system at once. Gradients and activations are freed in every
    step; for the next one the kernel would allocate and clear their pages again, which takes longer than the
    computation that fills them. Does nothing with another C library.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
