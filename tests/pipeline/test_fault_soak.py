"""Hundreds of stage runs and a hundred thousand requests: memory, files and connections do not grow."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.faults import record, rounds
from support.http_client import Connection
from support.project import NEGATIVE, POSITIVE, SUBJECTS, Project
from support.serving import Server, served
from support.tiny_export import RUNTIME, build_evaluated_project, export_config

from textmill.stages import export

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(3 * 3600)]

STAGE_RUNS = rounds(8, 500)
REQUESTS = rounds(4_000, 100_000)
SAMPLES = 20
CLIENTS = 8
TEXTS = [" ".join([*SUBJECTS[: 1 + n % 9], (POSITIVE + NEGATIVE)[n % 16]]) for n in range(40)]
BODIES = [
    *(json.dumps({"input": text}).encode() for text in TEXTS),
    *(json.dumps({"inputs": [" ".join(SUBJECTS[:n])] * n}).encode() for n in range(1, 12)),
    b"{",
    b'{"input": ""}',
    b'{"input": "' + b"x" * 30_000 + b'"}',
]


def slope(amounts: list[float], steps: float) -> float:
    """Growth of the later half for each step, by least squares; the earlier half is warm-up."""
    later = np.array(amounts[len(amounts) // 2 :])
    return float(np.polyfit(np.arange(len(later)) * steps, later, 1)[0])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    layout = build_evaluated_project(tmp_path / "project")
    export.main(export_config(), RUNTIME, layout)
    with served(tmp_path, tmp_path / "log", str(layout.exported / "model")) as running:
        yield running


def test_server_many_requests_leave_memory_files_and_connections_flat(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    statuses: Counter[int] = Counter()

    async def client(number: int, count: int) -> None:
        connection = Connection(server.port)
        for turn in range(count):
            body = BODIES[(number * 7 + turn) % len(BODIES)]
            statuses[(await connection.post("/predict", body)).status] += 1
            if turn % 25 == 24:
                await connection.request("GET", "/metrics")
                connection.close()
        connection.close()

    async def portion() -> None:
        await asyncio.gather(*(client(number, REQUESTS // SAMPLES // CLIENTS) for number in range(CLIENTS)))

    memory, descriptors, threads, connections = [], [], [], []
    for _ in range(SAMPLES):
        asyncio.run(portion())
        asyncio.run(asyncio.sleep(0.1))  # the server sees that the connections were closed
        memory.append(process.memory_info().rss / 1e6)
        descriptors.append(float(process.num_fds()))
        threads.append(float(process.num_threads()))
        connections.append(float(sum(one.status == "ESTABLISHED" for one in process.net_connections())))
    assert set(statuses) == {200, 400, 422}, statuses
    growth = slope(memory, REQUESTS / SAMPLES / 1000)  # MB for 1,000 requests
    assert growth < rounds(2, 1) * 0.25, memory
    for counted in (descriptors, threads, connections):
        # One that appears late, such as a thread of a pool, is no leak: that would grow with each sample.
        assert max(counted[SAMPLES // 2 :]) <= max(counted[: SAMPLES // 2]) + 1, counted
    assert connections[-1] == 0
    assert "Traceback" not in server.log.read_text()
    record(
        "15 Soak of a server",
        seen="nothing",
        kept="memory, open files, threads and connections",
        measured=f"{statuses.total():,} requests: memory {memory[0]:.0f} to {memory[-1]:.0f} MB, "
        f"{growth * 1000:+.1f} kB for 1,000 requests; at the end {descriptors[-1]:.0f} files, "
        f"{threads[-1]:.0f} threads, 0 connections",
        requests=statuses.total(),
        megabytes_for_1000_requests=growth,
    )


def footprint(project: Project, temporary: Path) -> dict[str, tuple[float, float]]:
    """Number of files and their bytes below each place that stages write."""
    places = {
        "data": project.root / "data",
        ".dvc/cache": project.root / ".dvc/cache",
        ".dvc/tmp": project.root / ".dvc/tmp",
        "temporary files": temporary,
        "tracking store": project.root / "mlruns",
    }
    found = {}
    for name, place in places.items():
        sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
        found[name] = (float(len(sizes)), float(sum(sizes)))
    return found


def test_stages_many_runs_leave_nothing_behind(project: Project, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    before = {process.pid for process in psutil.process_iter()}
    measured = []
    runs = 0
    while runs < STAGE_RUNS:
        # `compose` and `fetch` by themselves; from time to time `register`, which writes to the tracking store
        stages = ["compose", "fetch"] + ["register"] * (len(measured) % 10 == 0)
        project.run("dvc", "repro", "--force", "--single-item", *stages, env=environment)
        runs += len(stages)
        measured.append(footprint(project, temporary))
    slopes = {
        place: (
            slope([found[place][0] for found in measured], runs / len(measured)),
            slope([found[place][1] for found in measured], runs / len(measured)),
        )
        for place in measured[0]
    }
    for place in ("data", ".dvc/cache", "temporary files"):
        assert abs(slopes[place][0]) < 1e-6, (place, measured)
    assert slopes[".dvc/tmp"][0] < 0.05, measured
    left = [
        process.cmdline()
        for process in psutil.process_iter()
        if process.pid not in before and str(project.root) in " ".join(process.cmdline())
    ]
    assert not left
    record(
        "15 Soak of stages",
        seen="nothing",
        kept="files and their bytes; the tracking store grows by its runs",
        measured=f"{runs} stage runs; for each: "
        + ", ".join(f"{place} {files:+.2f} files {size:+.0f} bytes" for place, (files, size) in slopes.items()),
        runs=runs,
    )
