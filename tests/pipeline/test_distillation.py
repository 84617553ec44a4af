"""A student of a registered version: fetched, its logits prepared once, trained with them, exported and told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.project import NEGATIVE, POSITIVE, SUBJECTS, write_reviews
from support.tiny_export import MODEL, RUNTIME, TASK
from support.tiny_registry import NAME

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.train import TrainConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.files import read_json, sha256_file, write_json
from textmill.models.encoder import keep_tokens
from textmill.models.losses.regularisation import distillation_loss
from textmill.models.pretrained_encoder import PretrainedEncoder
from textmill.predicting.loading import load_predictor
from textmill.registry.versions import versions
from textmill.stages import fetch, prepare, train
from textmill.tasks.text_classification import TextClassification

FILES = "textmill.fetching.sources.files.FilesSource"
TEACHER = "textmill.registry.versions.teacher.TrainedModelSource"
STUDENT = {**MODEL, "pretrained": "teacher", "layers": [1], "feed_forward": 48}


def fetch_teacher(layout: Layout, model: str) -> None:
    """The stage `fetch`: reviews, a teacher, and its encoder as pretrained weights."""
    own = layout.root / "data/own"
    own.mkdir(parents=True, exist_ok=True)
    write_reviews(own / "reviews.csv", 80)
    source = {"_target_": FILES, "files": {"all": "data/own/reviews.csv"}}
    teacher = {"_target_": TEACHER, "model": model}
    config = FetchConfig.model_validate({"source": source, "teacher": teacher, "pretrained": "teacher"})
    fetch.main(config, RUNTIME, layout)


def prepare_with_teacher(layout: Layout, **changes: Any) -> Prepared:
    read = {"columns": {"text": "text", "label": "label"}}
    teacher = {"_target_": "textmill.predicting.teacher.ExportedTeacher"}
    values = {"task": TASK, "read": read, "teacher": teacher, "tokenizer": {"least_count": 2}, "max_length": 32}
    config = PrepareConfig.model_validate(values | changes)
    prepare.main(config, RUNTIME, layout)
    return Prepared(layout.prepared)


def train_student(layout: Layout, **task: Any) -> dict[str, torch.Tensor]:
    """The stage `train`; the weights."""
    from safetensors.torch import load_file

    values = {"seed": 3, "task": TASK | task, "model": STUDENT, "precision": "32-true", "batches": {"tokens": 128}}
    config = TrainConfig.model_validate({**values, "optimizer": {"learning_rate": 1e-3}, "max_epochs": 1})
    train.main(config, RUNTIME.model_copy(update={"plan": False, "progress": "plain"}), layout)
    return load_file(layout.trained / "model/model.safetensors")


@pytest.mark.slow
def test_student_of_an_alias_learns_the_registered_logits_and_names_the_version(three_versions: Layout) -> None:
    layout = three_versions
    fetch_teacher(layout, f"{NAME}@challenger")  # version 3, whose labels are swapped
    noted = read_json(layout.raw / "provenance.json")["teacher"]
    assert (noted["origin"], noted["version"]) == (NAME, "3")
    assert noted["sha256"] == sha256_file(layout.raw / "teacher/manifest.json")

    prepared = prepare_with_teacher(layout)
    test = prepared.frame("test")
    teacher = load_predictor(layout.raw / "teacher")
    expected = teacher.outputs(test[["text"]])["logits"]
    order = [teacher.exported.state["labels"].index(label) for label in prepared.state["labels"]]
    assert order == [1, 0], "in the order of the data's labels, not of the teacher's"
    np.testing.assert_array_equal(np.stack(test["teacher_logits"].tolist()), expected[:, order])

    taught, alone = train_student(layout, distillation=0.9), train_student(layout)
    assert any(not torch.equal(taught[name], alone[name]) for name in taught)
    kept = prepared.kept_tokens
    assert kept is not None
    assert len(taught["encoder.backbone.embeddings.word_embeddings.weight"]) == len(kept)
    shape = read_json(layout.trained / "model/config.json")
    assert (shape["num_hidden_layers"], shape["vocab_size"], shape["intermediate_size"]) == (1, len(kept), 48)


@pytest.mark.slow
def test_version_of_a_student_is_tagged_with_its_teacher(
    three_versions: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.tiny_registry import register_export, textmill

    layout = three_versions
    exported = layout.root / "data/exported"
    provenance = exported / "model/provenance.json"
    teacher = {"origin": NAME, "version": "1", "sha256": "a" * 64}
    content = read_json(provenance)
    write_json(provenance, content | {"corpus": content["corpus"] | {"teacher": teacher}})
    from textmill.predicting.exported import write_manifest

    write_manifest(exported / "model")
    monkeypatch.setattr(versions, "check_in_fresh_process", lambda *_: None)  # has tests of its own
    registered = register_export(layout)
    done = textmill("lineage", f"{NAME}/{registered.version}", "--json", cwd=layout.root)
    told = json.loads(done.stdout)
    assert told["version"]["teacher"] == f"{NAME}/1"
    assert told["data"]["teacher"] == "a" * 64


def test_teacher_that_does_not_fit_is_refused_in_one_line(three_versions: Layout) -> None:
    layout = three_versions
    with pytest.raises(UserError, match=f"{NAME} has no nobody yet"):
        fetch_teacher(layout, f"{NAME}@nobody")
    shutil.copytree(layout.exported / "model", layout.root / "data/own/model")
    fetch_teacher(layout, "data/own/model")
    noted = read_json(layout.raw / "provenance.json")["teacher"]
    assert (noted["origin"], noted["version"]) == ("data/own/model", None)
    names = {"good": "fine", "bad": "bad"}
    read = {"columns": {"text": "text", "label": {"source": "label", "names": names}}}
    with pytest.raises(UserError, match="its labels are"):
        prepare_with_teacher(layout, read=read)
    task = {"_target_": "textmill.tasks.multi_label_classification.MultiLabelClassification"}
    with pytest.raises(UserError, match="does not learn from a teacher"):
        prepare_with_teacher(layout, task=task, read={"columns": {"text": "text", "labels": "label"}})
    shutil.rmtree(layout.raw / "teacher")
    with pytest.raises(UserError, match="no teacher was fetched"):
        prepare_with_teacher(layout)


def test_distillation_loss_is_hintons() -> None:
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    temperature = 3.0
    ours, theirs = (torch.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    expected = torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), expected)
    assert distillation_loss(teacher, teacher, temperature).abs() < 1e-6


def test_distillation_without_a_teacher_in_the_data_is_refused() -> None:
    task = TextClassification.from_options(distillation=0.5)

    class Network(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": torch.zeros(len(input_ids), 2, requires_grad=True)}

    batch = {"input_ids": torch.ones(2, 3, dtype=torch.int64), "label_id": torch.tensor([0, 1])}
    batch["attention_mask"] = batch["input_ids"]
    with pytest.raises(UserError, match="no teacher's logits"):
        task.loss(Network().train(), batch)
    assert task.loss(Network().eval(), batch).loss > 0, "validation needs none"


def test_reduced_vocabulary_gives_kept_words_their_old_vectors(tmp_path: Path) -> None:
    from support.project import write_tiny_bert
    from transformers import AutoTokenizer

    from textmill.config.sections.prepare import TokenizerConfig
    from textmill.data.tokenizing import KEPT, load_tokenizer, make_tokenizer

    write_tiny_bert(tmp_path / "bert")
    texts = [f"{POSITIVE[0]} {SUBJECTS[0]}", f"{NEGATIVE[3]} {SUBJECTS[0]} {POSITIVE[0]}"] * 2 + [SUBJECTS[5]]
    new = make_tokenizer(TokenizerConfig(least_count=2), texts, tmp_path / "bert", tmp_path / "tokenizer")
    old, kept = load_tokenizer(tmp_path / "bert"), read_json(tmp_path / KEPT)
    assert new.encode(texts[1]).tokens == old.encode(texts[1]).tokens
    assert [kept[token] for token in new.encode(texts[1]).ids] == old.encode(texts[1]).ids
    assert new.encode(SUBJECTS[5]).tokens == ["[CLS]", "[UNK]", "[SEP]"], "once only, and no shorter token is there"
    assert AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(texts[1])["input_ids"] == new.encode(texts[1]).ids

    whole = PretrainedEncoder.from_options().build_encoder(tmp_path / "bert").eval()
    small = PretrainedEncoder.from_options().build_encoder(tmp_path / "bert").eval()
    keep_tokens(small, kept)
    states = []
    for encoder, tokenizer in ((whole, old), (small, new)):
        ids = torch.tensor([tokenizer.encode(texts[1]).ids])
        states.append(encoder(ids, torch.ones_like(ids)))
    torch.testing.assert_close(*states)


def test_layers_and_units_are_kept_and_checked(tmp_path: Path) -> None:
    from support.project import write_tiny_bert

    write_tiny_bert(tmp_path)

    def build(**options: Any) -> Any:
        encoder: Any = PretrainedEncoder.from_options(**options).build_encoder(tmp_path)
        return encoder.backbone.encoder.layer

    whole, turned = build(), build(layers=[1, 0])
    for number, other in enumerate((1, 0)):
        for mine, theirs in zip(turned[number].parameters(), whole[other].parameters(), strict=True):
            assert torch.equal(mine, theirs)
    narrow = build(feed_forward=10)
    before, after = whole[0].intermediate.dense, whole[0].output.dense
    strength = before.weight.norm(dim=1) * after.weight.norm(dim=0)
    kept = sorted(strength.argsort(descending=True)[:10].tolist())
    assert torch.equal(narrow[0].intermediate.dense.weight, before.weight[kept])
    assert torch.equal(narrow[0].intermediate.dense.bias, before.bias[kept])
    assert torch.equal(narrow[0].output.dense.weight, after.weight[:, kept])
    with pytest.raises(UserError, match="have 64 units"):
        build(feed_forward=65)
    with pytest.raises(UserError, match="layers 0 to 1"):
        build(layers=[2])
