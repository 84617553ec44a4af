"""Filters of web text by rules on words, lines and repetitions, as published with Gopher, C4 and FineWeb.

Each keeps and drops the documents that datatrove's filter of the same name does, given the same words and sentences.
Rae et al. 2021 (Gopher, appendix A1), Raffel et al. 2020 (C4, section 2.2), Penedo et al. 2024 (FineWeb).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from textmill.config.sections.quality import (
    C4Config,
    FineWebConfig,
    GopherQualityConfig,
    GopherRepetitionConfig,
    QualityConfig,
)
from textmill.data.shingles import batches
from textmill.data.tokens import Tokens
from textmill.text.rejected_rows import excerpt
from textmill.text.sentences import sentence_count

SAMPLES = 3
Problems = dict[int, str]
"""Position of a dropped text -> the rule."""

_ELLIPSES = ("...", "\u2026")
_BULLETS = ("\u2022", "-")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_LINE_ENDS = (".", "?", "!", '"', "'")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")
_TERMINAL = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6 "
    "17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 "
    "2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb "
    "fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 "
    "111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 "
    "1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 "
    "16b37-16b38 16b44 16e98 1bc9f 1da88"
)
"""Sentence-terminal punctuation of all scripts, as FineWeb counts it: code points in hexadecimal."""
_PUNCTUATION = (
    "0-8 b-1f 21-2f 3a-40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001 3008-300b "
    "300c 300d 3010-3011 ff05 ff08-ff09 ff0c ff11 ff1a-ff1b ff5e"
)
"""Characters that make no word, as CCNet lists them (Wenzek et al. 2020)."""


def _characters(table: str) -> frozenset[str]:
    ranges = (part.split("-") for part in table.split())
    return frozenset(chr(code) for ends in ranges for code in range(int(ends[0], 16), int(ends[-1], 16) + 1))


TERMINAL = _characters(_TERMINAL)
PUNCTUATION = _characters(_PUNCTUATION) | TERMINAL


@dataclass
class Tally:
    """What the filters did: counts by rule, and the first texts of each."""

    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rule: str, text: str, count: int = 1) -> None:
        """Count a rule; keep the beginning of the text among its first samples."""
        self.counts[rule] += count
        shown = self.samples.setdefault(rule, [])
        if len(shown) < SAMPLES:
            shown.append(excerpt(text))

    def merge(self, other: Tally) -> None:
        """Add the counts and samples of later texts."""
        self.counts.update(other.counts)
        for rule, texts in other.samples.items():
            shown = self.samples.setdefault(rule, [])
            shown += texts[: SAMPLES - len(shown)]


def quality_filter(config: QualityConfig) -> Callable[[Sequence[str], Tally], tuple[list[str], Problems]] | None:
    """Return a function that drops texts by the configured rules, or None if no filter is set.

    It returns the texts, from which C4 may have removed lines, and the dropped ones. A text that one filter drops
    is not judged by the next.
    """
    filters = [
        *([_repetition(config.gopher_repetition)] if config.gopher_repetition is not None else []),
        *([_gopher(config.gopher_quality)] if config.gopher_quality is not None else []),
        *([_c4(config.c4)] if config.c4 is not None else []),
        *([_fineweb(config.fineweb)] if config.fineweb is not None else []),
    ]
    if not filters:
        return None

    def judged(texts: Sequence[str], tally: Tally) -> tuple[list[str], Problems]:
        result, problems = list(texts), Problems()
        for some in filters:
            left = [position for position in range(len(result)) if position not in problems]
            changed, dropped = some([result[position] for position in left], tally)
            for position, text in zip(left, changed, strict=True):
                result[position] = text
            for position, rule in dropped.items():
                problems[left[position]] = rule
        for position, rule in sorted(problems.items()):
            tally.add(rule, texts[position])
        return result, problems

    return judged


# -- Gopher ---------------------------------------------------------------------------------


def _repetition(config: GopherRepetitionConfig) -> Callable[[list[str], Tally], tuple[list[str], Problems]]:
    limits = (
        (_PARAGRAPHS, "paragraph", config.duplicate_paragraphs, config.duplicate_paragraph_characters),
        (_LINES, "line", config.duplicate_lines, config.duplicate_line_characters),
    )

    def repeated_units(text: str) -> str | None:
        for separator, unit, share, character_share in limits:
            whole = text.strip() if unit == "paragraph" else text
            if "\n" not in whole:
                continue
            parts = separator.split(whole)
            different = set(parts)
            if len(different) == len(parts):
                continue
            if share is not None and (len(parts) - len(different)) / len(parts) > share:
                return f"repeats more than {share:.0%} of its {unit}s"
            characters = sum(map(len, parts)) - sum(map(len, different))
            if character_share is not None and characters / len(text) > character_share:
                return f"has more than {character_share:.0%} of its characters in repeated {unit}s"
        return None

    def judge(texts: list[str], _tally: Tally) -> tuple[list[str], Problems]:
        problems = Problems()
        for position, text in enumerate(texts):
            reason = repeated_units(text) if text else "is empty"
            if reason is not None:
                problems[position] = reason
        for some in batches(texts):
            part = texts[some]
            tokens = Tokens(part)
            sums = tokens.hashes()
            sizes = np.fromiter((max(1, len(text)) for text in part), np.int64, len(part))
            open_ = np.array([some.start + position not in problems for position in range(len(part))])
            words: dict[int, list[str]] = {}
            for length, share, top in (
                *((length, share, True) for length, share in sorted(config.top_n_grams.items())),
                *((length, share, False) for length, share in sorted(config.duplicate_n_grams.items())),
            ):
                repeated, most, longest = tokens.repetitions(sums, length)
                # An upper bound rules out nearly all texts; the others are counted exactly
                bound = most * (longest + length - 1) if top else repeated * longest
                for position in np.flatnonzero(open_ & (bound / sizes > share)).tolist():
                    if position not in words:
                        words[position] = tokens.of(position, part[position])
                    count = top_characters if top else repeated_characters
                    if count(words[position], length) / len(part[position]) > share:
                        what = "its most frequent" if top else "repeated"
                        reason = f"has more than {share:.0%} of its characters in {what} {length}-word passage"
                        problems[some.start + position] = reason + ("" if top else "s")
                        open_[position] = False
        return texts, problems

    return judge


def top_characters(words: list[str], length: int) -> int:
    """Return the characters, spaces included, in all occurrences of the most frequent run; of several, the first."""
    runs = [" ".join(words[start : start + length]) for start in range(len(words) - length + 1)]
    run, count = Counter(runs).most_common(1)[0] if runs else ("", 0)
    return len(run) * count


def repeated_characters(words: list[str], length: int) -> int:
    """Return the characters of runs that were there before; runs counted do not overlap."""
    seen: set[str] = set()
    start = characters = 0
    while start <= len(words) - length:
        run = "".join(words[start : start + length])
        if run in seen:
            characters += len(run)
            start += length
        else:
            seen.add(run)
            start += 1
    return characters


def _gopher(config: GopherQualityConfig) -> Callable[[list[str], Tally], tuple[list[str], Problems]]:
    symbols, letters = np.zeros(0x110000, bool), np.zeros(0x110000, bool)
    symbols[[ord(character) for character in PUNCTUATION]] = True
    letters[:] = [chr(code).isalpha() for code in range(0x110000)]
    stops = [[ord(character) for character in word] for word in config.stop_words]

    def stop_words(tokens: Tokens) -> NDArray[np.int64]:
        """Return the number of different stop words of each text."""
        result = np.zeros(len(tokens.counts), np.int64)
        for word in stops:
            same = np.flatnonzero(tokens.lengths == len(word))
            for offset, code in enumerate(word):
                same = same[tokens.codes[tokens.starts[same] + offset] == code]
            result[np.unique(tokens.texts[same])] += 1
        return result

    def judge(texts: list[str], _tally: Tally) -> tuple[list[str], Problems]:
        problems = Problems()
        for some in batches(texts):
            part = texts[some]
            tokens = Tokens(part)
            is_word = tokens.any_in(~symbols[tokens.codes])
            words, characters = tokens.per_text(is_word), tokens.per_text(tokens.lengths * is_word)
            alphabetic, stop = tokens.per_text(tokens.any_in(letters[tokens.codes])), stop_words(tokens)
            columns = (values.tolist() for values in (tokens.counts, words, characters, alphabetic, stop))
            for position, row in enumerate(zip(part, *columns, strict=True)):
                reason = next(reasons(*row), None)
                if reason is not None:
                    problems[some.start + position] = reason
        return texts, problems

    def reasons(text: str, tokens: int, words: int, characters: int, alphabetic: int, stop: int) -> Iterator[str]:
        if words < config.min_words:
            yield f"has fewer than {config.min_words} words"
        if words > config.max_words:
            yield f"has more than {config.max_words} words"
        if characters / words < config.min_word_length:
            yield f"has words of fewer than {config.min_word_length:g} characters on average"
        if characters / words > config.max_word_length:
            yield f"has words of more than {config.max_word_length:g} characters on average"
        if text.count("#") / tokens > config.max_symbols:
            yield f"has more than {config.max_symbols:g} hash signs a word"
        if sum(map(text.count, _ELLIPSES)) / tokens > config.max_symbols:
            yield f"has more than {config.max_symbols:g} ellipses a word"
        lines = text.splitlines()
        # The number of signs bounds that of the lines, and is faster
        limit = config.max_bullet_lines
        some = sum(map(text.count, _BULLETS)) > limit * len(lines)
        if some and sum(line.lstrip().startswith(_BULLETS) for line in lines) / len(lines) > limit:
            yield f"has more than {config.max_bullet_lines:.0%} of its lines with a bullet"
        limit = config.max_ellipsis_lines
        some = sum(map(text.count, _ELLIPSES)) > limit * len(lines)
        if some and sum(line.rstrip().endswith(_ELLIPSES) for line in lines) / len(lines) > limit:
            yield f"has more than {config.max_ellipsis_lines:.0%} of its lines that end in an ellipsis"
        if alphabetic / tokens < config.min_alphabetic_words:
            yield f"has less than {config.min_alphabetic_words:.0%} of its words with a letter"
        if stop < config.min_stop_words:
            yield f"has fewer than {config.min_stop_words} different stop words"

    return judge


# -- C4 -------------------------------------------------------------------------------------


def _c4(config: C4Config) -> Callable[[list[str], Tally], tuple[list[str], Problems]]:
    def judge(texts: list[str], tally: Tally) -> tuple[list[str], Problems]:
        problems, changed = Problems(), []
        for position, text in enumerate(texts):
            result, reason = lines_of(text, tally)
            changed.append(text if reason else result)
            if reason:
                problems[position] = reason
        return changed, problems

    def lines_of(text: str, tally: Tally) -> tuple[str, str | None]:
        """Return the text without the lines that the rules remove, or why the whole text is dropped."""
        lowered = text.lower()
        # A citation that is removed may join what is sought
        cited = config.remove_citations and "[" in text
        lorem = config.lorem_ipsum and (cited or "lorem ipsum" in lowered)
        script = config.javascript and (cited or "javascript" in lowered)
        policy = config.policies and (cited or any(phrase in lowered for phrase in _POLICIES))
        sentences = 0
        kept = []
        removed: list[tuple[str, str]] = []
        for line in text.splitlines():
            line = line.strip()
            words = line.split(None, config.min_words_per_line)
            limit = config.max_word_length
            if len(line) > limit and any(len(word) > limit for word in line.split()):
                removed.append((f"has a word of more than {limit} characters", line))
                continue
            if cited:
                line = _CITATION.sub("", line)
            if config.terminal_punctuation and (not line.endswith(_LINE_ENDS) or line.endswith("...")):
                removed.append(("does not end in a full stop, question mark, exclamation mark or quote", line))
                continue
            if len(words) < config.min_words_per_line:
                removed.append((f"has fewer than {config.min_words_per_line} words", line))
                continue
            small = line.lower() if lorem or script or policy else ""
            if lorem and "lorem ipsum" in small:
                return text, "contains lorem ipsum"
            if script and "javascript" in small:
                removed.append(("mentions JavaScript", line))
                continue
            if config.curly_brackets and "{" in line:
                return text, "contains a curly bracket"
            if policy and any(phrase in small for phrase in _POLICIES):
                removed.append(("mentions a policy or cookies", line))
                continue
            if sentences < config.min_sentences:
                sentences += sentence_count(line)
            kept.append(line)
        if sentences < config.min_sentences:
            return text, f"has fewer than {config.min_sentences} sentences"
        for rule, line in removed:
            if line:
                tally.add(f"{LINE} {rule}", line)
        return "\n".join(kept).strip(), None

    return judge


LINE = "line"
"""First word of a rule that removes a line, not a row."""


# -- FineWeb --------------------------------------------------------------------------------


def _fineweb(config: FineWebConfig) -> Callable[[list[str], Tally], tuple[list[str], Problems]]:
    def judge(texts: list[str], _tally: Tally) -> tuple[list[str], Problems]:
        problems = Problems()
        for some in batches(texts):
            part = texts[some]
            counts: list[int] | None = None
            for position, text in enumerate(part):
                reason = of_lines(text)
                breaks = text.count("\n")
                if reason is None and breaks:
                    counts = Tokens(part).counts.tolist() if counts is None else counts
                    if breaks / counts[position] > config.max_line_breaks:
                        reason = f"has more than {config.max_line_breaks:g} line breaks a word"
                if reason is not None:
                    problems[some.start + position] = reason
        return texts, problems

    def of_lines(text: str) -> str | None:
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return "is empty"
        if sum(line[-1] in TERMINAL for line in lines) / len(lines) < config.min_punctuated_lines:
            return f"has less than {config.min_punctuated_lines:.0%} of its lines with final punctuation"
        if sum(len(line) <= config.short_line for line in lines) / len(lines) > config.max_short_lines:
            return f"has more than {config.max_short_lines:.0%} of its lines up to {config.short_line} characters long"
        different = set(lines)
        if len(different) < len(lines):
            repeated = sum(map(len, lines)) - sum(map(len, different))
            if repeated / (len(text) - text.count("\n")) > config.max_repeated_characters:
                return f"has more than {config.max_repeated_characters:.0%} of its characters in repeated lines"
        return None

    return judge
