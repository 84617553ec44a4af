"""Predictions of a task from the answers of a chat model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from textmill.evaluation.evaluator import Evaluator
from textmill.metrics.base import Outputs
from textmill.metrics.passages import normalise, passage_table, scores, true_texts
from textmill.tasks.base import State
from textmill.tasks.examples.asking import REFUSAL
from textmill.tasks.question_answering import QuestionAnswering
from textmill.tasks.sequence_to_sequence import TEXTS

if TYPE_CHECKING:
    import pandas as pd


def predictions_of(evaluator: Evaluator, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
    """Return the evaluator's table for the outputs of `textmill.predicting.asked.ask`.

    An answer to a question counts as written, even where it is no passage of the text. One that begins as the refusal
    does is no answer.
    """
    if not isinstance(evaluator.task, QuestionAnswering):
        return evaluator.predictions(outputs, frame, state)
    refusal = normalise(REFUSAL)
    texts = ["" if normalise(text).startswith(refusal) else text for text in outputs[TEXTS].tolist()]
    nowhere = np.zeros(len(frame), np.int64)
    table = passage_table(frame, nowhere, nowhere, np.array([1.0 if text else -1.0 for text in texts]))
    true = [true_texts(*pair) for pair in zip(frame["answers"], frame["context"], strict=True)]
    exact, overlap = scores(texts, true)
    return table.assign(prediction=texts, exact_match=exact, f1=overlap)
