"""Raw text as documents, splits by position, and tokenizers trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textmill.config.sections.prepare import TextConfig, TokenizerConfig
from textmill.data.text import read_documents
from textmill.data.tokenizing import train_tokenizer
from textmill.errors import UserError
from textmill.text.tokens import token_bytes

TASK = {"_target_": "textmill.tasks.language_modelling.LanguageModelling", "sequence_length": 16}
VERSES = "".join(f"Line {number} of a long poem, with an é and a €.\n" for number in range(200))


def read(path: Path, **options: Any) -> list[tuple[int, Any]]:
    return list(read_documents(path, "poem.txt", TextConfig(**options)))


def prepared(project: Any, **options: Any) -> Any:
    values: dict[str, Any] = {
        "columns": {"text": "text"},
        "task": TASK,
        "tokenizer": {"kind": "character"},
        "cleaning": {"repair": False, "normal_form": None, "max_characters": 1_000_000},
        "duplicates": {"exact": False, "near": False},
    }
    return project.prepare(**(values | options))


def test_documents_are_files_paragraphs_or_begin_at_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_bytes("\ufeffACT I\r\nOne.\r\n\r\nTwo.\r\n\r\n\r\nACT II\r\nThree.\r\n".encode())
    assert read(path) == [(1, "ACT I\nOne.\n\nTwo.\n\n\nACT II\nThree.\n")]
    assert [(line, text.strip()) for line, text in read(path, document="paragraph")] == [
        (1, "ACT I\nOne."),
        (4, "Two."),
        (7, "ACT II\nThree."),
    ]
    acts = read(path, document="pattern", begins="^ACT")
    assert [line for line, _ in acts] == [1, 7]
    assert read(path, drop=[r"\AACT I$.*?Two\.", r"ACT II\n.*\Z"]) == []


def test_invalid_utf8_document_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_bytes(b"good\n\nbad \xff\xfe\n\nalso good\n")
    found = [
        document if isinstance(document, str) else str(document) for _, document in read(path, document="paragraph")
    ]
    assert found == ["good\n\n", "poem.txt:3: row is not UTF-8", "also good\n"]


def test_by_position_the_parts_make_up_the_text_again(project: Any) -> None:
    project.raw("all/poem.txt", VERSES)
    found = prepared(project, splits={"by": "position", "validation": 0.05, "test": 0.05})
    texts = {name: found.frame(name)["text"].tolist() for name in ("train", "validation", "test")}
    assert [len(rows) for rows in texts.values()] == [1, 1, 1]
    joined = "".join(rows[0] for rows in texts.values())
    assert joined.replace(" ", "").replace("\n", "") == VERSES.replace(" ", "").replace("\n", "")
    assert len(texts["train"][0]) == pytest.approx(0.9 * len(VERSES), rel=0.01)


def test_by_position_needs_raw_text(project: Any, many_rows: Any) -> None:
    project.rows("all/rows.csv", many_rows(20))
    with pytest.raises(UserError, match=r"prepare\.splits\.by: .*rows\.csv is read as csv"):
        prepared(project, splits={"by": "position"})


def test_equal_documents_stay_when_asked_to(project: Any) -> None:
    project.raw("all/poem.txt", "All: Ay.\n\n" * 12 + "Other words.\n")
    read = {"text": {"document": "paragraph"}}
    kept = prepared(project, read=read)
    assert kept.statistics["duplicates"]["total"] == 0
    assert sum(kept.split(name).num_rows for name in ("train", "validation", "test")) == 13


@pytest.mark.parametrize("kind", ["character", "byte_bpe", "unigram"])
def test_trained_tokenizers_give_back_the_text_and_count_its_bytes(kind: Any) -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocabulary_size=320), [VERSES])
    ids = tokenizer.encode(VERSES).ids
    assert tokenizer.decode(ids) == VERSES
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    counts = token_bytes(tokenizer)
    assert counts[0] == 0
    assert sum(counts[token] for token in ids) == len(VERSES.encode())
    if kind != "character":
        strange = "Ω ≠ 漢字"
        assert tokenizer.decode(tokenizer.encode(strange).ids) == strange


def test_the_trained_tokenizer_lands_in_the_prepared_data_for_transformers(project: Any) -> None:
    from transformers import AutoTokenizer

    project.raw("all/poem.txt", VERSES)
    found = prepared(project, tokenizer={"kind": "byte_bpe", "vocabulary_size": 300}, splits={"by": "position"})
    tokenizer = AutoTokenizer.from_pretrained(found.tokenizer_folder)
    assert tokenizer.eos_token == "<|endoftext|>"
    row = found.frame("train").iloc[0]
    assert tokenizer.decode(row["input_ids"][:-1]) == row["text"]
    assert found.state["vocabulary_size"] == len(found.state["token_bytes"]) == len(tokenizer)


def test_a_tokenizer_without_an_end_of_text_is_refused(project: Any) -> None:
    project.raw("all/poem.txt", VERSES)
    with pytest.raises(UserError, match=r"task\.end_of_text: the tokenizer has no token '<\|endoftext\|>'"):
        prepared(project, tokenizer={"kind": "pretrained"}, splits={"by": "position"})


def test_report_counts_cut_documents_of_both_ways_to_pack(project: Any) -> None:
    project.raw("all/poem.txt", "\n\n".join("la " * (1 + number % 7) for number in range(300)))
    read = {"text": {"document": "paragraph"}}
    found = prepared(project, read=read, task=TASK | {"packing": "best_fit"})
    packing = found.statistics["packing"]
    lengths = np.array(found.split("train").column("length"))
    assert packing["documents"] == len(lengths) and packing["used"] == "best_fit"
    assert packing["best_fit"]["cut"] == (lengths > 16).sum() < packing["concatenate"]["cut"]
    report = (found.folder / "report" / "README.md").read_text()
    assert f"| best_fit | {packing['best_fit']['rows']} | {packing['best_fit']['cut']} |" in report
