"""Question answering without a network: the official figures, the best passage, windows, natural inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from textmill.errors import UserError
from textmill.metrics import passages
from textmill.metrics.baselines import sentence_baseline
from textmill.metrics.bootstrap import Bootstrap, intervals
from textmill.metrics.spans import best_margin, best_spans
from textmill.tasks.question_answering import QuestionAnswering
from textmill.text.pair_windows import pair_windows

CONTEXT = "the mill stands here . it was built by John in 1785 ."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "built", "it", "?", *CONTEXT.split()]
    found = Tokenizer(models.WordLevel({word: at for at, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return found


# Answers and figures as the official script (evaluate-v2.0.py) gives them
@pytest.mark.parametrize(
    ("answer", "true", "exact", "f1"),
    [
        ("the Norman  invasion!", ["Norman invasion"], 1.0, 1.0),
        ("10th and 11th centuries", ["in the 10th and 11th centuries", "10th and 11th centuries"], 1.0, 1.0),
        ("in the 10th century", ["10th and 11th centuries"], 0.0, 2 * 1 / (3 + 4)),
        ("Denmark, Iceland", ["Denmark, Iceland and Norway"], 0.0, 2 * 2 / (2 + 4)),
        ("", [], 1.0, 1.0),
        ("France", [], 0.0, 0.0),
        ("", ["France"], 0.0, 0.0),
        ("a", ["the"], 1.0, 1.0),
        ("U.S.", ["US"], 1.0, 1.0),
        ("rock rock", ["rock"], 0.0, 2 * 1 / (2 + 1)),
    ],
)
def test_figures_of_an_answer_are_the_official_ones(answer: str, true: list[str], exact: float, f1: float) -> None:
    assert passages.exact_match(answer, true) == exact
    assert passages.f1(answer, true) == pytest.approx(f1)


def test_figures_are_those_of_torchmetrics() -> None:
    from torchmetrics.functional.text import squad

    draw = np.random.default_rng(0)
    words = ["the", "Mill", "of", "1785,", "a", "stands", "here."]
    answers = [" ".join(draw.choice(words, draw.integers(1, 5))) for _ in range(40)]
    true = [[" ".join(draw.choice(words, draw.integers(1, 4))) for _ in range(2)] for _ in answers]
    true = [[text for text in texts if passages.normalise(text)] or ["mill"] for texts in true]
    exact, f1 = passages.scores(answers, true)
    theirs = squad(
        [{"prediction_text": text, "id": str(row)} for row, text in enumerate(answers)],
        [{"answers": {"answer_start": [0], "text": texts}, "id": str(row)} for row, texts in enumerate(true)],
    )
    assert 100 * exact.mean() == pytest.approx(float(theirs["exact_match"]), rel=1e-5)
    assert 100 * f1.mean() == pytest.approx(float(theirs["f1"]), rel=1e-5)


def test_best_passage_is_that_of_an_exhaustive_search() -> None:
    draw = np.random.default_rng(1)
    lengths = [[5], [7, 4], [3, 3, 6]]
    flat = [length for row in lengths for length in row]
    start, end = (draw.normal(size=(len(flat), max(flat))).astype(np.float32) for _ in range(2))
    for row, length in enumerate(flat):
        start[row, length:] = end[row, length:] = np.nan
    starts, ends = [], []
    for row in lengths:
        begins = [at * 10 if draw.random() < 0.7 and at else -1 for length in row for at in range(length)]
        starts.append(begins)
        ends.append([begin + 9 if begin >= 0 else -1 for begin in begins])
    found = best_spans(start, end, lengths, starts, ends, longest=3)
    window = 0
    for row, of_row in enumerate(lengths):
        best = (-np.inf, 0, 0)
        null = np.inf
        at = 0
        for length in of_row:
            null = min(null, float(start[window, 0]) + float(end[window, 0]))
            for i in range(length):
                for j in range(i, min(i + 3, length)):
                    if starts[row][at + i] >= 0 and starts[row][at + j] >= 0:
                        score = float(start[window, i]) + float(end[window, j])
                        best = max(best, (score, starts[row][at + i], ends[row][at + j]))
            window, at = window + 1, at + length
        assert (found.score[row], found.start[row], found.end[row]) == pytest.approx(best)
        assert found.null[row] == pytest.approx(null)


def test_a_text_without_tokens_has_no_answer() -> None:
    logits = np.ones((1, 2), np.float32)
    found = best_spans(logits, logits, [[2]], [[-1, -1]], [[-1, -1]], longest=3)
    assert (found.start[0], found.end[0]) == (0, 0) and found.margin[0] < 0


@pytest.mark.parametrize("seed", range(5))
def test_margin_is_the_best_there_is(seed: int) -> None:
    draw = np.random.default_rng(seed)
    margin = draw.integers(-5, 5, 30).astype(float)
    answered, declined = draw.random(30), draw.random(30)

    def figure(limit: float) -> float:
        return float(np.where(margin > limit, answered, declined).mean())

    candidates = [figure(limit) for limit in np.arange(-6.5, 6, 0.5)]
    assert figure(best_margin(margin, answered, declined)) == pytest.approx(max(candidates))


def test_windows_share_tokens_and_say_where_they_stand(tokenizer: Tokenizer) -> None:
    [found] = pair_windows(tokenizer, [("who built it ?", CONTEXT)], max_length=13, most_first=3, overlap=2)
    room = 13 - 3 - 3
    assert [len(ids) for ids in found.ids] == [13, 13, 9]
    texts = [
        [CONTEXT[a:b] for a, b in zip(starts, ends, strict=True) if a >= 0]
        for starts, ends in zip(found.starts, found.ends, strict=True)
    ]
    words = CONTEXT.split()
    assert texts == [words[:room], words[room - 2 : 2 * room - 2], words[2 * room - 4 :]]
    at = CONTEXT.index("John")
    assert found.token_spans(at, at + 4) == [(0, 0), (5 + 4, 5 + 4), (0, 0)]
    assert found.nowhere == [(0, 0)] * 3


def test_windows_of_a_context_that_fits_is_the_tokenizers_own_pair(tokenizer: Tokenizer) -> None:
    [found] = pair_windows(tokenizer, [("who built it ?", CONTEXT)], max_length=64, most_first=64, overlap=8)
    assert found.ids == [tokenizer.encode("who built it ?", CONTEXT).ids]
    assert found.tokens == len(found.ids[0])


def frame(rows: list[tuple[str, str, str | None]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["question", "context", "answers"])
    return table.assign(id=[str(row) for row in range(len(table))])


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ((" ", CONTEXT, None), "question", "is empty"),
        (("who?", None, None), "context", "is empty"),
        (("who?", CONTEXT, '["Jane"]'), "answers", "'Jane' is not in the context"),
        (("who?", CONTEXT, '[{"text": "John", "start": 3}]'), "answers", "'John' is not in the context at 3"),
        (("who?", CONTEXT, '[{"text": "John", "start": "x"}]'), "answers", "which is not a position"),
        (("who?", CONTEXT, '[{"start": 3}]'), "answers", "without text"),
    ],
)
def test_what_cannot_be_used_is_told(row: tuple[str, str, str | None], column: str, reason: str) -> None:
    [reject] = QuestionAnswering.from_options().check(frame([("who?", CONTEXT, "[]"), row]), None)
    assert (reject.row, reject.column) == (1, column)
    assert reason in reject.reason


@pytest.mark.parametrize(
    "value",
    [
        "John",
        '["John"]',
        '[{"text": "John", "start": 39}]',
        '[{"text": "John", "answer_start": 39}, {"text": " John", "answer_start": 38}]',
        '{"text": ["John"], "answer_start": [39]}',
    ],
)
def test_answers_are_understood_in_many_forms(value: str) -> None:
    from textmill.text.answers import Answer, read_answers

    context = "x" * 38 + " John in 1785"
    assert read_answers(value, context) == [Answer("John", 39)]


def test_answers_follow_their_context_through_cleaning() -> None:
    from textmill.text.answers import read_answers

    given = ["  The ﬁrst mill, â€œElingâ€\x9d, 1785", "plain 1785", "no"]
    cleaned = ['The first mill, "Eling", 1785', "plain 1785", "no"]
    columns: dict[str, list[str | None]] = {
        "context": list(cleaned),
        "answers": ['[{"text": "ﬁrst mill", "start": 6}, {"text": "Eling", "start": 20}]', "1785", "yes"],
    }
    problems = QuestionAnswering.from_options().realign_targets({"context": given}, columns)
    assert problems == {2: ("answers", "'yes' is not in the context")}
    first = read_answers(columns["answers"][0], cleaned[0])
    assert [(answer.text, answer.start) for answer in first] == [("first mill", 4), ("Eling", 17)]
    assert [answer.text for answer in read_answers(columns["answers"][1], cleaned[1])] == ["1785"]


def test_training_needs_an_answer() -> None:
    task = QuestionAnswering.from_options()
    assert task.fit([frame([("q", "c d", "[]"), ("q", "c d", '["c"]')])]) == {}
    with pytest.raises(UserError, match="no question of the training split has an answer"):
        task.fit([frame([("q", "c", "[]")])])


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path: Path) -> None:
    bare = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(UserError, match="no special token"):
        QuestionAnswering.from_options().bind_tokenizer({}, bare, tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no input"),
        (["who?"], "neither a text nor a record: 'who\\?'"),
        ([{"question": "who?"}], "input 1: there is no context"),
        ([{"question": "", "context": "x"}], "input 1: the question is empty"),
    ],
)
def test_inputs_of_another_kind_are_refused(values: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuestionAnswering.from_options().parse_inputs(values)


def test_answers_are_passages_of_the_text_as_given(tokenizer: Tokenizer) -> None:
    task = QuestionAnswering.from_options()
    given = "  " + CONTEXT.replace("mill", "mi\ufb02") + " "
    clean = CONTEXT.replace("mill", "mifl")
    columns = task.encode(pd.DataFrame({"question": ["who ?"], "context": [clean]}), tokenizer, {}, 64)
    ids = columns["input_ids"][0]
    logits = np.zeros((1, len(ids)), np.float32)
    place = columns["token_starts"][0].index(clean.index("John"))
    for at, answer in ((place, "John"), (0, "")):
        logits[:] = 0
        logits[0, at] = 5
        rows = {"question": ["who ?"], "context": [clean], **columns}
        [record] = task.answers({"start_logits": logits, "end_logits": logits}, rows, {"context": [given]}, {})
        assert record["answer"] == answer == given[record["start"] : record["end"]]
        assert record["score"] == pytest.approx(1 / (1 + np.exp(-10)))


def test_baselines_decline_or_give_the_nearest_sentence() -> None:
    texts = [
        f"The {name} opened in {year}. It has {year % 7} floors.\nNobody lives there."
        for name, year in (("mill", 1785), ("tower", 1911), ("bridge", 1822))
    ]
    rows = [
        row
        for text in texts
        for row in (
            ("How many floors has it?", text, f'["{text[text.index("It has") : text.index(" floors")]} floors."]'),
            ("Which king was crowned?", text, "[]"),
        )
    ]
    fitted = sentence_baseline.fit_baselines(frame(rows), frame(rows), {})
    nothing, sentence = fitted["no_answer"](frame(rows)), fitted["best_sentence"](frame(rows))
    assert nothing["f1"].tolist() == [0.0, 1.0] * 3
    assert sentence["exact_match"].tolist() == [1.0] * 6
    with pytest.raises(UserError, match=r"evaluate\.baselines"):
        sentence_baseline.fit_baselines(frame(rows), frame(rows), {"max_ngrams": 2})


def test_metrics_of_rows_with_and_without_an_answer() -> None:
    table = passages.passage_table(
        frame([("q", "a mill here", '["mill"]'), ("q", "a mill here", None), ("q", "a mill here", None)]),
        np.array([2, 2, 0]),
        np.array([11, 6, 0]),
        np.array([1.0, 1.0, -1.0]),
    )
    found = intervals(table, passages.passage_metrics(), Bootstrap(100))
    assert table["prediction"].tolist() == ["mill here", "mill", ""]
    assert found["exact_match"].value == pytest.approx(1 / 3)
    assert found["f1/with answer"].value == pytest.approx(2 / 3)
    assert found["f1/without answer"].value == pytest.approx(1 / 2)
