"""`/generate`: there exactly where the served model generates; whole or streamed, limited, ended with its client."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from support.http_client import ask

from textmill.config.sections.generation import GenerationConfig
from textmill.serving.application import Service, build_application
from textmill.serving.loading import FolderSource, Identity, LoadedModel
from textmill.serving.metrics import ServingMetrics
from textmill.serving.server import DrainingServer, listen
from textmill.serving.settings import ServeSettings
from textmill.serving.streaming import StreamingGenerator
from textmill.serving.watcher import Watcher
from textmill.tasks.base import Task


class Parrot:
    """A real, if small, generator: says the words of its input again and again."""

    def __init__(self) -> None:
        self.task = Task.build({"_target_": "textmill.tasks.text_classification.TextClassification"})
        self.options = GenerationConfig(max_new_tokens=5)
        self.closed = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def lengths(self, values: Sequence[Any]) -> list[int]:
        return [1 for _ in values]

    def predict(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"said": value} for value in values]

    def stream(self, value: Any, options: GenerationConfig) -> Iterator[str]:
        words = self.task.parse_inputs([value])["text"][0].split()
        try:
            for index in range(options.max_new_tokens):
                if words[index % len(words)] == "choke":
                    raise RuntimeError("choked")
                yield f"{words[index % len(words)]} "
                self.may_go_on.wait(10)
        finally:
            self.closed.set()


@contextmanager
def serving(predictor: Any, **options: Any) -> Iterator[int]:
    settings = ServeSettings(port=0, max_generations=1, max_new_tokens=100_000, **options)
    metrics = ServingMetrics()
    watcher = Watcher(FolderSource, lambda _: None, metrics, 1.0)  # type: ignore[arg-type,return-value]
    watcher.current = LoadedModel(Identity("parrot", "1", "0" * 64), predictor, [({"text": "hi"}, {"said": "hi"})])
    service = Service(settings, watcher, metrics)
    listening = listen(settings.host, settings.port)
    config = uvicorn.Config(build_application(service), log_level="warning")
    server = DrainingServer(config, service.traffic, 10)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        predictor.may_go_on.set()
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def parrot() -> Iterator[tuple[Parrot, int]]:
    predictor = Parrot()
    with serving(predictor) as port:
        yield predictor, port


def stream(port: int, asked: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/generate", json.dumps(asked), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def events(response: http.client.HTTPResponse) -> list[tuple[str, str]]:
    blocks = response.read().decode().strip().split("\n\n")
    return [(lines[0][7:], json.loads(lines[1][6:])) for lines in (block.split("\n") for block in blocks)]


def test_only_generators_have_it(parrot: tuple[Parrot, int]) -> None:
    assert isinstance(parrot[0], StreamingGenerator)
    assert "/generate" in ask(parrot[1], "GET", "/openapi.json").json()["paths"]


def test_whole_text(parrot: tuple[Parrot, int]) -> None:
    answer = ask(parrot[1], "POST", "/generate", {"input": "a b", "options": {"max_new_tokens": 3}})
    assert (answer.status, answer.json()) == (200, {"output": "a b a "})
    assert answer.headers["x-textmill-model"] == "parrot/1"


def test_tokens_come_while_they_are_made(parrot: tuple[Parrot, int]) -> None:
    predictor, port = parrot
    predictor.may_go_on.clear()
    connection, response = stream(port, {"input": "a\nb", "stream": True, "options": {"max_new_tokens": 2}})
    assert response.getheader("content-type", "").startswith("text/event-stream")
    assert response.readline() + response.readline() == b'event: token\ndata: "a "\n'  # the second is still to be made
    response.readline()
    predictor.may_go_on.set()
    assert events(response) == [("token", "b "), ("end", "a b ")]
    connection.close()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"input": ""}, "the text is empty"),
        ({"input": "a", "options": {"max_new_tokens": "x"}}, "max_new_tokens: 'x': Input should be a valid integer"),
        ({"input": "a", "options": {"max_new_tokens": 100_001}}, "max_new_tokens: 100001 is more than 100000"),
        ({"input": "a", "options": {"beams": 17}}, "beams: 17 is more than 16"),
        ({"input": "a", "options": {"length": 3}}, "length: unknown option"),
        ({"input": "a", "options": 1}, "options must be a record"),
        ({"input": "a", "stream": "yes"}, "stream must be true or false"),
        ({"inputs": ["a", "b"]}, "one"),
        ({"input": "a", "other": 1}, "unknown key"),
    ],
)
def test_wrong_requests_are_told(parrot: tuple[Parrot, int], asked: Any, message: str) -> None:
    answer = ask(parrot[1], "POST", "/generate", asked)
    assert answer.status == 422
    assert message in answer.json()["error"]
    assert ask(parrot[1], "POST", "/generate", {"input": "a"}).status == 200  # nothing stays taken


def test_failure_in_the_middle_is_an_event(parrot: tuple[Parrot, int]) -> None:
    connection, response = stream(parrot[1], {"input": "a choke", "stream": True})
    assert events(response) == [("token", "a "), ("error", "the generation failed")]
    connection.close()


def test_one_at_a_time_and_a_client_that_leaves_makes_room(parrot: tuple[Parrot, int]) -> None:
    predictor, port = parrot
    predictor.may_go_on.clear()
    predictor.closed.clear()
    connection, response = stream(port, {"input": "a b", "stream": True, "options": {"max_new_tokens": 100_000}})
    refused = ask(port, "POST", "/generate", {"input": "a"})
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    response.readline()
    response.close()
    connection.close()
    time.sleep(0.1)
    predictor.may_go_on.set()
    assert predictor.closed.wait(10)
    for _ in range(50):
        if ask(port, "POST", "/generate", {"input": "a"}).status == 200:
            return
        time.sleep(0.1)
    raise AssertionError("the place was not given back")


def test_shutdown_waits_for_a_stream() -> None:
    predictor = Parrot()
    predictor.may_go_on.clear()
    with serving(predictor) as port:
        connection, response = stream(port, {"input": "a b", "stream": True, "options": {"max_new_tokens": 4}})
        response.readline()
    # `serving` has let the parrot go on and the server end.
    assert response.read().decode().strip().endswith('event: end\ndata: "a b a b "')
    connection.close()
