"""Speed of `prepare` compared with its tokenizer alone, in one run, as the input grows; prints Markdown.

The text is that of `bench.memory`; near-duplicate removal is on and both sides use all cores. The tokenizer
runs before and after `prepare`: other load on the machine shows as a difference between the two. The picture
`docs/prepare-lines.png` has time and memory by lines; it is drawn where at least three sizes were measured.
"""

from __future__ import annotations

import csv
import math
import os
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from bench.memory import LABELS, ROOT, build_project, measure, sentences

LINES = (10_000, 100_000, 1_000_000)
GOAL = 0.85
PICTURE = ROOT / "docs" / "prepare-lines.png"
_AT_ONCE = 10_000


def write_lines(path: Path, count: int, vocabulary: list[str]) -> int:
    """Write a CSV of `count` rows; return the bytes of its texts."""
    size = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index, text in enumerate(islice(sentences(vocabulary), count)):
            writer.writerow([text, LABELS[index % 2]])
            size += len(text)
    return size


def tokenize(path: Path, tokenizer: Path) -> float:
    """Return the seconds that `encode_batch` takes for all texts; reading them does not count."""
    from textmill.data.tokenizing import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    seconds = 0.0
    with path.open(newline="") as file:
        rows = csv.reader(file)
        next(rows)
        while texts := [row[0] for row in islice(rows, _AT_ONCE)]:
            started = time.perf_counter()
            loaded.encode_batch(texts)
            seconds += time.perf_counter() - started
    return seconds


def main(counts: tuple[int, ...]) -> None:
    """Print the table."""
    os.environ.setdefault("TEXTMILL_HOME", str(ROOT))
    found: list[tuple[int, float, float, float]] = []
    print("| lines | `prepare` | processor time | peak memory | `encode_batch` before, after | share | goal |")
    print("|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        root = Path(folder)
        vocabulary = build_project(root)
        path = root / "data/raw/files/all/made_up.csv"
        path.parent.mkdir(parents=True)
        for count in counts:
            size = write_lines(path, count, vocabulary) / 1e6
            before = tokenize(path, root / "data/pretrained")
            spent = _children_seconds()
            seconds, peak = measure(root)
            spent = _children_seconds() - spent
            after = tokenize(path, root / "data/pretrained")
            share = (before + after) / 2 / seconds
            found.append((count, seconds, spent, peak / 1e6))
            print(
                f"| {count:,} | {seconds:.1f} s, {size / seconds:.2f} MB/s | {spent:.1f} s | {peak / 1e6:.0f} MB "
                f"| {size / before:.2f}, {size / after:.2f} MB/s | {share:.0%} | ≥ {GOAL:.0%} |",
                flush=True,
            )

    lines = sorted(found)
    if len(lines) < 3:
        return
    (fewer, _, short, _), (more, _, long, _) = lines[-2:]
    growth = math.log(long / short) / math.log(more / fewer)
    print(f"\nFrom {fewer:,} to {more:,} lines the processor time grows with the power {growth:.2f} of the lines.")
    draw(lines)
    print("\n![Time and memory of prepare by lines](prepare-lines.png)")


def draw(found: list[tuple[int, float, float, float]]) -> None:
    """Draw seconds and megabytes by lines; the broken line is the processor time of the most lines, divided evenly."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts, seconds, spent, megabytes = (list(values) for values in zip(*found, strict=True))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.loglog(counts, seconds, "s:", label="wall time")
    left.loglog(counts, spent, "o-", label="processor time")
    left.loglog(counts, [spent[-1] * count / counts[-1] for count in counts], "--", label="linear")
    left.set(xlabel="lines", ylabel="seconds")
    left.legend()
    right.semilogx(counts, megabytes, "o-")
    right.set(xlabel="lines", ylabel="peak memory in MB", ylim=(0, 1.2 * max(megabytes)))
    figure.savefig(PICTURE, dpi=110)
    pyplot.close(figure)


def _children_seconds() -> float:
    """Return the processor seconds of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(tuple(int(float(count)) for count in sys.argv[1:]) or LINES)
