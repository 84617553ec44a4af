"""Conversations, of which the answers are learned, from a file to the exported model's answers."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from support.tiny_llama import TEMPLATE, write_tiny_llama

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
from textmill.models.generation import generate, generate_tokens
from textmill.models.pretrained_decoder import PretrainedDecoder
from textmill.predicting.loading import load_predictor
from textmill.tasks.instruction_tuning import InstructionTuning
from textmill.text import chat

TASK = {"_target_": "textmill.tasks.instruction_tuning.InstructionTuning", "sample_tokens": 4}
MODEL = {"_target_": "textmill.models.pretrained_decoder.PretrainedDecoder", "lora": {"rank": 16, "alpha": 32}}
RUNTIME = RuntimeConfig.model_validate(
    {"trainer": {"accelerator": "cpu", "devices": 1}, "progress": "plain", "tracking_experiment": "chat"}
)
ANSWERS = {"who are you": "i am a mill", "name three colours": "red green blue", "thanks": "thanks you"}


def conversation(*questions: str) -> list[dict[str, str]]:
    return [
        message
        for question in questions
        for message in (
            {"role": "user", "content": question},
            {"role": "assistant", "content": ANSWERS[question]},
        )
    ]


def project(root: Path, lines: list[Any], template: str | None = TEMPLATE) -> Layout:
    layout = Layout(root)
    (layout.raw / "files/all").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (layout.raw / "files/all/chat.jsonl").write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    write_tiny_llama(layout.pretrained, template=template)
    provenance = {"origin": "made up", "version": None, "licence": None, "sha256": None}
    for folder in (layout.raw, layout.pretrained):
        (folder / "provenance.json").write_text(json.dumps(provenance))
    return layout


def prepare_config(**options: Any) -> PrepareConfig:
    values: dict[str, Any] = {
        "task": TASK,
        "read": {"columns": {"messages": "messages"}},
        "cleaning": {"repair": False, "normal_form": None},
        "duplicates": {"exact": False, "near": False, "passage_words": None},
        "max_length": 48,
    }
    return PrepareConfig.model_validate(values | options)


def conversations(number: int) -> list[Any]:
    questions = list(ANSWERS)
    return [conversation(questions[i % 3], *[questions[(i + 1) % 3]] * (i % 2)) for i in range(number)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A project in which every stage up to the export has run."""
    from textmill.evaluation.evaluate import evaluate
    from textmill.evaluation.report import write_evaluation
    from textmill.export.export import export
    from textmill.training.loading import save_network
    from textmill.training.trainer import Training

    layout = project(tmp_path_factory.mktemp("chat") / "project", conversations(90))
    prepare(prepare_config(), RUNTIME, layout)
    common = {"task": TASK, "model": MODEL, "seed": 1}
    train = TrainConfig.model_validate(
        common
        | {
            "max_epochs": 12,
            "optimizer": {"learning_rate": 2e-2},
            "batches": {"tokens": 128},
            "precision": "32-true",
            "activation_checkpointing": True,
        }
    )
    trained = Training(train, RUNTIME, Prepared(layout.prepared), layout.pretrained, layout.checkpoints).run()
    save_network(layout.trained / "model", trained.network, trained.weights)
    config = EvaluateConfig.model_validate(common | {"resamples": 100, "min_slice": 2})
    layout.evaluation.mkdir()
    write_evaluation(evaluate(config, RUNTIME, layout), config, "Chat", layout.evaluation)
    generation = GenerationConfig(temperature=0, max_new_tokens=12)
    options = ExportConfig(title="Chat", task=TASK, model=MODEL, max_length=48, generation=generation)
    export(options, layout, layout.exported)
    return layout


@pytest.mark.slow
def test_the_answers_are_learned_and_given(made: Layout) -> None:
    metrics = json.loads((made.evaluation / "metrics.json").read_text())
    assert metrics["difference"]["unigram"]["loss"]["high"] < 0
    predictor = load_predictor(made.exported / "model")
    asked = [{"role": "user", "content": "name three colours"}]
    answers = predictor.predict(["who are you", {"messages": asked}])
    assert [answer["text"].split() for answer in answers] == [["i", "am", "a", "mill"], ["red", "green", "blue"]]
    assert predictor.exported.model == {"_target_": MODEL["_target_"]}  # merged
    pieces = "".join(predictor.stream("who are you", predictor.options))  # type: ignore[attr-defined]
    assert pieces.split() == ["i", "am", "a", "mill"]


@pytest.mark.slow
def test_transformers_reads_the_exported_model(made: Layout) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made.exported / "model/transformers"
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "name three colours"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    written = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(written[0, ids.size(1) :], skip_special_tokens=True).split() == ["red", "green", "blue"]


def test_only_answers_are_targets(tmp_path: Path) -> None:
    layout = project(tmp_path / "project", conversations(30))
    prepare(prepare_config(), RUNTIME, layout)
    prepared = Prepared(layout.prepared)
    row = prepared.split("train").slice(0, 1).to_pydict()
    task = InstructionTuning.from_options()
    batch = task.collate({name: row[name] for name in ("input_ids", "answer", "length")})
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_folder / "tokenizer.json"))
    learned = batch["labels"][batch["labels"] >= 0].tolist()
    spoken = [m["content"] for m in json.loads(row["messages"][0]) if m["role"] == "assistant"]
    expected = " </s> ".join(spoken) + " </s>"
    assert tokenizer.decode(learned, skip_special_tokens=False) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "is not JSON"),
        ([{"role": "user", "content": "thanks"}], "has no message of the assistant"),
        ([{"role": "robot", "content": "thanks"}], "has the role 'robot'"),
        ([{"role": "assistant", "content": " "}], "has an empty message"),
        ([{"role": "assistant"}], "has a message without text"),
        ({"role": "user", "content": "thanks"}, "is not a list of messages"),
        ([], "is empty"),
        (None, "is empty"),
    ],
)
def test_bad_conversations_are_rejected_with_their_line(tmp_path: Path, line: Any, reason: str) -> None:
    lines = conversations(30)
    lines[4] = line
    layout = project(tmp_path / "project", lines)
    prepare(prepare_config(), RUNTIME, layout)
    [reject] = pd.read_csv(layout.prepared / "rejects.csv").to_dict("records")
    assert reject["row"] == 5 and reason in reject["reason"]


def test_tokenizers_without_a_template_and_templates_that_rewrite(tmp_path: Path) -> None:
    layout = project(tmp_path / "project", conversations(30), template=None)
    with pytest.raises(UserError, match="no chat template"):
        prepare(prepare_config(), RUNTIME, layout)
    with pytest.raises(UserError, match="rejects these messages"):
        chat.answer_spans(conversation("thanks"), "{{ raise_exception('never') }}", {}, [])
    tail = "{% for m in messages %}{{ m['content'][-3:] if loop.first else m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="changes the end of a message, so answers cannot be located"):
        chat.answer_spans(conversation("thanks"), tail, {}, [])


def test_conversation_whose_answer_is_cut_away_is_rejected_with_its_line(tmp_path: Path) -> None:
    lines = conversations(30)
    lines[6] = [{"role": "user", "content": "thanks " * 60}, *lines[6][1:]]
    layout = project(tmp_path / "project", lines)
    prepare(prepare_config(), RUNTIME, layout)
    [reject] = pd.read_csv(layout.prepared / "rejects.csv").to_dict("records")
    assert reject["row"] == 7
    assert reject["reason"].startswith("has no token of an answer: prepare.max_length cuts it away")
    prepared = Prepared(layout.prepared)
    tables = [prepared.split(name).to_pydict() for name in ("train", "validation", "test")]
    assert sum(len(table["id"]) for table in tables) == 29
    assert all(map(any, (answer for table in tables for answer in table["answer"])))


def test_answer_without_an_end_token_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    told = "no end token follows an answer in this chat template"
    with caplog.at_level(logging.WARNING, "textmill"):
        prepare(prepare_config(), RUNTIME, project(tmp_path / "good", conversations(30)))
        assert told not in caplog.text
        prepare(prepare_config(), RUNTIME, project(tmp_path / "bare", conversations(30), template=bare))
    assert told in caplog.text


def test_generation_ends_at_any_end_token(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "llama")
    model: Any = PretrainedDecoder.from_options().build_decoder(60, folder).eval()
    for beams in (1, 2):
        options = GenerationConfig(temperature=0, max_new_tokens=8, beams=beams)
        [whole] = generate_tokens(model, [[1, 3, 6]], options, end=-1)
        token = whole[3]
        for end, others in ((token, ()), (-1, (-2, token))):
            [cut] = generate_tokens(model, [[1, 3, 6]], options, end=end, other_ends=others)
            if beams == 1:
                assert cut == whole[: whole.index(token)]
            else:
                assert token not in cut


def test_end_tokens_are_those_of_tokenizer_model_and_template(tmp_path: Path) -> None:
    layout = project(tmp_path / "project", conversations(30))
    (layout.pretrained / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 999_999]}))
    prepare(prepare_config(), RUNTIME, layout)
    state = Prepared(layout.prepared).state
    assert state["end_ids"] == sorted({7, state["end_of_text"]})


@pytest.mark.parametrize("tied", [True, False])
def test_the_cache_changes_nothing_and_rows_of_other_lengths_neither(tmp_path: Path, tied: bool) -> None:
    folder = write_tiny_llama(tmp_path / "llama", tied=tied)
    model: Any = PretrainedDecoder.from_options().build_decoder(60, folder).eval()
    prompts = [[1, 3, 6, 7, 8], [1, 3], [1, 9, 10, 11, 12, 13, 14]]
    options = GenerationConfig(temperature=0, max_new_tokens=8)

    def written(rows: list[list[int]], *, cached: bool) -> list[list[int | None]]:
        return [list(row) for row in zip(*generate(model, rows, options, end=-1, cached=cached), strict=True)]

    together = written(prompts, cached=True)
    assert together == written(prompts, cached=False)
    assert together == [written([prompt], cached=True)[0] for prompt in prompts]
    ids = torch.tensor([prompts[0]])
    expected = model.backbone.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert together[0] == expected[0, 5:].tolist()


def test_inputs_that_are_no_conversation() -> None:
    task = InstructionTuning.from_options()
    for values, message in (
        ([], "no input"),
        ([""], "the input is empty"),
        ([{"messages": []}], "messages: is not a list of messages"),
        ([3], "neither a text nor a record: '3'"),
    ):
        with pytest.raises(UserError, match=message):
            task.parse_inputs(values)


_MEASURED = """
import sys, threading, time
from pathlib import Path
import torch
import peft
from textmill.models.pretrained_decoder import PretrainedDecoder

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))

model = PretrainedDecoder.from_options(lora={"rank": 8, "alpha": 16})
model.build_decoder(60, Path(sys.argv[1]))  # imports what the measurement must not count
before, peak, done = resident(), 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, resident())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
network = model.build_decoder(60, Path(sys.argv[2]))
done.set()
watcher.join()
updates = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
kinds = sorted({str(p.dtype) for p in network.parameters() if not p.requires_grad})
print((max(peak, resident()) - before - updates) / (Path(sys.argv[2]) / "model.safetensors").stat().st_size, *kinds)
assert all(p.dtype == torch.float32 for p in network.parameters() if p.requires_grad)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only: reads /proc")
def test_frozen_weights_keep_their_precision_and_loading_adds_no_more_memory_than_their_file(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = write_tiny_llama(tmp_path / "tiny")
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
    large = LlamaForCausalLM(LlamaConfig(vocab_size=8192, num_key_value_heads=16, tie_word_embeddings=True, **shape))
    large.bfloat16().save_pretrained(tmp_path / "large")
    assert (tmp_path / "large/model.safetensors").stat().st_size > 250 << 20
    command = [sys.executable, "-c", _MEASURED, str(tiny), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    share, kind = done.stdout.split()
    assert kind == "torch.bfloat16" and float(share) <= 1.1


def test_updates_of_frozen_bfloat16_weights_are_merged_in_float32(tmp_path: Path) -> None:
    from textmill.models.lora import merge_adapters
    from textmill.training.loading import load_network, save_network

    folder = write_tiny_llama(tmp_path / "llama")
    from transformers import AutoModelForCausalLM

    stored: Any = AutoModelForCausalLM.from_pretrained(folder)
    stored.bfloat16().save_pretrained(folder)
    task, model = InstructionTuning.from_options(), PretrainedDecoder.from_options(lora={"rank": 4, "alpha": 8})
    state = {"vocabulary_size": 20}
    network: Any = task.build_network(model, folder, state)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    ids = torch.tensor([[1, 3, 6, 7, 8]])
    loss = network(ids)["logits"].float().logsumexp(-1).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    save_network(tmp_path / "trained/model", network, network.state_dict())
    loaded: Any = load_network(task, model, state, tmp_path / "trained")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    before = loaded(ids)["logits"]
    merge_adapters(loaded)
    assert torch.allclose(loaded(ids)["logits"], before, atol=1e-5)
