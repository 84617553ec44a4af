"""The data report's pictures, drawn in a process of their own.

That process loads matplotlib while `prepare` does its work, so that nobody waits for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from textmill.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_CLASSES = 30
_OS_ERROR = 3


class Painter:
    """Starts the process on entering, ends it on leaving."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "textmill.data.pictures"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self

    def draw(self, found: dict[str, Any], folder: Path) -> None:
        """Draw the statistics `found` into `folder` as `lengths.png` and, with classes, `classes.png`.

        Raises:
            OSError: A picture cannot be written.
            UserError: The process failed otherwise.
        """
        _, messages = self._process.communicate(json.dumps({"found": found, "folder": str(folder)}))
        if self._process.returncode == _OS_ERROR:
            raise OSError(*json.loads(messages.splitlines()[-1]))
        if self._process.returncode:
            lines = messages.strip().splitlines() or ["it ended without a message"]
            raise UserError(f"the pictures could not be drawn ({lines[-1]})", where=str(folder))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


def classes_of(splits: dict[str, Any]) -> list[str]:
    """All classes, those with most rows first."""
    totals: dict[str, int] = {}
    for split in splits.values():
        for name, count in split["classes"].items():
            totals[name] = totals.get(name, 0) + count
    return sorted(totals, key=lambda name: (-totals[name], name))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_lengths(found: dict[str, Any]) -> Figure:
    figure = _figure(7, 3.2)
    axes = figure.subplots()
    for name, split in found["splits"].items():
        starts = [int(start) for start in split["lengths"]]
        shares = [100 * count / split["rows"] for count in split["lengths"].values()]
        axes.plot(starts, shares, drawstyle="steps-post", label=name)
    axes.set(xlabel="length in tokens", ylabel="% of the split's rows", title="Length of the texts")
    axes.legend(frameon=False)
    return figure


def _draw_classes(found: dict[str, Any]) -> Figure:
    splits = found["splits"]
    classes = classes_of(splits)[:SHOWN_CLASSES]
    figure = _figure(7, 1.6 + 0.32 * len(classes))
    axes = figure.subplots()
    height = 0.8 / len(splits)
    for index, (name, split) in enumerate(splits.items()):
        shares = [100 * split["classes"].get(label, 0) / split["rows"] for label in classes]
        axes.barh([row + index * height for row in range(len(classes))], shares, height, label=name)
    axes.set_yticks([row + height for row in range(len(classes))], [label[:40] for label in classes])
    axes.invert_yaxis()
    axes.set(xlabel="% of the split's rows", title="Balance of the classes")
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Read what to draw from the standard input, and draw it."""
    import matplotlib.figure  # noqa: F401  # loaded before the input is there

    job = json.load(sys.stdin)
    found, folder = job["found"], Path(job["folder"])
    pictures = {"lengths.png": _draw_lengths}
    if any(split["classes"] for split in found["splits"].values()):
        pictures["classes.png"] = _draw_classes
    try:
        for name, draw in pictures.items():
            draw(found).savefig(folder / name, dpi=110)
    except OSError as error:
        sys.stderr.write(json.dumps([error.errno, error.strerror, error.filename]) + "\n")
        sys.exit(_OS_ERROR)


if __name__ == "__main__":
    main()
