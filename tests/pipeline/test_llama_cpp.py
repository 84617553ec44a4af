"""`textmill serve --engine llama_cpp` against PyTorch, and JSON schemas in both engines, with OpenAI's client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from support.schemas import SCHEMAS, UNFULFILLABLE
from support.serving import Server, served
from support.tiny_bpe import write_tiny_bpe_llama
from support.untrained_chat import SMOLLM2, export_untrained

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.predicting.exported import write_manifest
from textmill.predicting.loading import load_predictor

pytest.importorskip("xllamacpp")

ASKED: Any = [{"role": "user", "content": "who are you"}]


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def wanted(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = Layout(tmp_path_factory.mktemp("chat") / "project")
    write_tiny_bpe_llama(layout.pretrained)
    return export_untrained(layout, max_new_tokens=16, gguf=("f16",))


@pytest.fixture(scope="module", params=["llama_cpp", "pytorch"])
def server(request: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with served(model.parent, log, str(model), "--engine", request.param, "--workers", "1") as running:
        yield running


@pytest.fixture(scope="module")
def reference(model: Path) -> Any:
    return load_predictor(model, engine="pytorch")


def test_chat_is_that_of_pytorch_whole_and_streamed(server: Server, reference: Any) -> None:
    expected = reference.predict([{"messages": ASKED}])[0]
    answer = client(server).chat.completions.create(model="", messages=ASKED)
    assert answer.choices[0].message.content == expected["text"]
    assert answer.usage is not None and answer.usage.completion_tokens == expected["tokens"]
    assert answer.usage.prompt_tokens == len(reference.encode_prompt({"messages": ASKED}))
    chunks = list(client(server).chat.completions.create(model="", messages=ASKED, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected["text"]
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_stop_seed_and_likelihoods(server: Server) -> None:
    whole = client(server).completions.create(model="", prompt="name three", max_tokens=12, temperature=0)
    stop = next(letter for letter in whole.choices[0].text[1:] if letter.isascii())
    cut = client(server).completions.create(model="", prompt="name three", max_tokens=12, temperature=0, stop=stop)
    assert cut.choices[0].text == whole.choices[0].text.split(stop)[0] and cut.choices[0].finish_reason == "stop"
    drawn = [
        client(server).completions.create(model="", prompt="name", max_tokens=12, temperature=2.0, seed=seed).choices[0]
        for seed in (1, 1, 2)
    ]
    assert drawn[0].text == drawn[1].text != drawn[2].text
    scored = client(server).chat.completions.create(
        model="", messages=ASKED, max_tokens=4, logprobs=True, top_logprobs=2
    )
    assert scored.choices[0].logprobs is not None
    for entry in scored.choices[0].logprobs.content or []:
        assert len(entry.top_logprobs) == 2 and entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)


def test_answers_fulfil_all_schemas(server: Server) -> None:
    assert len(SCHEMAS) == 50
    for schema in SCHEMAS:
        answer = client(server).chat.completions.create(
            model="", messages=ASKED, max_tokens=400, response_format=wanted(schema), temperature=1.0
        )
        assert answer.choices[0].finish_reason == "stop", schema
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)


@pytest.mark.parametrize("schema", UNFULFILLABLE)
def test_schema_that_no_text_fulfils_is_refused(server: Server, schema: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="the schema cannot be followed") as error:
        client(server).chat.completions.create(model="", messages=ASKED, response_format=wanted(schema))
    assert isinstance(error.value.body, dict) and "\n" not in error.value.body["message"]
    assert client(server).chat.completions.create(model="", messages=ASKED).choices[0].message.content


def test_beams_and_long_prompts_are_told(model: Path) -> None:
    predictor: Any = load_predictor(model, engine="llama_cpp", threads=1)
    with pytest.raises(UserError, match="the engine llama_cpp has no beam search"):
        predictor.generate(["who"], predictor.options.changed({"beams": 2}))
    with pytest.raises(UserError, match="the model's context 256"):
        predictor.encode_prompt("who " * 300, plain=True)
    with pytest.raises(UserError, match="exceeds the available context size"):
        list(predictor.pieces([5] * 300, predictor.options))


def test_folder_without_gguf_needs_pytorch(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    specification = json.loads((folder / "textmill.json").read_text())
    (folder / "textmill.json").write_text(json.dumps(specification | {"gguf": {}}))
    write_manifest(folder)
    with pytest.raises(UserError, match="no GGUF file here"):
        load_predictor(folder, engine="llama_cpp")
    assert type(load_predictor(folder, engine="auto")).__name__ == "TextContinuer"
    assert type(load_predictor(model, engine="auto")).__name__ == "LlamaCppContinuer"


def test_engine_that_is_dropped_at_once_ends(model: Path) -> None:
    """Its loop may not have begun: without waiting for it, one of some dozen waited forever."""
    script = "import sys; from pathlib import Path; from textmill.predicting.llama_cpp import LlamaCpp\n"
    script += "for _ in range(30):\n    LlamaCpp(Path(sys.argv[1]), 1, 64, 1)\nprint('ended')"
    [file] = model.glob("*.gguf")
    command = [sys.executable, "-c", script, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.endswith("ended\n"), done.stderr


def test_sixteen_clients_are_answered_together_and_drained(model: Path, tmp_path: Path) -> None:
    with served(model.parent, tmp_path / "log", str(model), "--engine", "llama_cpp", "--workers", "1") as server:
        texts: list[str | None] = []

        def ask() -> None:
            answer = client(server).chat.completions.create(model="", messages=ASKED, max_tokens=100)
            texts.append(answer.choices[0].message.content)

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        os.kill(server.process.pid, signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert len(texts) == 16 and len(set(texts)) == 1
        assert server.process.wait(30) == 0
        assert "all accepted requests were answered" in server.log.read_text()


def test_disconnected_client_ends_its_generation(model: Path, tmp_path: Path) -> None:
    arguments = ("--engine", "llama_cpp", "--max-generations", "1", "--workers", "1")
    with served(model.parent, tmp_path / "log", str(model), *arguments) as server:
        for _ in range(4):
            stream = client(server).completions.create(
                model="", prompt="who", max_tokens=200, temperature=1.0, stream=True
            )
            next(iter(stream))
            stream.close()
            end = time.monotonic() + 10
            while True:
                try:
                    client(server).completions.create(model="", prompt="who", max_tokens=1)
                    break
                except openai.InternalServerError:
                    assert time.monotonic() < end


def test_new_version_takes_over_without_a_lost_request(model: Path) -> None:
    from textmill.serving.loading import FetchedModel, Identity, load_model
    from textmill.serving.metrics import ServingMetrics
    from textmill.serving.watcher import Watcher

    class Source:
        follows = True
        version = "1"

        def latest(self) -> str:
            return self.version

        def fetch(self, version: str) -> FetchedModel:
            return FetchedModel(model, Identity("chat", version, "digest"))

    source = Source()
    watcher = Watcher(source, lambda v: load_model(source.fetch(v), "auto", 256, "llama_cpp", 1), ServingMetrics(), 60)
    watcher.check()
    assert watcher.current is not None
    first: Any = watcher.current.predictor
    options = first.options.changed({"max_new_tokens": 60})
    prompt = first.encode_prompt({"messages": ASKED})
    expected = "".join(piece.text for piece in first.pieces(prompt, options))
    running = first.pieces(prompt, options)
    begun = next(running).text
    del first
    source.version = "2"
    watcher.check()  # the old version still answers
    assert watcher.current.identity.version == "2"
    assert begun + "".join(piece.text for piece in running) == expected
    second: Any = watcher.current.predictor
    assert "".join(piece.text for piece in second.pieces(prompt, options)) == expected


@pytest.mark.slow
def test_smollm2_passes_its_checks_and_answers_by_schemas(tmp_path: Path) -> None:
    from textmill.config.sections.fetch import FetchConfig
    from textmill.fetching.pretrained import fetch_pretrained

    layout = Layout(tmp_path / "project")
    layout.root.mkdir()
    source = {"_target_": "textmill.fetching.sources.files.FilesSource"}
    fetch_pretrained(FetchConfig.model_validate({"source": source, **SMOLLM2}), layout)
    folder = export_untrained(layout, max_new_tokens=20, gguf=("f16",))  # 8 bits answer otherwise
    asked: Any = [{"role": "user", "content": "What is the capital of France?"}]
    arguments = ("--engine", "llama_cpp", "--workers", "1")
    with served(layout.root, tmp_path / "log", str(folder), *arguments) as server:
        answer = client(server).chat.completions.create(model="", messages=asked, temperature=0)
        assert answer.choices[0].message.content == "The capital of France is Paris."
        assert answer.usage is not None and answer.usage.prompt_tokens == 37
        for schema in SCHEMAS[::5]:
            told = client(server).chat.completions.create(
                model="", messages=asked, max_tokens=400, temperature=0, response_format=wanted(schema)
            )
            jsonschema.validate(json.loads(told.choices[0].message.content or ""), schema)
