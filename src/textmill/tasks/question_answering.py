"""Question answering: the passage of a text that answers a question, or no answer (Rajpurkar et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.tasks.abilities import CalibratesWeights, CutsExamples, DriftFeatures, RealignsTargets
from textmill.tasks.base import State, StepOutput, Task
from textmill.text import answers as true_answers
from textmill.text.pair_windows import pair_windows
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa
    import torch

    from textmill.metrics.spans import Spans
    from textmill.models.base import Model
    from textmill.tasks.examples.rows import Examples

_BIAS = "no_answer_bias"
_OF_WINDOW = ("start_position", "end_position")


class QuestionAnsweringConfig(Options):
    """Options of question answering.

    Attributes:
        max_question: Largest number of tokens of a question; longer ones are cut.
        max_answer: Largest number of tokens of an answer.
        overlap: Tokens that a window of a long context shares with the previous window.
    """

    max_question: Annotated[int, Field(ge=4)] = 64
    max_answer: Annotated[int, Field(ge=1)] = 30
    overlap: Annotated[int, Field(ge=0)] = 64


class QuestionAnswering(Task, RealignsTargets, CutsExamples, CalibratesWeights, DriftFeatures):
    """The passage of a context that answers a question, or no answer.

    A context longer than the model is cut into overlapping windows; the best passage of all windows counts.
    The target column `answers` holds passages of the context (see `textmill.text.answers.read_answers`):
    one for each annotator, or none where the context has no answer.

    The model gives no answer where the first token's scores, plus a bias chosen on validation, exceed the passage's.
    """

    Config: ClassVar[type[Options]] = QuestionAnsweringConfig
    config: QuestionAnsweringConfig

    name = "question_answering"
    evaluator = "textmill.evaluation.evaluators.question_answering.QuestionAnsweringEvaluator"
    text_columns = ("question", "context")
    target_columns = ("answers",)
    main_metric = "f1"
    monitor = "validation/f1"

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Check that a question has an answer; the state is empty.

        Raises:
            UserError: No question has one.
        """
        if not any(text and text != "[]" for frame in frames for text in frame["answers"]):
            where, fix = "prepare.read.columns.answers", "Map a column with answers"
            raise UserError("no question of the training split has an answer", where=where, fix=fix)
        return {}

    def bind_tokenizer(self, state: State, tokenizer: Any, folder: Path) -> State:
        """Return the same state.

        Raises:
            UserError: The tokenizer begins a text without a special token, which stands for "no answer".
        """
        if not tokenizer.encode("a", "b").special_tokens_mask[0]:
            fix = "Choose a pretrained encoder with a tokenizer of its own, such as `model: minilm`"
            raise UserError("the tokenizer puts no special token before a text", where="prepare.tokenizer", fix=fix)
        return state

    def realign_targets(
        self, raw: Mapping[str, Sequence[str | None]], columns: dict[str, list[str | None]]
    ) -> dict[int, tuple[str, str]]:
        """Rewrite the answers as they stand in the cleaned context, all in one form."""
        problems: dict[int, tuple[str, str]] = {}
        for position, (before, clean) in enumerate(zip(raw["context"], columns["context"], strict=True)):
            if before is None or clean is None:
                continue
            try:
                parsed = true_answers.read_answers(columns["answers"][position], before)
                moved = true_answers.aligned(parsed, before, clean)
                columns["answers"][position] = true_answers.write_answers(moved)
            except ValueError as error:
                problems[position] = "answers", str(error)
        return problems

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without a question or a context, or with an answer that is not in the context."""
        columns = (map(_cell, frame[name]) for name in ("question", "context", "answers"))
        problems = [true_answers.problem_of(*row) for row in zip(*columns, strict=True)]
        return [RejectedRow(position, *problem) for position, problem in enumerate(problems) if problem]

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return the joined windows of each row: `input_ids`, and `token_starts` and `token_ends` in the context.

        Also `window_lengths`, `length` (tokens of question and context), and, where there are answers,
        `start_position` and `end_position` of the first answer in each window; 0 in windows without it.
        """
        pairs = list(zip(frame["question"].tolist(), frame["context"].tolist(), strict=True))
        options = {"most_first": self.config.max_question, "overlap": self.config.overlap}
        windows = pair_windows(tokenizer, pairs, max_length=max_length, **options)
        columns: dict[str, list[Any]] = {
            "input_ids": [list(chain.from_iterable(row.ids)) for row in windows],
            "length": [row.tokens for row in windows],
            "window_lengths": [[len(window) for window in row.ids] for row in windows],
            "token_starts": [list(chain.from_iterable(row.starts)) for row in windows],
            "token_ends": [list(chain.from_iterable(row.ends)) for row in windows],
        }
        if "answers" in frame:
            cells = zip(windows, map(_cell, frame["answers"]), frame["context"], strict=True)
            first = [(row, next(iter(true_answers.read_answers(cell, text)), None)) for row, cell, text in cells]
            spans = [row.token_spans(answer.start, answer.end) if answer else row.nowhere for row, answer in first]
            columns["start_position"] = [[first for first, _ in row] for row in spans]
            columns["end_position"] = [[last for _, last in row] for row in spans]
        return columns

    def examples(self, table: pa.Table) -> Examples:
        """Return every window of every row."""
        from textmill.tasks.examples.windows import SlidingWindows

        return SlidingWindows(table, _OF_WINDOW)

    def sequences(self, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Sequence[int]]]:
        """Return the windows' token ids."""
        from textmill.tasks.examples.windows import cut

        rows = zip(columns["input_ids"], columns["window_lengths"], strict=True)
        return {"input_ids": [window for ids, lengths in rows for window in cut(ids, lengths)]}

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """Build the model's encoder with a head that scores the ends of a passage."""
        from textmill.models.span_extractor import SpanExtractor

        return SpanExtractor(model.build_encoder(pretrained))

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask` (B, T); with targets `start_position` and `end_position` (B,)."""
        from textmill.text.batches import padded_batch

        return padded_batch(rows, dict.fromkeys(_OF_WINDOW, "int64"))

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the mean cross-entropy of both ends over a window's tokens; `start_logits`, `end_logits` (B, T)."""
        import torch
        from torch.nn.functional import cross_entropy

        outputs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        padding = batch["attention_mask"] == 0
        parts = [
            cross_entropy(outputs[f"{end}_logits"].float().masked_fill(padding, -torch.inf), batch[f"{end}_position"])
            for end in ("start", "end")
        ]
        return StepOutput(torch.stack(parts).mean(), outputs)

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `f1`, `exact_match` and `answered` at the margin of highest F1, its `no_answer_bias`, and `loss`."""
        import numpy as np

        from textmill.metrics.passages import passages_of, scores, true_texts
        from textmill.metrics.spans import best_margin, cross_entropy

        spans = self.best_spans(outputs, rows)
        true = [true_texts(*pair) for pair in zip(rows["answers"], rows["context"], strict=True)]
        exact, f1 = scores(passages_of(rows["context"], spans.start, spans.end), true)
        declined = np.array([float(not texts) for texts in true])
        limit = best_margin(spans.margin, f1, declined)
        answered = spans.margin > limit
        losses = [cross_entropy(outputs[f"{end}_logits"], rows[f"{end}_position"]) for end in ("start", "end")]
        return {
            "f1": float(np.where(answered, f1, declined).mean()),
            "exact_match": float(np.where(answered, exact, declined).mean()),
            "answered": float(answered.mean()),
            _BIAS: limit / 2,
            "loss": float(np.mean(losses)),
        }

    def calibrate_weights(
        self, weights: dict[str, torch.Tensor], metrics: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Return the weights with the bias for "no answer" that gave the best F1."""
        return weights | {_BIAS: weights[_BIAS] + metrics[_BIAS]} if weights else weights

    def drift_features(self, outputs: Outputs) -> Outputs:
        """Return the first token's score and the highest one, of each window and both ends."""
        import numpy as np

        return {name: np.stack([values[:, 0], np.nanmax(values, axis=1)], axis=1) for name, values in outputs.items()}

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return a question with an answer, and one without."""
        context = "The water mill at Eling was built in 1785. It still grinds wheat when the tide is out."
        questions = ("When was the mill built?", "Who owns the mill?")
        return [{"question": question, "context": context} for question in questions]

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return `answer`, its `start` and `end` in the raw context, and a `score` between 0.5 and 1.

        `context[start:end]` is always the answer. Without one it is "", and start and end are 0. The score
        is the logistic function of the distance between the passage and "no answer".
        """
        from textmill.metrics.passages import passage_records

        return passage_records(self.best_spans(outputs, rows), rows["context"], raw["context"])

    def best_spans(self, outputs: Outputs, rows: Any) -> Spans:
        """Return the best passage of each row, over all its windows."""
        from textmill.metrics.spans import best_spans

        return best_spans(
            outputs["start_logits"],
            outputs["end_logits"],
            rows["window_lengths"],
            rows["token_starts"],
            rows["token_ends"],
            longest=self.config.max_answer,
        )


def _cell(value: Any) -> str | None:
    return value if isinstance(value, str) else None  # pandas has several kinds of missing values
