"""Quality filters of `prepare` compared with those of datatrove: decisions and speed; prints Markdown.

The documents are mutated and joined parts of the corpora in `../shared/data`, so that each rule drops some. Both sides
get the same words and sentences, those of Textmill, and run in one thread, one after the other. datatrove's default
words, by spaCy, are compared too if spaCy is installed; they are most of its time.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_PLACES = [folder / "shared" / "data" for folder in Path(__file__).resolve().parents[2:]]
DATA = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
DOCUMENTS = 100_000
NAMES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
_SPICE = (
    "•", "- item", "...", "#tag #", "{", "lorem ipsum dolor", "Enable JavaScript.", "[12]", "[edit]", "№ 5 €", "12 34",
    "We use cookies to improve this page.", "x" * 1001, "don't", "«Да»", "你好。", "…", "The end.", "naïve café", "_",
    "\uff11", "\u200b", "http://example.org/a_b?c=d", "Read more", "a b c", "ab c", "a bc", "\x0b", "\u2028", "--",
)  # fmt: skip


def lines_of(folder: Path = DATA) -> list[str]:
    """Return lines of text of several kinds."""
    lines: list[str] = (folder / "tinyshakespeare/input.txt").read_text().splitlines()[:12_000]
    lines += [line.partition("\t")[0] for line in (folder / "sst2/train.tsv").read_text().splitlines()[:4_000]]
    squad = json.loads((folder / "squad2/dev-v2.0.json").read_text())["data"]
    for article in squad:
        for paragraph in article["paragraphs"]:
            lines.append(paragraph["context"])
            lines += [question["question"] for question in paragraph["qas"][:3]]
    for line in (folder / "dialogsum/dialogsum.dev.jsonl").read_text().splitlines():
        record = json.loads(line)
        lines += [record["dialogue"], record["summary"]]
    return [line for line in lines if line.strip()]


def documents(count: int, lines: Sequence[str], seed: int = 5) -> Iterator[str]:
    """Yield documents: joined lines, some repeated, cut, shuffled or with symbols put in."""
    chooser = random.Random(seed)
    for _ in range(count):
        parts = [chooser.choice(lines) for _ in range(chooser.choice((1, 2, 3, 5, 8, 12)))]
        for _ in range(chooser.choice((0, 0, 0, 1, 2, 4))):
            kind, at = chooser.randrange(6), chooser.randrange(len(parts))
            words = parts[at].split()
            if kind == 0:
                parts.insert(at, parts[at])
            elif kind == 1:
                parts[at] = " ".join([*words, *words[: chooser.randrange(30)]])
            elif kind == 2:
                parts.insert(at, chooser.choice(_SPICE))
            elif kind == 3:
                parts[at] = " ".join(
                    f"{word} {chooser.choice(_SPICE)}" if chooser.random() < 0.2 else word for word in words
                )
            elif kind == 4:
                parts[at] = f"{chooser.choice(('- ', '• ', '  •'))}{parts[at]}{chooser.choice(('', '...', '…', '.'))}"
            else:
                parts[at] = " ".join(words[: chooser.randrange(1, 8)])
        yield chooser.choice(("\n", "\n", "\n\n", "\n\n\n", " ")).join(parts)


def ours(name: str) -> Callable[[Sequence[str]], tuple[list[str], list[bool]]]:
    """Return the filter as a function from texts to changed texts and what is kept."""
    from textmill.config.sections.quality import QualityConfig
    from textmill.data.quality import Tally, quality_filter

    judge = quality_filter(QualityConfig.model_validate({name: {}}))
    assert judge is not None

    def run(texts: Sequence[str]) -> tuple[list[str], list[bool]]:
        changed, problems = judge(texts, Tally())
        return changed, [position not in problems for position in range(len(texts))]

    return run


def theirs(name: str, words: Callable[[str], list[str]] | None = None) -> Callable[[Sequence[str]], Any]:
    """Return datatrove's filter as the same function; `words` replaces its words and sentences."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils import text as utilities
    from datatrove.utils import word_tokenizers

    if words is not None:
        own = _OwnTokenizer(words)
        word_tokenizers.load_word_tokenizer = lambda _: own
    utilities.split_into_parts.cache_clear()
    types = (GopherRepetitionFilter, GopherQualityFilter, C4QualityFilter, FineWebQualityFilter)
    judge = dict(zip(NAMES, types, strict=True))[name]()

    def run(texts: Sequence[str]) -> tuple[list[str], list[bool]]:
        found = [Document(text=text, id="") for text in texts]
        kept = [judge.filter(document) is True for document in found]
        return [document.text for document in found], kept

    return run


class _OwnTokenizer:
    """Textmill's words and sentences behind datatrove's interface."""

    def __init__(self, words: Callable[[str], list[str]]) -> None:
        self.word_tokenize = words

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        from textmill.text.sentences import sentence_count

        return [(0, len(text))] * sentence_count(text)


def words_of(text: str) -> list[str]:
    """Return the words of one text, exactly those that the filters see."""
    from textmill.data.tokens import Tokens

    return Tokens([text]).of(0, text)


def prepared_words(texts: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a table of the words of all texts: datatrove's side then spends no time on them."""
    from textmill.data.shingles import batches
    from textmill.data.tokens import Tokens

    table: dict[str, list[str]] = {}
    for some in batches(texts):
        tokens = Tokens(texts[some])
        table.update((text, tokens.of(position, text)) for position, text in enumerate(texts[some]))
    return lambda text: table[text] if text in table else words_of(text)


def main(count: int) -> None:
    """Print the table."""
    texts = list(documents(count, lines_of()))
    size = sum(map(len, texts)) / 1e6
    words = prepared_words(texts)
    print(f"{count:,} documents, {size:.0f} million characters.\n")
    print("| filter | kept | decisions and texts that differ | ours | datatrove, words given | times as fast |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for name in NAMES:
        started = time.perf_counter()
        changed, kept = ours(name)(texts)
        own = time.perf_counter() - started
        judge = theirs(name, words)
        started = time.perf_counter()
        other_texts, other_kept = judge(texts)
        other = time.perf_counter() - started
        differ = sum(
            one != two or (one and text != other_text)
            for one, two, text, other_text in zip(kept, other_kept, changed, other_texts, strict=True)
        )
        print(
            f"| {name} | {sum(kept):,} | {differ} | {size / own:.1f} MB/s | {size / other:.1f} MB/s "
            f"| {other / own:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else DOCUMENTS)
