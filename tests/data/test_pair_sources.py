"""Sources of pairs: parallel files, message catalogues, rows with several references."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from textmill.errors import UserError
from textmill.fetching.sources.archives import open_archive
from textmill.fetching.sources.catalogues import CataloguesSource
from textmill.fetching.sources.parallel import ParallelSource
from textmill.fetching.sources.references import ReferencesSource
from textmill.text.sentences import unit_spans, unit_texts

CATALOGUE = """
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"

msgid "Save"
msgstr "Speichern"

#, fuzzy
msgid "Doubtful"
msgstr "Zweifelhaft"

msgid "Untranslated"
msgstr ""

msgid "%d page"
msgid_plural "%d pages"
msgstr[0] "%d Seite"
msgstr[1] "%d Seiten"

#~ msgid "Obsolete"
#~ msgstr "Veraltet"
"""


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def parallel(root: Path, english: bytes, german: bytes, **options: object) -> Path:
    (root / "train.en.gz").write_bytes(gzip.compress(english))
    (root / "train.de").write_bytes(german)
    target = root / "fetched"
    files = {"train": {"text": "train.en.gz", "translation": "train.de"}}
    ParallelSource.from_options(files=files, **options).fetch(target, root)
    return target / "train/pairs.jsonl"


def test_lines_of_parallel_files_become_pairs(tmp_path: Path) -> None:
    path = parallel(tmp_path, "A dog.\nTwo\u2028men.\n".encode(), "Ein Hund.\r\nZwei Männer.".encode())
    assert rows(path) == [
        {"text": "A dog.", "translation": "Ein Hund."},
        {"text": "Two\u2028men.", "translation": "Zwei Männer."},
    ]


def test_files_of_different_length_are_both_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        parallel(tmp_path, b"one\ntwo\nthree\n", b"eins\nzwei\n")
    text = str(error.value)
    assert "train.en.gz has 3 lines" in text and "train.de has 2 lines" in text and "\n" not in text


def test_invalid_utf8_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.de:2: not UTF-8"):
        parallel(tmp_path, b"one\ntwo\n", b"eins\n\xff\n")


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong digest"):
        parallel(tmp_path, b"one\n", b"eins\n", sha256={"train.de": "0" * 64})


def test_catalogues_give_what_is_surely_translated(tmp_path: Path) -> None:
    wheel = tmp_path / "site-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("site/locale/de/LC_MESSAGES/django.po", CATALOGUE)
        archive.writestr("site/locale/zh_Hans/LC_MESSAGES/django.po", CATALOGUE.replace("Speichern", "保存"))
        archive.writestr("site/locale/zh_CN/LC_MESSAGES/django.po", CATALOGUE)
        archive.writestr("site/admin/locale/zh_CN/LC_MESSAGES/django.po", CATALOGUE)
        archive.writestr("site/locale/de/LC_MESSAGES/django.mo", b"")
    pinned = [{"requirement": "site==1.0", "sha256": "0" * 64, "licence": "MIT"}]

    def messages(language: str) -> list[tuple[str, str]]:
        source = CataloguesSource.from_options(packages=pinned, language=language)
        with open_archive(wheel) as archive:
            return [(row["original"], row["translated"]) for row in source.rows(archive, "site")]

    assert messages("de") == [("Save", "Speichern"), ("%d page", "%d Seite"), ("%d pages", "%d Seiten")]
    assert [translated for original, translated in messages("zh") if original == "Save"] == ["Speichern", "保存"]
    with pytest.raises(UserError, match="no message catalogue in the language 'fr'"):
        messages("fr")


def test_several_references_are_joined_and_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text('{"name": "x", "body": "A. B.", "summary": "s"}\n')
    (tmp_path / "test.jsonl").write_text('{"name": "y", "body": "C.", "s1": "one", "s2": "two"}\n')
    options = {"id": "name", "text": "body", "references": ["summary", "s1", "s2"]}
    files = {"train": "dev.jsonl", "test": "test.jsonl"}
    ReferencesSource.from_options(files=files, **options).fetch(tmp_path / "out", tmp_path)
    assert rows(tmp_path / "out/test/rows.jsonl") == [
        {"id": "y", "text": "C.", "reference": "one", "references": '["one", "two"]'}
    ]
    (tmp_path / "test.jsonl").write_text('{"name": "y"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl:1"):
        ReferencesSource.from_options(files={"test": "test.jsonl"}, **options).fetch(tmp_path / "two", tmp_path)


def test_units_are_sentences_or_lines() -> None:
    text = 'It returns "yes." Otherwise no, e.g. if v1.2 is old. \n\nSee also 3 others!  (Or not.) 好。是'
    assert unit_texts(text, "sentences") == [
        'It returns "yes."',
        "Otherwise no, e.g. if v1.2 is old.",
        "See also 3 others!",
        "(Or not.) 好。",
        "是",
    ]
    assert unit_texts("A: hello.\n---\n B: yes! No.", "lines") == ["A: hello.", "B: yes! No."]
    assert unit_spans("---", "sentences") == [] and unit_texts("---", "sentences") == ["---"]
    for start, end in unit_spans(text, "sentences"):
        assert text[start:end].strip() == text[start:end]
