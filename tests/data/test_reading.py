"""Files as people have them: encodings, separators, compressions, quotes, workbooks, JSON, Arrow."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.workbooks import write_ods, write_xlsx

from textmill.config.sections.prepare import ReadConfig
from textmill.data.formats import detect
from textmill.data.mapping import ColumnMap, unified_label
from textmill.data.reading import read_rows
from textmill.errors import UserError
from textmill.text.numbers import Decimal, decimal_of, plain_number
from textmill.text.rejected_rows import RejectedRow

TEXTS = {
    "utf-8": "Größe, „gut“; | tab 这个",
    "utf-8-sig": "Größe; schön",
    "utf-16": "Größe, 这个水壶",
    "utf-16-le": "Größe passt",
    "utf-32": "Größe",
    "cp1252": "Größe passt, sehr schön für «Gäste»; 20 €",
    "cp1250": "Žluťoučký kůň, příšerně úpěl",
    "cp1251": "Отличный чайник, работает прекрасно",
    "gb18030": "这个水壶很好用,质量不错",
    "big5": "這個水壺很好用,質量不錯",
    "shift_jis": "とても使いやすいです、配達も早い",
    "euc_kr": "정말 좋아요, 배송도 빠르고",
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: bytes(pa.compress(content, codec="zstd", asbytes=True)),
}


def read(path: Path, *wanted: str, **options: Any) -> tuple[list[tuple[Any, ...]], list[RejectedRow]]:
    """The rows and the rejected rows of a file."""
    config = ReadConfig(columns={}, **options)
    chunks = list(read_rows(path, path.name, config, wanted or ("text", "label")))
    rows = [row for chunk in chunks for row in zip(*chunk.columns.values(), strict=True)]
    return rows, [row for chunk in chunks for row in chunk.rejected]


def rejected_lines(rejected: list[RejectedRow]) -> list[int]:
    return [row.row for row in rejected]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", TEXTS)
def test_csv_of_any_encoding_and_separator_is_read(tmp_path: Path, encoding: str, separator: str) -> None:
    rows = [(f"{TEXTS[encoding]} {number}", "gut" if number % 2 else "schlecht") for number in range(40)]
    content = io.StringIO(newline="")
    csv.writer(content, delimiter=separator).writerows([("Text", "Urteil"), *rows])
    for ending, pack in PACKED.items():
        path = tmp_path / f"rows.csv{ending}"
        path.write_bytes(pack(content.getvalue().encode(encoding)))
        assert read(path, "Text", "Urteil") == (rows, [])
        without = detect(path, path.name, ReadConfig(columns={}))
        assert without.dialect.separator == separator


def test_csv_in_a_zip_file_is_read_and_one_of_several_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.csv", "text,label\na,b\n")
    assert read(path)[0] == [("a", "b")]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.csv", "text,label\n")
    with pytest.raises(UserError, match="holds 2 files"):
        read(path)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst", ".zip"])
def test_damaged_compression_is_one_line(tmp_path: Path, ending: str) -> None:
    content = "text,label\n" + "".join(f"a row {number},b\n" for number in range(3000))
    path = tmp_path / f"rows.csv{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows.csv", content)
    else:
        path.write_bytes(PACKED[ending](content.encode()))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"^rows\.csv") as error:
        read(path)
    assert "\n" not in str(error.value)


# -- Quotes, lines, fields ------------------------------------------------------------------


def plain(count: int, start: int = 0) -> list[str]:
    return [f"{'good' if number % 2 else 'bad'},a text of number {number}" for number in range(start, start + count)]


def write(tmp_path: Path, lines: list[str], end: str = "\n") -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes((end.join(["label,text", *lines]) + end).encode())
    return path


@pytest.mark.parametrize("closing", ["never", "end of a line", "beginning of a field", "middle"])
@pytest.mark.parametrize("apart", [1, 2, 150])
def test_open_quote_rejects_its_line_and_no_other_row_is_lost(tmp_path: Path, closing: str, apart: int) -> None:
    lines = plain(200)
    lines[38] = 'bad,"a text whose quote stays open'
    other = 38 + apart
    if closing == "end of a line":
        lines[other] = 'good,it is 5"'
    elif closing == "beginning of a field":
        lines[other] = 'good,"Nice" is not the word'
    elif closing == "middle":
        lines[other] = 'good,it is 5" wide'
    rows, rejected = read(write(tmp_path, lines))
    assert len(rows) == 199
    assert rejected_lines(rejected) == [40]
    assert "a quote that is not closed" in rejected[0].reason
    assert "stays open" in rejected[0].excerpt
    assert max(len(text) for text, _ in rows) < 40


def test_open_quote_of_a_file_without_labels_is_found_by_its_rows(tmp_path: Path) -> None:
    lines = [f"name {number},a text of number {number}" for number in range(100)]
    lines[10], lines[60] = 'name 10,"open', 'name 60,it is 5"'
    rows, rejected = read(write(tmp_path, lines))
    assert (len(rows), rejected_lines(rejected)) == (99, [12])


def test_honest_fields_of_several_lines_stay(tmp_path: Path) -> None:
    lines = plain(50)
    lines[20] = 'good,"a poem, in\nseveral, lines\nbad weather, good mood"'
    lines[30] = 'bad,"he said ""good,\nor bad"""'
    rows, rejected = read(write(tmp_path, lines))
    assert (len(rows), rejected) == (50, [])
    assert ('he said "good,\nor bad"', "bad") in rows


def test_quotes_as_ordinary_signs_are_detected_and_can_be_set(tmp_path: Path) -> None:
    lines = [f"good\t\"film {number} is ' great" if number % 2 else f'bad\tfilm "{number}"' for number in range(40)]
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(["label\ttext", *lines]))
    assert len(read(path)[0]) == 40
    assert not detect(path, path.name, ReadConfig(columns={})).dialect.quoted
    assert len(read(path, quoted=True)[1]) == 20


def test_backslash_before_a_quote_is_detected(tmp_path: Path) -> None:
    lines = [f'good,"he said \\"no, {number}\\" twice"' for number in range(20)]
    rows, rejected = read(write(tmp_path, lines))
    assert rejected == []
    assert rows[3][0] == 'he said "no, 3" twice'


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_is_read(tmp_path: Path, end: str) -> None:
    assert len(read(write(tmp_path, plain(30), end))[0]) == 30


def test_mixed_line_ends_nuls_and_blank_lines_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"label,text\r\ngood,one\nbad,two\r\n\n\rgood,th\x00ree\rbad,four \xe2\x80\xa8 lines\n")
    rows, rejected = read(path)
    assert ([text for text, _ in rows], rejected) == (["one", "two", "th\0ree", "four \u2028 lines"], [])


def test_ragged_rows_and_huge_field_are_rejected_by_line(tmp_path: Path) -> None:
    lines = [*plain(10), "alone", "good,a,b", f"good,{'x' * (1 << 24)}x", *plain(5)]
    rows, rejected = read(write(tmp_path, lines))
    assert (len(rows), rejected_lines(rejected)) == (15, [12, 13, 14])
    assert "too long" in rejected[2].reason


def test_one_column_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + "".join(f"I like it, really, {'very, ' * (number % 4)}much\n" for number in range(30)))
    assert len(read(path, "text")[0]) == 30


def test_two_columns_of_the_wanted_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label,label\na,b,c\n")
    with pytest.raises(UserError, match="two columns are named 'label'"):
        read(path)
    assert read(path, "text")[0] == [("a",)]


def test_separator_line_of_excel_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("sep=;\ntext;label\na,b;c\n")
    assert read(path)[0] == [("a,b", "c")]


def test_missing_column_does_not_suggest_the_whole_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Text;Urteil\na;b\n")
    with pytest.raises(UserError, match="there are 'Text', 'Urteil'"):
        read(path, "Text", "Note")


def test_large_csv_is_read_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("label,text\n")
        file.writelines(f"good,{'word ' * 40}{number}\n" for number in range(150_000))
    config = ReadConfig(columns={})
    tracemalloc.start()
    rows = sum(len(chunk.lines) for chunk in read_rows(path, "rows.csv.gz", config, ["text", "label"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 150_000
    assert peak < 25e6  # the file has 31 MB of text


def test_json_array_on_one_line_is_detected_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = ",".join(
        json.dumps({"text": f"台灯非常好用外观也很漂亮 {n} " * 9}, ensure_ascii=False) for n in range(30_000)
    )
    path.write_text(f"[{rows}]", encoding="gb18030")
    del rows
    tracemalloc.start()
    found = detect(path, "rows.json", ReadConfig(columns={}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.format, found.encoding) == ("json", "gb18030")
    assert peak < 6e6 < path.stat().st_size


TABLE = "text{0}label\n" + "".join(f"A text, no {n}{{0}}{'ab'[n % 2]}\n" for n in range(20))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("carets.csv", TABLE.format("^")),
        ("title.csv", "Survey of May\n# by the export\n\n" + TABLE.format(";")),
        ("title with separators.csv", "Survey of May;;\n" + TABLE.format(";").replace("\n", ";x\n")),
        ("blank lines.csv", "\n\n" + TABLE.format(";")),
        ("table.txt", TABLE.format("\t")),
        ("with header.txt", TABLE.format(";")),
        ("spaces.csv", "text; label\n" + "".join(f'"A; text {n}"; "{"ab"[n % 2]}"\n' for n in range(20))),
        ("tabs.xls", TABLE.format("\t")),
        ("no ending", TABLE.format("|")),
    ],
)
def test_table_is_found_by_its_content(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    rows, rejected = read(tmp_path / name)
    assert (len(rows), {row[1] for row in rows}, rejected) == (20, {"a", "b"}, [])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("'text','label'\n" + "'My lamp, it''s \"red\"','a'\n" * 9, "in single quotes"),
        ("text;label\n" + "'My lamp; it\\'s red';a\n" * 9, "in single quotes, backslashes before quotes"),
        ("text:label\n" + '"My lamp: red":a\n' * 9, "by colons"),
        ("# made by x, v1\n# in May, 2024\ntext,label\n" + '"My lamp, red",a\n' * 9, "by commas"),
    ],
)
def test_single_quotes_colons_and_comments_are_detected(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert said in str(detect(path, path.name, ReadConfig(columns={})))
    rows, rejected = read(path)
    assert (len(rows), {label for _, label in rows}, rejected) == (9, {"a"}, [])
    assert rows[0][0].startswith("My lamp") and "''" not in rows[0][0]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_repeated_header_is_no_row(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,b\n" + mark + "text,label\nc,d\n")
    rows, rejected = read(path)
    assert (rows, [str(row) for row in rejected]) == ([("a", "b"), ("c", "d")], ["rows.csv:3: row repeats the header"])


def test_header_of_several_lines_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('"The\ntext";"The\nlabel"\n' + TABLE.format(";").split("\n", 1)[1])
    assert len(read(tmp_path / "rows.csv", "The\ntext", "The\nlabel")[0]) == 20


@pytest.mark.parametrize("name", ["prose.txt", "list.txt"])
def test_text_is_no_table(tmp_path: Path, name: str) -> None:
    line = "Yes, it rains, and we stay.\n" if name == "prose.txt" else "lamp\n"
    (tmp_path / name).write_text(line * 30)
    assert detect(tmp_path / name, name, ReadConfig(columns={})).format == "text"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_of_any_script_needs_no_mark(tmp_path: Path, encoding: str) -> None:
    content = "text,label\n" + "".join(f"这个水壶很好用质量不错也很漂亮我很喜欢{n},好评\n" for n in range(20))
    (tmp_path / "rows.csv").write_text(content, encoding=encoding)
    rows, rejected = read(tmp_path / "rows.csv")
    assert (len(rows), rows[3][1], rejected) == (20, "好评", [])


@pytest.mark.parametrize("start", [b"", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7\n"])
def test_binary_file_is_one_line(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(start + random.Random(1).randbytes(20_000))
    with pytest.raises(UserError, match=r"rows\.csv: is not text but a binary file"):
        read(tmp_path / "rows.csv")


# -- JSON -----------------------------------------------------------------------------------

RECORDS = [
    {"text": f"text {number}", "label": "a", "user": {"names": [{"first": f"n{number}"}]}} for number in range(9)
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("array.json", json.dumps(RECORDS, indent=2)),
        ("array on a line.json", json.dumps(RECORDS)),
        ("lines.json", "\n".join(map(json.dumps, RECORDS))),
        ("one line.json", json.dumps({"version": 1, "data": RECORDS})),
        ("object.json", json.dumps({"meta": {"x": 1}, "rows": RECORDS}, indent=1)),
        ("rows.jsonl", "\ufeff" + "\n".join(map(json.dumps, RECORDS))),
        ("no ending", json.dumps(RECORDS)),
    ],
)
def test_json_of_any_shape_is_read_with_nested_fields(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    for encoding in ("utf-8", "utf-16"):
        path.write_text(content, encoding=encoding)
        rows, rejected = read(path, "text", "user.names[0].first")
        assert (rows, rejected) == ([(f"text {number}", f"n{number}") for number in range(9)], [])


def test_broken_json_array_names_the_last_good_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(RECORDS)[:-30])
    with pytest.raises(UserError, match=r"rows\.json: is not JSON behind row 8"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.json", json.dumps({"meta": {"n": 1}, "result": {"user": RECORDS, "rows": 0}})),
        ("array.jsonl", json.dumps(RECORDS, indent=1)),
        ("lines.csv", "\n".join(map(json.dumps, RECORDS))),
        ("one after another.json", "\n".join(json.dumps(record, indent=2) for record in RECORDS)),
    ],
)
def test_json_is_found_by_its_content(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    rows, rejected = read(tmp_path / name, "text", "user.names[0].first")
    assert (len(rows), rows[0], rejected) == (9, ("text 0", "n0"), [])


@pytest.mark.parametrize("value", [{"0": "a"}, ["a"]])
def test_json_of_columns_is_one_line(tmp_path: Path, value: Any) -> None:
    many = {str(n): "a" for n in range(99)} if isinstance(value, dict) else value * 99
    (tmp_path / "rows.json").write_text(json.dumps({"text": many, "label": many}))
    with pytest.raises(UserError, match=r"an object of columns.*orient='records'"):
        read(tmp_path / "rows.json")


# -- Arrow ----------------------------------------------------------------------------------


def test_bytes_of_parquet_are_decoded_or_rejected(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [b"gr\xc3\xb6\xc3\x9fer", b"gr\xf6\xdfer"], "label": [b"a", b"b"]}), path)
    rows, rejected = read(path)
    assert (rows, rejected_lines(rejected)) == ([("größer", "a")], [2])


def test_arrow_file_and_stream_are_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "user": [{"id": 1}, {"id": 2}]})
    for name, writer in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as sink, writer(sink, table.schema) as file:
            file.write_table(table)
        assert read(tmp_path / name, "text", "user.id")[0] == [("a", 1), ("b", 2)]


# -- Workbooks ------------------------------------------------------------------------------


def test_workbook_skips_empty_sheets_and_the_title_above_the_header(tmp_path: Path) -> None:
    path = tmp_path / "book.xlsx"
    table = [["Survey 2026", None], [], ["text", "label"], ["a good text", 1], ["0042", 2.5], [None, None], ["c", True]]
    write_xlsx(path, {"Notes": [], "Data": table, "Other": [["text", "label"], ["z", "z"]]}, merged="A1:B1")
    rows, rejected = read(path)
    assert ([tuple(map(str, row)) for row in rows], rejected) == (
        [("a good text", "1.0"), ("0042", "2.5"), ("c", "True")],
        [],
    )
    assert read(path, sheet="Other")[0] == [("z", "z")]
    with pytest.raises(UserError, match=r"no sheet 'Data 2'\. There are 'Notes', 'Data', 'Other'"):
        read(path, sheet="Data 2")


def test_cover_sheet_is_not_the_table_and_all_sheets_are_named(tmp_path: Path) -> None:
    path = tmp_path / "book.ods"
    write_ods(path, {"Cover": [["A survey"], ["of May"]], "Data": [["text", "label"], ["a", "b"]], "More": []})
    assert read(path)[0] == [("a", "b")]
    assert "the first table of the sheets 'Cover', 'Data', 'More'" in str(detect(path, "", ReadConfig(columns={})))


def test_opendocument_is_read(tmp_path: Path) -> None:
    path = tmp_path / "book.ods"
    write_ods(path, {"One": [["text", "label"], ["größer", "a"], ["b", "b"]]})
    assert read(path)[0] == [("größer", "a"), ("b", "b")]


@pytest.mark.parametrize("name", ["book.xlsx", "book.ods", "book.xls"])
def test_damaged_workbook_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4 no workbook at all")
    with pytest.raises(UserError, match="cannot be read as"):
        read(tmp_path / name)


# -- Values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("good ", "good"),
        ("\xa0bad", "bad"),
        ("entta\u0308uscht", "enttäuscht"),
        ("sehr\xa0 gut", "sehr gut"),
        ("1.0", "1"),
        ("-2.00", "-2"),
        ("4,5", "4.5"),
        ("1,000", "1,000"),
        ("1.10", "1.10"),
        ("n/a", "n/a"),
        ("C++", "C++"),
        ("❤️", "❤️"),
        ('["b ", "a\u0308"]', '["b", "ä"]'),
    ],
)
def test_unified_label_is_trimmed_and_in_one_form(written: str, label: str) -> None:
    assert unified_label(written) == label


def test_bytes_that_python_wrote_are_decoded() -> None:
    mapping = ColumnMap(ReadConfig(columns={"text": "text", "label": "label"}), ["text", "label"], ["text"], ["label"])
    written = [repr("größer".encode()), "b'My lamp' is fine", "b'\\xff'"]
    columns: dict[str, list[Any]] = {"text": written, "label": [repr(b"good"), "[]", '["bad"]']}
    mapped, _ = mapping.apply(columns)
    assert mapped == {"text": ["größer", *written[1:]], "label": ["good", None, "bad"]}


def test_commas_between_labels_stay() -> None:
    config = ReadConfig(columns={"text": "text", "labels": "labels"})
    mapping = ColumnMap(config, ["text", "labels"], ["text"], ["labels"])
    mapped, _ = mapping.apply({"text": ["a", "b", "c"], "labels": ["3,12", " 27 ", '["4,5"]']})
    assert list(mapped["labels"]) == ["3,12", "27", '["4.5"]']


def test_names_match_labels_as_yaml_reads_them() -> None:
    column = {"source": "label", "names": {True: "spam", False: "ham", "1.0": "one"}}
    mapping = ColumnMap(ReadConfig.model_validate({"columns": {"label": column}}), ["label"], labels=["label"])
    mapped, failed = mapping.apply({"label": ["true", "False", "no", True, "1", "maybe"]})
    assert mapped["label"] == ["spam", "ham", "ham", "spam", "one", None]
    assert list(failed) == [5]


def test_text_of_several_columns_is_joined_or_put_into_a_template() -> None:
    columns = {"text": ["title", "body"], "other": {"source": ["title", "body"], "template": "{title}: {body}!"}}
    mapping = ColumnMap(ReadConfig.model_validate({"columns": columns}), ["text"], ["text"])
    mapped, _ = mapping.apply({"title": ["A", None, None], "body": ["b", "c", None]})
    assert mapped == {"text": ["A\nb", "c", None], "other": ["A: b!", ": c!", None]}


def test_words_of_a_text_are_joined_and_several_labels_stay_a_list() -> None:
    mapping = ColumnMap(ReadConfig(columns={"text": "t", "label": "l"}), ["text"], ["text"], ["label"])
    mapped, _ = mapping.apply({"t": [["My", "lamp"], "as text"], "l": [["a ", "b"], ["c"]]})
    assert mapped == {"text": ["My lamp", "as text"], "label": ['["a", "b"]', "c"]}


@pytest.mark.parametrize(
    ("written", "decimal", "number"),
    [
        ("4,5", None, "4.5"),
        ("1e3", None, "1e3"),
        ("85 %", None, "85"),
        ("\u22123", None, "-3"),
        ("0,125", None, "0.125"),
        ("1.234,5", None, "1234.5"),
        ("1,234,567", None, "1234567"),
        ("1 234,5", None, "1234.5"),
        ("$12.00", None, "12.00"),
        ("1,234", None, None),
        ("1,234", ".", "1234"),
        ("1,234", ",", "1.234"),
        ("12.345", ",", "12345"),
        ("NA", None, None),
    ],
)
def test_number_is_read_as_people_write_it(written: str, decimal: Decimal | None, number: str | None) -> None:
    assert plain_number(written, decimal) == number


@pytest.mark.parametrize(
    ("column", "decimal"),
    [
        ("12 3,729 7,446", "."),
        ("0,125 3,729", ","),
        ("999 12.345", ","),
        ("1.234 2.345", None),
        ("1 2,5", None),
        ("1,234 2,345", "."),
    ],
)
def test_decimal_sign_follows_from_the_column(column: str, decimal: Decimal | None) -> None:
    assert decimal_of(column.split()) == decimal


def test_several_columns_of_messages_are_a_conversation() -> None:
    config = ReadConfig(columns={"messages": ["instruction", "input", "output"]})
    rows: dict[str, list[Any]] = {"instruction": ["Add", "Add"], "input": ["1, 2", ""], "output": ["3", None]}
    [first, second] = ColumnMap(config, ["messages"], ["messages"]).apply(rows)[0]["messages"]
    assert [each["content"] for each in json.loads(first or "")] == ["Add\n1, 2", "3"]
    assert second is None
