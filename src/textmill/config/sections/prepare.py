"""The `prepare` section: read, clean, deduplicate, split and tokenise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from textmill.config.section import Section
from textmill.config.sections.quality import QualityConfig
from textmill.config.types import Fraction, OptionalPluginSpec, PluginSpec


def _keys_as_text(value: Any) -> Any:
    """Convert keys to strings: YAML reads a bare 0 as a number and a bare no as false, the file has their text."""
    if not isinstance(value, Mapping):
        return value
    return {str(key).lower() if isinstance(key, bool) else str(key): name for key, name in value.items()}


Format = Literal["csv", "tsv", "jsonl", "json", "yaml", "xml", "parquet", "arrow", "excel", "text", "fasttext", "squad"]


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
        source: File column, or the path of a nested value (`user.name`, `answers[0].text`), or a list of them
            that become one text; several for `messages` are what the user says, and last the answer.
        template: Text of several columns, with each one's name in braces; by default one line each.
        bins: Bins that convert its numbers to labels.
        names: File value -> task value; rows with other values are rejected.
    """

    source: str | list[str]
    template: str | None = None
    bins: BinsConfig | None = None
    names: Annotated[dict[str, str], BeforeValidator(_keys_as_text)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.bins is not None and self.names is not None:
            raise ValueError("set either bins or names, not both")
        if isinstance(self.source, list) and self.bins is not None:
            raise ValueError("bins need one source")
        for _, name, _, _ in Formatter().parse(self.template or ""):
            if name is not None and name not in self.sources:
                raise ValueError(f"the template has {{{name}}}, which is none of source: {', '.join(self.sources)}")
        return self

    @property
    def sources(self) -> list[str]:
        """File columns, in the order of the configuration."""
        return self.source if isinstance(self.source, list) else [self.source]


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
        format: File format; None detects it from each file's extension and content.
        encoding: Encoding of text, such as `cp1252`; None detects it.
        separator: Sign between the fields of a CSV; None detects it.
        header: Column names of files without a header line.
        quoted: Whether quotes in CSV/TSV enclose a field; None detects it.
        sheet: Name of the sheet of a workbook; None reads the first one with rows.
        records: Path of the list of rows in a JSON or YAML file, or of the elements in XML; `*` reads every list of a
            JSON object, whose name is each row's `split`. None detects it.
        decimal: Decimal sign of scores; None reads `1,5` and `1.5`, and rejects what may be a thousand, as `1,500`.
        more_fields: Whether a CSV/TSV row may have more fields than the header; they are dropped.
        text: Split of raw text into documents.
        file_column: Name in `columns` for a row's file name without extension: for corpora with one
            file per label.
        folder_column: Name in `columns` for the folder of a row's file: for corpora with one folder per label.
        split_column: Column of the file that names the split of each row, such as `train`, `dev` or `test`.
        columns: Task column -> file column, several of them, or a `ColumnConfig`. It may also keep `id`, `source`
            (which cuts slices) and any other columns.
    """

    format: Format | None = None
    encoding: str | None = None
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    header: list[str] | None = None
    quoted: bool | None = None
    sheet: str | None = None
    records: str | None = None
    decimal: Literal[".", ","] | None = None
    more_fields: bool = False
    text: TextConfig = TextConfig()
    file_column: str | None = None
    folder_column: str | None = None
    split_column: str | None = None
    columns: dict[str, str | list[str] | ColumnConfig]

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                "".encode(encoding)
            except LookupError:
                raise ValueError("Python knows no encoding of this name; try utf-8, cp1252 or gb18030") from None
        return encoding


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


Mask = Literal["email", "ip", "phone", "card"]
"""Personal data that can be masked."""


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
        least_count: A pretrained WordPiece or unigram vocabulary is reduced to the tokens that occur at least so often
            in the training split, characters and special tokens. A word with another token is split into these.
            None keeps all.
    """

    kind: Literal["pretrained", "character", "byte_bpe", "unigram"] = "pretrained"
    vocabulary_size: Annotated[int, Field(ge=258)] = 4096
    min_frequency: Annotated[int, Field(ge=1)] = 2
    end_of_text: Annotated[str, Field(min_length=1)] = "<|endoftext|>"
    least_count: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _reduces_a_pretrained_one(self) -> Self:
        if self.least_count is not None and self.kind != "pretrained":
            raise ValueError("least_count needs kind: pretrained")
        return self


class HeldOutConfig(Section):
    """Held-out or benchmark texts that no training row may share a passage with.

    Attributes:
        name: Name of the texts in `fetch.held_out`.
        columns: Columns of their files; each value is a text.
        format: As `ReadConfig.format`.
        header: As `ReadConfig.header`.
        words: Words in a row of a passage.
    """

    name: str
    columns: Annotated[list[str], Field(min_length=1)]
    format: Format | None = None
    header: list[str] | None = None
    words: Annotated[int, Field(ge=6, le=100)] = 13


class PrepareConfig(Section):
    """Options to prepare the fetched files.

    Attributes:
        quality: Filters of web text, for each text column.
        decontaminate: Texts whose passages are removed from the training split.
        mixture: Source (column `source`) -> its share of the training characters; null keeps all rows.
        mask: Personal data to replace by `[email]`, `[ip]`, `[phone]`, in text and text target columns.
        teacher: Class that gives the outputs of the model in `fetch.teacher` for each row; null: no teacher.
        corrections: File with right labels, below data/own: columns `id` and `right_label`.
        max_length: Tokens of a text.
        max_rejected: Largest share of rejected rows; those that `quality` drops do not count.
    """

    task: PluginSpec
    read: ReadConfig
    splits: SplitsConfig = SplitsConfig()
    cleaning: CleaningConfig = CleaningConfig()
    quality: QualityConfig = QualityConfig()
    mask: list[Mask] = []
    duplicates: DuplicatesConfig = DuplicatesConfig()
    decontaminate: Annotated[list[HeldOutConfig], Field(max_length=200)] = []
    mixture: dict[str, Annotated[float, Field(gt=0)]] | None = None
    words: WordsConfig = WordsConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    teacher: OptionalPluginSpec = None
    corrections: Annotated[str, Field(pattern="^data/own/")] | None = None
    max_length: Annotated[int, Field(ge=8, le=131_072)] = 256
    rows_per_shard: Annotated[int, Field(ge=1)] = 50_000
    max_rejected: Fraction = 0.1
