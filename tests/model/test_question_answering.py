"""Question answering through the stages: windows, the figures, the exported folder, answers in the user's own text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.faults import rounds
from support.fuzzing import Client, check_server, send_requests_of_schema
from support.serving import served
from support.tiny_questions import MAX_LENGTH, MODEL, TASK, prepared_project, run_stages

from textmill.config.layout import Layout
from textmill.data.prepared import Prepared
from textmill.evaluation.drift import measure_drift
from textmill.evaluation.evaluator import evaluator_of, predict_rows
from textmill.evaluation.reference import read_reference
from textmill.files import read_json
from textmill.models.base import Model
from textmill.predicting.loading import load_predictor
from textmill.predicting.predictor import Predictor
from textmill.tasks.abilities import drift_features_of, examples_of
from textmill.tasks.base import Task
from textmill.text.answers import read_answers
from textmill.training.inference import predict_table
from textmill.training.loading import load_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = prepared_project(tmp_path_factory.mktemp("questions") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run_stages(layout)
    return layout


def test_whole_articles_are_in_one_split(project: Layout) -> None:
    prepared = Prepared(project.prepared)
    articles = [set(prepared.frame(name)["source"]) for name in ("train", "validation", "test")]
    assert [len(found) for found in articles] == [4, 2, 2]
    assert not articles[0] & articles[1] | articles[0] & articles[2] | articles[1] & articles[2]


def test_windows_hold_every_token_of_the_context_and_the_answer_where_it_is(project: Layout) -> None:
    prepared = Prepared(project.prepared)
    task = Task.build(TASK)
    examples = examples_of(task, prepared.split("train"))
    frame = examples.frame()
    assert len(examples) > len(frame), "some contexts are longer than a window"
    windows = examples.__getitems__(list(range(len(examples))))
    assert [len(ids) for ids in windows["input_ids"]] == examples.lengths.tolist()
    assert max(examples.lengths) <= MAX_LENGTH
    assert [list(ids) for ids in windows["input_ids"]] == [list(ids) for ids in examples.columns()["input_ids"]]
    first = 0
    for row in frame.itertuples():
        covered: set[int] = set()
        held = []
        at = 0
        for number, length in enumerate(row.window_lengths):
            starts, ends = row.token_starts[at : at + length], row.token_ends[at : at + length]
            covered.update(position for a, b in zip(starts, ends, strict=True) if a >= 0 for position in range(a, b))
            begin, last = row.start_position[number], row.end_position[number]
            assert windows["start_position"][first + number] == begin
            if begin:
                held.append(row.context[starts[begin] : ends[last]])
            at += length
        first += len(row.window_lengths)
        assert covered == {position for position, sign in enumerate(row.context) if not sign.isspace()}
        assert set(held) == {answer.text for answer in read_answers(row.answers, row.context)}


def test_order_of_batches_does_not_change_what_a_window_gets(project: Layout) -> None:
    task, prepared = Task.build(TASK), Prepared(project.prepared)
    network = load_network(task, Model.build(MODEL), prepared.state, project.trained)
    table = prepared.split("test")
    together = predict_table(network, task, table, tokens_per_batch=4096)
    alone = predict_table(network, task, table, tokens_per_batch=1)
    np.testing.assert_allclose(together["start_logits"], alone["start_logits"], atol=1e-5, equal_nan=True)


def test_figures_stand_beside_both_baselines(project: Layout) -> None:
    metrics = read_json(project.evaluation / "metrics.json")
    assert set(metrics["baselines"]) == {"no_answer", "best_sentence"}
    table = pd.read_parquet(project.evaluation / "predictions.parquet")
    assert metrics["test"]["f1"]["value"] == pytest.approx(table["f1"].mean(), abs=1e-6)
    assert metrics["baselines"]["no_answer"]["f1"]["value"] == pytest.approx(1 - table["answerable"].mean(), abs=1e-6)
    details = read_json(project.evaluation / "figures.json")["test"]
    answerable = table[table["answerable"] == 1]
    assert details["exact_match/with answer"]["value"] == pytest.approx(answerable["exact_match"].mean(), abs=1e-6)
    report = (project.evaluation / "report.html").read_text()
    assert "Answering and declining" in report and "best sentence" in report


def test_margin_chosen_on_validation_is_in_the_weights(project: Layout) -> None:
    task, prepared = Task.build(TASK), Prepared(project.prepared)
    network = load_network(task, Model.build(MODEL), prepared.state, project.trained)
    chosen = read_json(project.trained / "metrics.json")
    assert float(network.no_answer_bias) == pytest.approx(chosen["no_answer_bias"], rel=1e-5)
    outputs = predict_table(network, task, prepared.split("validation"))
    table = evaluator_of(task).predictions(
        outputs, examples_of(task, prepared.split("validation")).frame(), prepared.state
    )
    assert table["f1"].mean() == pytest.approx(chosen["f1"], abs=1e-6)


@pytest.mark.fault
def test_server_of_question_answering_answers_random_requests(project: Layout, tmp_path: Path) -> None:
    with served(tmp_path, tmp_path / "log", str(project.exported / "model")) as server:
        client = Client(server.port)
        send_requests_of_schema(server, client, rounds(60, 2000))
        check_server(server, client, rounds(60, 2000))


def test_export_keeps_parity(project: Layout) -> None:
    measured = read_json(project.exported / "metrics.json")
    assert measured["onnx_max_difference"] < 1e-4
    card = (project.exported / "model/README.md").read_text()
    assert '"question": "When was the mill built?"' in card


def test_exported_model_answers_with_passages_of_the_text_as_it_was_given(project: Layout) -> None:
    predictor = load_predictor(project.exported / "model", "fp32")
    context = "  \ufb01lm plot wonderful donâ€™t actor awful here " + "really " * 40 + "scene superb  "
    answers = predictor.predict([{"question": word, "context": context} for word in ("plot", "actor", "scene")])
    for answer in answers:
        assert context[answer["start"] : answer["end"]] == answer["answer"]
        assert 0.5 <= answer["score"] <= 1
    assert predictor.predict([{"question": "plot", "context": context}])[0] == pytest.approx(answers[0])


def test_predictions_of_another_encoding_are_told_apart_by_id(project: Layout) -> None:
    """What `promote` measures: the model encodes the rows itself, whatever windows they were prepared with."""
    predictor = load_predictor(project.exported / "model", "fp32")
    frame = Prepared(project.prepared).frame("test").drop(columns=["input_ids"])
    expected = predict_rows(predictor, frame)
    shorter = Predictor(
        predictor.exported.model_copy(update={"max_length": MAX_LENGTH - 6}), predictor.tokenizer, predictor.session
    )
    found = predict_rows(shorter, frame)
    assert found["id"].tolist() == expected["id"].tolist() == frame["id"].tolist()
    stored = pd.read_parquet(project.evaluation / "predictions.parquet")
    assert expected["prediction"].tolist() == stored["prediction"].tolist()


def test_graph_takes_any_number_of_windows(project: Layout) -> None:
    predictor = load_predictor(project.exported / "model", "fp32")
    task = Task.build(TASK)
    outputs = predictor.outputs_of_ids([[2, 7, 3, 9, 10, 3], [2, 7, 3, 9, 3]])
    assert outputs["start_logits"].shape == (2, 6)
    assert np.isnan(outputs["start_logits"][1, 5]) and not np.isnan(outputs["start_logits"][1, :5]).any()
    assert task.sequences({"input_ids": [[1, 2, 3]], "window_lengths": [[2, 1]]}) == {"input_ids": [[1, 2], [3]]}


def test_folder_can_be_trained_further(project: Layout, tmp_path: Path) -> None:
    network = Task.build(TASK).build_network(Model.build(MODEL), project.exported / "model", {})
    assert float(network.no_answer_bias) == 0.0, "what one training chose is no start for the next"


def test_outputs_of_texts_of_any_length_can_be_compared_for_drift(project: Layout) -> None:
    reference = read_reference(project.exported / "model")
    predictor = load_predictor(project.exported / "model", "fp32")
    frame = pd.DataFrame({"question": ["plot"] * 3, "context": ["plot superb", "plot awful here", "film"]})
    outputs, answers = predictor.answer_rows(frame, frame)
    found = measure_drift(reference, frame, {}, drift_features_of(predictor.task, outputs), answers)
    assert found.outputs is not None and found.outputs[0].shape[1] == found.outputs[1].shape[1] == 4
