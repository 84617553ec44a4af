"""Time to nanoGPT's loss on characters of tiny Shakespeare: a part of `bench.gpu`."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from bench.gpu_size import Size, autocast, loss_in_chunks, tell, wait
from bench.nanogpt import score, split

ROOT = Path(__file__).resolve().parent.parent
GOAL_LOSS = 1.4697
"""Validation loss that nanoGPT's README gives for its GPU recipe on characters of tiny Shakespeare."""


def characters(size: Size, text: str, learning_rate: float | None = None) -> None:
    """Train on characters of tiny Shakespeare until nanoGPT's validation loss is reached."""
    import torch

    from textmill.config.sections.train import OptimizerConfig
    from textmill.models.architecture import Architecture
    from textmill.models.language_model import LanguageModel
    from textmill.training.layers import compile_layers
    from textmill.training.optimizer import build_optimizer, build_schedule

    started = time.perf_counter()
    vocabulary = sorted(set(text))
    places = {character: number for number, character in enumerate(vocabulary)}
    ids = torch.tensor([places[character] for character in text], device=size.device)
    training, validation = split(ids)
    torch.manual_seed(0)
    model = LanguageModel(Architecture(**size.character_shape), len(vocabulary)).to(size.device)
    if size.compiles:
        compile_layers(model)
    settings = yaml.safe_load((ROOT / "conf/train/language_model.yaml").read_text(encoding="utf-8"))["optimizer"]
    config = OptimizerConfig(**settings | ({"learning_rate": learning_rate} if learning_rate else {}))
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, size.character_steps, config)
    length = model.architecture.max_length
    offsets = torch.arange(length + 1, device=size.device)
    best, reached, compiling = math.inf, None, 0.0
    for step in range(1, size.character_steps + 1):
        first = torch.randint(len(training) - length, (size.character_rows, 1), device=size.device)
        with autocast(size):
            loss = loss_in_chunks(model.train(), training[first + offsets])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step == 1:
            wait(size)
            compiling = time.perf_counter() - started
        if step % max(1, size.character_steps // 15) == 0:
            found = validation_loss(model, validation, size)
            best = min(best, found)
            print(f"step {step}: {found:.4f} after {time.perf_counter() - started:.1f} s", file=sys.stderr)
            if found <= GOAL_LOSS and reached is None:
                reached = time.perf_counter() - started
    total = time.perf_counter() - started
    print("| weights | tokens per step | steps | total seconds | of these the first step | best validation loss |")
    print(f"|{'---:|' * 6}")
    counts = model.parameter_counts()["total"] / 1e6
    tell(
        f"| {counts:.2f} M | {size.character_rows * length:,} | {size.character_steps:,} | {total:.1f} "
        f"| {compiling:.1f} | {best:.4f} |"
    )
    print(f"\n{config.name}, learning rate {config.learning_rate}, dropout {model.architecture.dropout}.", end=" ")
    when = f"reached after **{reached:.1f} s**" if reached else "**not reached**"
    print(f"nanoGPT's {GOAL_LOSS} was {when} (goal: 60 s), compilation and validations included.")


def validation_loss(model: Any, ids: Any, size: Size) -> float:
    """Mean loss over windows of the whole split, one after the other."""
    import torch

    model.eval()
    # Few batches, of another shape than those of training: not worth compiling.
    with torch.compiler.set_stance("force_eager"), autocast(size):
        return score(lambda part: model(part)["logits"].float(), ids, model.architecture.max_length, rows=128)
