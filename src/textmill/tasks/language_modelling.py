"""Language modelling: the likelihood of each next token, and text written by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.errors import UserError
from textmill.metrics.base import Findings, Metric, Outputs, Section
from textmill.tasks.base import State, Task
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from textmill.models.base import Model
    from textmill.models.language_model import LanguageModel
    from textmill.models.routing.record import RoutingRecord
    from textmill.tasks.examples.rows import Examples


class LanguageModellingConfig(Options):
    """Options of language modelling.

    Attributes:
        sequence_length: Targets of a training window; at most the model's context.
        separate_documents: Whether attention stops at the ends of packed documents.
        end_of_text: The tokenizer's special token that ends a document.
        prompts: Beginnings that the evaluation lets the model go on from; also the examples that a
            registered version must answer as before.
        sample_tokens: Tokens of each sample.
    """

    sequence_length: Annotated[int, Field(ge=2)] = 256
    separate_documents: bool = True
    end_of_text: str = "<|endoftext|>"
    prompts: Annotated[list[str], Field(min_length=1)] = ["\n"]
    sample_tokens: Annotated[int, Field(ge=1)] = 100


class LanguageModelling(Task):
    """Maximum likelihood of the next token over packed documents.

    State: `vocabulary_size`; `end_of_text`, its id; `token_bytes`, the bytes that each token stands for.
    """

    Config: ClassVar[type[Options]] = LanguageModellingConfig
    config: LanguageModellingConfig

    name = "language_modelling"
    text_columns = ("text",)
    target_columns = ()
    stratify_column = None
    main_metric = "bits_per_byte"
    monitor = "validation/loss"
    monitor_mode = "min"
    generates = True
    continues = True

    # -- prepare ----------------------------------------------------------------------------

    def fit(self, frames: Iterable[pd.DataFrame]) -> State:
        """Nothing but that there is text.

        Raises:
            UserError: The training split has none.
        """
        if not any(len(frame) for frame in frames):
            raise UserError("the training split has no document", fix="Give more text")
        return {}

    def learn_tokens(self, state: State, tokenizer: Tokenizer) -> State:
        """The vocabulary's size, the id that ends a document and the bytes of each token.

        Raises:
            UserError: The tokenizer has no such token.
        """
        from textmill.text.tokens import token_bytes

        end = tokenizer.token_to_id(self.config.end_of_text)
        if end is None:
            raise UserError(
                f"the tokenizer has no token {self.config.end_of_text!r}",
                where="task.end_of_text",
                fix="Name the special token that ends a text in this vocabulary",
            )
        counts = token_bytes(tokenizer)
        return {**state, "vocabulary_size": len(counts), "end_of_text": end, "token_bytes": counts}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:  # noqa: ARG002 - nothing is learned
        """Rows without text."""
        empty = frame["text"].isna() | (frame["text"].astype(str).str.strip() == "")
        return [RejectedRow(position, "text", "is empty") for position in empty.to_numpy().nonzero()[0].tolist()]

    def encode(self, frame: pd.DataFrame, tokenizer: Tokenizer, state: State, max_length: int) -> dict[str, list[Any]]:  # noqa: ARG002
        """`input_ids` and `length` of whole documents, each with its end of text; nothing is cut off."""
        encodings = tokenizer.encode_batch_fast(frame["text"].tolist(), add_special_tokens=False)
        input_ids = [[*encoding.ids, state["end_of_text"]] for encoding in encodings]
        return {"input_ids": input_ids, "length": [len(ids) for ids in input_ids]}

    # -- train ------------------------------------------------------------------------------

    def examples(self, table: pa.Table) -> Examples:
        """Windows over the documents, packed one after the other."""
        from textmill.tasks.examples.packing import PackedWindows

        return PackedWindows(table, self.config.sequence_length)

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> LanguageModel:
        """The model's decoder over the vocabulary."""
        return model.build_decoder(state["vocabulary_size"], pretrained)

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels` (B, T), and `document_ids` where a window holds several documents.

        A window shorter than the longest is filled up at its end, where causal attention does not
        look; the labels there are -100.
        """
        import numpy as np
        import torch

        from textmill.models.losses.likelihood import IGNORED

        windows = [np.asarray(window, np.int64) for window in rows["input_ids"]]
        shape = (len(windows), max(map(len, windows)) - 1)
        input_ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        documents = np.zeros(shape, np.int64)
        for row, window in enumerate(windows):
            size = len(window) - 1
            input_ids[row, :size], labels[row, :size] = window[:-1], window[1:]
            documents[row, :size] = rows["document_ids"][row][:-1]
            documents[row, size:] = documents[row, size - 1]
        batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
        if self.config.separate_documents and (documents[:, :1] != documents).any():
            batch["document_ids"] = torch.from_numpy(documents)
        return batch

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Mean negative log-likelihood in nats, plus the routers' own terms in training.

        Beside it, for each window: `nll`, the sum over its targets, and their number `targets`; for a
        mixture of experts also `expert_load` (layers, experts), `dropped` and `confidence` (layers).
        """
        from textmill.models.losses.likelihood import IGNORED, mean_cross_entropy

        model: LanguageModel = network  # type: ignore[assignment]
        labels = batch["labels"]
        hidden = model.hidden_states(batch["input_ids"], document_ids=batch.get("document_ids"))
        likelihood, each = mean_cross_entropy(hidden.states, model.output_weight, labels)
        outputs = {"nll": each.sum(dim=1), "targets": (labels != IGNORED).sum(dim=1)}
        if not hidden.routing:
            return {"loss": likelihood, **outputs}
        terms = model.auxiliary_losses(hidden.routing)
        if model.training:
            model.update_routers(hidden.routing)
        else:
            outputs |= _routing_of_rows(hidden.routing, len(labels))
        return {"loss": likelihood + sum(terms.values()), "likelihood": likelihood, **terms, **outputs}

    def validation_figures(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """`loss` in nats per token, `perplexity`, `bits_per_byte`, and how the experts were used."""
        from textmill.metrics import routing

        nats, targets = float(outputs["nll"].sum(dtype=float)), float(outputs["targets"].sum(dtype=float))
        found = {
            "loss": nats / targets,
            "perplexity": math.exp(min(nats / targets, 700)),
            "bits_per_byte": nats / math.log(2) / float(_bytes_of(rows["input_ids"], state).sum()),
        }
        if "expert_load" in outputs:
            found |= routing.figures(outputs)
        return found

    # -- evaluate ---------------------------------------------------------------------------

    def predictions(self, outputs: Outputs, frame: pd.DataFrame, state: State) -> pd.DataFrame:
        """`id`, `nll` (nats), `targets` and `bytes` of each window."""
        return _likelihoods(outputs["nll"], frame, state)

    def metrics(self, state: State) -> list[Metric]:  # noqa: ARG002 - the same for every vocabulary
        """Bits per byte, loss (nats per token) and perplexity."""
        import numpy as np

        def rate(unit: str) -> Callable[[Mapping[str, NDArray[Any]], NDArray[np.intp]], NDArray[np.float64]]:
            return lambda columns, index: columns["nll"][index].sum(axis=1) / columns[unit][index].sum(axis=1)

        per_token, per_byte = rate("targets"), rate("bytes")
        return [
            Metric("bits_per_byte", lambda c, i: per_byte(c, i) / math.log(2), higher_is_better=False),
            Metric("loss", per_token, higher_is_better=False),
            Metric("perplexity", lambda c, i: np.exp(np.minimum(per_token(c, i), 700)), higher_is_better=False),
        ]

    @property
    def baseline_columns(self) -> list[str]:
        """Token ids, which are all that n-grams look at."""
        return ["input_ids"]

    def baselines(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame,
        state: State,
        options: Mapping[str, Any],
        seed: int,  # noqa: ARG002
    ) -> dict[str, Callable[[pd.DataFrame], pd.DataFrame]]:
        """Interpolated Kneser-Ney models over the same tokens: of single tokens, and of the best order."""
        from textmill.metrics.baselines import ngrams

        size = state["vocabulary_size"]
        fitted = ngrams.fit_baselines(list(train["input_ids"]), list(validation["input_ids"]), size, options)

        def predictor(model: ngrams.KneserNey) -> Callable[[pd.DataFrame], pd.DataFrame]:
            return lambda frame: _likelihoods(model.negative_log_likelihoods(list(frame["input_ids"])), frame, state)

        return {name: predictor(model) for name, model in fitted.items()}

    def report_sections(self, predictions: pd.DataFrame, state: State) -> list[Section]:  # noqa: ARG002
        """None that figures alone could fill; see `examine`."""
        return []

    def examine(self, network: torch.nn.Module, outputs: Outputs, tokenizer: Path, state: State) -> Findings:
        """Samples at the configured prompts with their repetition, and the experts' load as a heat map."""
        from tokenizers import Tokenizer

        from textmill.metrics import routing, samples

        model: LanguageModel = network  # type: ignore[assignment]
        try:
            loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
            written = samples.draw(model, loaded, self.config.prompts, state["end_of_text"], self.config.sample_tokens)
        except UserError as error:  # a router that looks ahead can be measured, but cannot write
            sections, figures = [Section("Samples", f"There are none: {error}")], {}
        else:
            sections, figures = [samples.section(written)], samples.figures(written)
        if "expert_load" in outputs:
            sections.append(routing.section(outputs))
            figures |= routing.figures(outputs)
        return Findings(sections, figures)

    def errors(self, predictions: pd.DataFrame, state: State) -> pd.DataFrame:  # noqa: ARG002
        """The windows that surprised the model most: bits per byte, loss per token."""
        import pandas as pd

        table = pd.DataFrame(
            {
                "id": predictions["id"],
                "bits_per_byte": predictions["nll"] / math.log(2) / predictions["bytes"],
                "loss": predictions["nll"] / predictions["targets"],
            }
        )
        return table.sort_values("bits_per_byte", ascending=False, ignore_index=True)

    # -- export and serving -----------------------------------------------------------------

    def example_inputs(self) -> list[dict[str, Any]]:
        """The configured prompts."""
        return [{"text": prompt} for prompt in self.config.prompts]

    def parse_inputs(self, values: Sequence[Any]) -> pd.DataFrame:
        """Prompts (a string, or a record with `text`) as a frame with the column `text`.

        Raises:
            UserError: There is no prompt, or one is no text.
        """
        import pandas as pd

        if len(values) == 0:
            raise UserError("no prompt", fix='Give at least one, such as "To be"')
        texts = [value.get("text") if isinstance(value, Mapping) else value for value in values]
        for position, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise UserError(
                    f"{text!r} is no text", where=f"prompt {position}", fix='Give a string or {"text": "..."}'
                )
        return pd.DataFrame({"text": texts})

    def decode(self, outputs: Outputs, state: State) -> list[dict[str, Any]]:  # noqa: ARG002
        """How likely each text is: `loss` in nats per token and `perplexity`."""
        losses = (outputs["nll"] / outputs["targets"]).tolist()
        return [{"loss": loss, "perplexity": math.exp(min(loss, 700))} for loss in losses]


def _bytes_of(windows: Sequence[Any], state: State) -> NDArray[np.int64]:
    """Bytes of text that the targets of each window stand for, shape (windows,)."""
    import numpy as np

    of_token = np.asarray(state["token_bytes"], np.int64)
    return np.array([of_token[np.asarray(window)[1:]].sum() for window in windows], np.int64)


def _likelihoods(nats: NDArray[Any], frame: pd.DataFrame, state: State) -> pd.DataFrame:
    import pandas as pd

    columns = {"id": frame["id"].to_numpy(), "nll": nats.astype(float), "targets": frame["length"].to_numpy()}
    return pd.DataFrame({**columns, "bytes": _bytes_of(list(frame["input_ids"]), state)})


def _routing_of_rows(routing: Sequence[RoutingRecord], rows: int) -> dict[str, torch.Tensor]:
    """A batch's routing, shared out evenly among its rows."""
    import torch

    load = torch.stack([record.load.float() for record in routing])
    dropped = torch.stack([record.dropped.float() for record in routing])
    sure = [
        load.new_tensor(math.nan) if record.probabilities is None else record.probabilities.max(dim=-1).values.mean()
        for record in routing
    ]
    return {
        "expert_load": (load / rows).expand(rows, *load.shape),
        "dropped": dropped.expand(rows, *dropped.shape),
        "confidence": torch.stack(sure).float().expand(rows, len(sure)),
    }
