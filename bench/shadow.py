"""`textmill serve` with and without a challenger in its shadow: time of an answer, alternately; prints Markdown.

Usage: `python -m bench.shadow [MODEL_FOLDER] [--seconds=5] [--rounds=20] [--rate=30]`; about four minutes. The model is
that of `make repro` unless a folder is named; the challenger is a copy of it. Requests arrive at random times (Poisson)
at `--rate` a second, each with a text of five to 40 words. Both servers run the whole time. They get the same requests,
one server after the other in alternate order, so that the interval is one of pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np

from bench import end_by_exception

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
WORDS = ("the", "film", "plot", "actor", "scene", "was", "very", "great", "awful", "boring", "long", "and", "not")


def serve(port: int, folder: Path, challenger: Path | None) -> None:
    """Serve a folder; runs in a process of its own."""
    from textmill.serving.loading import FolderSource
    from textmill.serving.server import serve as run
    from textmill.serving.settings import ServeSettings
    from textmill.serving.trial import TrialPlan, Trials

    class Copies(Trials):
        def plan(self, current: str, other: str) -> TrialPlan:
            first, second = sources[0].fetch(current), sources[1].fetch(other)
            return TrialPlan("shadow", 0.0, first, second, lambda reason: print(reason, file=sys.stderr))

    sources = [FolderSource(each) for each in (folder, challenger) if each]
    trials = Copies("shadow", 0.0, sources[0], sources[-1], lambda *_: None, lambda _: None) if challenger else None
    run(sources[0], ServeSettings(port=port), None, trials=trials)


def start(folder: Path, challenger: Path | None) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "bench.shadow", "--serve", str(port), str(folder), str(challenger or "")]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
            return process, port
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.2)
    process.kill()
    raise SystemExit("error: the server does not answer")


async def ask(port: int, seconds: float, rate: float, seed: int) -> list[float]:
    """Return the seconds of each answer, in the order of the requests."""
    from support.http_client import Connection

    draws = random.Random(seed)
    free = [Connection(port) for _ in range(16)]
    count = round(seconds * rate)
    times = [0.0] * count

    async def one(number: int, text: str) -> None:
        connection = free.pop() if free else Connection(port)
        began = time.perf_counter()
        answer = await connection.post("/predict", {"input": text})
        times[number] = time.perf_counter() - began
        assert answer.status == 200, answer.body
        free.append(connection)

    tasks = []
    due = time.perf_counter()
    for number in range(count):
        tasks.append(asyncio.create_task(one(number, " ".join(draws.choices(WORDS, k=draws.randint(5, 40))))))
        due += draws.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    await asyncio.gather(*tasks)
    return times


def main(folder: Path, seconds: float, rounds: int, rate: float) -> None:
    """Measure and print."""
    from textmill.predicting.exported import write_manifest

    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, Path(scratch) / "challenger"))
        (copy / "README.md").write_text("# Another card\n")
        write_manifest(copy)
        servers: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        try:
            servers |= {"without": start(folder, None)}
            servers |= {"with shadow": start(folder, copy)}
            times: dict[str, list[float]] = {name: [] for name in servers}
            for port in (port for _, port in servers.values()):
                asyncio.run(ask(port, min(5.0, seconds), rate, 0))
            for number in range(rounds):
                for name in list(servers)[:: 1 if number % 2 else -1]:
                    times[name] += asyncio.run(ask(servers[name][1], seconds, rate, number + 1))
            with urllib.request.urlopen(f"http://127.0.0.1:{servers['with shadow'][1]}/trial", timeout=5) as page:
                requests = json.load(page)["requests"]
        finally:
            for process, _ in servers.values():
                process.terminate()
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    load = os.getloadavg()[0]
    print(f"{rate:g} requests/s, {len(os.sched_getaffinity(0))} cores, load of the machine {load:.1f}, {requests}\n")
    print("| server | answers | median ms | p95 ms |\n|---|---:|---:|---:|")
    for name, found in times.items():
        median, high = np.percentile(found, (50, 95)) * 1000
        print(f"| {name} | {len(found)} | {median:.2f} | {high:.2f} |")
    first, second = (np.array(found) for found in times.values())
    drawn = np.random.default_rng(1).integers(0, len(first), (1000, len(first)))
    ratios = np.percentile(second[drawn], 95, axis=1) / np.percentile(first[drawn], 95, axis=1)
    low, middle, high = 100 * (np.percentile(ratios, (2.5, 50, 97.5)) - 1)  # of pairs: both got the same requests
    print(f"\np95 with shadow: {middle:+.1f} % (95 % interval {low:+.1f} to {high:+.1f} %)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]) if sys.argv[4] else None)
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "data" / "exported" / "model")
        for name, default in (("seconds", 5.0), ("rounds", 20), ("rate", 30.0)):
            parser.add_argument(f"--{name}", type=type(default), default=default)
        given = parser.parse_args()
        end_by_exception()
        main(given.folder.resolve(), given.seconds, given.rounds, given.rate)
