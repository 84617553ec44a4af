"""Summaries through the stages: by a text's own sentences, and written by a decoder above a pretrained encoder."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from support.project import PLACES, SUBJECTS, write_tiny_bert
from support.tiny_pairs import prepared_project, run_stages

from textmill.config.layout import Layout
from textmill.data.prepared import Prepared
from textmill.files import read_json
from textmill.predicting.loading import load_predictor
from textmill.predicting.text_generator import TextGenerator
from textmill.tasks.extractive_summarisation import ExtractiveSummarisation

EXTRACTIVE = {
    "_target_": "textmill.tasks.extractive_summarisation.ExtractiveSummarisation",
    "selected": 1,
    "examples": ["Film plot music. Superb ending here. Script scene."],
}
WRITTEN = {
    "_target_": "textmill.tasks.summarisation.Summarisation",
    "end_of_text": "[SEP]",
    "generation": {"temperature": 0.0, "beams": 2, "max_new_tokens": 8},
    "examples": ["Film plot music. Superb ending here. Script scene."],
}
ENCODER = {"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder", "dropout": 0.0, "hidden_dropout": 0.0}
WARM = {"_target_": "textmill.models.warm_start.WarmStart", "decoder_layers": 1, "max_target_length": 16}


def rows(count: int, seed: int = 2) -> list[dict[str, Any]]:
    """Texts of four sentences, of which the one with `superb` tells it all."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        sentences = [" ".join(draw.choices([*SUBJECTS, *PLACES], k=4)) for _ in range(3)]
        sentences[-1] += "".join(f" {word}" for word in draw.choices(PLACES, k=draw.randrange(4)))
        main = f"superb {draw.choice(SUBJECTS)} {draw.choice(PLACES)}"
        sentences.insert(draw.randrange(4), main)
        text = " ".join(f"{sentence.capitalize()}." for sentence in sentences)
        references = json.dumps([main, f"the {main}"]) if number % 2 else None
        found.append({"text": text, "summary": main, "references": references})
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def make(task: dict[str, Any], model: dict[str, Any], **train: Any) -> Layout:
        root = tmp_path_factory.mktemp("summaries") / "project"
        write_tiny_bert(root / "data/pretrained")
        origin = {"origin": "package:tiny==1", "version": "1", "sha256": "0" * 64}
        (root / "data/pretrained/provenance.json").write_text(json.dumps(origin))
        columns = {name: name for name in ("text", "summary", "references")}
        layout = prepared_project(
            root,
            [*rows(300), {"text": "---", "summary": "x", "references": None}, {"text": "Film.", "summary": None}],
            task=task,
            read={"columns": columns},
            tokenizer={"kind": "pretrained"},
            max_length=48,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            run_stages(layout, task, model, **train)
        return layout

    return make


@pytest.fixture(scope="module")
def extractive(prepared: Any) -> Layout:
    layout: Layout = prepared(EXTRACTIVE, ENCODER, optimizer={"learning_rate": 0.003}, max_epochs=3)
    return layout


def test_tokens_know_their_sentence(extractive: Layout) -> None:
    frame = Prepared(extractive.prepared).frame("test")
    for row in frame.to_dict("records"):
        units = list(row["units"])
        assert len(units) == len(row["input_ids"]) == row["length"]
        assert units[0] == units[-1] == -1 and sorted({unit for unit in units if unit >= 0}) == [0, 1, 2, 3]
        assert len(row["gains"]) == 4
        said = next(sentence for sentence in row["text"].split(". ") if "uperb" in sentence)
        assert row["text"].split(". ").index(said) == max(range(4), key=lambda unit: row["gains"][unit])


def test_the_sentence_that_tells_most_is_found_and_beats_the_beginning(extractive: Layout) -> None:
    metrics = read_json(extractive.evaluation / "metrics.json")
    assert list(metrics["test"]) == ["rouge1", "rouge2", "rougeL"]
    assert metrics["difference"]["lead"]["rougeL"]["low"] > 0
    rejects = (extractive.prepared / "rejects.csv").read_text()
    assert "has no sentences to select" in rejects and "summary,is empty" in rejects


def test_an_exported_graph_chooses_the_same(extractive: Layout) -> None:
    predictor = load_predictor(extractive.exported / "model", "fp32")
    [answer] = predictor.predict(["Film plot here. Superb music today. Script scene plot."])
    assert set(answer) == {"summary", "sentences", "scores"}
    assert answer["summary"] == " ".join(answer["sentences"]) == "Superb music today."
    assert read_json(extractive.exported / "metrics.json")["onnx_max_difference"] < 1e-3


def test_batches_of_any_width_give_the_same_outputs(extractive: Layout) -> None:
    import numpy as np

    from textmill.export.parity import max_difference

    ids = Prepared(extractive.prepared).frame("test")["input_ids"].tolist()
    assert len({len(row) for row in ids}) > 3
    predictor = load_predictor(extractive.exported / "model", "fp32")
    together = predictor.outputs_of_ids(ids)
    predictor.tokens_per_batch = 1
    alone = predictor.outputs_of_ids(ids)
    assert max_difference(together, alone) < 1e-4
    assert [int(np.isfinite(row).sum()) for row in alone["scores"]] == [len(row) for row in ids]


def test_what_was_not_read_is_not_chosen() -> None:
    import numpy as np

    task = ExtractiveSummarisation.from_options(selected=2)
    scores = np.zeros((1, 6, 1), np.float32)
    scores[0, :, 0] = [9, 1, 1, 5, 5, 9]
    rows_ = {"text": ["One is here. Two is there. Three is gone."], "units": [[-1, 0, 0, 1, 1, -1]]}
    [answer] = task.answers({"scores": scores}, rows_, rows_, {})
    assert answer["sentences"] == ["One is here.", "Two is there."] and answer["scores"] == [1.0, 5.0]


def test_a_decoder_above_a_pretrained_encoder_is_trained_exported_and_writes(prepared: Any) -> None:
    layout: Layout = prepared(WRITTEN, WARM, optimizer={"learning_rate": 0.003}, max_epochs=2)
    metrics = read_json(layout.evaluation / "metrics.json")
    assert metrics["findings"]["loss"] < 3.2, "less than a guess among 42 tokens"
    stored = read_json(layout.exported / "examples.json")
    writer = load_predictor(layout.exported / "model")
    assert isinstance(writer, TextGenerator)
    assert writer.predict(stored["inputs"]) == stored["outputs"] and set(stored["outputs"][0]) == {"summary"}
    assert (layout.exported / "model/config.json").is_file()
