"""Predict with an exported model by ONNX Runtime; imports neither PyTorch nor MLflow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.errors import UserError
from textmill.predicting.exported import ExportedModel
from textmill.tasks.abilities import sequences_of
from textmill.tasks.base import Task
from textmill.text.batches import length_batches, pad, restore_order
from textmill.text.occlusion import without_each_word

if TYPE_CHECKING:
    import onnxruntime
    import pandas as pd
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from textmill.data.cleaning import Cleaner
    from textmill.metrics.base import Outputs

# On the CPU the fused operator took ten times as long as the sum and the norm that it replaces: a
# fifth of MiniLM's time.
_SLOW_FUSIONS = ["SkipLayerNormFusion"]

_WIDTH_STEP = 4
"""Padded lengths are multiples of it: fewer batches of other lengths, more padding."""

_MOST_WORDS = 300  # of an explanation: each is a text to predict

_SEQUENCE = "sequence"  # axis of an output with a value for each token

_CHARACTERS_PER_TOKEN = 10  # an upper bound for almost every text; later characters are beyond the limit


class Predictor:
    """An exported model that answers natural inputs.

    Args:
        exported: Content of the folder's `textmill.json`.
        tokenizer: Tokenizer of the exported folder, without padding and truncation.
        session: Session of one of the graphs; None for a subclass that answers without a graph.
        head: Session of the graph over that graph's outputs; None if there is none.
        tokens_per_batch: Largest number of tokens in a batch, padding included.
    """

    engine_name = "onnxruntime"

    def __init__(
        self,
        exported: ExportedModel,
        tokenizer: Tokenizer,
        session: onnxruntime.InferenceSession | None,
        *,
        head: onnxruntime.InferenceSession | None = None,
        tokens_per_batch: int = 2048,
    ) -> None:
        self.exported = exported
        self.task = Task.build(exported.task)
        self.tokenizer = tokenizer
        self.session = session
        self.head = head
        self.tokens_per_batch = tokens_per_batch

    def lengths(self, values: Sequence[Any]) -> list[int]:
        """Return the number of tokens of each raw input, between 1 and `max_length`.

        Texts are not cleaned first: cleaning hardly changes the number.
        """
        limit = self.exported.max_length
        texts = [" ".join(_strings(value))[: limit * _CHARACTERS_PER_TOKEN] or " " for value in values]
        return [min(limit, max(1, len(encoding))) for encoding in self.tokenizer.encode_batch_fast(texts)]

    def predict(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        """Answer natural inputs (see `Task.parse_inputs`): one record per input, in order.

        Raises:
            UserError: An input is empty or of a wrong type.
        """
        raw = self.task.parse_inputs(values)
        return self.answer_rows(self._cleaned(raw), raw)[1]

    def explain(self, value: Any, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return each word of a text with its `gain`: what it adds to the probability of the answered label.

        The gain is the probability less that without the word. Words after the first `_MOST_WORDS` have none.

        Args:
            value: A natural input.
            answer: The answer to it.

        Raises:
            UserError: The task has several text fields, or its answer has no probabilities of labels.
        """
        if len(self.task.text_columns) != 1 or "probabilities" not in answer:
            fix = "Leave --explain out; it needs one text and an answer with probabilities of labels"
            raise UserError(f"an answer of {self.task.name.replace('_', ' ')} cannot be explained", fix=fix)
        [text] = self.task.parse_inputs([value])[self.task.text_columns[0]]
        words, others = without_each_word(text, _MOST_WORDS)
        label = answer["label"]
        without = self.predict(others) if others else []
        return [
            {"word": word, "gain": answer["probabilities"][label] - other["probabilities"][label]}
            for word, other in zip(words, without, strict=True)
        ]

    def answer_rows(self, frame: pd.DataFrame, raw: pd.DataFrame) -> tuple[Outputs, list[dict[str, Any]]]:
        """Return raw outputs and natural answers for clean rows and the same rows before cleaning."""
        columns = self._columns(frame)
        outputs = self.outputs_of_columns(sequences_of(self.task, columns))
        clean, given = ({name: texts[name].tolist() for name in self.task.text_columns} for texts in (frame, raw))
        return outputs, self.task.answers(outputs, {**clean, **columns}, given, self.exported.state)

    def outputs_for_targets(self, frame: pd.DataFrame) -> tuple[Outputs, pd.DataFrame]:
        """Return raw outputs for clean rows with their targets, and the rows with their encoded columns.

        Only the texts are encoded: the model need not know every target.
        """
        columns = self._columns(frame[list(self.task.text_columns)])
        outputs = self.outputs_of_columns(sequences_of(self.task, columns))
        own = {name: values for name, values in columns.items() if name not in self.task.sequence_columns.values()}
        return outputs, frame.assign(**own)

    def outputs(self, frame: pd.DataFrame) -> Outputs:
        """Return raw outputs for rows with the task's text columns: one row for each input sequence."""
        return self.outputs_of_columns(sequences_of(self.task, self._columns(frame)))

    def outputs_of_columns(self, columns: Mapping[str, Sequence[Sequence[int]]]) -> Outputs:
        """Return raw outputs for the columns of `sequences_of`; the network reads each column apart."""
        outputs = {
            name + ending: values
            for ending, column in self.task.sequence_columns.items()
            for name, values in self.outputs_of_ids(columns[column]).items()
        }
        if self.head is None:
            return outputs
        names = [value.name for value in self.head.get_outputs()]
        head_outputs = self.head.run(names, {value.name: outputs[value.name] for value in self.head.get_inputs()})
        return outputs | dict(zip(names, head_outputs, strict=True))

    def outputs_of_ids(self, input_ids: Sequence[Sequence[int]]) -> Outputs:
        """Return raw outputs for tokenised texts; NaN for empty texts.

        A row is computed with rows of its own padded length only, which depends on nothing but its
        tokens: their number decides in which order a processor adds up. So its bits are the same in
        any batch. Two positions at least: a matrix of one row takes another kernel. The int8 graphs of
        earlier exports round by the whole batch, so that their batches stay as they were.
        """
        lengths = np.fromiter((len(ids) for ids in input_ids), np.int64, len(input_ids))
        steps = np.minimum(-(-lengths // _WIDTH_STEP) * _WIDTH_STEP, self.exported.max_length)
        widths = np.maximum(2, np.maximum(steps, lengths))
        if self.exported.precision is None:
            widths, groups = np.maximum(1, lengths), [np.arange(len(lengths))]
        else:
            groups = [np.flatnonzero(widths == width) for width in np.unique(widths)[::-1]]
        batches = [rows[part] for rows in groups for part in length_batches(widths[rows], self.tokens_per_batch)]
        assert self.session is not None, "this model has no graph"
        per_token = {output.name for output in self.session.get_outputs() if _SEQUENCE in output.shape}
        chunks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.exported.outputs}
        for rows in batches:
            padded, mask = pad([input_ids[row] for row in rows], int(widths[rows[0]]))
            feed = {"input_ids": padded, "attention_mask": mask}
            for name, values in zip(self.exported.outputs, self.session.run(self.exported.outputs, feed), strict=True):
                if name in per_token:
                    # A row has as many values as tokens, so that its padding shows nowhere.
                    values[mask == 0] = np.nan
                    values = values[:, : lengths[rows].max()]
                chunks[name].append(values)
        outputs = restore_order(chunks, batches)
        if not lengths.all():
            for values in outputs.values():
                values[lengths == 0] = np.nan
        return outputs

    def _columns(self, frame: pd.DataFrame) -> dict[str, list[Any]]:
        return self.task.encode(frame, self.tokenizer, self.exported.state, self.exported.max_length)

    @cached_property
    def _cleaner(self) -> Cleaner:
        from textmill.data.cleaning import Cleaner

        # The language filter selects training data; a served text is answered in any language.
        return Cleaner(self.exported.cleaning.model_copy(update={"languages": None}))

    def _cleaned(self, frame: pd.DataFrame) -> pd.DataFrame:
        clean = self._cleaner.clean
        return frame.assign(**{name: [clean(text) for text in frame[name]] for name in self.task.text_columns})


def _strings(value: Any) -> Iterator[str]:
    """Yield every text in a nested input."""
    if isinstance(value, str):
        yield value.encode("utf-8", "replace").decode() if not value.isascii() else value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def open_session(graph: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Open an ONNX Runtime session on the CPU; `threads` defaults to one for each core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOW_FUSIONS
    )
