"""Tasks over pairs of texts, from a file to the answers of the exported model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.project import NEGATIVE, POSITIVE, SUBJECTS, write_tiny_bert

from textmill.config.layout import Layout
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import TrainConfig
from textmill.data.prepare import prepare
from textmill.errors import UserError
from textmill.predicting.loading import load_predictor
from textmill.tasks.base import Task

MODEL = {"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder", "dropout": 0.0, "hidden_dropout": 0.0}
RUNTIME = RuntimeConfig.model_validate(
    {"trainer": {"accelerator": "cpu", "devices": 1}, "progress": "plain", "tracking_experiment": "pairs"}
)
TASKS = {
    "search": "textmill.tasks.semantic_search.SemanticSearch",
    "similarity": "textmill.tasks.semantic_similarity.SemanticSimilarity",
    "entailment": "textmill.tasks.textual_entailment.TextualEntailment",
}
MAIN = {"search": "mean_reciprocal_rank", "similarity": "spearman", "entailment": "weighted_f1"}


def rows(kind: str, number: int) -> list[dict[str, Any]]:
    """Pairs that share words as far as the target says."""
    chooser = random.Random(4)
    words = [*SUBJECTS, *POSITIVE, *NEGATIVE]
    made = []
    for index in range(number):
        first = chooser.sample(words, 5)
        shared = 5 if kind == "search" else chooser.choice([0, 5]) if kind == "entailment" else chooser.randint(0, 5)
        rest = chooser.sample([word for word in words if word not in first], 5 - shared)
        second = [*first[:shared], *rest]
        chooser.shuffle(second)
        row: dict[str, Any] = {"one": " ".join(first), "other": " ".join(second)}
        row |= {"similarity": {"value": shared}, "entailment": {"value": "yes" if shared else "no"}}.get(kind, {})
        made.append(row | {"number": index})
    return made


def prepare_config(kind: str, **options: Any) -> PrepareConfig:
    columns = {"text_a": "one", "text_b": "other"}
    columns |= {"similarity": {"score": "value"}, "entailment": {"label": "value"}}.get(kind, {})
    values = {"task": {"_target_": TASKS[kind]}, "read": {"columns": columns}, "duplicates": {"near": False}}
    return PrepareConfig.model_validate(values | {"max_length": 32, **options})


def project(root: Path, kind: str, lines: list[dict[str, Any]]) -> Layout:
    layout = Layout(root)
    (layout.raw / "files/all").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (layout.raw / "files/all/pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_tiny_bert(layout.pretrained)
    provenance = {"origin": "made up", "version": None, "licence": None, "sha256": None}
    for folder in (layout.raw, layout.pretrained):
        (folder / "provenance.json").write_text(json.dumps(provenance))
    return layout


@pytest.fixture(scope="module", params=list(TASKS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Layout]:
    """A project in which every stage up to the export has run."""
    from textmill.data.prepared import Prepared
    from textmill.evaluation.evaluate import evaluate
    from textmill.evaluation.report import write_evaluation
    from textmill.export.export import export
    from textmill.training.loading import save_network
    from textmill.training.trainer import Training

    kind = str(request.param)
    layout = project(tmp_path_factory.mktemp(kind) / "project", kind, rows(kind, 160))
    prepare(prepare_config(kind), RUNTIME, layout)
    common = {"task": {"_target_": TASKS[kind]}, "model": MODEL, "seed": 1}
    optimizer = {"learning_rate": 5e-3, "head_multiplier": 2}
    train = TrainConfig.model_validate(
        common | {"max_epochs": 6, "optimizer": optimizer, "batches": {"tokens": 256}, "precision": "32-true"}
    )
    trained = Training(train, RUNTIME, Prepared(layout.prepared), layout.pretrained, layout.checkpoints).run()
    save_network(layout.trained / "model", trained.network, trained.weights)
    config = EvaluateConfig.model_validate(common | {"resamples": 100, "min_slice": 2})
    layout.evaluation.mkdir()
    write_evaluation(evaluate(config, RUNTIME, layout), config, "Pairs", layout.evaluation)
    options = {name: value for name, value in common.items() if name != "seed"}
    export(ExportConfig(title="Pairs", max_length=32, int8_tolerance=1.0, **options), layout, layout.exported)
    return kind, layout


@pytest.mark.slow
def test_every_stage_knows_pairs(made: tuple[str, Layout]) -> None:
    kind, layout = made
    metrics = json.loads((layout.evaluation / "metrics.json").read_text())
    figure = metrics["test"][MAIN[kind]]
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert figure["value"] > (0.5 if kind == "similarity" else 0.7)
    assert (
        set(metrics["baselines"])
        == {
            "search": {"bm25", "tfidf"},
            "similarity": {"tfidf", "word_overlap"},
            "entailment": {"majority", "tfidf_logistic_regression"},
        }[kind]
    )
    assert (layout.evaluation / "report.html").is_file()
    card = (layout.exported / "model/README.md").read_text()
    assert "text_a" in card


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_exported_model_answers_pairs_and_single_texts(made: tuple[str, Layout], precision: Any) -> None:
    kind, layout = made
    predictor = load_predictor(layout.exported / "model", precision)
    film, other = "film plot wonderful great scene", "awful terrible music camera script"
    pair, alone, unlike = predictor.predict([{"text_a": film, "text_b": film}, film, {"text_a": film, "text_b": other}])
    assert np.linalg.norm(alone["embedding"]) == pytest.approx(1, abs=1e-4)
    assert predictor.predict([{"text": film}])[0]["embedding"] == pytest.approx(alone["embedding"], abs=1e-5)
    if kind == "entailment":
        assert pair["label"] == "yes" and unlike["label"] == "no"
        assert sum(pair["probabilities"].values()) == pytest.approx(1)
    else:
        assert pair["similarity"] == pytest.approx(1, abs=1e-4)
        assert unlike["similarity"] < 0.9


@pytest.mark.slow
def test_graphs_give_what_the_network_gave(made: tuple[str, Layout]) -> None:
    _, layout = made
    parity = json.loads((layout.exported / "model/textmill.json").read_text())
    assert parity["outputs"] == ["sentence_embedding"]
    reference = json.loads((layout.exported / "model/reference.json").read_text())
    assert reference["outputs"] and len(reference["outputs"][0]) <= 32


@pytest.mark.slow
@pytest.mark.parametrize("made", ["search"], indirect=True)
def test_mined_pairs_exported_encoder_ranks_by_its_cosines(made: tuple[str, Layout], tmp_path: Path) -> None:
    from textmill.predicting.mined_pairs import MinedPairsSource

    model = made[1].exported / "model"
    lines = rows("search", 20)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = {"_target_": "textmill.fetching.sources.files.FilesSource", "files": {"test": "pairs.jsonl"}}
    source = MinedPairsSource.from_options(pairs=pairs, query="one", document="other", encoder=str(model), depth=4)
    source.fetch(tmp_path / "out", tmp_path)
    found = [json.loads(line) for line in (tmp_path / "out/test/pairs.jsonl").read_text().splitlines()]
    predictor = load_predictor(model)
    queries, documents = (
        np.array([answer["embedding"] for answer in predictor.predict([line[name] for line in lines])])
        for name in ("one", "other")
    )
    place = {line["other"]: number for number, line in enumerate(lines)}
    for row in found:
        cosines = documents @ queries[[line["one"] for line in lines].index(row["query"])]
        assert row["first_rank"] == 1 + (cosines > cosines[place[row["document"]]]).sum()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "input 1: the text_a is empty"),
        ({"text_a": "film"}, "neither a text nor a pair"),
        ({"text_a": "film", "text_b": " "}, "the text_b is empty"),
        ({"text_a": "film", "text_b": 3}, "the text_b is not a text: '3'"),
        (7, "neither a text nor a record: '7'"),
    ],
)
@pytest.mark.parametrize("kind", list(TASKS))
def test_inputs_that_are_no_pair(kind: str, value: Any, message: str) -> None:
    task = Task.build({"_target_": TASKS[kind]})
    with pytest.raises(UserError, match=message):
        task.parse_inputs([value])
    with pytest.raises(UserError, match="no input"):
        task.parse_inputs([])


@pytest.mark.parametrize(
    ("kind", "bad", "column", "reason"),
    [
        ("similarity", {"value": 6}, "score", "is 6, not between 0 and 5"),
        ("similarity", {"value": "much"}, "score", "is not a number: 'much'"),
        ("similarity", {"value": None}, "score", "is missing"),
        ("similarity", {"value": "nan"}, "score", "is nan, not between 0 and 5"),
        ("entailment", {"value": None}, "label", "is missing"),
        ("search", {"other": "  "}, "text_b", "shorter than"),
        ("search", {"one": None}, "text_a", "is empty"),
    ],
)
def test_bad_rows_are_rejected_with_their_line(
    tmp_path: Path, kind: str, bad: dict[str, Any], column: str, reason: str
) -> None:
    lines = rows(kind, 60)
    lines[6] |= bad
    layout = project(tmp_path / "project", kind, lines)
    prepare(prepare_config(kind), RUNTIME, layout)
    [reject] = pd.read_csv(layout.prepared / "rejects.csv").to_dict("records")
    assert (reject["row"], reject["column"]) == (7, column)
    assert reason in reject["reason"] or "is empty" in reject["reason"]


def test_training_splits_that_teach_nothing() -> None:
    same = pd.DataFrame({"text_a": ["x"], "text_b": ["y"], "score": ["1"], "label": ["yes"]})
    for target in TASKS.values():
        with pytest.raises(UserError, match=r"the training split"):
            Task.build({"_target_": target}).fit([same])
