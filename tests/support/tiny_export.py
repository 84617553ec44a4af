"""A tiny trained and evaluated project in which export and register can run by themselves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.project import NEGATIVE, POSITIVE, SUBJECTS, write_tiny_bert
from textmill.config.layout import Layout
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.register import RegisterConfig
from textmill.config.sections.runtime import RuntimeConfig

TASK = {"_target_": "textmill.tasks.text_classification.TextClassification"}
MODEL = {"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder"}
STATE = {"labels": ["bad", "good"]}
RUNTIME = RuntimeConfig(tracking_experiment="tiny")


def export_config(**options: Any) -> ExportConfig:
    """The export section; a random network may stand quantisation badly, so int8 is let through."""
    return ExportConfig(task=TASK, model=MODEL, **{"title": "Tiny reviews", "int8_tolerance": 1.0, **options})


def register_config() -> RegisterConfig:
    return RegisterConfig(task=TASK, name="tiny-reviews")


def build_evaluated_project(root: Path) -> Layout:
    """`data/prepared`, `data/trained` and `data/evaluation` of 60 made-up rows and a random network."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import torch
    from tokenizers import Tokenizer

    from textmill.data.prepared import Prepared
    from textmill.data.shards import ShardWriter
    from textmill.models.pretrained_encoder import PretrainedEncoder
    from textmill.tasks.text_classification import TextClassification
    from textmill.training.inference import predict_table
    from textmill.training.loading import save_network

    layout = Layout(root)
    root.mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    write_tiny_bert(layout.pretrained)
    _write(layout.pretrained / "provenance.json", {"origin": "package:tiny==1", "sha256": "0" * 64, "version": "1"})
    corpus = {"origin": "package:corpus", "version": "2.0", "licence": "MIT", "sha256": "c" * 64, "files": {}}
    _write(layout.raw / "provenance.json", corpus)

    task = TextClassification.from_options()
    tokens = layout.prepared / "tokenizer"
    tokens.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tokens / name).write_bytes((layout.pretrained / name).read_bytes())
    tokenizer = Tokenizer.from_file(str(tokens / "tokenizer.json"))
    texts = []
    for index in range(60):
        start = index % 12
        words = (SUBJECTS * 3)[start : start + index % 7 + 1]
        texts.append(" ".join([*words, (POSITIVE, NEGATIVE)[index % 2][index % 8]]))
    frame = pd.DataFrame({"id": [str(index) for index in range(60)], "text": texts})
    frame["label"] = ["good", "bad"] * 30
    frame["words"], frame["source"] = frame["text"], "all"
    for split, rows in (("train", frame[:20]), ("validation", frame[20:26]), ("test", frame[26:])):
        encoded = task.encode(rows, tokenizer, STATE, 64)
        table = pa.table({**rows.to_dict("list"), **encoded})
        table = table.set_column(
            table.schema.get_field_index("input_ids"), "input_ids", pa.array(encoded["input_ids"], pa.list_(pa.int32()))
        )
        with ShardWriter(layout.prepared / split, table.schema, 1000) as writer:
            writer.write(table)
    _write(layout.prepared / "state.json", STATE)
    _write(layout.prepared / "statistics.json", {})

    torch.manual_seed(1)
    network = task.build_network(PretrainedEncoder.from_options(), layout.pretrained, STATE).eval()
    with torch.no_grad():
        network.output.weight.normal_(std=1.0)  # answers that are not all alike
    save_network(layout.trained / "model", network, network.state_dict())
    outputs = predict_table(network, task, Prepared(layout.prepared).split("test"))
    layout.evaluation.mkdir()
    np.savez(layout.evaluation / "outputs.npz", **outputs)
    figure = {"value": 0.9, "low": 0.8, "high": 0.95}
    metrics = {
        "test": {"weighted_f1": figure},
        "baselines": {"majority": {"weighted_f1": {"value": 0.3, "low": 0.2, "high": 0.4}}},
        "difference": {"majority": {"weighted_f1": {"value": 0.6, "low": 0.5, "high": 0.7}}},
    }
    _write(layout.evaluation / "metrics.json", metrics)
    return layout


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A real `mlflow server` on 127.0.0.1 with its own database and proxied artefacts; gives its address."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, 15)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, 9)


def wait_for(address: str, process: subprocess.Popen[Any], seconds: float = 180) -> None:
    """Wait until an address answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
