"""Entities: cells, tags, units, metrics that equal seqeval's, and positions that survive cleaning and subwords."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from textmill.config.sections.prepare import CleaningConfig
from textmill.data.cleaning import Cleaner
from textmill.errors import UserError
from textmill.fetching.sources.conll import ConllSource
from textmill.fetching.sources.docstring_entities import plain
from textmill.metrics.entities import (
    best_tags,
    entity_metrics,
    entity_scores,
    entity_table,
    lexicon,
    tag_names,
    unit_logits,
)
from textmill.text.entities import (
    Entity,
    chunks,
    entities_of,
    read_entities,
    realigned,
    tags_of,
    unit_spans,
    write_entities,
)
from textmill.text.token_windows import token_windows

TAGS = ["O", "B-a", "I-a", "B-b", "I-b"]
SEQUENCES = st.lists(st.lists(st.sampled_from(TAGS), min_size=1, max_size=8), min_size=1, max_size=6)


@given(SEQUENCES)
def test_chunks_any_sequence_equal_seqeval(sequences: list[list[str]]) -> None:
    for tags in sequences:
        assert [(label, first, last) for first, last, label in chunks(tags)] == get_entities(tags)


@given(st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=8), min_size=1))
def test_entity_metrics_any_tags_equal_seqeval(rows: list[list[tuple[str, str]]]) -> None:
    true, found = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    texts = [" ".join("w" for _ in row) for row in rows]
    entities = [
        [entities_of(tags, unit_spans(text, "whitespace")) for tags, text in zip(side, texts, strict=True)]
        for side in (true, found)
    ]
    expected = [score(true, found, zero_division=0) for score in (f1_score, precision_score, recall_score)]
    scores = entity_scores(entities[1], entities[0])
    assert [scores[name] for name in ("f1", "precision", "recall")] == pytest.approx(expected)
    frame = pd.DataFrame({"id": range(len(rows)), "text": texts, "entities": list(map(write_entities, entities[0]))})
    table = entity_table(frame, entities[1], ["a", "b"])
    columns = {str(name): table[name].to_numpy() for name in table}
    every = np.arange(len(rows))[None]
    of_name = {metric.name: float(metric.score(columns, every)[0]) for metric in entity_metrics(["a", "b"])}
    assert [of_name[name] for name in ("f1", "precision", "recall")] == pytest.approx(expected)


def test_best_tags_invalid_argmax_gives_the_best_valid_sequence() -> None:
    names = tag_names(["a", "b"])
    assert names == TAGS
    logits = np.log(np.array([[0.4, 0.3, 0.1, 0.1, 0.1], [0.2, 0.2, 0.5, 0.05, 0.05], [0.9, 0.02, 0.03, 0.03, 0.02]]))
    path, probability = best_tags(logits)
    assert [names[tag] for tag in path] == ["B-a", "I-a", "O"], "0.3 * 0.5 is more than 0.4 * 0.2"
    assert probability == pytest.approx([0.3, 0.5, 0.9])
    logits[1] = np.nan
    assert [names[tag] for tag in best_tags(logits)[0]] == ["O", "O", "O"]
    assert best_tags(np.empty((0, 5)))[0] == []


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("{}", "is not a JSON list"),
        ("no", "is not a JSON list"),
        ('[{"start": 0, "end": 99, "label": "x"}]', "not in the text of 11 characters"),
        ('[{"start": 3, "end": 3, "label": "x"}]', "not in the text"),
        ('[{"start": 0, "end": 5}]', "without a label"),
        ('[{"start": 0, "end": 5, "label": "x", "text": "world"}]', "says 'world' at 0"),
        ('[[0, 5, "x"], [4, 8, "y"]]', "overlapping spans"),
        ('[{"start": 5, "end": 6, "label": "x"}]', "a span of spaces"),
        ("[3]", "without start, end and label"),
    ],
)
def test_read_entities_unusable_cell_says_why(cell: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_entities(cell, "hello world")


def test_read_entities_lists_and_other_names_are_read_in_order() -> None:
    cell = '[[6, 11, "place"], {"start": 0, "end": 6, "type": "word"}]'
    assert read_entities(cell, "hello world") == [Entity(0, 5, "word"), Entity(6, 11, "place")]
    assert read_entities(None, "x") == read_entities("[]", "x") == []


CLEANER = Cleaner(CleaningConfig())
ODD = st.sampled_from(["ﬁ", "\uff21", "&amp;", "&lt;b&gt;", "e\u0301", "\u00a0", "\r\n", "â€™", "\u200b", "<b>"])
NAMES = st.text("ABCDEFG", min_size=6, max_size=9)


@given(st.lists(st.tuples(st.lists(ODD, max_size=3), NAMES), min_size=1, max_size=5))
def test_realigned_names_among_odd_signs_keep_their_text(parts: list[tuple[list[str], str]]) -> None:
    text, entities = "", []
    for odd, name in parts:
        text += " ".join(odd) + " "
        entities.append(Entity(len(text), len(text) + len(name), "name"))
        text += f"{name} "
    cleaned = CLEANER.clean(text)
    moved = realigned(read_entities(write_entities(entities), text), text, cleaned)
    assert [cleaned[one.start : one.end] for one in moved] == [name for _, name in parts]


def test_realigned_entity_that_cleaning_removes_is_refused() -> None:
    with pytest.raises(ValueError, match="is lost when the text is cleaned"):
        realigned([Entity(0, 1, "x")], "\x07abcd", "abcd")


@given(st.lists(NAMES, min_size=1, max_size=8), st.data())
def test_tags_of_entities_of_whole_units_round_trip(words: list[str], data: st.DataObject) -> None:
    units = unit_spans(" ".join(words), "words")
    cuts = sorted(data.draw(st.sets(st.integers(0, len(units)))))
    entities = [Entity(units[a][0], units[b - 1][1], f"l{a % 2}") for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    assert entities_of(tags_of(entities, units), units) == entities


def test_unit_spans_scripts_without_spaces_are_cut_into_signs() -> None:
    text = "我住在Beijing, it's_ok"
    assert [text[a:b] for a, b in unit_spans(text, "words")] == [*"我住在", "Beijing", ",", "it", "'", "s", "_", "ok"]
    assert len(unit_spans(text, "whitespace")) == 2


@pytest.mark.parametrize("length", [6, 8, 12, 64])
def test_token_windows_long_text_every_unit_begins_with_a_token_of_its_own(length: int) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "ab": 3, "##cd": 4, "##e": 5, ".": 6}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    text = "abcde abcd. ab zzz abcde. " * 3
    units = unit_spans(text, "words")
    [windows] = token_windows(tokenizer, [text], [units], max_length=length, overlap=3)
    assert all(len(ids) == len(marks) <= length for ids, marks in zip(windows.ids, windows.units, strict=True))
    assert {unit for marks in windows.units for unit in marks if unit >= 0} == set(range(len(units)))
    for ids, marks in zip(windows.ids, windows.units, strict=True):
        for token, unit in zip(ids, marks, strict=True):
            if unit >= 0:
                start, end = units[unit]
                assert tokenizer.id_to_token(token) in ("[UNK]", text[start:end], text[start : start + 2])
    logits = [np.array([[float(unit), 0.0] for unit in marks]) for marks in windows.units]
    assert unit_logits(logits, windows.units, len(units))[:, 0].tolist() == list(range(len(units)))


def test_lexicon_ambiguous_text_is_left_out_and_the_longest_wins() -> None:
    texts = ["New York is big", "York may come", "may be", "may be not"]
    entities = [[Entity(0, 8, "place")], [Entity(0, 4, "person"), Entity(5, 8, "month")], [], []]
    find = lexicon(texts, entities, "words")
    assert find("from New York in may, York") == [Entity(5, 13, "place"), Entity(22, 26, "person")]


def conll(tmp_path: Path, content: str) -> list[dict[str, object]]:
    (tmp_path / "train.conll").write_text(content)
    ConllSource.from_options(files={"train": "train.conll"}).fetch(tmp_path / "out", tmp_path)
    return [json.loads(line) for line in (tmp_path / "out/train/rows.jsonl").read_text().splitlines()]


def test_conll_source_columns_become_texts_and_spans(tmp_path: Path) -> None:
    content = "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\t\nNew NNP B-LOC\r\nYork NNP I-LOC\n"
    first, second = conll(tmp_path, content)
    assert first == {"id": "train:3", "text": "EU rejects", "entities": [{"start": 0, "end": 2, "label": "ORG"}]}
    assert second["entities"] == [{"start": 0, "end": 8, "label": "LOC"}]


@pytest.mark.parametrize("line", ["word", "word\tperson", "word B-", "word O-x"])
def test_conll_source_line_without_a_tag_names_file_and_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match=r"train\.conll:2: no token with a tag"):
        conll(tmp_path, f"a O\n{line}\n")


def test_plain_cross_references_become_entities() -> None:
    text, entities = plain(
        "Return a :class:`~pathlib.Path`, see :py:meth:`the method <A.b>` or ``x`` and :doc:`guide`."
    )
    assert text == "Return a Path, see the method or x and guide."
    assert [(text[e["start"] : e["end"]], e["label"]) for e in entities] == [
        ("Path", "class"),
        ("the method", "function"),
    ]
