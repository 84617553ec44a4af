"""Peak memory of `prepare` as its input grows to 1 GB of text, with near-duplicate removal on.

The text is made up: words of the tokenizer's vocabulary with Zipf's frequencies in sentences of 8
to 40 words; 1 % of the rows repeat an earlier one, 2 % differ from one in their last word.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
SIZES = (100_000_000, 1_000_000_000)
LIMIT = 2_000_000_000
LABELS = ("bad", "good")


def sentences(vocabulary: list[str], seed: int = 3) -> Iterator[str]:
    """Made-up sentences without end."""
    chooser = np.random.default_rng(seed)
    odds = 1 / np.arange(10, len(vocabulary) + 10)
    odds /= odds.sum()
    words = np.array(vocabulary, object)
    earlier: list[str] = []
    while True:
        lengths = chooser.integers(8, 41, 10_000)
        drawn = words[chooser.choice(len(words), lengths.sum(), p=odds)].tolist()
        fates = chooser.random(len(lengths)).tolist()
        block, begin = [], 0
        for length, fate in zip(lengths.tolist(), fates, strict=True):
            if earlier and fate < 0.01:
                block.append(earlier[begin % len(earlier)])
            elif earlier and fate < 0.03:
                block.append(f"{earlier[begin % len(earlier)].rpartition(' ')[0]} {drawn[begin]}")
            else:
                block.append(" ".join(drawn[begin : begin + length]))
            begin += length
        yield from block
        earlier = block


def write_csv(path: Path, size: int, vocabulary: list[str]) -> None:
    """Write a CSV of about `size` bytes."""
    written = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index, text in enumerate(sentences(vocabulary)):
            written += writer.writerow([text, LABELS[index % 2]])
            if written >= size:
                return


def build_project(root: Path) -> list[str]:
    """Lay a project with the default model's tokenizer; gives the words of its vocabulary."""
    from textmill.config.compose import compose
    from textmill.config.layout import Layout
    from textmill.fetching.pretrained import fetch_pretrained

    (root / "dvc.yaml").touch()
    config = compose(Layout(ROOT), ["experiment=movie_reviews"]).fetch
    fetch_pretrained(config, Layout(root))
    vocabulary: dict[str, int] = json.loads((root / "data/pretrained/tokenizer.json").read_text())["model"]["vocab"]
    return [word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 1]


PROGRAM = """
from pathlib import Path
from textmill.config.layout import Layout
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.data.prepare import prepare

config = PrepareConfig(
    task={"_target_": "textmill.tasks.text_classification.TextClassification"},
    read={"columns": {"text": "text", "label": "label"}},
)
prepare(config, RuntimeConfig(), Layout(Path.cwd()))
"""


def measure(root: Path) -> tuple[float, int]:
    """Wall time in seconds and peak resident memory in bytes of `prepare` and its children."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=root)
    watched = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.05)
    if process.returncode:
        sys.exit("prepare failed")
    return time.perf_counter() - started, peak


def main(sizes: tuple[int, ...]) -> None:
    """Print the table."""
    os.environ.setdefault("TEXTMILL_HOME", str(ROOT))
    print(
        "| text read | rows | near-duplicates dropped | minutes | peak memory | goal |\n|---:|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        root = Path(folder)
        vocabulary = build_project(root)
        path = root / "data/raw/files/all/made_up.csv"
        path.parent.mkdir(parents=True)
        for size in sizes:
            write_csv(path, size, vocabulary)
            seconds, peak = measure(root)
            found = json.loads((root / "data/prepared/statistics.json").read_text())
            near = found["duplicates"]["near"]
            print(
                f"| {path.stat().st_size / 1e6:.0f} MB | {found['rows_read']:,} | {near:,} "
                f"| {seconds / 60:.1f} | {peak / 1e6:.0f} MB | ≤ {LIMIT / 1e6:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main(tuple(int(float(size)) for size in sys.argv[1:]) or SIZES)
