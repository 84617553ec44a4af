"""How freed memory is kept for the next step."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST_BLOCK = 32 << 20
"""What glibc allows at most."""
_MOST_KEPT = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, as the allocators that PyTorch's tuning guide recommends do.

    By itself glibc gives large blocks back to the system at once. Gradients and activations are freed
    in every step, and in the next one the kernel would hand out and clear their pages anew, which
    takes longer than to compute what is written there. Does nothing where there is another library.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
        library.mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
