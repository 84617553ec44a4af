"""Pairs of answers, from a file to the exported model; TRL is the oracle of losses and gradients."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.tiny_llama import write_tiny_llama

from textmill.config.layout import Layout
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.generation import GenerationConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import TrainConfig
from textmill.data.prepare import prepare
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.models.losses.likelihood import IGNORED, mean_cross_entropy, negative_log_likelihoods
from textmill.models.pretrained_decoder import PretrainedDecoder
from textmill.predicting.loading import load_predictor
from textmill.tasks.preference_tuning import PreferenceTuning

TARGET = "textmill.tasks.preference_tuning.PreferenceTuning"
TASK = {"_target_": TARGET, "sample_tokens": 4}
MODEL = {"_target_": "textmill.models.pretrained_decoder.PretrainedDecoder", "lora": {"rank": 16, "alpha": 32}}
RUNTIME = RuntimeConfig.model_validate(
    {"trainer": {"accelerator": "cpu", "devices": 1}, "progress": "plain", "tracking_experiment": "preferences"}
)
ANSWERS = {"who are you": "i am a mill", "name three colours": "red green blue", "thanks": "thanks you"}
METHODS = ("dpo", "ipo", "orpo", "kto", "simpo")
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="the package trl, the oracle, is missing"
)


def pair(number: int) -> dict[str, Any]:
    """A question with its answer and that of another one; every second with lists of messages."""
    questions = list(ANSWERS)
    question, other = questions[number % 3], questions[(number + 1 + number // 3 % 2) % 3]
    prompt, chosen, rejected = f"{question} {'blue ' * (number % 4)}".strip(), ANSWERS[question], ANSWERS[other]
    if number % 2:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {"prompt": [{"role": "user", "content": prompt}], **dict(zip(("chosen", "rejected"), answers, strict=True))}


def project(root: Path, rows: list[Any], **task: Any) -> Layout:
    layout = Layout(root)
    (layout.raw / "files/all").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (layout.raw / "files/all/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tiny_llama(layout.pretrained)
    provenance = {"origin": "made up", "version": None, "licence": None, "sha256": None}
    for folder in (layout.raw, layout.pretrained):
        (folder / "provenance.json").write_text(json.dumps(provenance))
    options = {
        "task": TASK | task,
        "read": {"columns": {name: name for name in ("prompt", "chosen", "rejected")}},
        "cleaning": {"repair": False, "normal_form": None},
        "duplicates": {"exact": False, "near": False, "passage_words": None},
        "max_length": 40,
    }
    prepare(PrepareConfig.model_validate(options), RUNTIME, layout)
    return layout


def rows_of(layout: Layout, number: int) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = Prepared(layout.prepared).split("train").slice(0, number).to_pydict()
    return rows


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return project(tmp_path_factory.mktemp("pairs") / "project", [pair(n) for n in range(60)], method="kto")


def policy(layout: Layout) -> Any:
    """The reference, moved by noise."""
    network = PretrainedDecoder.from_options().build_decoder(60, layout.pretrained).train()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return network


# -- likelihood ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trains_weight", [True, False])
def test_each_likelihood_has_the_gradient_of_all_logits(trains_weight: bool) -> None:
    torch.manual_seed(0)
    states = torch.randn(3, 7, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=trains_weight)
    labels = torch.randint(0, 50, (3, 7))
    labels[0, 3:] = IGNORED
    upstream = torch.randn(3, 7)
    found = negative_log_likelihoods(states, weight, labels, logits_at_once=900)  # 18 rows at a time
    expected = torch.nn.functional.cross_entropy(
        (states @ weight.T).flatten(0, 1), labels.flatten(), reduction="none"
    ).view(3, 7)
    torch.testing.assert_close(found, expected)
    leaves = (states, weight) if trains_weight else (states,)
    torch.testing.assert_close(
        torch.autograd.grad((found * upstream).sum(), leaves), torch.autograd.grad((expected * upstream).sum(), leaves)
    )


def test_memory_of_likelihoods_does_not_grow_with_vocabulary_times_tokens() -> None:
    def peak(tokens: int) -> int:
        """The bytes that the largest single allocation takes."""
        states, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(2000, 4, requires_grad=True)
        with torch.profiler.profile(profile_memory=True) as profile:
            negative_log_likelihoods(
                states, weight, torch.zeros(tokens, dtype=torch.int64), logits_at_once=1 << 15
            ).sum().backward()
        return max(event.cpu_memory_usage for event in profile.events())

    assert peak(4000) < 4000 * 2000 * 4 / 50
    assert peak(4000) <= peak(1000) + 4 * 4 * 4000


# -- losses -------------------------------------------------------------------------------------


def trl_batch(rows: dict[str, list[Any]], sides: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Conversations of the named sides, one after the other, as TRL's collators pad them."""
    names = {"chosen": ("input_ids", "answer"), "rejected": ("rejected_ids", "rejected_answer")}
    names["unrelated"] = ("unrelated_ids", "unrelated_answer")
    ids = [torch.tensor(row) for side in sides for row in rows[names[side][0]]]
    masks = [torch.tensor(row) for side in sides for row in rows[names[side][1]]]
    pad = torch.nn.utils.rnn.pad_sequence
    attention = pad([torch.ones_like(row) for row in ids], batch_first=True)
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": attention,
        "completion_mask": pad(masks, batch_first=True),
    }


def trl_loss(method: str, layout: Layout, rows: dict[str, list[Any]], beta: float, scratch: Path) -> tuple[Any, Any]:
    """Loss of TRL for the rows with the weights of `policy`, and the model with its gradients."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    automatic: Any = AutoModelForCausalLM
    model, reference = (automatic.from_pretrained(layout.pretrained, dtype=torch.float32) for _ in range(2))
    model.load_state_dict(policy(layout).backbone.state_dict())
    tokenizer: Any = AutoTokenizer.from_pretrained(layout.pretrained)
    tokenizer.pad_token = "</s>"
    texts = Dataset.from_list([{"prompt": "who", "chosen": " i am", "rejected": " a mill"}] * 2)
    common: dict[str, Any] = {
        "output_dir": str(scratch),
        "beta": beta,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
    common |= {"per_device_train_batch_size": 2, "max_length": 40, "gradient_checkpointing": False}
    parts: dict[str, Any] = {"model": model, "train_dataset": texts, "processing_class": tokenizer}
    if method in ("dpo", "ipo"):
        from trl import DPOConfig, DPOTrainer

        loss_type = "sigmoid" if method == "dpo" else "ipo"
        trainer: Any = DPOTrainer(args=DPOConfig(loss_type=[loss_type], **common), ref_model=reference, **parts)
        loss = trainer._compute_loss(trainer.model, trl_batch(rows, ("chosen", "rejected")), False)
    elif method == "kto":
        from trl import KTOConfig, KTOTrainer

        trainer = KTOTrainer(args=KTOConfig(**common), ref_model=reference, **parts)
        batch: dict[str, Any] = trl_batch(rows, ("chosen", "rejected"))
        batch["label"] = torch.tensor([True] * len(rows["id"]) + [False] * len(rows["id"]))
        batch |= {f"KL_{name}": value for name, value in trl_batch(rows, ("unrelated",)).items()}
        loss = trainer._compute_loss(trainer.model, batch, False)
    else:
        from trl.experimental.cpo import CPOConfig, CPOTrainer
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        if method == "orpo":
            trainer = ORPOTrainer(args=ORPOConfig(**common), **parts)
        else:
            args = CPOConfig(loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5, **common)
            trainer = CPOTrainer(args=args, **parts)
        batch = {}
        for side in ("chosen", "rejected"):
            one = trl_batch(rows, (side,))
            batch |= {f"{side}_input_ids": one["input_ids"], f"{side}_attention_mask": one["attention_mask"]}
            batch[f"{side}_labels"] = one["input_ids"].masked_fill(one["completion_mask"] == 0, -100)
        loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    return loss.detach(), trainer.model


@needs_trl
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_are_those_of_trl(prepared: Layout, tmp_path: Path, method: str) -> None:
    rows = rows_of(prepared, 6)
    beta = 2.0 if method == "simpo" else 0.1
    expected, model = trl_loss(method, prepared, rows, beta, tmp_path)
    network = policy(prepared)
    task = PreferenceTuning.from_options(method=method, beta=beta)
    if method != "kto":
        rows = {name: values for name, values in rows.items() if not name.startswith("unrelated")}
    loss = task.loss(network, task.collate(rows)).loss
    torch.autograd.backward(loss)
    assert abs(float(loss) - float(expected)) <= 1e-5
    theirs = dict(model.named_parameters())
    for name, parameter in network.backbone.named_parameters():
        assert parameter.grad is not None and theirs[name].grad is not None
        assert float((parameter.grad - theirs[name].grad).abs().max()) <= 1e-5, name
