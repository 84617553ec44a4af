"""Pairs of answers, from a file to the exported model; TRL is the oracle of losses and gradients."""

from __future__ import annotations

import importlib.util
import json
import random
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
from textmill.models.losses.likelihood import IGNORED, negative_log_likelihoods
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
    draw, questions = random.Random(number), list(ANSWERS)
    question, other = draw.sample(questions, 2)
    filler = " ".join(draw.choices(["a", "blue", "mill", "green"], k=4))
    prompt, chosen, rejected = f"{filler} {question}", ANSWERS[question], ANSWERS[other]
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
    torch.manual_seed(2)  # with which the divergence of KTO is above 0, where it is not clamped
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
    assert abs(loss.item() - expected.item()) <= 1e-5
    theirs, own = ({name: p.grad for name, p in of.named_parameters()} for of in (model, network.backbone))
    assert theirs.keys() == own.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert largest > 0.05
    for name, gradient in own.items():  # those of IPO are about 20, of which float32 rounds the seventh digit
        assert float((gradient - theirs[name]).abs().max()) <= 1e-5 * max(1, largest), name


@needs_trl
def test_divergence_of_kto_is_not_clamped_in_the_comparison_with_trl(prepared: Layout) -> None:
    task, network = PreferenceTuning.from_options(method="kto"), policy(prepared)
    batch = task.collate(rows_of(prepared, 6))
    found = task._divergence(network, batch, batch["reference"].sum(dim=2))
    assert found is not None and float(found) > 0.01


def test_untouched_model_has_no_divergence_and_the_loss_of_a_coin(prepared: Layout) -> None:
    network = PretrainedDecoder.from_options().build_decoder(60, prepared.pretrained)
    task = PreferenceTuning.from_options()
    step = task.loss(network, task.collate(rows_of(prepared, 8)))
    np.testing.assert_allclose(step.outputs["divergence"].detach().numpy(), 0, atol=1e-5)
    assert abs(step.loss.item() - np.log(2)) < 1e-5


def test_divergence_is_a_lower_bound_of_the_one_over_all_tokens(prepared: Layout) -> None:
    rows = rows_of(prepared, 8)
    task, network = PreferenceTuning.from_options(), policy(prepared)
    batch = task.collate(rows)
    reference = PretrainedDecoder.from_options().build_decoder(60, prepared.pretrained)
    with torch.no_grad():
        ids = batch["input_ids"][:, :2].flatten(0, 1)
        own, other = (model(ids)["logits"].log_softmax(dim=-1) for model in (network, reference))
        known = batch["labels"][:, :2].flatten(0, 1) != IGNORED
        exact = ((own.exp() * (own - other)).sum(dim=-1) * known).sum().item()
        found = task.loss(network, batch).outputs["divergence"].sum().item()
    assert 0.02 * exact < found <= exact


# -- prepare ------------------------------------------------------------------------------------


def test_only_the_last_answer_is_learned_and_the_reference_is_that_of_the_weights(tmp_path: Path) -> None:
    asked = [
        {"role": "user", "content": "who are you"},
        {"role": "assistant", "content": "i am a mill"},
        {"role": "user", "content": "thanks"},
    ]
    rows = [{"prompt": asked, "chosen": "thanks you", "rejected": "red green blue"}] * 30
    layout = project(tmp_path / "project", rows)
    row = rows_of(layout, 1)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Prepared(layout.prepared).tokenizer_folder / "tokenizer.json"))
    batch = PreferenceTuning.from_options().collate(row)
    learned = [
        tokenizer.decode(side[side != IGNORED].tolist(), skip_special_tokens=False) for side in batch["labels"][0]
    ]
    assert learned == ["thanks you </s>", "red green blue </s>"]
    network: Any = PretrainedDecoder.from_options().build_decoder(60, layout.pretrained).eval()
    with torch.no_grad():
        logits = network(batch["input_ids"][0])["logits"].log_softmax(dim=-1)
    picked = logits.gather(2, batch["labels"][0].clamp(min=0).unsqueeze(2)).squeeze(2)
    expected = torch.where(batch["labels"][0] != IGNORED, picked, 0.0)
    torch.testing.assert_close(batch["reference"][0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "column", "reason"),
    [
        ({"prompt": [{"role": "robot", "content": "thanks"}]}, "prompt", "has the role 'robot'"),
        ({"prompt": [{"role": "assistant", "content": "thanks"}]}, "prompt", "ends with an answer"),
        ({"prompt": "thanks " * 60}, "prompt", "is longer than prepare.max_length"),
        ({"prompt": None}, "prompt", "is empty"),
        ({"chosen": ""}, "chosen", "is empty"),
        ({"chosen": [{"role": "assistant", "content": " "}]}, "chosen", "has an empty message"),
        ({"rejected": [{"role": "user", "content": "red"}]}, "rejected", "has a message that is not the assistant's"),
        ({"rejected": "thanks you", "chosen": "thanks you"}, "rejected", "equals the chosen answer"),
        (
            {"chosen": [{"role": "assistant", "content": "red"}], "rejected": "red"},
            "rejected",
            "equals the chosen answer",
        ),
        (
            {"prompt": "thanks", "chosen": "red " * 50 + "blue", "rejected": "red " * 50 + "green"},
            "rejected",
            "equals the chosen answer in the tokens that prepare.max_length keeps",
        ),
    ],
)
def test_bad_pairs_are_rejected_with_their_line(tmp_path: Path, change: Any, column: str, reason: str) -> None:
    rows = [pair(n) for n in range(30)]
    rows[4] = rows[4] | change
    layout = project(tmp_path / "project", rows)
    [reject] = pd.read_csv(layout.prepared / "rejects.csv").to_dict("records")
    assert (reject["row"], reject["column"]) == (5, column)
    assert reason in reject["reason"]
    tables = [Prepared(layout.prepared).split(name) for name in ("train", "validation", "test")]
    assert sum(table.num_rows for table in tables) == 29


def test_settings_of_the_loss_prepare_nothing_again() -> None:
    from textmill.config.compose import compose
    from textmill.config.layout import find_layout

    layout = find_layout(Path(__file__))
    usual = compose(layout, ["experiment=preferences"])
    for change in ("train.optimizer.learning_rate=1e-6", "task.beta=0.5", "task.method=ipo", "task.margin=1"):
        changed = compose(layout, ["experiment=preferences", change])
        assert changed.prepare == usual.prepare and changed.train != usual.train
    assert compose(layout, ["experiment=preferences", "task.method=kto"]).prepare != usual.prepare


def test_kto_without_unrelated_answers_and_rows_without_reference_are_refused(prepared: Layout) -> None:
    network, rows = policy(prepared), rows_of(prepared, 2)
    task = PreferenceTuning.from_options(method="kto")
    pairs = {name: values for name, values in rows.items() if not name.startswith("unrelated")}
    with pytest.raises(UserError, match="no unrelated answers, which kto needs"):
        task.loss(network, task.collate(pairs))
    with pytest.raises(UserError, match="no log-likelihoods of the reference model"):
        task.loss(network, task.collate({name: rows[name] for name in rows if "reference" not in name}))
    shorter = rows | {"reference": [values[1:] for values in rows["reference"]]}
    with pytest.raises(UserError, match="are of other tokens"):
        task.collate(shorter)


# -- all stages ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A project in which every stage up to the export has run."""
    from textmill.evaluation.evaluate import evaluate
    from textmill.evaluation.report import write_evaluation
    from textmill.export.export import export
    from textmill.training.loading import save_network
    from textmill.training.trainer import Training

    layout = project(tmp_path_factory.mktemp("preferences") / "project", [pair(n) for n in range(120)])
    common = {"task": TASK, "model": MODEL, "seed": 1}
    options = {
        "max_epochs": 8,
        "optimizer": {"learning_rate": 5e-3},
        "batches": {"tokens": 256, "accumulate": 2},
        "precision": "32-true",
        "activation_checkpointing": True,
    }
    train = TrainConfig.model_validate(common | options)
    trained = Training(train, RUNTIME, Prepared(layout.prepared), layout.pretrained, layout.checkpoints).run()
    save_network(layout.trained / "model", trained.network, trained.weights)
    config = EvaluateConfig.model_validate(common | {"resamples": 100, "min_slice": 2})
    layout.evaluation.mkdir()
    write_evaluation(evaluate(config, RUNTIME, layout), config, "Preferences", layout.evaluation)
    generation = GenerationConfig(temperature=0, max_new_tokens=12)
    export(
        ExportConfig(title="Pairs", task=TASK, model=MODEL, max_length=40, generation=generation),
        layout,
        layout.exported,
    )
    return layout


@pytest.mark.slow
def test_right_answers_are_preferred_by_more_than_the_reference_and_the_length(made: Layout) -> None:
    metrics = json.loads((made.evaluation / "metrics.json").read_text())
    assert metrics["test"]["accuracy"]["value"] == 1
    assert set(metrics["baselines"]) == {"reference", "longer", "shorter"}
    assert all(metrics["difference"][name]["accuracy"]["low"] > 0 for name in metrics["baselines"])
    assert metrics["test"]["kl"]["value"] > 0.01
    assert metrics["baselines"]["reference"]["kl"]["value"] == 0


@pytest.mark.slow
def test_exported_model_answers_and_scores_pairs_as_the_evaluated_one(made: Layout) -> None:
    from textmill.evaluation.evaluator import predict_rows

    predictor: Any = load_predictor(made.exported / "model")
    assert predictor.exported.model == {"_target_": MODEL["_target_"]}  # merged
    asked = [{"role": "user", "content": "thanks"}]
    texts = [predictor.predict([form])[0]["text"] for form in ("thanks", {"messages": asked}, {"prompt": "thanks"})]
    assert len(set(texts)) == 1
    frame = (
        Prepared(made.prepared).frame("test").drop(columns=["input_ids", "rejected_ids", "answer", "rejected_answer"])
    )
    found = predict_rows(predictor, frame)
    with np.load(made.evaluation / "outputs.npz") as stored:
        expected = stored["divergence"]
    np.testing.assert_allclose(found["divergence"], expected, rtol=1e-3, atol=1e-4)
    assert list(found["chosen"]) == list(frame["chosen"])
