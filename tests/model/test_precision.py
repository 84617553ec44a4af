from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from textmill.training.precision import Shape, choose_orthogonal_format, choose_precision


def cpu(path: Path, flags: str) -> Path:
    path.write_text(f"processor\t: 0\nmodel name\t: X\nflags\t\t: fpu avx2 {flags}\n\nprocessor\t: 1\n")
    return path


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx512f avx512_bf16", "bf16-mixed"), ("amx_tile amx_bf16", "bf16-mixed"), ("avx512f", "32-true")],
)
def test_a_cpu_computes_in_bf16_only_where_it_has_instructions(
    no_gpu: None, tmp_path: Path, flags: str, expected: str
) -> None:
    assert choose_precision(None, "auto", cpu(tmp_path / "cpuinfo", flags)) == expected


def test_a_system_without_cpuinfo_computes_in_fp32(no_gpu: None, tmp_path: Path) -> None:
    assert choose_precision(None, "cpu", tmp_path / "missing") == "32-true"


def test_a_new_gpu_computes_in_bf16(gpu: None, tmp_path: Path) -> None:
    assert choose_precision(None, "auto", tmp_path / "missing") == "bf16-mixed"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "16-mixed"), ((6, 1), "32-true")])
def test_an_older_gpu_computes_in_fp16_where_it_is_fast(
    gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_precision(None, "gpu", tmp_path / "missing") == expected


def test_a_cpu_asked_for_beside_a_gpu_decides_for_itself(gpu: None, tmp_path: Path) -> None:
    assert choose_precision(None, "cpu", cpu(tmp_path / "cpuinfo", "")) == "32-true"


def test_a_configured_precision_wins(gpu: None) -> None:
    assert choose_precision("32-true", "auto") == "32-true"


# -- measured on this machine ---------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/textmill/formats.json"


SMALL = Shape(tokens=64, width=32, hidden_width=64, heads=2, length=16)


def test_the_format_is_measured_once_and_then_remembered(no_gpu: None, memory: Path, tmp_path: Path) -> None:
    information = cpu(tmp_path / "cpuinfo", "avx512_bf16")
    started = time.perf_counter()
    first = choose_precision(None, "cpu", information, SMALL)
    choose_orthogonal_format("cpu", information, SMALL)
    assert time.perf_counter() - started < 3 * max(1.0, os.getloadavg()[0])
    remembered = memory.read_bytes()
    layer, muon = sorted(json.loads(remembered))
    assert ('"what": "layer"' in layer, '"what": "muon"' in muon) == (True, True)
    assert choose_precision(None, "cpu", information, SMALL) == first
    assert memory.read_bytes() == remembered


@pytest.mark.parametrize(
    ("times", "expected"), [([1.5, 1.0], "32-true"), ([0.97, 1.0], "32-true"), ([0.5, 1.0], "bf16-mixed")]
)
def test_the_faster_format_of_this_cpu_and_shape_wins(
    no_gpu: None, memory: Path, tmp_path: Path, times: list[float], expected: str
) -> None:
    information = cpu(tmp_path / "cpuinfo", "avx512_bf16")
    choose_precision(None, "cpu", information, SMALL)
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps(dict.fromkeys(known, times)))
    assert choose_precision(None, "cpu", information, SMALL) == expected


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": "b"}', "\x00"])
def test_a_damaged_memory_is_measured_again(no_gpu: None, memory: Path, tmp_path: Path, content: str) -> None:
    memory.parent.mkdir(parents=True)
    memory.write_text(content)
    assert choose_precision(None, "cpu", cpu(tmp_path / "cpuinfo", "avx512_bf16"), SMALL) in ("bf16-mixed", "32-true")
    assert json.loads(memory.read_text())


def test_a_memory_that_cannot_be_written_does_no_harm(no_gpu: None, memory: Path, tmp_path: Path) -> None:
    memory.parent.parent.write_text("a file where the folder should be")
    assert choose_precision(None, "cpu", cpu(tmp_path / "cpuinfo", "avx512_bf16"), SMALL) in ("bf16-mixed", "32-true")


def test_an_unfinished_training_keeps_its_format(
    no_gpu: None, memory: Path, tmp_path: Path, prepared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_training import ARCHITECTURE, MODEL, runtime_config, train_config

    from textmill.data.prepared import Prepared
    from textmill.training import trainer

    config = train_config(precision=None, model=MODEL | {"architecture": ARCHITECTURE})

    def training(faster: str) -> trainer.Training:
        monkeypatch.setattr(trainer, "choose_precision", lambda *_, **__: faster)
        return trainer.Training(config, runtime_config(), Prepared(prepared_folder), None, tmp_path / "checkpoints")

    first = training("bf16-mixed")
    assert training("32-true").fingerprint != first.fingerprint
    (first.folder.path / "step-0000000001.json").write_text("{}")
    again = training("32-true")
    assert (again.precision, again.fingerprint) == ("bf16-mixed", first.fingerprint)
