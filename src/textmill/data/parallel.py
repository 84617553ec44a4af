"""Compute chunks in threads, processes or on Ray, and return their results in order.

No result depends on the engine or the number of workers: each chunk is computed by itself, and all are put together in
their order by one process.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from textmill.errors import UserError
from textmill.files import atomic_write

Item = TypeVar("Item")
Result = TypeVar("Result")
Kind = Literal["threads", "processes", "ray"]
_MOST = 4


class Engine:
    """Workers that compute chunks.

    Threads copy no chunk and suffice where NumPy, Arrow or the tokenizer does the work: these release Python's lock.
    Processes are faster for large inputs. Ray uses the cluster at `$RAY_ADDRESS`, or starts one on this machine.

    Args:
        kind: Where to compute.
        workers: Number of workers; None uses one for each core, for threads four at most, which bounds memory.
        finished: A folder for the results of chunks, from which an interrupted computation goes on; None keeps none.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(self, kind: Kind = "threads", workers: int | None = None, finished: Path | None = None) -> None:
        self._kind = kind
        self._count = workers or min(os.cpu_count() or 1, _MOST if kind == "threads" else 1 << 10)
        self._finished = finished
        self._stack = ExitStack()
        self._pool: Executor | None = None
        if kind == "ray":
            self._ray = _import_ray()

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], name: str | None = None
    ) -> Iterator[Result]:
        """Yield `function(item)` for each item, in the order of the items.

        At most `workers + 1` items are held at a time, so that memory stays flat.

        Args:
            function: Must not depend on other items, nor change anything.
            items: Read in the calling thread.
            name: Name of the results in `finished`; None keeps none.
        """
        submit = self._submitter(function)
        pending: deque[tuple[Path | None, Callable[[], Result]]] = deque()

        def first() -> Result:
            path, result = pending.popleft()
            value = result()
            if path is not None and not path.exists():
                atomic_write(path, pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
            return value

        for number, item in enumerate(items):
            path = self._finished / f"{name}-{number:06d}" if self._finished is not None and name else None
            if path is not None and path.is_file():
                pending.append((path, partial(_load, str(path))))
            else:
                pending.append((path, submit(item)))
            if len(pending) > self._count or self._count == 1:
                yield first()
        while pending:
            yield first()

    def _submitter(self, function: Callable[[Item], Result]) -> Callable[[Item], Callable[[], Result]]:
        """Return a function that begins to compute an item and returns how to get its result."""
        if self._kind == "ray":
            remote, shared = self._ray.remote(_call), self._ray.put(function)
            return lambda item: self._result_of(remote.remote(shared, item))
        if self._kind == "processes":
            import cloudpickle

            path = Path(self._started().name) / f"{id(function)}-{len(os.listdir(self._started().name))}"  # noqa: PTH208
            path.write_bytes(cloudpickle.dumps(function))
            return lambda item: self._executor().submit(_call_from, str(path), item).result
        if self._count == 1:
            return lambda item: lambda: function(item)
        return lambda item: self._executor().submit(function, item).result

    def _result_of(self, reference: Any) -> Callable[[], Any]:
        return lambda: self._ray.get(reference)

    def _started(self) -> tempfile.TemporaryDirectory[str]:
        if not hasattr(self, "_folder"):
            self._folder = tempfile.TemporaryDirectory()
            self._stack.enter_context(self._folder)
        return self._folder

    def _executor(self) -> Executor:
        if self._pool is None:
            if self._kind == "processes":
                import multiprocessing

                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self._count, context, _end_with_parent, (os.getpid(),))
            else:
                self._pool = ThreadPoolExecutor(self._count)
            self._stack.callback(self._pool.shutdown, cancel_futures=True)
        return self._pool

    def __enter__(self) -> Self:
        if self._kind == "ray" and not self._ray.is_initialized():
            local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self._count, "include_dashboard": False}
            self._ray.init(log_to_driver=False, **local)
            self._stack.callback(self._ray.shutdown)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        fix = "Run `pip install -e '.[cluster]'`"
        raise UserError("Ray is not installed", where="runtime.engine", fix=fix) from error
    return ray


def _end_with_parent(parent: int) -> None:
    """Let the system end this worker when the process that started it dies, however that dies."""
    import ctypes
    import signal

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of Linux
    if os.getppid() != parent:
        os._exit(1)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _call_from(path: str, item: Any) -> Any:
    return _function(path)(item)


@lru_cache(maxsize=1)
def _function(path: str) -> Any:
    return _load(path)


def _load(path: str) -> Any:
    return pickle.loads(Path(path).read_bytes())  # of this project's own  # nosec B301
