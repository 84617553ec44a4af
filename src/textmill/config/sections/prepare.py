"""The `prepare` section: reading, cleaning, deduplicating, splitting, tokenising."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import Fraction, PluginSpec

Format = Literal["csv", "tsv", "jsonl", "parquet"]


class BinsConfig(Section):
    """Turn a number into a class name: `names[i]` for values between `edges[i-1]` and `edges[i]`.

    Attributes:
        divide_by: The number is divided by this first.
        edges: Ascending; a value equal to an edge belongs to the bin nearer to zero.
        names: One more than `edges`.
    """

    divide_by: Annotated[float, Field(gt=0)] = 1.0
    edges: Annotated[list[float], Field(min_length=1)]
    names: Annotated[list[str], Field(min_length=2)]


class ColumnConfig(Section):
    """How one of the task's columns is made from a column of the file."""

    source: str
    bins: BinsConfig | None = None
    names: dict[str, str] | None = None


class ReadConfig(Section):
    """How the fetched files are read.

    Attributes:
        format: None tells it from each file's ending.
        header: Column names of a file that has none in its first line.
        quoted: Whether a quote sign in CSV/TSV encloses a field.
        columns: Task column -> file column, or a `ColumnConfig`.
    """

    format: Format | None = None
    header: list[str] | None = None
    quoted: bool = True
    columns: dict[str, str | ColumnConfig]


class SplitsConfig(Section):
    """Shares of the rows cut off for the splits that the source does not bring itself."""

    validation: Fraction = 0.1
    test: Fraction = 0.15
    seed: int = 0


class CleaningConfig(Section):
    """Unicode repair and limits on length (in characters)."""

    repair: bool = True
    normal_form: Literal["NFC", "NFKC"] | None = "NFKC"
    min_characters: Annotated[int, Field(ge=1)] = 1
    max_characters: Annotated[int, Field(ge=1)] = 100_000
    languages: list[str] | None = None


class DuplicatesConfig(Section):
    """Exact and near-duplicate removal across splits (MinHash; Broder 1997).

    Attributes:
        near: Whether near-duplicates go too.
        threshold: Jaccard similarity of character shingles from which two texts count as one.
        permutations: Length of the MinHash signature.
        shingle: Characters in a shingle.
    """

    near: bool = True
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    permutations: Annotated[int, Field(ge=16, le=512)] = 64
    shingle: Annotated[int, Field(ge=1, le=20)] = 5


class WordsConfig(Section):
    """The word view of the text that classical baselines use."""

    segmenter: Literal["whitespace", "jieba"] = "whitespace"
    stop_words: str | None = None


class PrepareConfig(Section):
    """What to make of the fetched files. `max_length` is in tokens."""

    task: PluginSpec
    read: ReadConfig
    splits: SplitsConfig = SplitsConfig()
    cleaning: CleaningConfig = CleaningConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    words: WordsConfig = WordsConfig()
    max_length: Annotated[int, Field(ge=8, le=131_072)] = 256
    rows_per_shard: Annotated[int, Field(ge=1)] = 50_000
    max_rejected: Fraction = 0.1
