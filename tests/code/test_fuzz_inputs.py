"""Random texts, tables and configurations: an answer or one clear line, never another error, no row lost in silence.

`make fuzz` sets TEXTMILL_NIGHTLY, which tries many times as many cases and others in every run.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.faults import rounds

from textmill.config.compose import compose, section_names
from textmill.config.layout import Layout
from textmill.config.sections.prepare import CleaningConfig, ReadConfig, WordsConfig
from textmill.data.cleaning import Cleaner
from textmill.data.mapping import ColumnMap
from textmill.data.reading import read_rows
from textmill.data.shingles import jaccard, shingle_hashes
from textmill.data.words import word_splitter
from textmill.errors import UserError
from textmill.text.alignment import Alignment
from textmill.text.answers import read_answers
from textmill.text.chat import parse_messages
from textmill.text.inputs import read_inputs, texts_model
from textmill.text.rejected_rows import excerpt
from textmill.text.sentences import unit_spans


def cases(small: int, nightly: int) -> Callable[[Any], Any]:
    """Settings of a fuzz test: the same cases in every CI run, others in each run of `make fuzz`."""
    return settings(
        max_examples=rounds(small, nightly),
        derandomize="TEXTMILL_NIGHTLY" not in os.environ,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# Marks, joiners, other scripts and what repairs of encodings act on, more often than chance would have them.
PARTS = [
    "\u200b",
    "\u0301",
    "\ufeff",
    "\u202e",
    "\x00",
    "\x85",
    "\u2028",
    "ﬁ",
    "Ã©",
    "&amp;",
    "&#0;",
    "\ud83d",
    "👩‍🔬",
    "İ",
    "ß",
]
PARTS += ["中文", "ไทย", "עברית", "\r\n", "\t", " ", "...", "'s", "don\u2019t", "[CLS]", "<|user|>", "{{ x }}"]
ANY_TEXT = st.lists(st.sampled_from(PARTS) | st.text(max_size=8), max_size=12).map("".join)
TEXT = ANY_TEXT.map(lambda text: text.encode("utf-8", "ignore").decode())  # what a UTF-8 file can hold

CLEANERS = [
    Cleaner(CleaningConfig(**options))
    for options in ({}, {"repair": False}, {"normal_form": "NFKC"}, {"repair": False, "normal_form": None})
]


# -- texts ------------------------------------------------------------------------------------


@cases(400, 20_000)
@given(TEXT, st.sampled_from(CLEANERS))
def test_cleaner_any_text_is_cleaned_once_and_for_all(text: str, cleaner: Cleaner) -> None:
    cleaned = cleaner.clean(text)
    assert cleaner.clean(cleaned) == cleaned
    cleaner.problem(cleaned)
    Alignment(text, cleaned)


@cases(400, 20_000)
@given(TEXT, TEXT)
def test_text_functions_any_text_give_spans_words_and_signatures(first: str, second: str) -> None:
    for units in ("sentences", "lines"):
        spans = unit_spans(first, units)
        assert all(0 <= start < end <= len(first) for start, end in spans)
        assert spans == sorted(spans)
    for config in (WordsConfig(), WordsConfig(segmenter="jieba"), WordsConfig(stop_words="en")):
        [words] = word_splitter(config)([first])
        assert words == " ".join(words.split(" "))
    hashes, starts = shingle_hashes([first, second], 5)
    assert starts.tolist() == [0, max(len(first), 5) - 4] and len(hashes) == starts[1] + max(len(second), 5) - 4
    [similarity] = jaccard(np.array([0]), np.array([1]), [first, second], 5)
    assert 0 <= similarity <= 1
    assert excerpt(first).isprintable()


@cases(400, 20_000)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | ANY_TEXT,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["text", "role", "content", "start", "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_inputs_any_value_is_accepted_or_one_line(value: Any) -> None:
    model = texts_model("text")
    try:
        [parsed] = read_inputs([value], model)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert parsed.text.strip()
    for read in (lambda text: read_answers(text, "a context"), parse_messages):
        try:
            read(json.dumps(value))
        except (UserError, ValueError) as error:  # the callers make a rejected row of a ValueError
            assert str(error)


# -- tables -----------------------------------------------------------------------------------

WANTED = ("text", "label")
CELL = st.sampled_from(["", '"', "''", "a,b", "x\ty", "\n", "1e999", "null", "\\", "\ud800", "é", "NaN"]) | st.text(
    max_size=6
)
BYTES = st.lists(
    st.sampled_from(
        [
            b"text",
            b"label",
            b",",
            b"\t",
            b"\n",
            b"\r\n",
            b'"',
            b"\x00",
            b"\xff",
            b"\xef\xbb\xbf",
            b"{",
            b"}",
            b":",
            b'"text":',
            b'"label":',
            b"1",
            b"[",
            b"\\ud800",
            b"NaN",
        ]
    )
    | st.binary(max_size=4),
    max_size=40,
).map(b"".join)


def read_all(folder: Path, name: str, content: bytes, **options: Any) -> tuple[int, int] | None:
    """Accepted and rejected rows, or None after one clear line."""
    path = folder / name
    path.write_bytes(content)
    config = ReadConfig(columns={name: name for name in WANTED}, **options)
    mapped = ColumnMap(config, WANTED)
    accepted = rejected = 0
    try:
        for chunk in read_rows(path, name, config, WANTED):
            assert {len(values) for values in chunk.columns.values()} == {len(chunk.lines)}
            accepted, rejected = accepted + len(chunk.lines), rejected + len(chunk.rejected)
            for values in mapped.apply(chunk.columns)[0].values():
                "".join(value or "" for value in values).encode()
            for row in chunk.rejected:
                assert "\n" not in str(row)
    except UserError as error:
        assert str(error).startswith(name) or "prepare.read" in str(error)
        assert "\n" not in str(error)
        return None
    return accepted, rejected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@cases(500, 50_000)
@given(BYTES, st.sampled_from(["csv", "tsv"]), st.booleans(), st.booleans(), st.booleans())
def test_separated_any_bytes_are_read_or_one_line(
    folder: Path, content: bytes, ending: str, quoted: bool, more_fields: bool, headed: bool
) -> None:
    start = b"" if headed else b"text,label\n".replace(b",", b"\t" if ending == "tsv" else b",")
    read_all(folder, f"rows.{ending}", start + content, quoted=quoted, more_fields=more_fields)


@cases(500, 50_000)
@given(
    st.lists(
        BYTES
        | st.dictionaries(st.sampled_from([*WANTED, "x"]), CELL | st.integers() | st.lists(CELL, max_size=2)).map(
            lambda record: json.dumps(record).encode()
        ),
        max_size=6,
    )
)
@example([b'{"text": "a", "label": ' + b"9" * 5000 + b"}"])
@example([b"[" * 5000])
@example([b'{"text": "a", "label": ["\\ud800"]}'])
def test_json_lines_any_lines_are_counted_or_one_line(folder: Path, lines: list[bytes]) -> None:
    content = b"\n".join(lines)
    expected = sum(bool(line.strip()) for line in content.split(b"\n"))
    counts = read_all(folder, "rows.jsonl", content)
    assert counts is None or sum(counts) == expected


def parquet(rows: list[tuple[Any, Any]], compression: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.table({"text": pa.array([text for text, _ in rows]), "label": pa.array([label for _, label in rows])})
    pq.write_table(table, buffer, compression=compression)
    return buffer.getvalue()


WHOLE_PARQUET = {
    name: parquet([("a film", 1), ("ein Stück", 2), (None, 3)] * 20, name) for name in ("none", "snappy", "zstd")
}


@cases(300, 20_000)
@given(
    st.sampled_from(sorted(WHOLE_PARQUET)),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), max_size=4),
    st.integers(0, 5000),
)
def test_parquet_damaged_bytes_are_read_or_one_line(
    folder: Path, name: str, flips: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(WHOLE_PARQUET[name])
    for place, bits in flips:
        content[place % len(content)] ^= bits
    if cut < len(content) // 4:
        del content[len(content) - cut :]
    read_all(folder, "rows.parquet", bytes(content))


@pytest.mark.parametrize("column", ["binary", "invalid", "list", "struct", "times", "dictionary", "decimal", "double"])
def test_parquet_any_type_is_read_or_one_line(folder: Path, column: str) -> None:
    import datetime
    import decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    invalid = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    texts = {
        "binary": pa.array([b"\xff\xfe"]),
        "invalid": invalid,
        "list": pa.array([["a", "b"]]),
        "struct": pa.array([{"a": 1}]),
        "times": pa.array([[datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)]]),
        "dictionary": pa.array(["a"]).dictionary_encode(),
        "decimal": pa.array([decimal.Decimal("1.50")]),
        "double": pa.array([float("nan")]),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts[column], "label": pa.array(["x"])}), buffer)
    counts = read_all(folder, f"{column}.parquet", buffer.getvalue())
    assert counts == ((0, 1) if column in ("invalid", "binary") else (1, 0))


# -- configurations ---------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]
KNOWN = yaml.safe_load((ROOT / "conf/config.yaml").read_text())
KEYS = [
    *section_names(),
    "experiment",
    "data",
    "task",
    "model",
    "trainer",
    "router",
    "seed",
    "name",
    "title",
    "nothing",
]
INNER = [
    "optimizer",
    "learning_rate",
    "max_epochs",
    "batches",
    "tokens",
    "columns",
    "read",
    "splits",
    "_target_",
    "files",
]
INNER += [
    "source",
    "tokenizer",
    "kind",
    "floors",
    "cleaning",
    "languages",
    "baselines",
    "generation",
    "${x}",
    "a b",
    "",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(max_size=6)
SCALARS |= st.sampled_from(
    [
        "${seed}",
        "${",
        "${oc.env:HOME}",
        "???",
        "movie_reviews",
        "minilm",
        "../x",
        "a=b",
        "a,b",
        "[",
        "{",
        "\n",
        "-1",
        "1e-3",
        "null",
        "os.system",
        "textmill.tasks.base.Task",
        "\ud800".encode("utf-8", "replace").decode(),
    ]
)
VALUE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(INNER) | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    root = tmp_path_factory.mktemp("configured")
    shutil.copytree(ROOT / "conf", root / "conf")
    return Layout(root)


@cases(25, 2000)
@given(st.dictionaries(st.sampled_from(KEYS), VALUE, min_size=1, max_size=3))
def test_params_any_values_compose_or_one_line(layout: Layout, params: dict[str, Any]) -> None:
    layout.params.write_text(yaml.safe_dump({"experiment": "movie_reviews"} | params, allow_unicode=True))
    _compose(layout)


@cases(40, 3000)
@given(
    st.lists(
        st.sampled_from(
            [
                "experiment: movie_reviews\n",
                "seed: ",
                "  train:\n",
                "- ",
                "a: &x 1\n",
                "*x",
                "<<: ",
                "!!python/object/apply:os.system [x]",
                "\t",
                "'",
                '"',
                "{",
                "}",
                "? ",
                "|",
                "%",
                "---\n",
                "\n",
                ": ",
            ]
        )
        | st.text(string.printable, max_size=5),
        max_size=12,
    ).map("".join)
)
def test_params_any_text_composes_or_one_line(layout: Layout, text: str) -> None:
    layout.params.write_text(text)
    _compose(layout)


def _compose(layout: Layout) -> None:
    try:
        compose(layout)
    except UserError as error:
        assert re.sub(r"\s", " ", str(error)) == str(error)
