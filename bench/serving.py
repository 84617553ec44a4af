"""`textmill serve` beside `mlflow models serve`: the same registered version, client and machine; prints Markdown.

Usage: `python -m bench.serving [--seconds=10] [--projects=FOLDER,FOLDER]`, after `make repro` there.
Texts are those of the test split, one a request, over connections that stay open. The client runs on
the same machine and takes its share of the cores from both sides alike. What the exported graph
answers by itself, in batches and without a server, is measured too: no server can give more.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from textmill.predicting.predictor import Predictor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
CROWDS = (1, 32, 200)
REPETITIONS = 3
LONG = 6
GOAL = 5.0
WARM_UP_SECONDS = 3.0
MALFORMED = (b"{", b'{"inputs": []}', b'{"inputs": [""]}', b'{"inputs": [NaN]}', b"\xff")


@dataclass
class Side:
    """A kind of server: how it is started and asked."""

    name: str
    command: list[str]
    probe: str
    path: str
    body: Callable[[str], bytes]


@dataclass
class Found:
    """What a client saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return float(np.percentile(self.seconds, share)) * 1000 if self.seconds else float("nan")


def sides(project: Path, port: int) -> list[Side]:
    """Both servers of the registered version, and MLflow's with a process for each core."""
    binaries = Path(sys.executable).parent
    uri = json.loads((project / "data/registered/registered.json").read_text())["uri"]
    ours = [str(binaries / "textmill"), "serve", uri, "--port", str(port)]
    theirs = [str(binaries / "mlflow"), "models", "serve", "--env-manager", "local", "--model-uri", uri]
    theirs += ["--host", "127.0.0.1", "--port", str(port)]

    def records(text: str) -> bytes:
        return json.dumps({"dataframe_records": [{"text": text}]}).encode()

    cores = str(len(os.sched_getaffinity(0)))
    return [
        Side("`textmill serve`", ours, "/ready", "/predict", lambda text: json.dumps({"input": text}).encode()),
        Side("`mlflow models serve`", theirs, "/ping", "/invocations", records),
        Side(
            f"`mlflow models serve --workers {cores}`", [*theirs, "--workers", cores], "/ping", "/invocations", records
        ),
    ]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def running(side: Side, project: Path, port: int) -> Iterator[None]:
    """The server, ready to answer."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            side.command, cwd=project, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            for _ in range(600):
                if server.poll() is not None:
                    log.seek(0)
                    sys.exit(log.read().decode(errors="replace"))
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{side.probe}", timeout=5):
                        break
                except OSError:
                    time.sleep(0.2)
            yield
        finally:
            if server.poll() is None:
                os.killpg(server.pid, 15)
            server.wait(60)


def ask(side: Side, port: int, texts: list[str], clients: int, seconds: float, *, malformed: int = 0) -> Found:
    """Let clients ask one sentence after another; each `malformed`-th body is nonsense and not timed."""
    from support.http_client import Connection, LostError, load

    found = Found()

    def one(number: int) -> Callable[[], Awaitable[None]]:
        connection = Connection(port)
        turn = number * 37

        async def request() -> None:
            nonlocal turn
            turn += 1
            broken = malformed and turn % malformed == 0
            body = MALFORMED[turn % len(MALFORMED)] if broken else side.body(texts[turn % len(texts)])
            try:
                answer = await connection.post(side.path, body)
            except (LostError, ConnectionError):
                found.statuses["lost"] += 1
                return
            found.statuses[str(answer.status)] += 1
            if answer.status == 200:
                found.seconds.append(answer.seconds)

        return request

    asyncio.run(load(seconds, clients, one))
    return found


def rates(turns: list[Found], seconds: float) -> list[float]:
    """Answers a second of each turn."""
    return [len(turn.seconds) / seconds for turn in turns]


def row(name: str, clients: int, seconds: float, turns: list[Found]) -> str:
    """A line of the table."""
    together = Found(
        [second for turn in turns for second in turn.seconds], sum((turn.statuses for turn in turns), Counter())
    )
    others = [f"{count} x {status}" for status, count in sorted(together.statuses.items()) if status != "200"]
    each = rates(turns, seconds)
    spread = f" ({min(each):.0f}-{max(each):.0f})" if len(each) > 1 else ""
    cells: list[Any] = [name, clients, f"{statistics.median(each):.0f}{spread}"]
    cells += [f"{together.percentile(share):.0f}" for share in (50, 95, 99)]
    return f"| {' | '.join(map(str, [*cells, ', '.join(others) or 'none']))} |"


def alone(predictor: Predictor, texts: list[str], seconds: float) -> float:
    """Answers a second of the exported graph, all texts at hand and batched by length."""
    answered, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        predictor.predict(texts)
        answered += len(texts)
    return answered / (time.perf_counter() - started)


def compare(project: Path, seconds: float) -> None:
    """Measure one model and print its table."""
    from textmill.data.prepared import Prepared
    from textmill.predicting.loading import load_predictor

    registered = json.loads((project / "data/registered/registered.json").read_text())
    size = (project / "data/exported/model/model.int8.onnx").stat().st_size / 1e6
    texts = Prepared(project / "data/prepared").split("test").column("text").to_pylist()
    predictor = load_predictor(project / "data/exported/model", threads=len(os.sched_getaffinity(0)))
    by_itself: list[float] = []
    pairs = [(sides(project, port)[place], port) for place, port in enumerate(free_ports(3))]
    with ExitStack() as stack:
        for side, port in pairs:
            stack.enter_context(running(side, project, port))
            ask(side, port, texts, CROWDS[1], WARM_UP_SECONDS)
        found: dict[tuple[str, int], list[Found]] = {(side.name, count): [] for count in CROWDS for side, _ in pairs}
        for clients in CROWDS:
            for _ in range(REPETITIONS):
                for side, port in pairs:
                    found[side.name, clients].append(ask(side, port, texts, clients, seconds))
                by_itself.append(alone(predictor, texts, seconds))
        mixed = ask(*pairs[0], texts, CROWDS[-1], LONG * seconds, malformed=10)
    print(f"\n### {registered['name']}: an int8 graph of {size:.0f} MB, {len(texts)} test texts\n")
    print("| server | clients | answers/s | median ms | p95 ms | p99 ms | other outcomes |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for (name, clients), turns in found.items():
        print(row(name, clients, seconds, turns))
    print(row(f"{pairs[0][0].name}, every tenth body malformed", CROWDS[-1], LONG * seconds, [mixed]))
    graph = statistics.median(by_itself)
    spread = f"{min(by_itself):.0f}-{max(by_itself):.0f}"
    print(f"| the graph alone, no server | - | {graph:.0f} ({spread}) | - | - | - | - |\n")
    for clients in CROWDS:
        ours, *theirs = (statistics.median(rates(found[side.name, clients], seconds)) for side, _ in pairs)
        ratios = ", ".join(
            f"{ours / rate:.1f} times {side.name}" for rate, (side, _) in zip(theirs, pairs[1:], strict=True)
        )
        print(
            f"- With {clients} client{'s' * (clients > 1)}: {ratios}; {ours / graph:.0%} of the graph alone,", end=" "
        )
        print(f"which is {graph / theirs[0]:.1f} times `mlflow models serve`.")


def main(projects: list[Path], seconds: float) -> None:
    """Measure and print."""
    print("One text per request. The three servers run at the same time and are queried in turn,")
    print(f"{seconds:.0f} s each time. Answers per second are the median of {REPETITIONS} turns, with their range.")
    print(f"Goal: {GOAL:.0f} times the throughput of `mlflow models serve`. No server answers faster than its graph;")
    print("where the graph alone is slower than the goal, this machine cannot reach it.")
    for project in projects:
        compare(project, seconds)


if __name__ == "__main__":
    options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    folders = options.get("projects", str(ROOT)).split(",")
    main([Path(folder).resolve() for folder in folders], float(options.get("seconds", 10)))
