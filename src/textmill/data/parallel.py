"""Compute chunks in threads and return their results in order, so that no result depends on the number of threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_MOST = 4


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the order of the items.

    Threads suffice where NumPy, Arrow or the tokenizer does the work: they release Python's lock, and
    no chunk is copied. At most `workers + 1` items are held at a time, so that memory stays flat.

    Args:
        function: Must not depend on other items.
        items: Read in the calling thread.
        workers: Number of threads; None uses one for each core, four at most, which bounds memory.
    """
    count = workers or min(os.cpu_count() or 1, _MOST)
    if count == 1:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
