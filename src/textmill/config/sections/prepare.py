"""The `prepare` section: reading, cleaning, deduplicating, splitting, tokenising."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from textmill.config.section import Section
from textmill.config.types import Fraction, PluginSpec


def _keys_as_text(value: Any) -> Any:
    """YAML reads a bare 0 as a number; here it is the text "0" of a file."""
    return {str(key): name for key, name in value.items()} if isinstance(value, Mapping) else value


Format = Literal["csv", "tsv", "jsonl", "parquet", "text", "squad"]


class BinsConfig(Section):
    """Turn a number into a class name: `names[i]` for values between `edges[i-1]` and `edges[i]`.

    Attributes:
        divide_by: The number is divided by this first.
        edges: Ascending; a value equal to an edge belongs to the bin nearer to zero.
        names: One more than `edges`.
        uncertainty: Standard error of the divided number. With it the result is not a name but
            the share of every name, by a normal distribution around the number.
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
    """How one of the task's columns is made from a column of the file.

    Attributes:
        source: The file's column.
        bins: Turns its numbers into names.
        names: Value in the file -> the task's value; other values are rejected.
    """

    source: str
    bins: BinsConfig | None = None
    names: Annotated[dict[str, str], BeforeValidator(_keys_as_text)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.bins is not None and self.names is not None:
            raise ValueError("give either bins or names")
        return self


class TextConfig(Section):
    """How files of raw text are cut into documents; each gives one row with the column `text`.

    Attributes:
        document: What a document is: the whole file, a paragraph (up to a blank line), or what
            lies between two lines that match `begins`.
        begins: Regular expression that the first line of a document matches.
        drop: Regular expressions (multi-line, a dot matches line ends too) of passages to leave
            out, such as the boilerplate of a licence.
    """

    document: Literal["file", "paragraph", "pattern"] = "file"
    begins: str | None = None
    drop: list[str] = []

    @model_validator(mode="after")
    def _patterns_are_good(self) -> Self:
        if (self.begins is not None) != (self.document == "pattern"):
            raise ValueError("begins goes with document: pattern, and only with it")
        for pattern in [*self.drop, self.begins or ""]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        return self


class ReadConfig(Section):
    """How the fetched files are read.

    Attributes:
        format: None tells it from each file's ending.
        header: Column names of a file that has none in its first line.
        quoted: Whether a quote sign in CSV/TSV encloses a field.
        more_fields: Whether a row of CSV/TSV may have more fields than the header; they are left out.
        text: For raw text: what a document is.
        file_column: A name by which `columns` may refer to the name of the file that a row stands in,
            without its ending: for corpora with a file a label.
        columns: Task column -> file column, or a `ColumnConfig`. Beside the task's own columns
            `id`, `source` (figures are given apart by it) and any others may be kept.
    """

    format: Format | None = None
    header: list[str] | None = None
    quoted: bool = True
    more_fields: bool = False
    text: TextConfig = TextConfig()
    file_column: str | None = None
    columns: dict[str, str | ColumnConfig]


class SplitsConfig(Section):
    """Shares of the rows cut off for the splits that the source does not bring itself.

    Attributes:
        by: `content`: whole rows, drawn by a hash of their content and the seed. `position`, for
            raw text: the beginning of each file is for training, the next part for validation and
            its end for test, as is usual for one long text. `group`: all rows with the same value in
            the column `group` go to one split, and the shares are shares of these groups.
        group: A mapped column: the article or the author that a row comes from, say.
    """

    by: Literal["content", "position", "group"] = "content"
    group: str | None = None
    validation: Fraction = 0.1
    test: Fraction = 0.15
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _group_goes_with_by(self) -> Self:
        if (self.group is not None) != (self.by == "group"):
            raise ValueError("group goes with by: group, and only with it")
        return self

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave nothing for training")
        return self


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
        exact: Whether rows with the same text go; repeated lines of a play, say, are no mistake.
        near: Whether near-duplicates go too.
        threshold: Jaccard similarity of character shingles from which two texts count as one.
        permutations: Length of the MinHash signature.
        shingle: Characters in a shingle.
    """

    exact: bool = True
    near: bool = True
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    permutations: Annotated[int, Field(ge=16, le=512)] = 64
    shingle: Annotated[int, Field(ge=1, le=20)] = 5

    @model_validator(mode="after")
    def _near_goes_further(self) -> Self:
        if self.near and not self.exact:
            raise ValueError("near duplicates cannot go while exact ones stay")
        return self


class WordsConfig(Section):
    """The word view of the text that classical baselines use."""

    segmenter: Literal["whitespace", "jieba"] = "whitespace"
    stop_words: str | None = None


class TokenizerConfig(Section):
    """Where the tokenizer comes from.

    Attributes:
        kind: `pretrained` takes the model's own. The others are trained on the training split:
            `character`, byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) or `unigram`
            (Kudo 2018), over bytes as well.
        vocabulary_size: Of BPE and unigram, special tokens included.
        min_frequency: Pairs that BPE merges must occur this often.
        end_of_text: The special token that ends a document.
    """

    kind: Literal["pretrained", "character", "byte_bpe", "unigram"] = "pretrained"
    vocabulary_size: Annotated[int, Field(ge=258)] = 4096
    min_frequency: Annotated[int, Field(ge=1)] = 2
    end_of_text: Annotated[str, Field(min_length=1)] = "<|endoftext|>"


class PrepareConfig(Section):
    """What to make of the fetched files. `max_length` is in tokens."""

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
