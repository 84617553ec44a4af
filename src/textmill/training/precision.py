"""The number formats and threads of a training, chosen by what is faster on this machine."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from textmill.config.sections.train import Precision
from textmill.files import write_json
from textmill.training.muon import orthogonalise

log = logging.getLogger("textmill")

_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 names the first two, 64-bit ARM the last
_FIRST_TENSOR_CORES = (7, 0)
_SECONDS = 1.0
"""Time of one comparison; its first passes compile kernels and may take as long again."""
_ROUNDS = 12
_MOST_TOKENS = 1024
_CLEARLY = 0.95
"""bfloat16 must take less than this part of the time: it is less exact, and timings vary."""


@dataclass(frozen=True)
class Shape:
    """The products that take most of a training's time.

    Attributes:
        tokens: Positions of a batch.
        width: Width of a layer's input and output.
        hidden_width: Inner width of its feed-forward network.
        heads: Attention heads.
        length: Tokens of a sequence.
    """

    tokens: int = 1024
    width: int = 384
    hidden_width: int = 1536
    heads: int = 12
    length: int = 64

    @classmethod
    def of(cls, tokens: int, *options: dict[str, Any]) -> Shape:
        """Return the shape of a batch, by the first of a model's `options` that has each number."""

        def first(names: tuple[str, ...], default: int) -> int:
            found = (each[name] for each in options for name in names if isinstance(each.get(name), int))
            return int(next(found, default))

        width = first(("width", "hidden_size", "n_embd", "d_model", "dim"), cls.width)
        hidden = first(("hidden_width", "intermediate_size", "d_ff", "n_inner", "hidden_dim"), 4 * width)
        heads = first(("n_heads", "num_attention_heads", "n_head", "num_heads"), cls.heads)
        return cls(tokens, width, hidden, heads if width % heads == 0 else 1, min(tokens, cls.length))


def choose_precision(
    wanted: Precision | None,
    accelerator: str,
    cpu_information: Path = Path("/proc/cpuinfo"),
    shape: Shape | None = None,
) -> Precision:
    """Return `wanted`, or the fastest format: measured on a CPU, float16 on older GPUs, else bfloat16.

    Args:
        wanted: The configured format; None for the fastest.
        accelerator: Lightning's name of the accelerator.
        cpu_information: Linux's file of the processor's features.
        shape: The products to time on a CPU.
    """
    if wanted is not None:
        return wanted
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed"
        return "16-mixed" if torch.cuda.get_device_capability() >= _FIRST_TENSOR_CORES else "32-true"
    if accelerator in ("auto", "cpu") and _is_faster("layer", shape or Shape(), cpu_information):
        return "bf16-mixed"
    return "32-true"


def choose_orthogonal_format(
    accelerator: str, cpu_information: Path = Path("/proc/cpuinfo"), shape: Shape | None = None
) -> str:
    """Return the faster format of Muon's orthogonalisation, `bfloat16` or `float32`; arguments as above."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bfloat16"
    is_faster = accelerator in ("auto", "cpu") and _is_faster("muon", shape or Shape(), cpu_information)
    return "bfloat16" if is_faster else "float32"


def use_all_cores() -> None:
    """Use a thread for each processor that this process may use, unless `$OMP_NUM_THREADS` is set."""
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))


# -- measurement ----------------------------------------------------------------------------


def _is_faster(what: str, shape: Shape, cpu_information: Path) -> bool:
    """Return whether bfloat16 is faster than float32 on this CPU, as remembered or else as measured now."""
    features = _cpu_features(cpu_information)
    if not _BF16 & set(features.get("flags", "").split()):
        return False  # emulated, and several times slower
    machine = {
        "cpu": features.get("model", "") or platform.processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    key = json.dumps({"what": what, **machine, **asdict(shape)}, sort_keys=True)
    path = _memory()
    known = _read(path)
    times: Any = known.get(key)
    if not _are_times(times):
        times = _measure(_layer if what == "layer" else _orthogonalisation, shape)
        note = "; remembered for this machine" if _remember(path, {**known, key: times}) else ""
        chosen = "bfloat16" if times[0] < _CLEARLY * times[1] else "float32"
        shown = "%s: a %s takes %.1f ms in bfloat16, %.1f ms in float32%s"
        log.info(shown, chosen, what, *(1e3 * t for t in times), note)
    return bool(times[0] < _CLEARLY * times[1])


def _measure(build: Callable[[Shape], Callable[[bool], None]], shape: Shape) -> list[float]:
    """Return the least time of one pass in bfloat16 and one in float32, in seconds, measured in turns.

    It is processor time of one thread, since other programs must not decide: on a busy machine the times of
    several threads vary tenfold.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _least_times(build, shape)
    finally:
        torch.set_num_threads(threads)


def _least_times(build: Callable[[Shape], Callable[[bool], None]], shape: Shape) -> list[float]:
    with torch.random.fork_rng(devices=[]):
        run = build(shape)
        best = [float("inf"), float("inf")]
        started = time.perf_counter()
        for number in range(_ROUNDS):
            for position, half in enumerate((True, False)):
                before = time.thread_time()
                run(half)
                if number:  # the first pass compiles kernels
                    best[position] = min(best[position], time.thread_time() - before)
            if number >= 2 and time.perf_counter() - started > _SECONDS:
                break
    return best


def _layer(shape: Shape) -> Callable[[bool], None]:
    """Return the forward and backward pass of a layer as a function of the format."""
    layer = nn.TransformerEncoderLayer(
        shape.width, shape.heads, shape.hidden_width, dropout=0.0, activation="gelu", batch_first=True
    ).train()
    rows = max(1, min(shape.tokens, _MOST_TOKENS) // shape.length)
    states = torch.randn(rows, shape.length, shape.width, requires_grad=True)

    def run(half: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            result = layer(states)
        result.float().square().mean().backward()
        layer.zero_grad()

    return run


def _orthogonalisation(shape: Shape) -> Callable[[bool], None]:
    matrices = torch.randn(2, shape.hidden_width, shape.width)

    def run(half: bool) -> None:
        orthogonalise(matrices, torch.bfloat16 if half else torch.float32)

    return run


def _cpu_features(path: Path) -> dict[str, str]:
    """Return `model` and `flags` of the first processor, from Linux's file; empty on another system."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    names = {"model name": "model", "flags": "flags", "Features": "flags"}
    lines: Iterable[tuple[str, str, str]] = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {names[name.strip()]: value.strip() for name, _, value in lines if name.strip() in names}


def _memory() -> Path:
    """Return the file of earlier measurements, in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118
    return Path(folder) / "textmill" / "formats.json"


def _read(path: Path) -> dict[str, Any]:
    """Return earlier measurements; none if the file is absent or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _are_times(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(t, float) and t > 0 for t in value)


def _remember(path: Path, content: dict[str, Any]) -> bool:
    """Write the measurements; return whether the folder takes them."""
    try:
        write_json(path, content)
    except OSError:
        return False
    return True
