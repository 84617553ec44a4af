"""Ask a chat model many questions: its answers, or the likelihood of each possible one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from textmill.config.sections.generation import GenerationConfig
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.models.base import Model
from textmill.predicting.exported import ExportedModel
from textmill.predicting.loading import load_predictor
from textmill.predicting.text_continuer import TextContinuer
from textmill.tasks.examples.asking import ANSWERS, CHAT_TASK, Asking
from textmill.text.batches import length_batches

if TYPE_CHECKING:
    import pandas as pd

LOGITS = "logits"
_TOKENS_AT_ONCE = 4096
_CHOSEN_AT_ONCE = 1024
"""Tokens of choices whose logits are in memory together: 200 MB for a vocabulary of 50,000."""

Messages = Sequence[Mapping[str, str]]


def load_chat(folder: Path) -> TextContinuer:
    """Load an exported chat model, or a folder of weights as `fetch` gives it, to be asked as it is.

    Raises:
        UserError: The folder has neither, or its model has no chat template.
    """
    if (folder / "textmill.json").is_file():
        predictor = load_predictor(folder)
        if not (isinstance(predictor, TextContinuer) and getattr(predictor.task, "answers_prompt", False)):
            raise UserError("not a chat model", where=str(folder), fix="Export one, as of `experiment: assistant`")
        return predictor
    import torch

    from textmill.config.sections.prepare import CleaningConfig
    from textmill.data.tokenizing import load_tokenizer
    from textmill.tasks.base import Task

    task, tokenizer = Task.build(CHAT_TASK), load_tokenizer(folder)
    model = {"_target_": "textmill.models.pretrained_decoder.PretrainedDecoder"}
    exported = ExportedModel(
        task=CHAT_TASK,
        model=model,
        state=task.bind_tokenizer({}, tokenizer, folder),
        max_length=1024,
        cleaning=CleaningConfig(repair=False, normal_form=None),
        outputs=[],
        graphs={},
    )
    network: Any = task.build_network(Model.build(model), folder, exported.state)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return TextContinuer(exported, tokenizer, network.to(device or "cpu").eval())


def ask(
    model: TextContinuer,
    asking: Asking,
    frame: pd.DataFrame,
    examples: Sequence[Mapping[str, Any]] = (),
    most_tokens: int = 60,
) -> Outputs:
    """Ask for each row of a task, after the examples with their answers; return outputs as of a network of the task.

    `logits` (rows, choices) are the log-likelihoods of the possible answers, those of yes above no where the task
    scores pairs; `texts` are the answers where these are texts.
    """
    conversations = [asking.conversation(row, examples) for row in records(frame)]
    if not asking.choices:
        return {ANSWERS: np.array(_texts(model, conversations, most_tokens), dtype=object)}
    scores = _likelihoods(model, conversations, asking.choices)
    return {LOGITS: scores[:, 1:] - scores[:, :1] if asking.scores_pairs else scores}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame by the names of its columns."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _texts(model: TextContinuer, conversations: Sequence[Messages], most_tokens: int) -> list[str]:
    """Return the likeliest answers, token by token, in one line each."""
    options = GenerationConfig(temperature=0, max_new_tokens=most_tokens)
    answers = [""] * len(conversations)
    for rows, _ in _batches(model, conversations):
        found = model.generate([{"messages": list(conversations[row])} for row in rows], options)
        for row, answer in zip(rows, found, strict=True):
            answers[row] = " ".join(str(answer["text"]).split())
    return answers


def _likelihoods(
    model: TextContinuer, conversations: Sequence[Messages], choices: Sequence[str]
) -> NDArray[np.float64]:
    """Return the log-likelihood of each choice as the answer, with its end, shape (conversations, choices)."""
    import torch
    import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention

    network, end = model.model, int(model.exported.state["end_of_text"])
    device = network.output_weight.device
    answers = [[*model.tokenizer.encode(choice, add_special_tokens=False).ids, end] for choice in choices]
    width = max(map(len, answers))
    padded = torch.tensor([answer + [end] * (width - len(answer)) for answer in answers], device=device)
    counted = torch.tensor([[1.0] * len(answer) + [0.0] * (width - len(answer)) for answer in answers])
    result = np.zeros((len(conversations), len(choices)))
    for rows, prompts in _batches(model, conversations, max(1, _CHOSEN_AT_ONCE // (width * len(choices)))):
        longest = max(map(len, prompts))
        # On the left: the last token of each prompt is where its answer begins
        ids = torch.tensor([[end] * (longest - len(ids)) + ids for ids in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        with torch.inference_mode():
            cache = network.new_cache(len(rows), longest + width)
            last = network.hidden_states(ids, attention_mask=mask, cache=cache).states[:, -1:]
            # Each choice continues the keys and values of its prompt, which is read once
            each = torch.arange(len(rows), device=device).repeat_interleave(len(choices))
            cache.reorder(each)
            continued = padded.repeat(len(rows), 1)
            fresh = continued[:, :-1]
            more = network.hidden_states(fresh, attention_mask=torch.ones_like(fresh), cache=cache).states
            states = torch.cat([last[each], more], dim=1)
            logits = F.linear(states, network.output_weight).float().log_softmax(dim=-1)
            scores = logits.gather(2, continued[:, :, None])[:, :, 0].cpu() * counted.repeat(len(rows), 1)
        result[rows] = scores.sum(dim=1).view(len(rows), len(choices)).numpy()
    return result


def _batches(
    model: TextContinuer, conversations: Sequence[Messages], most: int | None = None
) -> Iterator[tuple[NDArray[np.int64], list[list[int]]]]:
    """Yield numbers of conversations of similar length, at most `most`, and their prompts in tokens."""
    prompts = [model.encode_prompt({"messages": list(messages)}) for messages in conversations]
    lengths = np.array([len(ids) for ids in prompts], np.int64)
    for rows in length_batches(lengths, _TOKENS_AT_ONCE, most):
        yield rows, [prompts[row] for row in rows]
