"""The `prepare` section: read, clean, deduplicate, split and tokenise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from textmill.config.section import Section
from textmill.config.types import Fraction, PluginSpec


def _keys_as_text(value: Any) -> Any:
    """Convert keys to strings: YAML reads a bare 0 as a number, the file has the text "0"."""
    return {str(key): name for key, name in value.items()} if isinstance(value, Mapping) else value


Format = Literal["csv", "tsv", "jsonl", "parquet", "text", "squad"]


class BinsConfig(Section):
    """Bins that convert a number to a label: `names[i]` for values between `edges[i-1]` and `edges[i]`.

    Attributes:
        divide_by: Divisor of the number before binning.
        edges: Ascending edges; a value equal to an edge belongs to the bin nearer to zero.
        names: Labels, `len(edges) + 1` of them.
        uncertainty: Standard error of the divided number. With it, the result is the share of every
            label, by a normal distribution around the number.
    """

    divide_by: Annotated[float, Field(gt=0)] = 1.0
    edges: Annotated[list[float], Field(min_length=1)]
    names: Annotated[list[str], Field(min_length=2)]
    uncertainty: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _edges_fit_names(self) -> Self:
        if any(left >= right for left, right in pairwise(self.edges)):
            raise ValueError("edges must ascend")
        if len(self.names) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) + 1} names, not {len(self.names)}")
        return self


class ColumnConfig(Section):
    """Conversion of a file column to a task column.

    Attributes:
        source: File column.
        bins: Bins that convert its numbers to labels.
        names: File value -> task value; rows with other values are rejected.
    """

    source: str
    bins: BinsConfig | None = None
    names: Annotated[dict[str, str], BeforeValidator(_keys_as_text)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.bins is not None and self.names is not None:
            raise ValueError("set either bins or names, not both")
        return self


class TextConfig(Section):
    """Split of raw text files into documents; each becomes one row with the column `text`.

    Attributes:
        document: Unit of a document: the whole file, a paragraph (up to a blank line), or the text
            between two lines that match `begins`.
        begins: Regular expression that matches the first line of a document.
        drop: Regular expressions (multi-line, a dot matches line ends too) of passages to remove,
            such as the boilerplate of a licence.
    """

    document: Literal["file", "paragraph", "pattern"] = "file"
    begins: str | None = None
    drop: list[str] = []

    @model_validator(mode="after")
    def _patterns_are_good(self) -> Self:
        if (self.begins is not None) != (self.document == "pattern"):
            raise ValueError("set begins if and only if document is pattern")
        for pattern in [*self.drop, self.begins or ""]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
        return self


class ReadConfig(Section):
    """Options to read the fetched files.

    Attributes:
        format: File format; None selects by each file's extension.
        header: Column names of files without a header line.
        quoted: Whether quotes in CSV/TSV enclose a field.
        more_fields: Whether a CSV/TSV row may have more fields than the header; they are dropped.
        text: Split of raw text into documents.
        file_column: Name in `columns` for a row's file name without extension: for corpora with one
            file per label.
        columns: Task column -> file column, or a `ColumnConfig`. It may also keep `id`, `source`
            (which cuts slices) and any other columns.
    """

    format: Format | None = None
    header: list[str] | None = None
    quoted: bool = True
    more_fields: bool = False
    text: TextConfig = TextConfig()
    file_column: str | None = None
    columns: dict[str, str | ColumnConfig]


class SplitsConfig(Section):
    """Shares of rows for the splits that the source lacks.

    Attributes:
        by: `content`: sample rows by a hash of their content and the seed. `position`, for raw text:
            the beginning of each file is for training, the next part for validation and its end for
            test, as usual for one long text. `group`: all rows with the same value in the column
            `group` go to one split; the shares are shares of groups, and a row without a value is a group
            of its own. `time`: the newest rows are for test, those before them for validation.
        method: How `content` and `group` sample. `stable`: a row's split follows from its own hash, so that
            rows added later move no old one; shares are met up to chance. `shuffled`, as in earlier versions:
            the rows with the lowest hashes fill each share exactly; rows added later move some old ones.
        group: A mapped column, such as the article or the author of a row.
        time: A mapped column with dates, times (ISO 8601) or Unix times.
    """

    by: Literal["content", "position", "group", "time"] = "content"
    method: Literal["shuffled", "stable"] = "shuffled"
    group: str | None = None
    time: str | None = None
    validation: Fraction = 0.1
    test: Fraction = 0.15
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check_group_and_shares(self) -> Self:
        for column in ("group", "time"):
            if (getattr(self, column) is not None) != (self.by == column):
                raise ValueError(f"set {column} if and only if by is {column}")
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave no rows for training")
        return self


class CleaningConfig(Section):
    """Unicode repair and limits on length (in characters)."""

    repair: bool = True
    normal_form: Literal["NFC", "NFKC"] | None = "NFKC"
    min_characters: Annotated[int, Field(ge=1)] = 1
    max_characters: Annotated[int, Field(ge=1)] = 100_000
    languages: list[str] | None = None


class DuplicatesConfig(Section):
    """Removal of duplicates, and of training rows that share a passage with an evaluation row.

    Attributes:
        exact: Whether to remove rows with equal text; repeated lines of a play, for example, are correct.
        near: Whether to remove near-duplicates too.
        threshold: Smallest Jaccard similarity of character shingles between near-duplicates.
        permutations: Unused; accepted because earlier configurations have it.
        shingle: Length of a shingle, in characters.
        passage_words: Words in a row that a training row may not share with a validation or test row, nor a
            validation row with a test row; all words of a shorter text. Null keeps such rows. Documents of
            a language model are kept.
    """

    exact: bool = True
    near: bool = True
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    permutations: Annotated[int, Field(ge=16, le=512)] = 64
    shingle: Annotated[int, Field(ge=1, le=20)] = 5
    passage_words: Annotated[int, Field(ge=6, le=100)] | None = 13

    @model_validator(mode="after")
    def _near_goes_further(self) -> Self:
        if self.near and not self.exact:
            raise ValueError("near: true needs exact: true")
        return self


class WordsConfig(Section):
    """Options to split text into words, for classical baselines."""

    segmenter: Literal["whitespace", "jieba"] = "whitespace"
    stop_words: str | None = None


class TokenizerConfig(Section):
    """The tokenizer.

    Attributes:
        kind: `pretrained` loads the model's tokenizer. The others are trained on the training split:
            `character`, byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) or byte-level
            `unigram` (Kudo 2018).
        vocabulary_size: Vocabulary size of BPE and unigram, special tokens included.
        min_frequency: Smallest frequency of a pair that BPE merges.
        end_of_text: Special token at the end of a document.
    """

    kind: Literal["pretrained", "character", "byte_bpe", "unigram"] = "pretrained"
    vocabulary_size: Annotated[int, Field(ge=258)] = 4096
    min_frequency: Annotated[int, Field(ge=1)] = 2
    end_of_text: Annotated[str, Field(min_length=1)] = "<|endoftext|>"


class PrepareConfig(Section):
    """Options to prepare the fetched files. `max_length` is in tokens."""

    task: PluginSpec
    read: ReadConfig
    splits: SplitsConfig = SplitsConfig()
    cleaning: CleaningConfig = CleaningConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    words: WordsConfig = WordsConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    max_length: Annotated[int, Field(ge=8, le=131_072)] = 256
    rows_per_shard: Annotated[int, Field(ge=1)] = 50_000
    max_rejected: Fraction = 0.1
