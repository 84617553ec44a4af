"""Asking a chat model: likelihoods of answers and texts equal those of one question at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.tiny_llama import write_tiny_llama

from textmill.evaluation.evaluator import evaluator_of
from textmill.evaluation.evaluators.asked import predictions_of
from textmill.metrics.bootstrap import Bootstrap, intervals
from textmill.predicting.asked import LOGITS, ask, load_chat
from textmill.predicting.text_continuer import TextContinuer
from textmill.tasks.base import Task
from textmill.tasks.examples.asking import Asking
from textmill.tasks.sequence_to_sequence import TEXTS

PROMPT = "name {text}"
CLASSIFICATION = Task.build({"_target_": "textmill.tasks.text_classification.TextClassification"})
QUESTIONS = Task.build({"_target_": "textmill.tasks.question_answering.QuestionAnswering"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextContinuer:
    return load_chat(write_tiny_llama(tmp_path_factory.mktemp("llama")))


def test_ask_likelihoods_equal_those_of_whole_texts(model: TextContinuer) -> None:
    labels = ["red", "green blue", "a mill thanks"]
    asking = Asking(CLASSIFICATION, {"labels": labels}, PROMPT)
    texts = ["three colours", "you", "who are you three colours"]
    found = ask(model, asking, pd.DataFrame({"text": texts}))[LOGITS]
    end = int(model.exported.state["end_of_text"])
    for row, text in enumerate(texts):
        prompt = model.encode_prompt(asking.question({"text": text}))
        for column, label in enumerate(labels):
            answer = [*model.tokenizer.encode(label, add_special_tokens=False).ids, end]
            ids = torch.tensor([prompt + answer])
            with torch.inference_mode():
                scores = model.model(ids)["logits"].log_softmax(dim=-1)[0]
            expected = sum(float(scores[len(prompt) + place - 1, token]) for place, token in enumerate(answer))
            assert found[row, column] == pytest.approx(expected, abs=1e-4)


def test_ask_texts_do_not_depend_on_the_batch_and_examples_change_them(model: TextContinuer) -> None:
    task = Task.build({"_target_": "textmill.tasks.summarisation.Summarisation"})
    asking = Asking(task, {}, PROMPT)
    frame = pd.DataFrame({"text": ["three colours", "you", "who are you"]})
    together = ask(model, asking, frame, most_tokens=6)[TEXTS].tolist()
    alone = [ask(model, asking, frame[row : row + 1], most_tokens=6)[TEXTS][0] for row in range(len(frame))]
    assert together == alone
    shown = [{"text": "red", "summary": "blue green"}] * 3
    assert ask(model, asking, frame, shown, most_tokens=6)[TEXTS].tolist() != together


def test_answers_to_questions_count_as_written() -> None:
    frame = pd.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "question": ["?"] * 4,
            "context": ["the axis of it"] * 4,
            "answers": ['["axis"]', None, None, '["axis"]'],
        }
    )
    outputs: Any = {TEXTS: np.array(["An axis", "The text does not say.", "the axis", "the text does not say"], object)}
    evaluator = evaluator_of(QUESTIONS)
    table = predictions_of(evaluator, outputs, frame, {})
    assert table["f1"].tolist() == [1, 1, 0, 0]
    assert table["prediction"].tolist() == ["An axis", "", "the axis", ""]
    found = intervals(table, evaluator.metrics({}), Bootstrap(20))
    assert found["f1"].value == 0.5


def test_pairs_are_scored_by_yes_above_no(model: TextContinuer) -> None:
    task = Task.build({"_target_": "textmill.tasks.re_ranking.ReRanking", "depth": 2})
    asking = Asking(task, {}, "{text_a} {text_b}")
    asking.choices = ["red", "blue"]  # words that the tiny model knows
    frame = pd.DataFrame(
        {
            "id": ["1", "2", "3", "4"],
            "text_a": ["who", "who", "name", "name"],
            "text_b": ["you", "i", "red", "mill"],
            "relevant": ["1", "0", "0", "1"],
            "first_rank": ["1", "2", "1", "2"],
        }
    )
    outputs = ask(model, asking, frame)
    assert outputs[LOGITS].shape == (4, 1)
    table = predictions_of(evaluator_of(task), outputs, frame, {})
    assert set(table["rank"]) <= {1, 2} and len(table) == 4


def test_load_chat_without_a_model_is_one_error(tmp_path: Path) -> None:
    from textmill.errors import UserError

    folder = write_tiny_llama(tmp_path / "plain", template=None)
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        load_chat(folder)
