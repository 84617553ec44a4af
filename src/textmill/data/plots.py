"""Draw the plots of the data report in a separate process.

The process loads matplotlib while `prepare` works, so that loading costs no time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from textmill.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_CLASSES = 30
_OS_ERROR = 3


class PlotProcess:
    """Start the plotting process on entry; stop it on exit."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", main.__module__], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self

    def draw(self, statistics: dict[str, Any], folder: Path) -> None:
        """Draw `lengths.png` and, with classes, `classes.png` into `folder`.

        Raises:
            OSError: A plot cannot be written.
            UserError: The process failed otherwise.
        """
        _, messages = self._process.communicate(json.dumps({"statistics": statistics, "folder": str(folder)}))
        if self._process.returncode == _OS_ERROR:
            raise OSError(*json.loads(messages.splitlines()[-1]))
        if self._process.returncode:
            lines = messages.strip().splitlines() or ["it ended without a message"]
            raise UserError(f"the plots could not be drawn ({lines[-1]})", where=str(folder))

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


def classes_by_count(splits: dict[str, Any]) -> list[str]:
    """Return all classes, the most frequent first."""
    totals: dict[str, int] = {}
    for split in splits.values():
        for name, count in split["classes"].items():
            totals[name] = totals.get(name, 0) + count
    return sorted(totals, key=lambda name: (-totals[name], name))


def _draw_lengths(statistics: dict[str, Any], figure: Figure) -> None:
    figure.set_size_inches(7, 3.2)
    axes = figure.subplots()
    for name, split in statistics["splits"].items():
        starts = [int(start) for start in split["lengths"]]
        shares = [100 * count / split["rows"] for count in split["lengths"].values()]
        axes.plot(starts, shares, drawstyle="steps-post", label=name)
    axes.set(xlabel="length in tokens", ylabel="% of the split's rows", title="Length of the texts")
    axes.legend(frameon=False)


def _draw_classes(statistics: dict[str, Any], figure: Figure) -> None:
    splits = statistics["splits"]
    classes = classes_by_count(splits)[:SHOWN_CLASSES]
    figure.set_size_inches(7, 1.6 + 0.32 * len(classes))
    axes = figure.subplots()
    height = 0.8 / len(splits)
    for index, (name, split) in enumerate(splits.items()):
        shares = [100 * split["classes"].get(label, 0) / split["rows"] for label in classes]
        axes.barh([row + index * height for row in range(len(classes))], shares, height, label=name)
    axes.set_yticks([row + height for row in range(len(classes))], [label[:40] for label in classes])
    axes.invert_yaxis()
    axes.set(xlabel="% of the split's rows", title="Balance of the classes")
    axes.legend(frameon=False)


def main() -> None:
    """Read the statistics from the standard input and draw the plots."""
    from matplotlib.figure import Figure  # loaded before the input arrives

    job = json.load(sys.stdin)
    statistics, folder = job["statistics"], Path(job["folder"])
    plots = {"lengths.png": _draw_lengths}
    if any(split["classes"] for split in statistics["splits"].values()):
        plots["classes.png"] = _draw_classes
    try:
        for name, draw in plots.items():
            figure = Figure(layout="constrained")
            draw(statistics, figure)
            figure.savefig(folder / name, dpi=110)
    except OSError as error:
        sys.stderr.write(json.dumps([error.errno, error.strerror, error.filename]) + "\n")
        sys.exit(_OS_ERROR)


if __name__ == "__main__":
    main()
