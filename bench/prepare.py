"""Speed of `prepare` compared with its tokenizer alone, in one run, as the input grows; prints Markdown.

The text is that of `bench.memory`; near-duplicate removal is on and both sides use all cores. The tokenizer
runs before and after `prepare`: other load on the machine shows as a difference between the two.
"""

from __future__ import annotations

import csv
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
            print(
                f"| {count:,} | {seconds:.1f} s, {size / seconds:.2f} MB/s | {spent:.1f} s | {peak / 1e6:.0f} MB "
                f"| {size / before:.2f}, {size / after:.2f} MB/s | {share:.0%} | ≥ {GOAL:.0%} |",
                flush=True,
            )


def _children_seconds() -> float:
    """Return the processor seconds of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(tuple(int(float(count)) for count in sys.argv[1:]) or LINES)
