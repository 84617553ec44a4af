"""Random requests to real servers: an answer or one line with a status below 500, never a traceback or a hang."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.faults import record, rounds
from support.fuzzing import SECONDS, Client, check_server, fuzzed, send_requests_of_schema
from support.serving import Server, served
from support.tiny_export import RUNTIME, build_evaluated_project, export_config

from textmill.stages import export

pytestmark = [pytest.mark.slow, pytest.mark.fault]

CASES = rounds(7_400, 100_000)  # with those of tests/code/test_fuzz_inputs.py 10,000 in CI


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    layout = build_evaluated_project(tmp_path_factory.mktemp("fuzzed") / "project")
    export.main(export_config(), RUNTIME, layout)
    folder = tmp_path_factory.mktemp("server")
    with served(folder, folder / "log", str(layout.exported / "model"), "--receive-seconds", "2") as running:
        yield running


def test_server_requests_from_its_schema_are_answered(server: Server) -> None:
    client = Client(server.port)
    send_requests_of_schema(server, client, round(0.14 * CASES))
    assert client.statuses[200] > 0
    check_server(server, client, round(0.14 * CASES))
    record_cases("requests from the schema", client)


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
    """Send bodies, paths, methods and headers that no schema knows."""
    client = Client(server.port)

    @fuzzed(round(0.22 * CASES))
    @given(METHOD, PATH, BODY, HEADERS)
    def send(method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        client.send(method, path, body, {"Content-Type": "application/json", **headers})

    send()
    assert client.statuses[200] > 0
    check_server(server, client, round(0.22 * CASES))
    record_cases("random requests", client)


def test_server_mutated_bodies_are_answered(server: Server) -> None:
    """Change valid bodies at random, which is ten times as fast as to generate them."""
    chooser = random.Random(None if "TEXTMILL_NIGHTLY" in os.environ else 14)
    client = Client(server.port)
    tokens = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"-", b"1e9", b"\\", b"\\u0000", b"\\ud83d", b"\xff"]
    tokens += ["\u202e".encode(), "中".encode(), b'"inputs"', b'"input"', b'"text"', b" " * 300, b"\x00", b"\n"]
    valid = [b'{"input": "great film"}', b'{"input": {"text": "a poor plot"}}', b'{"inputs": ["good", "bad", "ok"]}']
    for _ in range(round(0.6 * CASES)):
        body = bytearray(chooser.choice(valid))
        for _ in range(chooser.randint(0, 4)):
            start = chooser.randrange(len(body) + 1)
            body[start : start + chooser.choice((0, 0, 1, 5))] = chooser.choice((chooser.choice(tokens), b"", body[:9]))
        client.send("POST", "/predict", bytes(body), {"Content-Type": "application/json"})
    assert {200, 400, 422} <= client.statuses.keys()
    check_server(server, client, round(0.6 * CASES))
    record_cases("mutated bodies", client)


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

    @fuzzed(round(0.03 * CASES))
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
    check_server(server, client, round(0.03 * CASES))


def record_cases(kind: str, client: Client) -> None:
    counts = ", ".join(f"{count} with {status}" for status, count in sorted(client.statuses.items()) if status)
    record(
        "14 Fuzzing of the served API",
        seen="a status below 500 and one line",
        kept="the server answers as before",
        measured=f"{client.statuses.total()} {kind}: {counts}; slowest answer {client.slowest:.2f} s",
        cases=client.statuses.total(),
    )
