"""Exported folders: parity with PyTorch, free axes, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.faults import rounds
from support.tiny_export import MODEL, RUNTIME, STATE, TASK, build_evaluated_project, export_config

from textmill.config.layout import Layout
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.export import parity
from textmill.files import folder_digests, read_json, sha256_folder
from textmill.metrics.bootstrap import Interval
from textmill.models.base import Model
from textmill.predicting.loading import Precision, load_predictor
from textmill.predicting.predictor import open_session
from textmill.stages import export as stage
from textmill.tasks.base import Task
from textmill.training.loading import load_network


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return build_evaluated_project(tmp_path_factory.mktemp("export") / "project")


@pytest.fixture(scope="module")
def exported(evaluated: Layout) -> Layout:
    stage.main(export_config(), RUNTIME, evaluated)
    return evaluated


@pytest.fixture
def model(exported: Layout, tmp_path: Path) -> Path:
    """A copy of the exported model of the test's own."""
    return Path(shutil.copytree(exported.exported / "model", tmp_path / "model"))


@pytest.mark.parametrize(("rows", "length"), [(1, 3), (5, 40), (1, 1), (3, 64)])
def test_graph_answers_like_the_network_at_any_size(exported: Layout, rows: int, length: int) -> None:
    import torch

    network = load_network(Task.build(TASK), Model.build(MODEL), STATE, exported.trained)
    ids = np.random.default_rng(rows).integers(5, 40, (rows, length))
    mask = np.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    with torch.inference_mode():
        expected = network(torch.from_numpy(ids), torch.from_numpy(mask))["logits"].numpy()
    session = open_session(exported.exported / "model/model.onnx")
    found = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
    assert found.shape == (rows, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_graph_axes_are_free_and_named(exported: Layout) -> None:
    for graph in ("model.onnx", "model.int8.onnx"):
        for value in open_session(exported.exported / "model" / graph).get_inputs():
            assert value.shape == ["batch", "sequence"]
            assert value.type == "tensor(int64)"


def test_int8_is_quantized_and_smaller(exported: Layout) -> None:
    import onnx

    folder = exported.exported / "model"
    operators = {node.op_type for node in onnx.load(folder / "model.int8.onnx").graph.node}
    assert "MatMulIntegerToFloat" in operators
    figures = read_json(exported.exported / "metrics.json")
    assert figures["onnx_max_difference"] <= 1e-4
    assert figures["int8_loss"] == pytest.approx(figures["fp32"] - figures["int8"])
    assert figures["int8_loss_low"] <= figures["int8_loss"] <= figures["int8_loss_high"]
    assert figures["int8_megabytes"] < figures["fp32_megabytes"]


def test_folder_is_whole(exported: Layout) -> None:
    folder = exported.exported / "model"
    manifest = read_json(folder / "manifest.json")
    digests = folder_digests(folder)
    assert digests.pop("manifest.json")
    assert manifest == digests
    assert {"model.safetensors", "config.json", "tokenizer.json", "textmill.json", "README.md"} <= manifest.keys()
    assert {"model.onnx", "model.int8.onnx", "provenance.json"} <= manifest.keys()
    provenance = read_json(folder / "provenance.json")
    assert provenance["corpus"]["sha256"] == "c" * 64
    assert provenance["trained"] == sha256_folder(exported.trained / "model")
    assert provenance["prepared"]["test"] == Prepared(exported.prepared).digest("test")
    assert read_json(exported.exported / "run.json")["run_id"]


def test_card_tells_figures_and_provenance(exported: Layout) -> None:
    card = (exported.exported / "model/README.md").read_text()
    assert "0.9000 [0.8000, 0.9500]" in card
    assert "0.3000 [0.2000, 0.4000]" in card
    assert "package:corpus, version 2.0" in card
    assert "MIT" in card
    assert "34 test rows" in card
    assert "bad, good" in card


def test_card_of_weights_from_scratch_and_own_files(evaluated: Layout, tmp_path: Path) -> None:
    layout = Layout(Path(shutil.copytree(evaluated.root, tmp_path / "project")))
    (layout.pretrained / "provenance.json").write_text('{"origin": null}')
    (layout.raw / "provenance.json").write_text(
        '{"origin": "data/own/reviews.csv", "version": null, "licence": null, "sha256": null}'
    )
    stage.main(export_config(), RUNTIME, layout)
    card = (layout.exported / "model/README.md").read_text()
    assert "| pretrained weights | none: trained from scratch |" in card
    assert "| corpus | data/own/reviews.csv |" in card


def test_weights_are_fp32(exported: Layout) -> None:
    import torch
    from safetensors.torch import load_file

    weights = load_file(exported.exported / "model/model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_half_precision_weights_are_stored_in_full(tmp_path: Path, evaluated: Layout) -> None:
    import torch
    from safetensors.torch import load_file

    from textmill.predicting.weights import write_weights

    network = load_network(Task.build(TASK), Model.build(MODEL), STATE, evaluated.trained).bfloat16()
    write_weights(network, tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_stored_answers_are_those_of_the_predictor(exported: Layout) -> None:
    examples = read_json(exported.exported / "examples.json")
    assert len(examples["inputs"]) == 32
    assert load_predictor(exported.exported / "model").predict(examples["inputs"]) == examples["outputs"]
    assert {answer["label"] for answer in examples["outputs"]} == {"bad", "good"}


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("threads", [1, 2])
def test_predictor_any_batch_gives_the_same_bits_as_alone(exported: Layout, precision: Precision, threads: int) -> None:
    """Scales by row, and every row is computed at its own padded length only."""
    predictor = load_predictor(exported.exported / "model", precision, threads=threads)
    draw = np.random.default_rng(0)
    ids = [draw.integers(5, 40, length).tolist() for length in [1, 2, 3, 3, 3, *draw.integers(1, 64, 60)]]
    alone = np.concatenate([predictor.outputs_of_ids([row])["logits"] for row in ids])
    np.testing.assert_array_equal(predictor.outputs_of_ids(ids)["logits"], alone)
    for _ in range(rounds(20, 300)):
        chosen = draw.permutation(len(ids))[: draw.integers(2, 40)]
        together = predictor.outputs_of_ids([ids[row] for row in chosen])["logits"]
        np.testing.assert_array_equal(together, alone[chosen])
    texts = ["wonderful film", "boring " * 40, "story", "great great plot overall"]
    assert predictor.predict(texts) == [predictor.predict([text])[0] for text in texts]


def test_int8_sums_of_two_products_fit_16_bits(exported: Layout) -> None:
    """Processors without VNNI add two products of an activation (0 to 255) and a weight in 16 bits (vpmaddubsw)."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(exported.exported / "model/model.int8.onnx").graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert products
    for node in products:
        levels = weights[node.input[1]].astype(int)
        assert levels.dtype == int
        assert np.abs(levels).max() > 32  # the seven bits are used
        highest = 255 * (np.abs(levels[:-1]) + np.abs(levels[1:])).max()
        assert highest <= np.iinfo(np.int16).max


def test_int8_product_equals_its_definition(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from textmill.export.graphs import write_int8

    draw = np.random.default_rng(1)
    weights = draw.standard_normal((24, 7)).astype(np.float32)
    weights[:, 3] = 0
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", size]) for name, size in (("x", 24), ("y", 7))
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], [numpy_helper.from_array(weights, "w")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "fp32.onnx"
    )
    write_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    given = draw.standard_normal((2, 5, 24)).astype(np.float32) * 10.0 ** draw.integers(-3, 4, (2, 5, 1))
    given[1, 2] = 0
    given = given.astype(np.float32)
    found = open_session(tmp_path / "int8.onnx").run(None, {"x": given})[0]
    most = np.maximum(np.abs(given).max(axis=-1, keepdims=True), np.float32(1e-12))
    step = most * np.float32(1 / 127)
    units = np.maximum(np.abs(weights).max(axis=0), 1e-12) / 63
    expected = np.rint(given / step).astype(float) @ np.rint(weights / units) * step * units
    assert (np.abs(found - expected) <= 1e-5 * most * np.abs(weights).sum(axis=0)).all()
    assert not found[1, 2].any()


def test_text_beyond_the_models_positions_is_cut(exported: Layout) -> None:
    """Training ends with one line at such a text, so the end that is cut off was never learned from."""
    predictor = load_predictor(exported.exported / "model")
    assert predictor.exported.max_length == 64  # `prepare.max_length` is 256
    assert predictor.lengths(["film " * 500]) == [64]
    assert predictor.predict(["film " * 500]) == predictor.predict(["film " * 62])


def test_served_texts_are_cleaned_like_training_ones(exported: Layout) -> None:
    predictor = load_predictor(exported.exported / "model")
    assert predictor.predict(["  great ﬁlm "]) == predictor.predict(["great film"])


# -- refusals --------------------------------------------------------------------------------


def test_wrong_graph_fails_the_stage_and_keeps_the_earlier_export(
    exported: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_digests(exported.exported)
    outputs = exported.evaluation / "outputs.npz"
    stored = outputs.read_bytes()
    with np.load(outputs) as values:
        logits = values["logits"].copy()
    logits[3, 1] += 0.001
    np.savez(outputs, logits=logits)
    try:
        with pytest.raises(UserError, match=r"differ from PyTorch by 0.001"):
            stage.main(export_config(), RUNTIME, exported)
    finally:
        outputs.write_bytes(stored)
    assert folder_digests(exported.exported) == before
    assert not [path for path in exported.exported.parent.iterdir() if ".partial" in path.name]


def with_wrong_answers(layout: Layout, wrong: int, rows: int = 1) -> parity.Parity:
    """The parity of a perfect model whose int8 graph is wrong in some rows; the test rows are repeated."""
    import pandas as pd

    frame = pd.concat([Prepared(layout.prepared).frame("test")] * rows, ignore_index=True)
    frame["id"] = [str(number) for number in range(len(frame))]
    logits = np.where(frame[["label"]] == "good", [[0.0, 2.0]], [[2.0, 0.0]]).astype(np.float32)
    broken = logits.copy()
    broken[:wrong] = broken[:wrong, ::-1]
    exact = {"logits": logits}
    return parity.measure_parity(Task.build(TASK), STATE, frame, exact, exact, {"logits": broken})


def test_int8_loss_is_judged_with_its_interval(exported: Layout) -> None:
    same, one_of_34 = with_wrong_answers(exported, 0), with_wrong_answers(exported, 1)
    assert same.serves_int8(0.005)
    assert same.int8_changed == 0
    assert one_of_34.int8_changed == pytest.approx(1 / 34)
    assert not one_of_34.serves_int8(0.005)  # its interval reaches from 0 to 0.09: not shown
    assert one_of_34.int8_loss.low <= 0 < 0.05 < one_of_34.int8_loss.high
    assert "not shown to be at most the 0.005" in parity.int8_verdict(one_of_34, 0.005, 34)
    one_of_3400 = with_wrong_answers(exported, 1, rows=100)
    assert one_of_3400.serves_int8(0.005)
    assert "it serves" in parity.int8_verdict(one_of_3400, 0.005, 3400)
    many = with_wrong_answers(exported, 100, rows=100)
    assert many.int8_loss.low > 0.005
    assert "more than the 0.005" in parity.int8_verdict(many, 0.005, 3400)
    assert not many.serves_int8(0.005)


def let_int8_err(layout: Layout) -> None:
    """Move the boundary of the trained network between its answer to a row and the int8 graph's wrong one."""
    import torch

    from textmill.training.inference import predict_table
    from textmill.training.loading import save_network

    task, test = Task.build(TASK), Prepared(layout.prepared).split("test")
    network = load_network(task, Model.build(MODEL), STATE, layout.trained)
    int8 = load_predictor(layout.exported / "model", "int8").outputs_of_ids(test.column("input_ids").to_pylist())
    exact, rounded = (outputs["logits"] @ [-1.0, 1.0] for outputs in (predict_table(network, task, test), int8))
    wanted = np.where(np.array(test.column("label").to_pylist()) == "good", 1.0, -1.0)
    row = max(range(len(wanted)), key=lambda row: wanted[row] * (exact - rounded)[row])
    with torch.no_grad():
        network.output.bias[1] -= float(exact[row] + rounded[row]) / 2
    shutil.rmtree(layout.trained / "model")
    save_network(layout.trained / "model", network, network.state_dict())
    np.savez(layout.evaluation / "outputs.npz", **predict_table(network, task, test))


def test_export_whose_int8_is_not_shown_good_enough_serves_fp32(
    exported: Layout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = Layout(Path(shutil.copytree(exported.root, tmp_path / "project")))
    let_int8_err(layout)
    texts = ["wonderful film", "boring plot", "story"]
    with caplog.at_level("INFO", "textmill"):
        stage.main(export_config(int8_tolerance=0.005), RUNTIME, layout)
    folder, figures = layout.exported / "model", read_json(layout.exported / "metrics.json")
    assert figures["int8_changed"] > 0
    assert figures["int8_loss_high"] > 0.005
    assert figures["int8_serves"] == 0
    assert "of export.int8_tolerance: fp32 serves" in caplog.text
    card = (folder / "README.md").read_text()
    assert "fp32 serves." in card
    assert 'precision="int8" loads the other graph' in card
    assert read_json(folder / "textmill.json")["precision"] == "fp32"
    assert load_predictor(folder).predict(texts) == load_predictor(folder, "fp32").predict(texts)
    assert load_predictor(folder).predict(texts) != load_predictor(folder, "int8").predict(texts)


def test_folder_of_an_earlier_export_serves_int8(model: Path) -> None:
    specification = read_json(model / "textmill.json")
    specification.pop("precision")
    (model / "textmill.json").write_text(json.dumps(specification))
    manifest = folder_digests(model)
    manifest.pop("manifest.json")
    (model / "manifest.json").write_text(json.dumps(manifest))
    predictor = load_predictor(model)
    assert predictor.predict(["great film"]) == load_predictor(model, "int8").predict(["great film"])
    assert predictor.exported.resolved("auto") == "int8"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_no_parity(exported: Layout, value: float) -> None:
    good = {"logits": np.zeros((2, 2), np.float32)}
    bad = {"logits": np.array([[0, value], [0, 0]], np.float32)}
    difference = parity.max_difference(good, bad)
    found = parity.Parity("f1", difference, 1.0, 1.0, Interval(0.0, 0.0, 0.0), 0.0)
    with pytest.raises(UserError, match="differ"):
        parity.require_parity(found, 1e-4)


def test_outputs_of_other_rows_are_told(exported: Layout) -> None:
    with pytest.raises(UserError, match="differ from the graph"):
        parity.max_difference({"logits": np.zeros((2, 2))}, {"logits": np.zeros((3, 2))})


def test_missing_evaluation_is_told(evaluated: Layout, tmp_path: Path) -> None:
    copy = Layout(Path(shutil.copytree(evaluated.root / "data", tmp_path / "p/data")).parent)
    (copy.evaluation / "outputs.npz").unlink()
    with pytest.raises(UserError, match="the stage evaluate has not run"):
        stage.main(export_config(), RUNTIME, copy)


@pytest.mark.parametrize("name", ["model.int8.onnx", "textmill.json", "tokenizer.json", "model.safetensors"])
def test_tampered_file_is_refused_by_name(model: Path, name: str) -> None:
    file = model / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1 if name.endswith((".onnx", ".safetensors")) else 0
    file.write_bytes(bytes(content) + (b"" if name.endswith((".onnx", ".safetensors")) else b"\n"))
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_predictor(model)


@pytest.mark.parametrize("name", ["extra.pkl", "pytorch_model.bin", "inner/weights.pt"])
def test_pickle_is_refused_by_name_even_if_listed(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"anything")
    manifest = folder_digests(model)
    manifest.pop("manifest.json")
    (model / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
        load_predictor(model)
    assert "pickle" in str(caught.value)


@pytest.mark.parametrize(("name", "what"), [("model.onnx", "missing"), ("manifest.json", "the manifest is missing")])
def test_incomplete_folder_is_refused(model: Path, name: str, what: str) -> None:
    (model / name).unlink()
    with pytest.raises(UserError, match=what):
        load_predictor(model)


def test_unlisted_file_is_refused(model: Path) -> None:
    (model / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt"):
        load_predictor(model)


# -- the command -----------------------------------------------------------------------------


def textmill(*arguments: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "textmill"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, input=stdin, timeout=120)


def test_predict_command_answers_fast(exported: Layout) -> None:
    started = time.perf_counter()
    done = textmill("predict", "--json", "wonderful film", "boring plot", cwd=exported.root)
    taken = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    expected = load_predictor(exported.exported / "model").predict(["wonderful film", "boring plot"])
    assert [answer.pop("input") for answer in answers] == ["wonderful film", "boring plot"]
    assert answers == expected
    assert taken < 6  # the goal is 3 s on a quiet machine


def test_predict_explain_gives_what_each_word_adds_to_the_answer(exported: Layout) -> None:
    text = "wonderful film boring plot"
    done = textmill("predict", "--explain", "--json", text, cwd=exported.root)
    assert done.returncode == 0, done.stderr
    [answer] = json.loads(done.stdout)
    predictor = load_predictor(exported.exported / "model")
    label = answer["label"]
    for place, found in enumerate(answer["why"]):
        words = text.split()
        assert found["word"] == words.pop(place)
        without = predictor.predict([" ".join(words)])[0]["probabilities"][label]
        assert found["gain"] == pytest.approx(answer["probabilities"][label] - without, abs=1e-6)
    assert len(answer["why"]) == 4
    assert predictor.explain("film", predictor.predict(["film"])[0]) == []
    with pytest.raises(UserError, match="cannot be explained"):
        predictor.explain("film", {"text": "no label"})
    table = textmill("predict", "--explain", text, cwd=exported.root).stdout
    assert "why" in table


def test_predict_command_reads_a_file_and_a_folder(exported: Layout, tmp_path: Path) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("wonderful film\n\nboring plot\n")
    folder = str(exported.exported / "model")
    done = textmill("predict", "--file", str(lines), "--model", folder, "--json", cwd=tmp_path)
    assert [answer["input"] for answer in json.loads(done.stdout)] == ["wonderful film", "boring plot"]
    table = textmill("predict", "--file", "-", "--model", folder, cwd=tmp_path, stdin="great film [/b]\n")
    assert "great film [/b]" in table.stdout  # as it is, not as markup
    assert "good 0." in table.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to predict"),
        (["--file", "/dev/null"], "nothing to predict"),
        (["  "], "the text is empty"),
        (["x", "--model", "nowhere"], "no exported model here"),
        (["x", "--file", "nowhere.txt"], "no such file"),
        (["x", "--precision", "int4"], "int4"),
        (["x", "--model", "models:/nothing/1"], "nothing has no version 1"),
        (["x", "--model", "models:/nothing"], "not the address of a version"),
    ],
)
def test_predict_command_errors_are_one_line(exported: Layout, arguments: list[str], message: str) -> None:
    done = textmill("predict", *arguments, cwd=exported.root)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
