"""Question answering: the passage of a text that answers a question, or none (Rajpurkar et al. 2018)."""

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
        max_question: Tokens of a question at most; longer ones are cut.
        max_answer: Tokens of an answer at most.
        overlap: Tokens that a window of a long context shares with the window before.
    """

    max_question: Annotated[int, Field(ge=4)] = 64
    max_answer: Annotated[int, Field(ge=1)] = 30
    overlap: Annotated[int, Field(ge=0)] = 64


class QuestionAnswering(Task, RealignsTargets, CutsExamples, CalibratesWeights, DriftFeatures):
    """The passage of a context that answers a question; none where the context does not tell.

    A context longer than the model is shown as several overlapping windows, and the best passage of
    all of them counts. The target column `answers` holds texts of the context, as
    `textmill.text.answers.read_answers` takes them; several are several people's answers to the same
    question, none means that there is no answer.

    No answer is given where the first token's scores, and a bias chosen on validation, exceed the passage's.
    """

    Config: ClassVar[type[Options]] = QuestionAnsweringConfig
    config: QuestionAnsweringConfig

    name = "question_answering"
    evaluator = "textmill.evaluation.evaluators.question_answering.QuestionAnsweringEvaluator"
    text_columns = ("question", "context")
    target_columns = ("answers",)
    stratify_column = None
    main_metric = "f1"
    monitor = "validation/f1"
    monitor_mode = "max"

    # -- prepare ----------------------------------------------------------------------------

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Nothing but that there are questions with an answer.

        Raises:
            UserError: There is none.
        """
        if not any(text and text != "[]" for frame in frames for text in frame["answers"]):
            raise UserError("no question of the training split has an answer", fix="Map prepare.read.columns.answers")
        return {}

    def bind_tokenizer(self, state: State, tokenizer: Any, folder: Path) -> State:
        """Return the same state.

        Raises:
            UserError: The tokenizer puts no special token at the beginning, which could stand for "no answer".
        """
        if not tokenizer.encode("a", "b").special_tokens_mask[0]:
            fix = "Choose a pretrained encoder with a tokenizer of its own, such as `model: minilm`"
            raise UserError("the tokenizer puts no special token before a text", where="prepare.tokenizer", fix=fix)
        return state

    def realign_targets(
        self, given: Mapping[str, Sequence[str | None]], columns: dict[str, list[str | None]]
    ) -> dict[int, tuple[str, str]]:
        """The answers as they stand in the cleaned context, all in one form."""
        from textmill.text import answers

        problems: dict[int, tuple[str, str]] = {}
        pairs = zip(given["context"], columns["context"], strict=True)
        for position, (raw, clean) in enumerate(pairs):
            if raw is None or clean is None:
                continue
            try:
                found = answers.read_answers(columns["answers"][position], raw)
                columns["answers"][position] = answers.write_answers(answers.aligned(found, raw, clean))
            except ValueError as error:
                problems[position] = "answers", str(error)
        return problems

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Rows without a question or a context, and those with an answer that is not in the context."""
        from textmill.text.answers import problem_of

        columns = (map(_cell, frame[name]) for name in ("question", "context", "answers"))
        problems = [problem_of(*row) for row in zip(*columns, strict=True)]
        return [RejectedRow(position, *problem) for position, problem in enumerate(problems) if problem]

    def encode(self, frame: pd.DataFrame, tokenizer: Any, state: State, max_length: int) -> dict[str, list[Any]]:
        """Windows of each row, one after the other: `input_ids`, `token_starts` and `token_ends` in the context.

        And `window_lengths`, `length` (tokens of question and context), and, where there are answers,
        `start_position` and `end_position` in each window: 0 where it does not hold the first answer.
        """
        from textmill.text.answers import read_answers
        from textmill.text.pair_windows import pair_windows

        pairs = list(zip(frame["question"].tolist(), frame["context"].tolist(), strict=True))
        options = {"most_first": self.config.max_question, "overlap": self.config.overlap}
        found = pair_windows(tokenizer, pairs, max_length=max_length, **options)
        columns: dict[str, list[Any]] = {
            "input_ids": [list(chain.from_iterable(row.ids)) for row in found],
            "length": [row.tokens for row in found],
            "window_lengths": [[len(window) for window in row.ids] for row in found],
            "token_starts": [list(chain.from_iterable(row.starts)) for row in found],
            "token_ends": [list(chain.from_iterable(row.ends)) for row in found],
        }
        if "answers" in frame:
            cells = zip(found, map(_cell, frame["answers"]), frame["context"], strict=True)
            answers = [(row, next(iter(read_answers(cell, context)), None)) for row, cell, context in cells]
            spans = [row.token_spans(answer.start, answer.end) if answer else row.nowhere for row, answer in answers]
            columns["start_position"] = [[first for first, _ in row] for row in spans]
            columns["end_position"] = [[last for _, last in row] for row in spans]
        return columns

    # -- train ------------------------------------------------------------------------------

    def examples(self, table: pa.Table) -> Examples:
        """Every window of every row."""
        from textmill.tasks.examples.windows import SlidingWindows

        return SlidingWindows(table, _OF_WINDOW)

    def sequences(self, columns: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Sequence[int]]]:
        """The windows' token ids."""
        from textmill.tasks.examples.windows import cut

        rows = zip(columns["input_ids"], columns["window_lengths"], strict=True)
        return {"input_ids": [window for ids, lengths in rows for window in cut(ids, lengths)]}

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> torch.nn.Module:
        """The model's encoder with a head that scores the ends of a passage."""
        from textmill.models.span_extractor import SpanExtractor

        return SpanExtractor(model.build_encoder(pretrained))

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (B, T); `start_position` and `end_position` (B,) where given."""
        import numpy as np
        import torch

        from textmill.text.batches import pad_tensors

        input_ids, mask = pad_tensors(rows["input_ids"])
        batch = {"input_ids": input_ids, "attention_mask": mask}
        targets = [name for name in _OF_WINDOW if name in rows]
        return batch | {name: torch.as_tensor(np.asarray(rows[name], np.int64)) for name in targets}

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
        """`f1` and `exact_match` at the margin that serves F1 best, the `no_answer_bias` for it, and `loss`."""
        import numpy as np

        from textmill.metrics.passages import passages_of, scores, true_texts
        from textmill.metrics.spans import best_margin, cross_entropy

        spans = self.best_spans(outputs, rows)
        true = [true_texts(*pair) for pair in zip(rows["answers"], rows["context"], strict=True)]
        exact, f1 = scores(passages_of(rows["context"], spans.start, spans.end), true)
        declined = np.array([float(not texts) for texts in true])
        limit = best_margin(spans.margin, f1, declined)
        given = spans.margin > limit
        losses = [cross_entropy(outputs[f"{end}_logits"], rows[f"{end}_position"]) for end in ("start", "end")]
        return {
            "f1": float(np.where(given, f1, declined).mean()),
            "exact_match": float(np.where(given, exact, declined).mean()),
            "answered": float(given.mean()),
            _BIAS: limit / 2,
            "loss": float(np.mean(losses)),
        }

    def calibrate_weights(
        self, weights: dict[str, torch.Tensor], metrics: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """Return the weights with the bias for "no answer" that gave the best F1."""
        return weights | {_BIAS: weights[_BIAS] + metrics[_BIAS]} if weights else weights

    # -- serve ------------------------------------------------------------------------------

    def drift_features(self, outputs: Outputs) -> Outputs:
        """The first token's scores and the highest one, of each window."""
        import numpy as np

        return {name: np.stack([values[:, 0], np.nanmax(values, axis=1)], axis=1) for name, values in outputs.items()}

    def example_inputs(self) -> list[dict[str, Any]]:
        """A question that its text answers, and one that it does not."""
        context = "The water mill at Eling was built in 1785. It still grinds wheat when the tide is out."
        questions = ("When was the mill built?", "Who owns the mill?")
        return [{"question": question, "context": context} for question in questions]

    def answers(
        self,
        outputs: Outputs,
        rows: Mapping[str, Sequence[Any]],
        given: Mapping[str, Sequence[str]],
        state: State,
    ) -> list[dict[str, Any]]:
        """`answer`, its `start` and `end` in the context as it was given, and a `score` between 0.5 and 1.

        Without an answer it is "", and start and end are 0. The score tells how much the model prefers
        its answer to giving none, or the other way round; `context[start:end]` is always the answer.
        """
        from textmill.metrics.passages import passage_records

        return passage_records(self.best_spans(outputs, rows), rows["context"], given["context"])

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
    """A cell of a data frame: a string, or None for a missing value of whatever kind."""
    return value if isinstance(value, str) else None
