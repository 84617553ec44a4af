"""OpenAI's protocol against a real server, with OpenAI's own client."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.http_client import ask
from support.serving import Server, served
from support.tiny_export import RUNTIME, build_evaluated_project, export_config
from support.tiny_llama import write_tiny_llama
from support.untrained_chat import SMOLLM2, export_untrained

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.models.generation import generate_tokens
from textmill.predicting.loading import load_predictor
from textmill.stages import export

ASKED: Any = [{"role": "user", "content": "who are you"}]


def client(server: Server, token: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=token, max_retries=0)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = Layout(tmp_path_factory.mktemp("chat") / "project")
    write_tiny_llama(layout.pretrained)
    return export_untrained(layout, max_new_tokens=10)


@pytest.fixture(scope="module")
def predictor(chat_model: Path) -> Any:
    return load_predictor(chat_model)


@pytest.fixture(scope="module")
def server(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = ("--max-characters", "200", "--max-new-tokens", "40")
    log = tmp_path_factory.mktemp("server") / "log"
    with served(chat_model.parent, log, str(chat_model), *limits) as running:
        yield running


def test_models_lists_and_describes_the_served_model(server: Server, chat_model: Path) -> None:
    [model] = client(server).models.list().data
    assert model.id == str(chat_model)
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-9' is not served here"):
        client(server).models.retrieve("gpt-9")


def test_chat_answers_as_predict_with_usage(server: Server, predictor: Any, chat_model: Path) -> None:
    answer = client(server).chat.completions.create(model=str(chat_model), messages=ASKED)
    expected = predictor.predict([{"messages": ASKED}])[0]
    [choice] = answer.choices
    assert choice.message.content == expected["text"] and choice.message.role == "assistant"
    assert choice.finish_reason == ("length" if expected["tokens"] == 10 else "stop")
    prompt = len(predictor.encode_prompt({"messages": ASKED}))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, expected["tokens"])
    assert answer.usage.total_tokens == prompt + expected["tokens"]
    assert (answer.object, answer.model) == ("chat.completion", str(chat_model))


def test_chat_takes_parts_and_the_developer_role(server: Server, predictor: Any) -> None:
    parts = [{"type": "text", "text": "mi"}, {"type": "text", "text": "ll"}]
    messages: Any = [{"role": "developer", "content": "name"}, {"role": "user", "content": parts}]
    answer = client(server).chat.completions.create(model="", messages=messages)
    plain = [{"role": "system", "content": "name"}, {"role": "user", "content": "mill"}]
    assert answer.choices[0].message.content == predictor.predict([{"messages": plain}])[0]["text"]


def test_stream_has_the_same_text_role_finish_and_usage(server: Server) -> None:
    whole = client(server).chat.completions.create(model="", messages=ASKED, max_tokens=30)
    stream = client(server).chat.completions.create(
        model="", messages=ASKED, max_tokens=30, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content and sum(map(bool, pieces)) > 3
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


def test_completion_continues_a_text_or_tokens_as_they_are(server: Server, predictor: Any) -> None:
    ids = predictor.encode_prompt("who are you", plain=True)
    assert ids == predictor.tokenizer.encode("who are you", add_special_tokens=False).ids
    texts = [
        client(server).completions.create(model="", prompt=prompt, max_tokens=8).choices[0].text
        for prompt in ("who are you", ["who are you"], ids)
    ]
    options = predictor.options.changed({"max_new_tokens": 8})
    assert set(texts) == {"".join(piece.text for piece in predictor.pieces(ids, options))}
    streamed = client(server).completions.create(model="", prompt="who are you", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == texts[0]


def test_stop_ends_the_text_before_it(server: Server) -> None:
    whole = client(server).chat.completions.create(model="", messages=ASKED, max_tokens=30).choices[0]
    assert whole.message.content is not None
    words = whole.message.content.split()
    stop = next(word for word in words[2:] if word not in words[:2])
    for given in (stop, [stop, "never"]):
        cut = client(server).chat.completions.create(model="", messages=ASKED, max_tokens=30, stop=given).choices[0]
        assert cut.message.content == whole.message.content[: whole.message.content.index(stop)]
        assert cut.finish_reason == "stop"


def test_seed_repeats_samples(server: Server) -> None:
    def drawn(seed: int) -> str | None:
        answer = client(server).chat.completions.create(
            model="", messages=ASKED, temperature=2.0, max_tokens=30, seed=seed
        )
        return answer.choices[0].message.content

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_logprobs_are_those_of_the_model(server: Server, predictor: Any) -> None:
    import torch

    answer = client(server).chat.completions.create(
        model="", messages=ASKED, max_tokens=6, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None and answer.usage is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None and len(entries) == answer.usage.completion_tokens
    prompt = predictor.encode_prompt({"messages": ASKED})
    options = predictor.options.changed({"max_new_tokens": 6})
    [ids] = generate_tokens(predictor.model, [prompt], options, predictor.exported.state["end_of_text"])
    with torch.inference_mode():
        scores = predictor.model(torch.tensor([[*prompt, *ids]]))["logits"][0].log_softmax(-1)
    for place, (entry, token) in enumerate(zip(entries, ids, strict=True), start=len(prompt) - 1):
        assert math.isclose(entry.logprob, float(scores[place, token]), abs_tol=1e-4)
        best = scores[place].topk(3).values.tolist()
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best, abs=1e-4)
        assert bytes(entry.bytes or []).decode() == entry.token
        assert entry.token == predictor.tokenizer.decode([token], skip_special_tokens=False)
    plain = client(server).completions.create(model="", prompt="who are you", max_tokens=6, logprobs=2).choices[0]
    assert plain.logprobs is not None and plain.logprobs.tokens is not None and plain.logprobs.text_offset is not None
    assert len(plain.logprobs.tokens) == len(plain.logprobs.token_logprobs or []) == 6
    for value, top in zip(plain.logprobs.token_logprobs or [], plain.logprobs.top_logprobs or [], strict=True):
        assert 1 <= len(top) <= 2  # ids without a token of their own have the same text
        assert value in top.values()
    bare = client(server).chat.completions.create(model="", messages=ASKED, max_tokens=2)
    assert bare.choices[0].logprobs is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"messages": []}, "is not a list of messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "has the role 'robot'"),
        ({"messages": [{"role": "user", "content": " "}]}, "has an empty message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of the type text"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages: 3.. characters, more than 200"),
        ({"messages": [{"role": "user", "content": "a " * 80}]}, "the prompt has 8. tokens, the model's context 64"),
        ({"max_tokens": 41}, "max_new_tokens: 41 is more than 40"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"temperature": -1.0}, "temperature: -1.0"),
        ({"n": 2}, "n: Input should be 1"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: Input should be less than or equal to 0"),
        ({"top_logprobs": 2}, "top_logprobs: set logprobs to true with it"),
        ({"tools": []}, "tools: is not a parameter that this server knows"),
        ({"response_format": {"type": "xml"}}, "response_format: Input tag 'xml'"),
    ],
)
def test_bad_request_is_told_in_one_line(server: Server, options: dict[str, Any], told: str) -> None:
    with pytest.raises(openai.BadRequestError, match=told) as error:
        client(server).chat.completions.create(**{"model": "", "messages": ASKED, **options})
    assert isinstance(error.value.body, dict)
    assert error.value.body["type"] == "invalid_request_error" and "\n" not in error.value.body["message"]


def test_other_models_and_tasks_are_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-9' is not served here"):
        client(server).chat.completions.create(model="gpt-9", messages=ASKED)
    with pytest.raises(openai.NotFoundError, match="does not make vectors"):
        client(server).embeddings.create(model="", input="thanks")
    answer = ask(server.port, "POST", "/v1/chat/completions", b"{")
    assert answer.status == 400 and answer.json()["error"]["message"].startswith("the body is not JSON")


def test_requests_count_and_are_drained_at_shutdown(chat_model: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret-of-this-test-0123456789")
    token.chmod(0o600)
    with served(chat_model.parent, tmp_path / "log", str(chat_model), "--token-file", str(token)) as server:
        with pytest.raises(openai.AuthenticationError):
            client(server, "wrong").models.list()
        good = client(server, token.read_text())
        started, texts = threading.Event(), []

        def read() -> None:
            pieces = []
            for chunk in good.chat.completions.create(model="", messages=ASKED, max_tokens=60, stream=True):
                started.set()
                pieces.append(chunk.choices[0].delta.content or "")
                last.append(chunk.choices[0].finish_reason)
            texts.append("".join(pieces))

        last: list[str | None] = []
        expected = good.chat.completions.create(model="", messages=ASKED, max_tokens=60).choices[0].message.content
        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(30)
        os.kill(server.process.pid, signal.SIGTERM)
        reader.join(30)
        assert texts == [expected] and last[-1] in ("stop", "length")
        assert server.process.wait(30) == 0


def test_classifier_has_neither_chat_nor_vectors(tmp_path: Path) -> None:
    layout = build_evaluated_project(tmp_path / "project")
    export.main(export_config(), RUNTIME, layout)
    with served(layout.root, tmp_path / "log", str(layout.exported / "model")) as server:
        with pytest.raises(openai.NotFoundError, match="does not generate text; use /predict"):
            client(server).chat.completions.create(model="", messages=ASKED)
        with pytest.raises(openai.NotFoundError, match="does not make vectors; use /predict"):
            client(server).embeddings.create(model="", input=["great film"])


def test_vectors_of_an_encoder_are_those_of_predict(tmp_path: Path) -> None:
    from support.tiny_pairs import pairs, prepared_project

    from textmill.config.sections.export import ExportConfig
    from textmill.data.prepared import Prepared
    from textmill.export.export import write_served
    from textmill.models.base import Model
    from textmill.predicting.exported import write_manifest
    from textmill.tasks.base import Task

    task_spec = {"_target_": "textmill.tasks.semantic_search.SemanticSearch"}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    architecture = {"model_type": "bert", "vocab_size": 320, "max_position_embeddings": 64, **small}
    model_spec = {"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder", "architecture": architecture}
    task = Task.build(task_spec)
    names = dict(zip(task.text_columns, ("text", "translation"), strict=True))
    layout = prepared_project(tmp_path / "project", pairs(60), task=task_spec, read={"columns": names})
    prepared = Prepared(layout.prepared)
    network = task.build_network(Model.build(model_spec), None, prepared.state).eval()
    config = ExportConfig(title="Tiny", task=task_spec, model=model_spec, max_length=32)
    folder = layout.exported / "model"
    folder.parent.mkdir(parents=True)
    write_served(config, task, prepared, network, folder)
    write_manifest(folder)
    texts = ["a dog runs", "a big cat sits and sees"]
    expected = [answer["embedding"] for answer in load_predictor(folder).predict(texts)]
    with served(layout.root, tmp_path / "log", str(folder)) as server:
        for form in ("float", "base64"):
            answer = client(server).embeddings.create(model="", input=texts, encoding_format=form)  # type: ignore[arg-type]
            assert [entry.index for entry in answer.data] == [0, 1]
            assert answer.usage.prompt_tokens == answer.usage.total_tokens > 5
        default = client(server).embeddings.create(model="", input=texts)  # the client asks for base64 and decodes it
        for entry, vector in zip(default.data, expected, strict=True):
            assert entry.embedding == pytest.approx(vector, abs=1e-6)
        with pytest.raises(openai.BadRequestError, match="more than 128"):
            client(server).embeddings.create(model="", input=["x"] * 129)


@pytest.mark.slow
def test_smollm2_says_paris(tmp_path: Path) -> None:
    from textmill.fetching.pretrained import fetch_pretrained

    layout = Layout(tmp_path / "project")
    layout.root.mkdir()
    source = {"_target_": "textmill.fetching.sources.files.FilesSource"}
    fetch_pretrained(FetchConfig.model_validate({"source": source, **SMOLLM2}), layout)
    folder = export_untrained(layout, max_new_tokens=20)
    asked: Any = [{"role": "user", "content": "What is the capital of France?"}]
    with served(layout.root, tmp_path / "log", str(folder)) as server:
        answer = client(server).chat.completions.create(model="", messages=asked, temperature=0)
        assert answer.choices[0].message.content == "The capital of France is Paris."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None and answer.usage.prompt_tokens == 37
        stream = client(server).chat.completions.create(model="", messages=asked, temperature=0, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in stream) == "The capital of France is Paris."
        asked += [{"role": "assistant", "content": "Paris."}, {"role": "user", "content": "x" * 40_000}]
        with pytest.raises(openai.BadRequestError, match="more than 20000"):
            client(server).chat.completions.create(model="", messages=asked)
