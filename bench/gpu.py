"""Training of language models on one GPU: speed and MFU, what experts cost, time to nanoGPT's loss; prints Markdown.

`make bench-gpu`, or `python -m bench.gpu` where only PyTorch and its like are installed; some six minutes on an H100.
`--quick` runs all of it with tiny sizes on the CPU, where the figures tell nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from bench.gpu_characters import characters
from bench.gpu_size import FULL, QUICK, Size, autocast, forget, loss_in_chunks, tell, wait
from bench.likelihood import plain

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "../shared/data/tinyshakespeare/input.txt"
PEAK = 989e12
"""Dense bfloat16 FLOPs a second of an H100 SXM (NVIDIA H100 data sheet; an H200 has the same)."""
MFU = """MFU, model FLOPs utilisation, is the share of the device's peak that the model's own products make up: tokens
per second times 6N + 12 L H Q T FLOPs a token, by 989 TFLOP/s of dense bfloat16 (N weights that a token is multiplied
by, L layers of H heads of width Q, T tokens of context; Chowdhery et al. 2022, "PaLM", appendix B)."""


# -- speed of a model of GPT-2's size -------------------------------------------------------


def build(size: Size, **changes: Any) -> Any:
    """The model of `conf/model/gpt2_small.yaml` on the device."""
    import torch

    from textmill.models.architecture import Architecture
    from textmill.models.language_model import LanguageModel

    options = yaml.safe_load((ROOT / "conf/model/gpt2_small.yaml").read_text(encoding="utf-8"))
    del options["_target_"]
    torch.manual_seed(0)
    return LanguageModel(Architecture(**options | size.shape | changes), size.vocabulary).to(size.device).train()


def loss_of_all_logits(model: Any, tokens: Any, loss_of: Callable[[Any, Any, Any], Any]) -> Any:
    """With all logits at once."""
    states = model.hidden_states(tokens[:, :-1]).states
    return loss_of(states.flatten(0, 1), model.output_weight, tokens[:, 1:].flatten())


def seconds_a_step(size: Size, model: Any, loss_of: Callable[[Any, Any], Any]) -> float:
    """Median time of forward, backward and AdamW on random tokens in bfloat16."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    length = model.architecture.max_length
    tokens = torch.randint(model.vocabulary_size, (size.rows, length + 1), device=size.device)
    taken = []
    for _ in range(2 * size.steps):
        started = time.perf_counter()
        with autocast(size):
            loss = loss_of(model, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait(size)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[size.steps :])


def speed(size: Size) -> None:
    """Tokens a second and MFU of the dense model, in three ways to run it."""
    import torch

    from textmill.training.layers import compile_layers

    whole = torch.compile(plain, dynamic=False) if size.compiles else plain
    ways: dict[str, tuple[bool, Callable[[Any, Any], Any]]] = {
        "as it stands, loss in chunks": (False, loss_in_chunks),
        "layers compiled, loss in chunks, as `train.compile: on` trains": (True, loss_in_chunks),
        "layers compiled, loss of all logits compiled": (True, partial(loss_of_all_logits, loss_of=whole)),
    }
    print("| how | tokens/s | MFU |\n|---|---:|---:|")
    for name, (compiled, loss_of) in ways.items():
        model = build(size)
        if compiled and size.compiles:
            compile_layers(model)
        length = model.architecture.max_length
        rate = size.rows * length / seconds_a_step(size, model, loss_of)
        tell(f"| {name} | {rate:,.0f} | {rate * flops_per_token(model, length) / PEAK:.1%} |")
        forget()
    print("| **goal** | | ≥ 50% |")


def flops_per_token(model: Any, length: int) -> int:
    """Return the floating-point operations of a training step per token, in contexts of `length` tokens.

    Two for every weight that a token is multiplied by, and two products with all keys and values.
    The backward pass takes twice the forward pass (Chowdhery et al. 2022, "PaLM", appendix B, which
    also counts causal attention in full).
    """
    shape = model.architecture
    lookups = 0 if model.output is None else model.embedding.weight.numel()
    products = model.parameter_counts()["active"] - lookups
    attention = 2 * shape.n_layers * shape.n_heads * shape.width_of_head * length
    return int(6 * (products + attention))


# -- what experts cost ----------------------------------------------------------------------


def experts(size: Size) -> None:
    """A step of mixtures against one of the dense model of equal active FLOPs."""
    from textmill.training.layers import compile_layers

    sides = {"dense": None, "`top_k`, 2 of 8": "top_k.TopK", "`switch`, 1 of 8": "switch.Switch"}
    taken: dict[tuple[str, bool], float] = {}
    print("| feed-forward | total weights | active | ms per step, as it stands | ms per step, layers compiled |")
    print("|---|---:|---:|---:|---:|")
    for name, router in sides.items():
        cells = []
        for compiled in (False, True):
            target = {"router": {"_target_": f"textmill.models.routing.{router}"}, "feed_forward": "experts"}
            model = build(size, **(target if router else {}))
            if compiled and size.compiles:
                compile_layers(model)
            taken[name, compiled] = seconds_a_step(size, model, loss_in_chunks)
            multiple = taken[name, compiled] / taken["dense", compiled]
            cells.append(f"{taken[name, compiled] * 1e3:.1f} ({multiple:.2f}x)")
            counts = model.parameter_counts()
            forget()
        weights = " | ".join(f"{counts[kind] / 1e6:.0f} M" for kind in ("total", "active"))
        tell(f"| {name} | {weights} | {' | '.join(cells)} |")


# -- all of it ------------------------------------------------------------------------------


def main(options: Sequence[str] | None = None) -> None:
    """Measure and print; what fails is told in its place and keeps nothing else from being measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--text", type=Path, default=TEXT, help="the file of tiny Shakespeare")
    parser.add_argument("--steps", type=int, help="of the training on characters")
    parser.add_argument("--learning-rate", type=float, help="of that training; default: that of conf/train")
    arguments = parser.parse_args(options)
    import torch

    size = QUICK if arguments.quick else FULL
    if arguments.steps is not None:
        size = dataclasses.replace(size, character_steps=arguments.steps)
    if size.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: no CUDA device here. Run on a machine with one, or try everything in small with --quick")
    if not arguments.text.is_file():
        sys.exit(f"error: no text of tiny Shakespeare at {arguments.text}. Name the file with --text")
    text = arguments.text.read_text(encoding="utf-8")
    model = build(size)
    shape, length = model.architecture, model.architecture.max_length
    millions = model.parameter_counts()["total"] / 1e6
    print(
        f"{millions:.0f} million weights: {shape.n_layers} layers of width {shape.width}, {size.vocabulary:,} tokens."
    )
    print(
        f"Forward, backward and AdamW in bfloat16 on {size.rows} rows of {length} tokens; median of {size.steps} steps."
    )
    print(MFU)
    rate = arguments.learning_rate
    parts: dict[str, Callable[[], None]] = {
        "A dense model of GPT-2's size": lambda: speed(size),
        "Mixture of experts compared with dense at equal active FLOPs": lambda: experts(size),
        "Characters of tiny Shakespeare: time to nanoGPT's loss": lambda: characters(size, text, rate),
    }
    del model
    for title, run in parts.items():
        print(f"\n### {title}\n")
        forget()
        try:
            run()
        except Exception as error:
            tell(f"\n**Failed**: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


if __name__ == "__main__":
    main()
