"""Characters of tiny Shakespeare compared with nanoGPT's published CPU configuration: time to a loss, loss in a time.

The rival is written anew in plain PyTorch after nanoGPT's `train.py` with the options that its README
gives for a CPU: 4 layers, 4 heads, width 128, context 64, batches of 12, 2,000 steps, no dropout, and
its evaluation of 20 batches of both splits every 250 steps. Ours is the pipeline's own training of
`experiment=tiny_shakespeare`, once for a third of the rival's time and once for all of it. Seconds are those of a
fresh process from its start to the end of training, with the tokens already on disk. All weights are
scored on nanoGPT's whole validation split, windows of 64 one after the other. `--quick` trains for
a twentieth of the steps, where the losses tell nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from textmill.config.schema import PipelineConfig

ROOT = Path(__file__).resolve().parent.parent
TEXT = ROOT / "../shared/data/tinyshakespeare/input.txt"
CONTEXT = 64
RIVAL_STEPS, RIVAL_BATCH = 2000, 12
# Optimizer steps of 1,024 tokens that fit a third of the rival's time, and all of it.
OUR_STEPS = {"ours, a third of the time": 400, "ours, the same time": 1600}
GOALS = {"ours, a third of the time": "nanoGPT's loss or less", "ours, the same time": "1.70 or less"}


# -- the rival ------------------------------------------------------------------------------


def rival(text: str, steps: int) -> dict[str, float]:
    """Train as nanoGPT does; see the module's text."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch import nn

    layers, heads, width = 4, 4, 128
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(sign) for sign in text])
    train, validation = split(ids)
    torch.manual_seed(1337)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_1, self.norm_2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
            self.attention = nn.Linear(width, 3 * width, bias=False)
            self.attention_projection = nn.Linear(width, width, bias=False)
            self.widen = nn.Linear(width, 4 * width, bias=False)
            self.narrow_projection = nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            rows, length, _ = x.shape
            parts = self.attention(self.norm_1(x)).split(width, dim=2)
            query, key, value = (part.view(rows, length, heads, width // heads).transpose(1, 2) for part in parts)
            seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.attention_projection(seen.transpose(1, 2).reshape(rows, length, width))
            output: Tensor = x + self.narrow_projection(F.gelu(self.widen(self.norm_2(x))))
            return output

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(len(characters), width)
            self.positions = nn.Embedding(CONTEXT, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width, bias=False)
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    deviation = 0.02 / math.sqrt(2 * layers) if "projection" in name else 0.02
                    nn.init.normal_(parameter, std=deviation)

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
            for block in self.blocks:
                x = block(x)
            return F.linear(self.norm(x), self.tokens.weight)

    def batch(data: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(data) - CONTEXT, (RIVAL_BATCH,))
        windows = data[starts[:, None] + torch.arange(CONTEXT + 1)]
        return windows[:, :-1], windows[:, 1:]

    def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    model = GPT()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    for step in range(steps + 1):
        rate = (
            1e-3 * (step + 1) / 101 if step < 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / 1900)) * 9e-4
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        if step % 250 == 0:
            model.eval()
            with torch.no_grad():
                for data in (train, validation):
                    torch.stack([loss_of(model, *batch(data)) for _ in range(20)]).mean().item()
            model.train()
        if step == steps:
            break
        loss = loss_of(model, *batch(train))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    ended = time.time()
    return {
        "ended": ended,
        "loss": score(lambda inputs: model.eval()(inputs), validation),
        **sizes(model, steps * RIVAL_BATCH),
    }


# -- ours -----------------------------------------------------------------------------------


def configured(overrides: list[str]) -> PipelineConfig:
    """The composed configuration of the experiment."""
    from textmill.config.compose import compose
    from textmill.config.layout import Layout

    return compose(Layout(ROOT), ["experiment=tiny_shakespeare", *overrides])


def prepare_text(text: Path, folder: Path) -> None:
    """Let the pipeline's `prepare` tokenise the text into `folder`/data/prepared."""
    import shutil

    from textmill.config.layout import Layout
    from textmill.data.prepare import prepare

    layout = Layout(folder)
    raw = layout.raw / "files" / "all"
    raw.mkdir(parents=True)
    shutil.copyfile(text, raw / "input.txt")
    config = configured([])
    prepare(config.prepare, config.runtime, layout)


def ours(text: str, steps: int, folder: Path) -> dict[str, float]:
    """Train with the experiment's recipe for so many steps."""
    import torch

    from textmill.data.prepared import Prepared
    from textmill.training.trainer import Training

    overrides = [f"train.batches.per_epoch={steps}", "train.max_epochs=1", "train.validations_per_epoch=1"]
    config = configured([*overrides, "runtime.trainer.accelerator=cpu"])
    prepared = Prepared(folder / "data" / "prepared")
    with tempfile.TemporaryDirectory() as checkpoints:
        trained = Training(config.train, config.runtime, prepared, None, Path(checkpoints)).run()
    ended = time.time()
    model = trained.network.eval()
    model.load_state_dict(trained.weights)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_folder / "tokenizer.json"))
    validation = split(torch.tensor(tokenizer.encode(text).ids))[1]
    loss = score(lambda inputs: model(inputs)["logits"], validation)
    return {"ended": ended, "loss": loss, **sizes(model, trained.metrics["steps"] * 16)}


# -- both -----------------------------------------------------------------------------------


def split(ids: Tensor) -> tuple[Tensor, Tensor]:
    """NanoGPT's split: the first 90 % to train on, the rest to validate."""
    cut = int(len(ids) * 0.9)
    return ids[:cut], ids[cut:]


def sizes(model: nn.Module, windows: float) -> dict[str, float]:
    """Weights, and tokens trained on."""
    return {"weights": sum(parameter.numel() for parameter in model.parameters()), "tokens": windows * CONTEXT}


def score(logits: Callable[[Tensor], Tensor], ids: Tensor, context: int = CONTEXT, rows: int = 64) -> float:
    """Mean loss in float32 over windows of the context's length, one after the other, `rows` at a time."""
    import torch

    windows = (len(ids) - 1) // context
    inputs, targets = (ids[shift : shift + windows * context].view(windows, context) for shift in (0, 1))
    with torch.inference_mode():
        losses = [
            torch.nn.functional.cross_entropy(logits(part).flatten(0, 1), target.flatten(), reduction="sum")
            for part, target in zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True)
        ]
    return float(sum(losses)) / targets.numel()


def measure(side: str, steps: int, arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One side in a process of its own, with a thread for each core."""
    command = [sys.executable, "-m", "bench.nanogpt", "--side", side, "--steps", str(steps)]
    command += ["--text", str(arguments.text), "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    started = time.time()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    result["seconds"] = result.pop("ended") - started
    print(f"{side}, {steps} steps: {result}", file=sys.stderr)
    return result


def compare(arguments: argparse.Namespace) -> None:
    """Measure and print the table."""
    share = 20 if arguments.quick else 1
    with tempfile.TemporaryDirectory() as name:
        prepare_text(arguments.text, Path(name))
        other = measure("rival", RIVAL_STEPS // share, arguments, Path(name))
        found = {title: measure("ours", steps // share, arguments, Path(name)) for title, steps in OUR_STEPS.items()}
    print("Our learning rate was chosen from two by the loss on this split, which favours it a little.")
    print()
    print("| side | weights | tokens seen | total seconds | validation loss | goal |\n|---|---:|---:|---:|---:|---|")
    rows = {"nanoGPT's configuration": (other, "")} | {title: (one, GOALS[title]) for title, one in found.items()}
    for title, (one, goal) in rows.items():
        print(
            f"| {title} | {one['weights'] / 1e6:.2f} M | {one['tokens'] / 1e6:.2f} M "
            f"| {one['seconds']:.1f} ({one['seconds'] / other['seconds']:.2f}x) | {one['loss']:.4f} | {goal} |"
        )


def main() -> None:
    """One side, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps")
    parser.add_argument("--text", type=Path, default=TEXT, help="the file of tiny Shakespeare")
    parser.add_argument("--side", choices=("ours", "rival"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is None:
        compare(arguments)
        return
    text = arguments.text.read_text(encoding="utf-8")
    result = (
        rival(text, arguments.steps) if arguments.side == "rival" else ours(text, arguments.steps, arguments.folder)
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
