"""The benchmark for GPUs, in small on the CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.tiny_text import play
from tiny_decoder import language_model


@pytest.fixture(scope="module")
def bench(repository_root: Path) -> Iterator[ModuleType]:
    """The program, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository_root))
        import bench.gpu

        yield bench.gpu


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "plays.txt"
    path.write_text("\n".join(play(number) for number in range(12)))
    return path


def test_operations_by_hand(bench: ModuleType) -> None:
    model = language_model(qk_norm=False)
    products = 6 * model.parameter_counts()["total"]
    assert bench.flops_per_token(model, 10) == products + 12 * 2 * 32 * 10


@pytest.mark.slow
def test_every_part_runs_and_gives_its_table(bench: ModuleType, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--quick", "--text", str(text)])
    page = capsys.readouterr().out
    assert "Failed" not in page
    assert len(re.findall(r"^\| .*loss.* \| [\d,]+ \| [\d.]+% \|$", page, re.MULTILINE)) == 3
    assert len(re.findall(r"\(\d+\.\d\dx\)", page)) == 6
    assert "1.4697 was **not reached**" in page


def test_what_fails_keeps_nothing_else_from_being_measured(
    bench: ModuleType, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(bench, "speed", fails)
    monkeypatch.setattr(bench, "experts", fails)
    bench.main(["--quick", "--text", str(text), "--steps", "1"])
    page = capsys.readouterr().out
    assert page.count("**Failed**: RuntimeError: no memory") == 2
    assert "was **not reached**" in page


def test_without_a_gpu_or_a_text_it_says_so_in_one_line(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="no text of tiny Shakespeare"):
        bench.main(["--quick", "--text", str(tmp_path / "none")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^error: no CUDA device here.*--quick$"):
        bench.main([])
