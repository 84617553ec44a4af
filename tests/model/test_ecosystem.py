"""What transformers and sentence-transformers make of an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.project import write_tiny_bert
from support.tiny_export import MODEL, RUNTIME, STATE, TASK, build_evaluated_project, export_config

from textmill.config.layout import Layout
from textmill.export.checkpoint import auto_class, write_encoder
from textmill.files import read_json
from textmill.models.encoder import Encoder
from textmill.models.heads_to_transformers import to_transformers
from textmill.models.pretrained_encoder import PretrainedEncoder
from textmill.models.sentence_encoder import PairClassifier, SentenceEncoder
from textmill.models.sequence_classifier import SequenceClassifier
from textmill.models.span_extractor import SpanExtractor
from textmill.models.token_scorer import TokenScorer
from textmill.predicting.loading import load_predictor
from textmill.stages import export as stage
from textmill.tasks.question_answering import QuestionAnswering
from textmill.tasks.semantic_search import SemanticSearch

TEXTS = ["wonderful film", "a dreadful boring plot", "the story"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout: Layout = build_evaluated_project(tmp_path_factory.mktemp("ecosystem") / "project")
    stage.main(export_config(max_length=16), RUNTIME, layout)
    return layout.exported / "model"


def backbone(kind: str, **options: Any) -> Any:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(3)
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model(kind, vocab_size=100, max_position_embeddings=64, **(shape | options))
    plain = {"distilbert"}
    automatic: Any = AutoModel
    return automatic.from_config(config, **({} if kind in plain else {"add_pooling_layer": False}))


def padded_batch(padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 100, (6, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(6):
        mask[row, 20 - 3 * row :] = 0
    return ids.masked_fill(mask == 0, padding), mask


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_classifier_in_transformers_has_equal_logits(kind: str, pooling: str) -> None:
    network = SequenceClassifier(Encoder(backbone(kind), pooling=pooling), 3).eval()
    with torch.no_grad():
        network.output.weight.normal_(std=2.0)
        network.output.bias.normal_()
    model = to_transformers(network, ["no", "maybe", "yes"], "single_label_classification")
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    ids, mask = padded_batch(network.encoder.config.pad_token_id)
    with torch.no_grad():
        ours, theirs = network(ids, mask)["logits"], model(input_ids=ids, attention_mask=mask).logits
        low = model.bfloat16()(input_ids=ids, attention_mask=mask).logits.float()
    assert ours.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-4)
    assert (ours.argmax(1) == low.argmax(1)).float().mean() > 0.8  # its scales are no smaller than bfloat16's range


def test_heads_of_tokens_have_equal_outputs() -> None:
    ids, mask = padded_batch(0)
    spans = SpanExtractor(Encoder(backbone("bert"))).eval()
    spans.no_answer_bias.fill_(0.75)
    scorer = TokenScorer(Encoder(backbone("bert"))).eval()
    with torch.no_grad():
        ours, theirs = spans(ids, mask), to_transformers(spans, [])(input_ids=ids, attention_mask=mask)
        scores, other = scorer(ids, mask)["scores"], to_transformers(scorer, [])(input_ids=ids, attention_mask=mask)
    inside = mask == 1
    for name in ("start_logits", "end_logits"):
        values = theirs[name].clone()
        values[:, 0] += 0.75
        torch.testing.assert_close(ours[name][inside], values[inside])
    torch.testing.assert_close(scores[inside], other.logits[inside])


def test_architecture_without_an_equal_head_is_exported_as_encoder_alone(tmp_path: Path) -> None:
    network = SequenceClassifier(Encoder(backbone("distilbert", dim=48, n_layers=2, n_heads=4)), 3).eval()
    assert to_transformers(network, ["a", "b", "c"]) is None
    many = SequenceClassifier(Encoder(backbone("bert")), 30).eval()  # the average needs two places for each label
    assert to_transformers(many, [str(number) for number in range(30)]) is None
    pairs = PairClassifier(Encoder(backbone("bert")), 3).eval()
    assert to_transformers(pairs, ["a", "b", "c"]) is None
    write_tiny_bert(tmp_path)
    write_encoder(many, QuestionAnswering.from_options(), {}, tmp_path, 16)
    assert auto_class(tmp_path) == ""


def test_exported_folder_loads_by_auto_class_with_head_and_labels(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.config.id2label == {0: "bad", 1: "good"} and model.config.name_or_path in ("", str(folder))
    assert model.config.problem_type == "single_label_classification"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, "film plot " * 40]
    expected = load_predictor(folder, "fp32").predict(texts)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"} and inputs["input_ids"].shape[1] == 16
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1).numpy()
    ours = [[answer["probabilities"][label] for label in STATE["labels"]] for answer in expected]
    np.testing.assert_allclose(probabilities, ours, atol=1e-5)
    answers = pipeline("text-classification", model=str(folder))(texts, truncation=True)
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    np.testing.assert_allclose([a["score"] for a in answers], [a["probability"] for a in expected], atol=1e-5)


def test_card_shows_the_auto_class_and_the_measured_difference(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "AutoModelForSequenceClassification.from_pretrained" in card and 'pipeline("text-classification"' in card
    difference = read_json(folder.parent / "metrics.json")["checkpoint_max_difference"]
    assert 0 < difference < 1e-4
    assert f"{difference:.1e}" in card
    assert str(folder.parent) not in (folder / "config.json").read_text()


def test_exported_folder_as_pretrained_weights_gives_the_trained_encoder(folder: Path) -> None:
    from safetensors.torch import load_file

    encoder: Any = PretrainedEncoder.from_options().build_encoder(folder)
    trained = load_file(folder.parents[1] / "trained/model/model.safetensors")
    assert encoder.state_dict()
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, trained[f"encoder.{name}"], rtol=0, atol=0)
    assert encoder.config.num_hidden_layers == len(encoder.backbone.encoder.layer)
    assert not hasattr(encoder.config, "textmill_averaged")


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_vectors_load_in_sentence_transformers(tmp_path: Path, pooling: str) -> None:
    from sentence_transformers import SentenceTransformer

    write_tiny_bert(tmp_path)
    network = SentenceEncoder(PretrainedEncoder.from_options(pooling=pooling).build_encoder(tmp_path)).eval()
    write_encoder(network, SemanticSearch.from_options(), {}, tmp_path, 16)
    model = SentenceTransformer(str(tmp_path), device="cpu")
    assert model.max_seq_length == 16
    tokens = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = network(tokens["input_ids"], tokens["attention_mask"])["sentence_embedding"].numpy()
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)


def test_worst_errors_name_the_words_that_raise_the_wrong_answer(folder: Path) -> None:
    import pandas as pd

    from textmill.data.prepared import Prepared
    from textmill.evaluation.evaluate import _explained
    from textmill.models.base import Model
    from textmill.tasks.base import Task
    from textmill.text.occlusion import shown_gains
    from textmill.training.loading import load_network

    layout = Layout(folder.parents[2])
    task, prepared = Task.build(TASK), Prepared(layout.prepared)
    network = load_network(task, Model.build(MODEL), prepared.state, layout.trained).eval()
    predictor = load_predictor(folder, "fp32")
    texts = ["wonderful film boring plot", "film"]
    answers = predictor.predict(texts)
    errors = pd.DataFrame({"text": texts, "label": "other", "prediction": [answer["label"] for answer in answers]})
    found = _explained(errors, task, network, prepared)
    gains = predictor.explain(texts[0], answers[0])
    expected = shown_gains([each["word"] for each in gains], [each["gain"] for each in gains], 3)
    assert found["why"].tolist() == [expected, ""]
    assert _explained(errors.drop(columns="label"), task, network, prepared).equals(errors.drop(columns="label"))
