"""The gradients of a step's micro-batches sum to that of one batch of all their rows."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoder import ROUTERS, router
from tiny_training import ARCHITECTURE, VOCABULARY
from torch import nn

from textmill.errors import UserError
from textmill.models.base import Model
from textmill.tasks.base import Task
from textmill.training.accumulation import Accumulation, WindowLoader

PROGRAM = Path(__file__).with_name("tiny_ranks.py")
PARTS = (2, 5, 1, 3)  # rows of the micro-batches
ENCODER = {
    "_target_": "textmill.models.pretrained_encoder.PretrainedEncoder",
    "architecture": ARCHITECTURE,
    **dict.fromkeys(("dropout", "hidden_dropout", "attention_dropout"), 0.0),
}
DECODER = {
    "_target_": "textmill.models.decoder_model.DecoderModel",
    "n_layers": 2,
    "n_heads": 2,
    "width": 32,
    "hidden_width": 48,
    "max_length": 64,
}
PAIR = {**DECODER, "_target_": "textmill.models.encoder_decoder_model.EncoderDecoderModel"}
STATE = {"labels": ["a", "b", "c"], "vocabulary_size": VOCABULARY, "end_of_text": 1}

draw = random.Random(5)


def ids(lowest: int = 4, highest: int = 30) -> list[int]:
    return [draw.randrange(5, VOCABULARY) for _ in range(draw.randint(lowest, highest))]


def label() -> int:
    return draw.randrange(3)


def conversation(answer: int) -> dict[str, Any]:
    tokens = ids(10, 12) + [draw.randrange(5, VOCABULARY) for _ in range(answer)]
    return {"input_ids": tokens, "answer": [0] * (len(tokens) - answer) + [1] * answer}


def question() -> dict[str, Any]:
    tokens = ids(8)
    return {"input_ids": tokens, "start_position": draw.randrange(4), "end_position": draw.randrange(4, 8)}


def article() -> dict[str, Any]:
    tokens = ids(9)
    units = [min(2, position // 3) for position in range(len(tokens))]
    return {"input_ids": tokens, "units": units, "gains": [draw.random() for _ in range(3)]}


def window() -> dict[str, Any]:
    tokens = ids(17, 17)
    return {"input_ids": tokens, "document_ids": [0] * 9 + [1] * 8}


def pair() -> dict[str, Any]:
    return {"input_ids": ids(), "pair_ids": ids()}


def query() -> dict[str, Any]:
    """Some queries have a document in common."""
    return pair() | {"query_id": draw.getrandbits(40), "document_id": draw.randrange(6)}


# Name: class of the task, its options, the model, and a function that draws a row.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "classification": (
        "text_classification.TextClassification",
        {"label_smoothing": 0.1},
        ENCODER,
        lambda: {"input_ids": ids(), "label_id": label()},
    ),
    "r_drop": (
        "text_classification.TextClassification",
        {"r_drop": 2.0},
        ENCODER,
        lambda: {"input_ids": ids(), "label_id": label()},
    ),
    "votes": (
        "text_classification.TextClassification",
        {},
        ENCODER,
        lambda: {"input_ids": ids(), "label_id": label(), "label_probabilities": [0.2, 0.5, 0.3]},
    ),
    "questions": ("question_answering.QuestionAnswering", {}, ENCODER, question),
    "extracts": ("extractive_summarisation.ExtractiveSummarisation", {}, ENCODER, article),
    "entailment": (
        "textual_entailment.TextualEntailment",
        {},
        ENCODER,
        lambda: pair() | {"label_id": label()},
    ),
    "cosent": (
        "semantic_similarity.SemanticSimilarity",
        {"objective": "cosent"},
        ENCODER,
        lambda: pair() | {"scaled_score": draw.random()},
    ),
    "regression": (
        "semantic_similarity.SemanticSimilarity",
        {"objective": "regression"},
        ENCODER,
        lambda: pair() | {"scaled_score": draw.random()},
    ),
    "search": ("semantic_search.SemanticSearch", {}, ENCODER, query),
    "one-way search": ("semantic_search.SemanticSearch", {"symmetric": False}, ENCODER, query),
    "translation": (
        "translation.Translation",
        {"target_language": "eo", "examples": ["a"], "label_smoothing": 0.1},
        PAIR,
        lambda: {"input_ids": ids(), "labels": ids()},
    ),
    "conversations": (
        "instruction_tuning.InstructionTuning",
        {},
        DECODER,
        lambda: conversation(draw.choice([1, 2, 40])),
    ),
    "language model": (
        "language_modelling.LanguageModelling",
        {"sequence_length": 16, "prompts": ["a"]},
        DECODER,
        window,
    ),
}
for name in ("top_k", "switch", "sigmoid_bias", "hash", "soft"):
    for capacity in (None, 0.7):
        experts = {"feed_forward": "experts", "experts": {"n_experts": 4, "capacity_factor": capacity}}
        options = {"balance": 0.5, "z": 0.1} if name in ("top_k", "switch", "sigmoid_bias") else {}
        CASES[f"{name} {capacity}"] = (
            "language_modelling.LanguageModelling",
            {"sequence_length": 16, "prompts": ["a"]},
            DECODER | experts | {"router": router(name, **options)},
            window,
        )


def built(case: str) -> tuple[Task, nn.Module]:
    target, options, model, _ = CASES[case]
    task = Task.build({"_target_": f"textmill.tasks.{target}", **options})
    torch.manual_seed(3)
    network = task.build_network(Model.build(model), None, STATE).train()
    if "pair" in model["_target_"] or model is not ENCODER:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("gate.weight"):
                    parameter.mul_(20)  # so that the loads differ
    return task, network


def batches(case: str, parts: tuple[int, ...] = PARTS, seed: int = 1) -> list[Any]:
    """Return the micro-batches, and at the end a batch of all their rows."""
    task, _ = built(case)
    draw.seed(seed)
    rows = [CASES[case][3]() for _ in range(sum(parts))]
    cut, start = [], 0
    for count in (*parts, 0):
        chosen = rows[start : start + count] if count else rows
        cut.append(task.collate({name: [row[name] for row in chosen] for name in rows[0]}))
        start += count
    return cut


def gradients(case: str, micro: list[Any], size: int) -> tuple[dict[str, torch.Tensor], float, nn.Module]:
    """Return the gradients, the loss and the network of one step over the micro-batches, as Lightning takes it."""
    task, network = built(case)
    accumulation = Accumulation(task, network)
    for one in WindowLoader(micro, size, task):
        (accumulation.scaled_loss(one, size) / size).backward()
    accumulation.end_step()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found, float(accumulation.loss), network


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    norm = torch.stack([each.norm() for each in one.values()]).norm()
    assert norm > 1e-3
    difference = torch.stack([(one[name] - other[name]).abs().max() for name in one]).max()
    return float(difference / max(1.0, float(norm)))


@pytest.mark.parametrize("size", [4, 8], ids=["a whole window", "the last window of an epoch"])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_micro_batches_equals_that_of_one_batch(case: str, size: int) -> None:
    *micro, whole = batches(case)
    expected, loss, reference = gradients(case, [whole], 1)
    found, summed, network = gradients(case, micro, size)
    assert largest_difference(expected, found) <= 1e-6
    assert summed == pytest.approx(loss, rel=1e-5)
    for name, buffer in reference.named_buffers():  # the biases of routers move once, by the load of the step
        assert torch.equal(buffer, network.get_buffer(name)), name


def test_long_and_short_answers_count_by_their_tokens() -> None:
    task, _ = built("conversations")
    draw.seed(2)
    rows = [conversation(4), conversation(40)]
    parts = [
        task.collate({name: [row[name] for row in some] for name in rows[0]}) for some in (rows[:1], rows[1:], rows)
    ]
    expected, *_ = gradients("conversations", parts[2:], 1)
    found, *_ = gradients("conversations", parts[:2], 2)
    assert largest_difference(expected, found) <= 1e-6


def test_a_step_of_one_batch_has_the_bits_of_the_plain_loss() -> None:
    for case in CASES:
        whole = batches(case)[-1]
        found, *_ = gradients(case, [whole], 1)
        task, network = built(case)
        task.loss(network, whole).loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in network.named_parameters():
            assert parameter.grad is None or torch.equal(parameter.grad, found[name]), (case, name)


def test_the_first_pass_replays_the_random_draws() -> None:
    """With dropout the vectors of the second pass are those of the first, and nothing is drawn twice."""
    target, options, model, _ = CASES["search"]
    task = Task.build({"_target_": f"textmill.tasks.{target}", **options})
    network = task.build_network(Model.build(model | {"hidden_dropout": 0.3}), None, STATE).train()
    seen: list[torch.Tensor] = []
    network.register_forward_hook(lambda *arguments: seen.append(arguments[2]["sentence_embedding"].detach()))
    accumulation = Accumulation(task, network)
    micro = batches("search")[:-1]
    for one in WindowLoader(micro, 4, task):
        accumulation.scaled_loss(one, 4).backward()  # type: ignore[no-untyped-call]
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(first) == 2 * len(micro)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][:1], first[1][:1])


@pytest.mark.parametrize("name", ["base", "sinkhorn", "expert_choice"])
def test_a_router_of_whole_batches_refuses_to_split_one(name: str) -> None:
    experts = {"feed_forward": "experts", "experts": {"n_experts": 4}, "router": router(name)}
    task, _ = built("language model")
    network = task.build_network(Model.build(DECODER | experts), None, STATE)
    Accumulation(task, network).check(1)
    with pytest.raises(UserError, match=r"train\.batches\.accumulate: the router .* Set it to 1"):
        Accumulation(task, network).check(2)


def test_all_routers_are_tested() -> None:
    tested = {case.partition(" ")[0] for case in CASES}
    assert set(ROUTERS) - tested == {"base", "sinkhorn", "expert_choice", "random"}


@pytest.mark.slow
def test_the_gradient_of_two_ranks_equals_that_of_one_batch(tmp_path: Path) -> None:
    """Two processes, gloo, DistributedDataParallel, two micro-batches each, in a whole and in a last window."""
    cases = ["conversations", "cosent", "search", "top_k None", "sigmoid_bias None"]
    for case in cases:
        expected, loss, reference = gradients(case, batches(case)[-1:], 1)
        saved = {"gradients": expected, "buffers": dict(reference.named_buffers()), "loss": loss}
        torch.save(saved, tmp_path / f"{case}.pt")
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment |= {"MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    command = [sys.executable, str(PROGRAM), str(tmp_path), *cases]
    processes = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert len(found) == 2 * len(cases)
        assert all(each["difference"] <= 1e-6 and each["unequal_buffers"] == [] for each in found.values()), found
