"""Language models through the stages: trained, measured, exported, and writing the same elsewhere."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.faults import rounds
from support.fuzzing import Client, check_server, send_requests_of_schema
from support.http_client import ask
from support.serving import served
from support.tiny_text import EXPERTS, MODEL, RUNTIME, TASK, prepared_project, train_values
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config.layout import Layout
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.train import TrainConfig
from textmill.data.prepared import Prepared
from textmill.files import read_json
from textmill.predicting.loading import load_predictor
from textmill.predicting.text_continuer import TextContinuer


def run_stages(layout: Layout, model: dict[str, Any], *stages: str, **changes: Any) -> Layout:
    from textmill.stages import evaluate, export, train

    if "train" in stages:
        train.main(TrainConfig.model_validate(train_values(model=model, **changes)), RUNTIME, layout)
    if "evaluate" in stages:
        options = {"baselines": {"orders": [2, 3]}, "resamples": 100, "min_slice": 5}
        evaluate.main(
            EvaluateConfig.model_validate({"seed": 1, "task": TASK, "model": model} | options), RUNTIME, layout
        )
    if "export" in stages:
        values = {"task": TASK, "model": model, "title": "Tiny plays", "generation": {"max_new_tokens": 20}}
        export.main(ExportConfig.model_validate(values), RUNTIME, layout)
    return layout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_project(tmp_path_factory.mktemp("plays") / "prepared").root


def copied(prepared: Path, target: Path) -> Layout:
    shutil.copytree(prepared, target)
    return Layout(target)


@pytest.fixture(scope="module")
def exported(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = copied(prepared, tmp_path_factory.mktemp("exported") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return run_stages(layout, MODEL, "train", "evaluate", "export")


def test_training_lowers_the_loss_and_is_measured_in_three_units(exported: Layout) -> None:
    metrics = read_json(exported.evaluation / "metrics.json")
    test = {name: figure["value"] for name, figure in metrics["test"].items()}
    assert list(test) == ["bits_per_byte", "loss", "perplexity"]
    assert test["perplexity"] == pytest.approx(math.exp(test["loss"]), rel=1e-4)
    assert test["loss"] < 0.6 * math.log(300)
    assert metrics["test"]["loss"]["low"] < test["loss"] < metrics["test"]["loss"]["high"]
    assert test["bits_per_byte"] < metrics["baselines"]["unigram"]["bits_per_byte"]["value"]
    assert metrics["baselines"]["kneser_ney"]["loss"]["value"] < metrics["baselines"]["unigram"]["loss"]["value"]
    assert 0 <= metrics["findings"]["samples/repetition_greedy"] <= 1
    report = (exported.evaluation / "report.html").read_text()
    assert "Samples" in report and "ROMEO" in report


def test_bits_per_byte_count_the_bytes_of_the_text(exported: Layout) -> None:
    prepared = Prepared(exported.prepared)
    frame = prepared.frame("test")
    counts = prepared.state["token_bytes"]
    for text, ids in zip(frame["text"], frame["input_ids"], strict=True):
        assert sum(counts[token] for token in ids) == len(text.encode())
        assert ids[-1] == prepared.state["end_of_text"]


def test_the_exported_folder_writes_what_it_wrote_at_export(exported: Layout) -> None:
    folder = exported.exported / "model"
    stored = read_json(exported.exported / "examples.json")
    generator = load_predictor(folder)
    assert isinstance(generator, TextContinuer)
    assert generator.predict(stored["inputs"]) == stored["outputs"]
    assert stored["outputs"][0]["text"]
    assert "generate" in (folder / "README.md").read_text()


def test_transformers_reads_the_export_and_writes_the_same(exported: Layout) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = exported.exported / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder / "transformers")
    model = AutoModelForCausalLM.from_pretrained(folder / "transformers")
    inputs = tokenizer("the moon", return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        written = model.generate(inputs["input_ids"], do_sample=False, max_new_tokens=15)[0]
    generator: Any = load_predictor(folder)
    ours = generator.generate(
        ["the moon"], generator.options.model_copy(update={"temperature": 0.0, "max_new_tokens": 15})
    )
    assert tokenizer.decode(written, skip_special_tokens=True) == "the moon" + ours[0]["text"]
    assert read_json(exported.exported / "metrics.json")["checkpoint_max_difference"] < 1e-3


def test_a_stream_gives_the_same_text_in_pieces_and_ends_before_a_stop(exported: Layout) -> None:
    generator: Any = load_predictor(exported.exported / "model")
    options = generator.options.model_copy(update={"max_new_tokens": 40, "seed": 3})
    whole = generator.generate(["ROMEO.\n"], options)[0]["text"]
    pieces = list(generator.stream("ROMEO.\n", options))
    assert len(pieces) > 5 and "".join(pieces) == whole
    stop = whole[10:14]
    stopped = options.model_copy(update={"stop": (stop,)})
    assert "".join(generator.stream("ROMEO.\n", stopped)) == whole[: whole.index(stop)]
    assert generator.generate(["ROMEO.\n"], stopped)[0]["text"] == whole[: whole.index(stop)]


def test_the_server_writes_the_same_whole_and_streamed(exported: Layout, tmp_path: Path) -> None:
    folder = exported.exported / "model"
    generator: Any = load_predictor(folder)
    expected = generator.stream("ROMEO.\n", generator.options.model_copy(update={"max_new_tokens": 40, "seed": 3}))
    pieces = list(expected)
    asked = {"input": "ROMEO.\n", "options": {"max_new_tokens": 40, "seed": 3, "stop": ["never such a text"]}}
    with served(tmp_path, tmp_path / "log", str(folder)) as server:
        whole = ask(server.port, "POST", "/generate", asked)
        assert (whole.status, whole.json()) == (200, {"output": "".join(pieces)})
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/generate")
        request.add_header("Content-Type", "application/json")
        request.data = json.dumps({**asked, "stream": True, "options": {"max_new_tokens": 40, "seed": 3}}).encode()
        with urllib.request.urlopen(request, timeout=60) as response:
            events = [event.split("\n") for event in response.read().decode().strip().split("\n\n")]
        assert [(name, json.loads(data.removeprefix("data: "))) for name, data in events] == [
            *(("event: token", piece) for piece in pieces),
            ("event: end", "".join(pieces)),
        ]
        asked = {"input": "ROMEO.\n", "options": {"temperature": -1}}
        assert ask(server.port, "POST", "/generate", asked).status == 422
        (answer,) = ask(server.port, "POST", "/predict", {"inputs": ["ROMEO.\n"]}).json()["outputs"]
        assert answer == generator.predict(["ROMEO.\n"])[0]
        document = ask(server.port, "GET", "/openapi.json").json()
        options = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert "top_p" in options["properties"]["options"]["properties"]
    assert "Traceback" not in server.log.read_text()


@pytest.mark.fault
def test_server_of_a_language_model_answers_random_requests(exported: Layout, tmp_path: Path) -> None:
    limits = ("--max-new-tokens", "8", "--max-characters", "500")
    with served(tmp_path, tmp_path / "log", str(exported.exported / "model"), *limits) as server:
        client = Client(server.port)
        send_requests_of_schema(server, client, rounds(60, 2000))
        check_server(server, client, rounds(60, 2000))


@pytest.mark.fault
def test_serve_terminated_while_it_loads_a_language_model_ends_cleanly(exported: Layout, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "textmill"), "serve", "--port", "0", str(exported.exported / "model")]
    log = tmp_path / "log"
    for attempt in range(rounds(3, 20) + 1):
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file)
        while b"listening" not in log.read_bytes():
            time.sleep(0.01)
        started = time.monotonic()
        if not attempt:
            while b"serving" not in log.read_bytes():
                time.sleep(0.01)
            load_seconds = time.monotonic() - started
        else:  # shortly before the model is ready
            time.sleep(load_seconds * (1 - 0.8 * (attempt / rounds(3, 20)) ** 2))
        process.terminate()
        assert process.wait(60) == 0, log.read_text()  # it imports libraries, during which Python takes no signal
        assert "terminate called" not in log.read_text() and "Traceback" not in log.read_text()


def test_the_command_writes(exported: Layout, tmp_path: Path) -> None:
    folder = str(exported.exported / "model")
    runner = CliRunner()
    done = runner.invoke(app, ["generate", "the moon", "--model", folder, "--greedy", "--max-new-tokens", "8"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("the moon")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the moon\nthe rose\n")
    arguments = [
        "generate",
        "--file",
        str(prompts),
        "--model",
        folder,
        "--json",
        "--beams",
        "2",
        "--max-new-tokens",
        "5",
    ]
    found = json.loads(runner.invoke(app, arguments).output)
    assert [answer["prompt"] for answer in found["answers"]] == ["the moon", "the rose"]
    assert found["options"]["beams"] == 2
    stopped = ["generate", "the moon", "the rose", "--model", folder, "--max-new-tokens", "4", "--stop", r"\n é"]
    assert "the moon" in runner.invoke(app, stopped).output
    found = json.loads(runner.invoke(app, [*stopped, "--json"]).output)
    assert found["options"]["stop"] == ["\n é"], "escapes are read, other characters stay what they are"
    broken = runner.invoke(app, ["generate", "x", "--model", folder, "--stop", "x\\"])
    assert str(broken.exception).startswith("--stop: ")
    wrong = runner.invoke(app, ["generate", "x", "--model", folder, "--top-p", "3"])
    assert "--top-p: 3.0" in str(wrong.exception)


def test_experts_are_watched_and_their_loss_terms_logged_apart(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    layout = run_stages(copied(prepared, tmp_path / "project"), EXPERTS, "train", "evaluate", max_epochs=1)
    client = mlflow.MlflowClient(f"sqlite:///{layout.root / 'mlflow.db'}")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    logged = run.data.metrics
    for name in ("load_entropy", "load_max_over_mean", "dropped_share", "confidence"):
        assert f"validation/routing/{name}" in logged
        assert f"routing/{name}" in logged
    assert logged["train/loss"] == pytest.approx(
        logged["train/likelihood"] + logged["train/load_balancing"] + logged["train/router_z"], rel=1e-4
    )
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id, "evaluation/plots")}
    assert "evaluation/plots/expert_load.png" in artifacts


def test_accumulated_batches_step_like_one_large_batch(prepared: Path, tmp_path: Path) -> None:
    import torch

    from textmill.tasks.examples.packing import PackedWindows
    from textmill.training.trainer import Training

    data = Prepared(Layout(prepared).prepared)
    length = TASK["sequence_length"]
    windows = len(PackedWindows(data.split("train"), length).in_epoch(0, 1).lengths)
    # Steps in proportion to the gradients: a large epsilon keeps AdamW from making much of rounding.
    optimizer = {"learning_rate": 0.5, "epsilon": 1.0, "warmup": 0, "schedule": "constant", "gradient_clip": None}
    weights = []
    for rows, accumulate in ((windows, 1), (windows // 3, 8)):
        batches = {"tokens": rows * length, "accumulate": accumulate}
        values = train_values(max_epochs=1, optimizer=optimizer, batches=batches)
        training = Training(TrainConfig.model_validate(values), RUNTIME, data, None, tmp_path / str(accumulate))
        weights.append(training.run().weights)
    assert windows % (windows // 3), "batches of equal size would not tell a mean of means from the mean"
    for name, found in weights[0].items():
        torch.testing.assert_close(found, weights[1][name], msg=name)


@pytest.mark.slow
def test_a_killed_training_of_a_language_model_ends_with_the_very_bits_of_one_that_was_not(
    prepared: Path, tmp_path: Path
) -> None:
    import torch
    from test_resume import finish, start
    from tiny_training import make_project

    experts = EXPERTS | {"dropout": 0.1, "router": {"_target_": "textmill.models.routing.sigmoid_bias.SigmoidBias"}}
    settings = train_values(
        max_epochs=2, model=experts, checkpoint_seconds=1e-6, ema_decay=0.9, validations_per_epoch=2
    )
    settings["batches"] = {"tokens": 128, "accumulate": 2, "per_epoch": 8}
    roots = [make_project(tmp_path / name, **settings) for name in ("whole", "killed")]
    for root in roots:
        shutil.rmtree(root / "data/prepared")
        shutil.copytree(prepared / "data/prepared", root / "data/prepared")
    code, errors = finish(start(roots[1], "step", 6))  # within the second epoch, whose windows lie elsewhere
    assert code == -signal.SIGKILL, errors
    ends = [finish(start(root)) for root in roots]
    assert [code for code, _ in ends] == [0, 0], ends
    whole, killed = (torch.load(root / "final.pt") for root in roots)
    assert [name for name in whole if not torch.equal(whole[name], killed[name])] == []


def test_training_on_rows_of_whole_documents_learns_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows longer than 128 tokens, so that attention goes by documents; validation is the same for both."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    read = {"columns": {"text": "text"}, "text": {"document": "paragraph"}}
    losses = []
    for packing in ("concatenate", "best_fit"):
        task = TASK | {"sequence_length": 160, "packing": packing}
        layout = prepared_project(tmp_path / packing, task=task, read=read)
        found = Prepared(layout.prepared).statistics["packing"]
        assert found["best_fit"]["cut"] == 0 < found["concatenate"]["cut"]
        run_stages(layout, MODEL | {"max_length": 160}, "train", task=task, batches={"tokens": 640})
        losses.append(read_json(layout.trained / "metrics.json")["loss"])
    assert losses[1] < min(1.1 * losses[0], 0.6 * math.log(300))
