"""The evaluate stage on a tiny BERT: its files, its run, its report, and what stops it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.metrics import f1_score

from textmill.config.layout import Layout
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.data.shards import ShardWriter
from textmill.errors import UserError
from textmill.files import read_json, write_json

TASK = {"_target_": "textmill.tasks.text_classification.TextClassification"}
MODEL = {"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder"}
LABELS = ["good & bad", "so<so>"]
ROWS = 60
NASTY = '<script src="https://example.invalid/x.js">alert(1)</script> & "quotes"'


def write_split(folder: Path, rows: int, seed: int) -> None:
    """Rows of random tokens whose label stands in their words; every third text is HTML."""
    draw = np.random.default_rng(seed)
    label_id = draw.integers(0, 2, rows)
    ids = [draw.integers(5, 60, draw.integers(4, 30)).tolist() for _ in range(rows)]
    texts = [NASTY if i % 3 == 0 else f"text number {i}" for i in range(rows)]
    table = pa.table(
        {
            "id": [f"{folder.name}-{i}" for i in range(rows)],
            "text": texts,
            "label": [LABELS[i] for i in label_id],
            "words": [f"{'fine' if i == 0 else 'dull'} film {draw.integers(9)}" for i in label_id],
            "source": [("left", "right")[i % 2] for i in range(rows)],
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "length": pa.array([len(one) for one in ids], pa.int32()),
            "label_id": pa.array(label_id.tolist(), pa.int64()),
        }
    )
    with ShardWriter(folder, table.schema, 25) as writer:
        writer.write(table)


def make_project(root: Path) -> Layout:
    import torch

    from textmill.models.base import Model
    from textmill.tasks.base import Task
    from textmill.training.loading import save_network

    root.mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    layout = Layout(root)
    for seed, name in enumerate(("train", "validation", "test")):
        write_split(layout.prepared / name, ROWS, seed)
    write_json(layout.prepared / "state.json", {"labels": LABELS})
    write_json(layout.prepared / "statistics.json", {})
    torch.manual_seed(0)
    architecture = {
        "model_type": "bert",
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    model = Model.build(MODEL | {"architecture": architecture})
    network = Task.build(TASK).build_network(model, None, {"labels": LABELS})
    save_network(layout.trained / "model", network, network.state_dict())
    return layout


def evaluate_config(**changes) -> EvaluateConfig:
    values = {"seed": 1, "task": TASK, "model": MODEL, "resamples": 200, "min_slice": 10, "worst": 7}
    return EvaluateConfig.model_validate(values | changes)


RUNTIME = RuntimeConfig.model_validate(
    {"tracking_experiment": "tiny <b>reviews</b>", "trainer": {"accelerator": "cpu"}}
)


def run(layout: Layout, **changes) -> None:
    from textmill.stages import evaluate

    evaluate.main(evaluate_config(**changes), RUNTIME, layout)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    made = make_project(tmp_path_factory.mktemp("evaluate") / "project")
    run(made)
    return made


class Page(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(layout) -> Page:
    return Page((layout.evaluation / "report.html").read_text())


def test_metrics_are_those_of_the_stored_predictions(layout):
    metrics = read_json(layout.evaluation / "metrics.json")
    predictions = pd.read_parquet(layout.evaluation / "predictions.parquet")
    assert len(predictions) == ROWS
    wanted = f1_score(predictions["label"], predictions["prediction"], average="weighted")
    main = metrics["test"]["weighted_f1"]
    assert main["value"] == pytest.approx(wanted, abs=1e-6)
    assert main["low"] < main["value"] < main["high"]
    assert set(metrics["baselines"]) == {"majority", "tfidf_logistic_regression"}
    assert metrics["baselines"]["tfidf_logistic_regression"]["accuracy"]["value"] == 1.0
    lead = metrics["difference"]["tfidf_logistic_regression"]["weighted_f1"]
    assert lead["value"] == pytest.approx(main["value"] - 1, abs=1e-6)
    assert lead["high"] < 0
    assert next(iter(metrics["test"])) == "weighted_f1", "the main one stands first"
    leaves = pd.json_normalize(metrics).iloc[0]
    assert all(isinstance(value, float) for value in leaves)


def test_outputs_are_stored_in_the_order_of_the_rows(layout):
    import torch

    from textmill.data.prepared import Prepared
    from textmill.models.base import Model
    from textmill.tasks.base import Task
    from textmill.training.loading import load_network

    prepared = Prepared(layout.prepared)
    stored = np.load(layout.evaluation / "outputs.npz")["logits"]
    assert stored.dtype == np.float32
    network = load_network(Task.build(TASK), Model.build(MODEL), prepared.state, layout.trained)
    ids = prepared.split("test").column("input_ids").to_pylist()
    with torch.inference_mode():
        for row in (0, 17, ROWS - 1):
            one = torch.tensor([ids[row]])
            logits = network(input_ids=one, attention_mask=torch.ones_like(one))["logits"][0].numpy()
            np.testing.assert_allclose(stored[row], logits, atol=1e-5)
    predictions = pd.read_parquet(layout.evaluation / "predictions.parquet")
    assert predictions["id"].tolist() == prepared.frame("test", ["id"])["id"].tolist()


def test_plots_are_there_for_dvc(layout):
    plots = layout.evaluation / "plots"
    with (plots / "confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == ROWS
    assert set(rows[0]) == {"actual", "predicted"}
    assert {"confidence", "accuracy", "rows"} <= set(pd.read_csv(plots / "reliability.csv").columns)
    slices = pd.read_csv(plots / "slices.csv")
    assert set(slices["column"]) == {"length", "source"}
    assert slices.loc[slices["column"] == "source", "rows"].sum() == ROWS
    assert {path.name for path in plots.glob("*.png")} == {
        "confusion.png",
        "models.png",
        "reliability.png",
        "slices.png",
    }


def test_errors_are_the_worst_ones(layout):
    errors = pd.read_csv(layout.evaluation / "errors.csv")
    predictions = pd.read_parquet(layout.evaluation / "predictions.parquet")
    wrong = predictions[predictions["label"] != predictions["prediction"]]
    assert len(errors) == min(7, len(wrong)) == 7
    assert errors["confidence"].iloc[0] == pytest.approx(wrong["confidence"].max(), abs=1e-6)


def test_report_needs_no_other_file(layout, page):
    html = (layout.evaluation / "report.html").read_text()
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"} == set()
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4
    assert all(source.startswith("data:image/png;base64,") for source in images)
    addresses = [a for _, attributes in page.tags for n, a in attributes.items() if n in ("src", "href", "srcset")]
    assert all(address.startswith("data:") for address in addresses)
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|https?:", style)


def test_report_shows_texts_and_names_as_they_are(page):
    assert NASTY in page.text, "shown, not run"
    assert "tiny <b>reviews</b>: evaluation" in page.text
    assert "so<so>" in page.text
    assert "b" not in {tag for tag, _ in page.tags}


def test_report_shows_the_figures(layout, page):
    metrics = read_json(layout.evaluation / "metrics.json")
    main = metrics["test"]["weighted_f1"]
    assert f"{main['value']:.3f} [{main['low']:.3f}, {main['high']:.3f}]" in page.text
    lead = metrics["difference"]["tfidf_logistic_regression"]["weighted_f1"]
    assert f"{lead['value']:+.3f}" in page.text
    assert "worse" in page.text


def test_everything_is_in_the_tracking_store(layout):
    import mlflow

    run_id = read_json(layout.evaluation / "run.json")["run_id"]
    client = mlflow.MlflowClient(f"sqlite:///{layout.root / 'mlflow.db'}")
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    metrics = read_json(layout.evaluation / "metrics.json")
    logged = found.data.metrics
    assert logged["test/weighted_f1"] == pytest.approx(metrics["test"]["weighted_f1"]["value"], abs=1e-6)
    assert logged["test/weighted_f1_low"] == pytest.approx(metrics["test"]["weighted_f1"]["low"], abs=1e-6)
    assert logged["baseline/tfidf_logistic_regression/accuracy"] == 1
    assert "difference/majority/weighted_f1_high" in logged
    assert "test/f1/so_so_" in logged, "characters that the store refuses are replaced"
    artefacts = {entry.path for entry in client.list_artifacts(run_id, "evaluation")}
    assert {"evaluation/report.html", "evaluation/errors.csv", "evaluation/plots"} <= artefacts


def test_a_second_run_gives_the_same_bytes(layout):
    before = {p.name: p.read_bytes() for p in layout.evaluation.rglob("*") if p.is_file() and p.name != "run.json"}
    run(layout)
    after = {p.name: p.read_bytes() for p in layout.evaluation.rglob("*") if p.is_file() and p.name != "run.json"}
    assert [name for name in before if before[name] != after[name]] == []


def test_a_diverged_model_fails_and_leaves_the_earlier_outputs(tmp_path, layout):
    import mlflow
    from safetensors.numpy import load_file, save_file

    broken = make_project(tmp_path / "project")
    write_json(broken.evaluation / "metrics.json", {"earlier": 1.0})
    path = broken.trained / "model" / "model.safetensors"
    weights = load_file(path)
    weights["output.bias"] = np.full_like(weights["output.bias"], np.nan)
    save_file(weights, path)
    with pytest.raises(UserError, match="data/trained: the trained network computes values that are not finite"):
        run(broken)
    assert [p.name for p in broken.evaluation.iterdir()] == ["metrics.json"]
    assert [p.name for p in broken.evaluation.parent.iterdir() if p.name.startswith(".")] == []
    client = mlflow.MlflowClient(f"sqlite:///{broken.root / 'mlflow.db'}")
    (failed,) = client.search_runs([client.get_experiment_by_name(RUNTIME.tracking_experiment).experiment_id])
    assert failed.info.status == "FAILED"


def test_an_unknown_slice_column_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"evaluate\.slice_columns: the test split has no column 'topic'"):
        run(make_project(tmp_path / "project"), slice_columns=["topic"])


@pytest.mark.parametrize(
    ("folder", "message"), [("prepared", "no prepared data here"), ("trained", "no trained model here")]
)
def test_a_missing_input_is_told(tmp_path, folder, message):
    import shutil

    project = make_project(tmp_path / "project")
    shutil.rmtree(getattr(project, folder))
    with pytest.raises(UserError, match=message):
        run(project)
    assert not project.evaluation.exists()


def test_dvc_reads_metrics_and_plots(tmp_path, layout):
    import shutil
    import sys

    shutil.copytree(layout.evaluation, tmp_path / "data" / "evaluation")
    (tmp_path / "dvc.yaml").write_text(
        "metrics: [data/evaluation/metrics.json]\n"
        "plots:\n"
        "  - Confusion: {template: confusion, x: actual, y: {data/evaluation/plots/confusion.csv: predicted}}\n"
    )

    def dvc(*arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    dvc("init", "--no-scm", "--quiet")
    shown = json.loads(dvc("metrics", "show", "--json"))
    assert shown[""]["data"]["data/evaluation/metrics.json"]["data"]["test"]["weighted_f1"]["value"] > 0
    assert "rect" in dvc("plots", "show", "--show-vega", "Confusion")
