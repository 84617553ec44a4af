"""Instruction tuning of SmolLM2-135M compared with `trl.SFTTrainer`: same weights, conversations, updates, threads.

Both sides train low-rank updates of all linear layers once over the same conversations of `experiment=assistant`, by
the same learning rate, with the loss on the answers alone and about as many tokens per step. The rival gets the tokens
and the answers' masks that ours has, and TRL's own padding. The loss is that of held-out answers, in nats a token, of
all weights in float32. Sides take turns, each in a fresh process. `--project FOLDER` has fetched and prepared
`experiment=assistant`; without it a throw-away project does so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.semantic import run

ROOT = Path(__file__).resolve().parent.parent
TOKENS_A_STEP, ROWS, REPEATS, GOAL = 1024, 300, 2, 2.0
NAMES = {"rival": "`trl.SFTTrainer`, its number format", "ours": "Textmill, experiment assistant"}


def config_of() -> Any:
    """The experiment, with one step after each `TOKENS_A_STEP` tokens and one pass over the rows."""
    from textmill.config.compose import compose
    from textmill.config.layout import Layout

    changes = (f"train.batches.tokens={TOKENS_A_STEP}", "train.batches.per_epoch=null")
    return compose(Layout(ROOT), ["experiment=assistant", *changes])


def rows_of(data: Path, split: str, rows: int) -> Any:
    """Rows from all over a split, with `input_ids` and `answer`."""
    from bench.finetuning import spread
    from textmill.data.prepared import Prepared

    return spread(Prepared(data / "prepared").split(split), rows)


def held_out(data: Path, states: Any, output: Any) -> float:
    """The loss of the answers of held-out conversations, in nats a token.

    Args:
        data: Folder with prepared/.
        states: Function from token ids (1, T) to hidden states (1, T, D).
        output: Weight of the output layer, (V, D).
    """
    import torch

    table = rows_of(data, "validation", 60).to_pydict()
    total, count = 0.0, 0
    for ids, answer in zip(table["input_ids"], table["answer"], strict=True):
        learned = torch.tensor(answer[1:], dtype=torch.bool)
        with torch.inference_mode():
            found = states(torch.tensor([ids[:-1]]))[0][learned].float()
            logits = found @ output.float().T
            targets = torch.tensor(ids[1:])[learned]
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        count += int(learned.sum())
    return total / count


def ours(data: Path) -> dict[str, float]:
    """Train as the stage does."""
    from bench.finetuning import part_of
    from textmill.data.prepared import Prepared
    from textmill.training.trainer import Training

    config = config_of()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Prepared(part_of(data / "prepared", Path(folder) / "prepared", ROWS))
        tokens = sum(map(len, prepared.split("train").column("input_ids").to_pylist()))
        training = Training(config.train, config.runtime, prepared, data / "pretrained", Path(folder) / "checkpoints")
        trained = training.run()
    network: Any = trained.network
    network.load_state_dict(trained.weights, strict=False)
    network = network.float().eval()
    loss = held_out(data, lambda ids: network.hidden_states(ids).states, network.output_weight)
    return {"speed": trained.metrics["samples_per_second"] * tokens / ROWS, "loss": loss}


def rival(data: Path) -> dict[str, float]:
    """Train with `trl.SFTTrainer`, changing only what makes the two comparable."""
    import peft
    import transformers
    from datasets import Dataset

    trl: Any = import_module("trl")

    config = config_of().train
    table = rows_of(data, "train", ROWS).select(["input_ids", "answer"])
    tokens = sum(map(len, table.column("input_ids").to_pylist()))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(data / "pretrained", dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(data / "pretrained")
    optimizer = config.optimizer
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=round(TOKENS_A_STEP * ROWS / tokens),
            num_train_epochs=1,
            learning_rate=optimizer.learning_rate,
            lr_scheduler_type=optimizer.schedule,
            warmup_steps=optimizer.warmup,
            max_grad_norm=optimizer.gradient_clip,
            weight_decay=optimizer.weight_decay,
            completion_only_loss=True,
            max_length=config_of().prepare.max_length,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = trl.SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset(table.rename_columns(["input_ids", "completion_mask"])),
            processing_class=tokenizer,
            peft_config=peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        seconds = trainer.train().metrics["train_runtime"]
    merged: Any = trainer.model.merge_and_unload().float().eval()
    loss = held_out(data, lambda ids: merged.model(ids).last_hidden_state, merged.lm_head.weight)
    return {"speed": tokens / seconds, "loss": loss}


def measure(side: str, data: Path) -> dict[str, float]:
    """One side in a process of its own."""
    command = [sys.executable, "-m", "bench.instruction_tuning", "--side", side, "--project", str(data.parent)]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}: {result}", file=sys.stderr, flush=True)
    return result


def compare(data: Path, repeats: int) -> None:
    """Print the table."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in NAMES}
    for _ in range(repeats):
        for side in NAMES:
            found[side].append(measure(side, data))
    print(f"| side | tokens/s, median of {repeats} | loss of held-out answers |\n|---|---:|---:|")
    for side, results in found.items():
        speed, loss = (statistics.median(each[what] for each in results) for what in ("speed", "loss"))
        print(f"| {NAMES[side]} | {speed:.0f} | {loss:.4f} |")
    times = [us["speed"] / them["speed"] for us, them in zip(found["ours"], found["rival"], strict=True)]
    print(f"\n{ROWS} conversations, once. Tokens/s of each turn: {', '.join(f'{each:.2f}' for each in times)} times")
    print(f"those of TRL; goal {GOAL:g}, at no higher loss.")


def main() -> None:
    """One side, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often each side is measured")
    parser.add_argument("--side", choices=tuple(NAMES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"ours": ours, "rival": rival}[arguments.side](arguments.project / "data")))
    elif arguments.project is None:
        with tempfile.TemporaryDirectory() as name:
            project = run("assistant", Path(name) / "project", stages=("compose", "fetch", "prepare"))
            compare(project / "data", arguments.repeats)
    else:
        compare(arguments.project.resolve() / "data", arguments.repeats)


if __name__ == "__main__":
    main()
