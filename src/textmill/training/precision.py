"""The number format and threads of a training."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from textmill.config.sections.train import Precision

_FAST_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 names the first two, 64-bit ARM the last
_FIRST_TENSOR_CORES = (7, 0)


def choose_precision(
    wanted: Precision | None, accelerator: str, cpu_information: Path = Path("/proc/cpuinfo")
) -> Precision:
    """Return `wanted`, or the fastest format: bfloat16 if the hardware has it, float16 on older GPUs, else float32.

    Args:
        wanted: The configured format; None for the fastest.
        accelerator: Lightning's name of the accelerator.
        cpu_information: Linux's file of the processor's features.
    """
    if wanted is not None:
        return wanted
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed"
        return "16-mixed" if torch.cuda.get_device_capability() >= _FIRST_TENSOR_CORES else "32-true"
    if accelerator in ("auto", "cpu") and _FAST_BF16 & _cpu_flags(cpu_information):
        return "bf16-mixed"
    return "32-true"


def _cpu_flags(path: Path) -> set[str]:
    """Return Linux's names of the first processor's features; empty on another system."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    for line in text.splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(values.split())
    return set()


def use_all_cores() -> None:
    """Use a thread for each processor that this process may use, unless `$OMP_NUM_THREADS` is set."""
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
