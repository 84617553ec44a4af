"""GGUF files of exported models: written, checked through llama.cpp, refused where they would differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_bpe import write_tiny_bpe_llama
from support.untrained_chat import MODEL, TASK, export_untrained

from textmill.config.layout import Layout
from textmill.config.sections.export import ExportConfig
from textmill.data.prepared import Prepared
from textmill.data.tokenizing import load_tokenizer
from textmill.errors import UserError
from textmill.export import gguf_answers
from textmill.export.checkpoint import CHECKPOINT_FOLDER, write_checkpoint
from textmill.export.export import write_gguf_files
from textmill.export.gguf_check import Sample, Verdict, check_gguf, sample
from textmill.export.gguf_writing import write_gguf
from textmill.models.base import Model
from textmill.predicting.exported import read_specification
from textmill.tasks.base import Task

pytest.importorskip("xllamacpp")


class Exported:
    """A chat model, its network, and its checkpoint of transformers."""

    def __init__(self, root: Path) -> None:
        layout = Layout(root)
        self.folder = export_untrained(layout, max_new_tokens=10)
        self.prepared = Prepared(layout.prepared)
        self.task = Task.build(TASK)
        model = Model.build(MODEL)
        self.network: Any = self.task.build_network(model, layout.pretrained, self.prepared.state).eval().float()
        self.checkpoint = root / "checkpoint"
        write_checkpoint(self.network, self.task, self.prepared, self.checkpoint, 1e-3)
        self.tokenizer = load_tokenizer(self.prepared.tokenizer_folder)
        self.sample = sample(self.task, self.prepared, self.tokenizer)
        self.ends = self.prepared.state["end_ids"]
        asked = gguf_answers.questions(self.task, self.prepared, self.tokenizer, self.network, self.ends, 100)
        assert len(asked.right) == 4 and all(text and "thanks you".startswith(text) for text in asked.right)
        self.asked = replace(asked, right=asked.answers)  # as if a training had taught it these

    def check(self, path: Path, kind: str, taken: Sample | None = None) -> Verdict:
        return check_gguf(path, kind, taken or self.sample, self.tokenizer, self.network, self.ends, self.asked)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    root = tmp_path_factory.mktemp("gguf") / "project"
    write_tiny_bpe_llama(root / "data/pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_answers, "TOKENS", 6)  # random weights make ties, one of which changes all that follows
        yield Exported(root)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_1", "q4_0"])
def test_gguf_of_each_type_reads_the_same_tokens_and_templates(tiny: Exported, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(tiny.checkpoint, kind, path, "Tiny")
    verdict = tiny.check(path, kind)
    assert verdict.numbers["lines"] == 60 and verdict.numbers["lines_differ"] == 0
    assert verdict.numbers["conversations"] == 8 and verdict.numbers["conversations_differ"] == 0
    if kind == "f16":
        assert not verdict.problems and verdict.numbers["continuations"] == 8
        assert verdict.numbers["answers"] == 4 and verdict.numbers["answers_equal"] == 1
        assert verdict.numbers["answer_f1"] == verdict.numbers["answer_f1_pytorch"] == 1


def test_check_fails_for_other_tokens_template_and_weights(tiny: Exported, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    for path in tiny.checkpoint.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name] + np.float32(0.3)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        if (other / file).is_file():
            (other / file).write_text((other / file).read_text().replace("<|user|>", "<|system|>"))
    state_template = replace(tiny.sample, rendered=[text + "!" for text in tiny.sample.rendered])
    write_gguf(other, "f16", tmp_path / "other.gguf", "Other")
    problems = "; ".join(tiny.check(tmp_path / "other.gguf", "f16", state_template).problems)
    assert "lines have other tokens, such as 'thanks" in problems
    assert "the chat template renders 8 of 8 conversations as other texts" in problems
    assert "the bits per byte change by" in problems and "greedy continuations differ" in problems
    assert "F1 of the answers changes by -" in problems and "0.05 (export.gguf_margin)" in problems


def test_export_tells_what_the_answers_show(tiny: Exported, tmp_path: Path) -> None:
    shutil.copytree(tiny.checkpoint, tmp_path / CHECKPOINT_FOLDER)
    config = ExportConfig.model_validate({"title": "Tiny", "task": TASK, "model": MODEL, "gguf": ("f16",)})
    before = read_specification(tiny.folder)
    exported, numbers, told = write_gguf_files(config, tiny.task, tiny.prepared, before, tiny.network, tmp_path)
    assert exported.gguf == {"f16": "model-f16.gguf"} and (tmp_path / "model-f16.gguf").is_file()
    assert numbers["gguf_f16_passes"] == 1 and numbers["gguf_f16_answers"] == 4
    assert "F1 of 4 answers +0.000, 100% of them equal" in told


def test_answers_pass_only_if_the_rows_show_that_little_is_lost() -> None:
    """200 answers, some of them wrong; and 2 answers, too few to show anything."""
    asked = gguf_answers.Questions([[1]] * 200, ["red mill"] * 200, ["red mill"] * 200)
    for wrong, told in ((0, ""), (1, ""), (20, "a loss of more than 0.05"), (4, "not shown to lose less than 0.05")):
        numbers, problem = gguf_answers.compare(asked, ["blue"] * wrong + ["red mill"] * (200 - wrong), 0.05)
        assert told in problem and bool(problem) == bool(told)
        assert numbers["answer_change"] == pytest.approx(-wrong / 200)
    few = gguf_answers.Questions([[1]] * 2, ["red"] * 2, ["red"] * 2)
    assert "on 2 test conversations, not shown" in gguf_answers.compare(few, ["red", "blue"], 0.05)[1]


def test_conversations_of_preferences_end_with_the_chosen_answer() -> None:
    import pyarrow as pa

    from textmill.tasks.preference_tuning import PreferenceTuning

    class Pairs:
        def split(self, _: str) -> pa.Table:
            return pa.table({"prompt": ["who"], "chosen": ["a mill"], "rejected": ["no"]})

    [messages] = gguf_answers.conversations(PreferenceTuning.from_options(), Pairs())  # type: ignore[arg-type]
    assert messages == [{"role": "user", "content": "who"}, {"role": "assistant", "content": "a mill"}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "qwen3"}, "for the architecture llama only, this model's is qwen3"),
        ({"attention_bias": True}, "not written for a model with biases"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "not written for positions of the type yarn"),
    ],
)
def test_other_architecture_is_refused_in_one_line(
    tiny: Exported, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    configuration = json.loads((tiny.checkpoint / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    with pytest.raises(UserError, match=told):
        write_gguf(tmp_path, "f16", tmp_path / "model.gguf", "Tiny")
    assert not (tmp_path / "model.gguf").exists()


def test_tokenizer_that_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    from support.tiny_llama import write_tiny_llama

    write_tiny_llama(tmp_path)
    with pytest.raises(UserError, match="no tokenizer that splits texts as this model's"):
        write_gguf(tmp_path, "f16", tmp_path / "model.gguf", "Tiny")
    assert not (tmp_path / "model.gguf").exists()
