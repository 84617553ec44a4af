"""Random requests to real servers: an answer or one line with a status below 500, never a traceback or a hang."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core import NotSet
from support.faults import record, rounds
from support.http_client import ask
from support.serving import Server, served
from support.tiny_export import RUNTIME, build_evaluated_project, export_config

from textmill.stages import export

pytestmark = [pytest.mark.slow, pytest.mark.fault]

CASES = rounds(10_000, 100_000)
SECONDS = 30  # without an answer for so long a request hangs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    layout = build_evaluated_project(tmp_path_factory.mktemp("fuzzed") / "project")
    export.main(export_config(), RUNTIME, layout)
    folder = tmp_path_factory.mktemp("server")
    with served(folder, folder / "log", str(layout.exported / "model"), "--receive-seconds", "2") as running:
        yield running


class Client:
    """One kept connection; counts the statuses of its answers."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0

    def send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        started = time.monotonic()
        try:
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
            content = answer.read()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self.connection.close()
            self.statuses[0] += 1
            return
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.statuses[answer.status] += 1
        assert answer.status < 500, (method, path, body, headers, content)
        if answer.status >= 400 and method != "HEAD":
            assert list(json.loads(content)) == ["error"] and len(json.loads(content)["error"]) <= 300


def fuzzed(share: float) -> Any:
    return settings(
        max_examples=max(1, round(share * CASES)),
        derandomize="TEXTMILL_NIGHTLY" not in os.environ,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def check_server(server: Server, client: Client, expected: int) -> None:
    """The server answers as before, and nothing in its log is an error."""
    assert client.statuses.total() >= 0.9 * expected
    assert client.statuses[0] < 0.01 * expected, client.statuses
    assert ask(server.port, "POST", "/predict", {"input": "great film"}).status == 200
    assert server.metric("textmill_queue_rows") == 0
    log = server.log.read_text()
    assert "Traceback" not in log, log[-3000:]


def test_server_requests_from_its_schema_are_answered(server: Server) -> None:
    """Half of the cases: what schemathesis derives from the server's own OpenAPI document, valid or not."""
    document = ask(server.port, "GET", "/openapi.json").json()
    document.pop("security", None)
    schema = schemathesis.openapi.from_dict(document)
    operations = [(operation.ok().method.upper(), operation.ok()) for operation in schema.get_all_operations()]
    predict = [operation for method, operation in operations if method == "POST"]
    others = [operation for method, operation in operations if method != "POST"]
    client = Client(server.port)
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]

    def cases(chosen: list[Any], mode: Any) -> Any:
        return st.one_of([operation.as_strategy(generation_mode=mode) for operation in chosen])

    def send(case: Any) -> None:
        body = None if isinstance(case.body, NotSet) else case.body
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {name: _header(value) for name, value in (case.headers or {}).items()}
        headers.setdefault("Content-Type", case.media_type or "application/json")
        client.send(case.method, case.formatted_path, content, headers)

    for chosen, mode, share in ((predict, modes[0], 0.2), (predict, modes[1], 0.2), (others, modes[0], 0.1)):
        fuzzed(share)(given(cases(chosen, mode))(send))()
    assert client.statuses[200] > 0 and client.statuses[422] + client.statuses[400] > 0
    check_server(server, client, round(0.5 * CASES))
    record_cases("requests from the schema", client)


def _header(value: Any) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", str(value))


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["input", "inputs", "text", "options", "stream", ""]), inner, max_size=3)
    ),
    max_leaves=10,
)
BODY = st.one_of(
    st.binary(max_size=60),
    JSON_VALUE.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({}, optional={"input": JSON_VALUE, "inputs": st.lists(JSON_VALUE, max_size=5)}).map(
        lambda value: json.dumps(value).encode()
    ),
    st.text(max_size=40).map(lambda text: json.dumps({"input": text}, ensure_ascii=False).encode("utf-8", "replace")),
    st.sampled_from([b"[" * 50_000, b'{"input":' * 5000, b'{"input": "' + b"x" * 30_000 + b'"}', b'{"input": 1e999}']),
)
PATH = st.sampled_from(["/predict"] * 8 + ["/generate", "/health", "/ready", "/version", "/metrics", "/openapi.json"])
PATH |= st.text("ab/%.?#;{}[]\\", max_size=12).map(lambda path: "/" + path)
METHOD = st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
HEADERS = st.dictionaries(
    st.sampled_from(["Content-Type", "Accept", "Expect", "Origin", "Host", "Authorization", "Content-Encoding", "X"]),
    st.sampled_from(["application/json", "text/plain", "", "*/*", "gzip", "null", "127.0.0.1", "[::1", "Bearer x"]),
    max_size=3,
)


def test_server_random_requests_are_answered(server: Server) -> None:
    """Half of the cases: bodies, paths, methods and headers that no schema knows."""
    client = Client(server.port)

    @fuzzed(0.45)
    @given(METHOD, PATH, BODY, HEADERS)
    def send(method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        client.send(method, path, body, {"Content-Type": "application/json", **headers})

    send()
    assert client.statuses[200] > 0
    check_server(server, client, round(0.45 * CASES))
    record_cases("random requests", client)


def test_server_bytes_that_are_not_http_are_answered_or_closed(server: Server) -> None:
    import socket

    pieces = [b"POST /predict HTTP/1.1\r\n", b"Host: localhost\r\n", b"Content-Length: 5\r\n", b"\r\n", b"\r\n\r\n"]
    pieces += [
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    ]
    pieces += [
        b"GET / HTTP/9.9\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"Content-Length: -1\r\n",
        b"\x00",
        b"Connection: close\r\n",
    ]
    client = Client(server.port)

    @fuzzed(0.05)
    @given(st.lists(st.sampled_from(pieces) | st.binary(max_size=8), min_size=1, max_size=8).map(b"".join))
    def send(content: bytes) -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            try:
                received = connection.recv(4096)
            except ConnectionResetError:
                received = b""
        assert not received.startswith(b"HTTP/1.1 5"), (content, received)
        client.statuses[int(received.split()[1]) if received else -1] += 1

    send()
    check_server(server, client, round(0.05 * CASES))


def record_cases(kind: str, client: Client) -> None:
    counts = ", ".join(f"{count} with {status}" for status, count in sorted(client.statuses.items()) if status)
    record(
        "14 Fuzzing of the served API",
        seen="a status below 500 and one line",
        kept="the server answers as before",
        measured=f"{client.statuses.total()} {kind}: {counts}; slowest answer {client.slowest:.2f} s",
        cases=client.statuses.total(),
    )
