"""One of two ranks that train one step: `python tiny_ranks.py FOLDER CASE...`, see test_accumulation.py."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from test_accumulation import batches, built, largest_difference
from torch.nn.parallel import DistributedDataParallel

from textmill.training.accumulation import Accumulation, MicroBatch, WindowLoader


class Step(torch.nn.Module):
    """What Lightning's module is to DistributedDataParallel: `forward` is the training step."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.task, self.network = built(case)
        self.accumulation = Accumulation(self.task, self.network)

    def forward(self, micro: MicroBatch, size: int) -> torch.Tensor:
        return self.accumulation.scaled_loss(micro, size)


def main(folder: Path, cases: list[str]) -> None:
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    found = {f"{case}, {size}": compare(case, size, rank, folder) for case in cases for size in (2, 4)}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def compare(case: str, size: int, rank: int, folder: Path) -> dict[str, object]:
    """Take the rank's part of a step of `size` micro-batches, and compare with one batch of all rows."""
    own = batches(case)[:-1][2 * rank : 2 * rank + 2]
    step = Step(case)
    wrapped = DistributedDataParallel(step)
    for micro in WindowLoader(own, size, step.task):
        with wrapped.no_sync() if micro.number == 0 else nullcontext():
            (wrapped(micro, size) / size).backward()
    step.accumulation.end_step()
    whole = torch.load(folder / f"{case}.pt")
    gradients = {name: p.grad for name, p in step.network.named_parameters() if p.grad is not None}
    buffers = whole["buffers"]
    unequal = [name for name, buffer in step.network.named_buffers() if not torch.equal(buffer, buffers[name])]
    return {"difference": largest_difference(whole["gradients"], gradients), "unequal_buffers": unequal}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
