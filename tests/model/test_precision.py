from __future__ import annotations

from pathlib import Path

import pytest
import torch

from textmill.training.precision import choose_precision


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
