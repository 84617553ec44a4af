"""Find the different words of many texts at once, so that what is computed of a word is computed once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def distinct_words(codes: NDArray[np.generic], starts: NDArray[np.int64]) -> tuple[NDArray[np.int32], pa.Array]:
    """Return the number of each word among the different ones, shape (words,), and these as bytes of their codes.

    Args:
        codes: The characters of all words, one after the other.
        starts: The first character of each word, and the number of characters, shape (words + 1,).
    """
    offsets, data = pa.py_buffer(starts.astype(np.int64) * codes.itemsize), pa.py_buffer(codes)
    words = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts) - 1, [None, offsets, data])
    encoded = words.dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary
