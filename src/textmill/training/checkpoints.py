# ruff: noqa: ARG002 - Lightning's hooks get more than each needs
"""Checkpoints that outlive the process: whole or absent, checked before use, the last two kept."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from textmill.files import read_json, read_optional, sha256_file, write_json
from textmill.training import random_state
from textmill.training.distributed import gather_all
from textmill.training.history import History
from textmill.training.module import ends_step

log = logging.getLogger("textmill")

_KEPT = 2
_RANKS_AGREE_EVERY = 10
_RUN_FILE = "run.json"
_PARTS_FILE = "parts.json"


class CheckpointFolder:
    """The checkpoints of one training: of one fingerprint of inputs, parameters and code.

    Each `step-N.ckpt` has a `step-N.json` beside it with its digest and the weights file that was
    the best so far. A checkpoint without one was never finished.

    Args:
        path: Absolute; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, or None. Says so when a newer one is not."""
        for note in reversed(self._notes()):
            checkpoint = note.with_suffix(".ckpt")
            if checkpoint.is_file() and sha256_file(checkpoint) == read_json(note)["sha256"]:
                return checkpoint
            log.warning("the checkpoint %s is damaged; falling back to the one before", checkpoint)
        return None

    def add(self, written: Path, step: int, best: str | None) -> None:
        """Take in a written checkpoint by renaming it, and let older ones go."""
        with written.open("rb") as file:
            os.fsync(file.fileno())
        final = self.path / f"step-{step:010d}.ckpt"
        digest = sha256_file(written)
        written.replace(final)
        write_json(final.with_suffix(".json"), {"sha256": digest, "best": best})
        self._prune()

    def run_id(self) -> str | None:
        """The MLflow run of the training that was cut off."""
        path = self.path / _RUN_FILE
        return str(read_json(path)["run_id"]) if path.is_file() else None

    def note_run(self, run_id: str) -> None:
        """Remember the MLflow run, so that a resumed training goes on in it."""
        write_json(self.path / _RUN_FILE, {"run_id": run_id})

    def note_parts(self, parts: dict[str, Any]) -> None:
        """Keep what the fingerprint was made of, so that a training that differs can say in what."""
        write_json(self.path / _PARTS_FILE, parts)

    def parts(self) -> dict[str, Any]:
        """Return what the fingerprint was made of; empty where it was not kept."""
        return read_optional(self.path / _PARTS_FILE)

    def other(self) -> CheckpointFolder | None:
        """Return the latest unfinished training of another fingerprint; None when this one has a checkpoint."""
        notes = [] if self._notes() else list(self.path.parent.glob("*/step-*.json"))
        latest = max(notes, key=lambda note: note.stat().st_mtime, default=None)
        return CheckpointFolder(latest.parent) if latest else None

    def remove(self) -> None:
        """Remove everything; the training's result is safe elsewhere."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _notes(self) -> list[Path]:
        return sorted(self.path.glob("step-*.json"))

    def _prune(self) -> None:
        notes = self._notes()
        for note in notes[:-_KEPT]:
            note.with_suffix(".ckpt").unlink(missing_ok=True)
            note.unlink(missing_ok=True)
        kept = {read_json(note)["best"] for note in notes[-_KEPT:]}
        for weights in self.path.glob("best-*.safetensors"):
            if weights.name not in kept:
                weights.unlink(missing_ok=True)


class CheckpointWriter(Callback):
    """Writes a checkpoint now and then, and carries the random generators' states in it.

    It writes only where Lightning can go on from exactly: after a step of the optimizer that no
    validation follows, and at an epoch's end. `seconds` is the least time between two checkpoints.
    """

    def __init__(self, folder: CheckpointFolder, seconds: float, history: History) -> None:
        self._folder = folder
        self._seconds = seconds
        self._history = history
        self._written = time.monotonic()
        self._random_states: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._written = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first batch of a resumed training: put the random generators back."""
        if self._random_states:
            # With another number of ranks there would be another fingerprint, so every rank has its state.
            random_state.restore(self._random_states[trainer.global_rank])
            self._random_states = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write when it is time."""
        done = batch_idx + 1
        is_last = done >= trainer.num_training_batches
        is_validated_next = done % int(trainer.val_check_batch or 1) == 0
        # Between two steps there are gradients, which no checkpoint has.
        if (
            ends_step(trainer, batch_idx)
            and not (is_last or is_validated_next)
            and self._due(trainer, trainer.global_step)
        ):
            self._write(trainer, trainer.current_epoch, done)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write when another epoch follows and it is time."""
        following = trainer.current_epoch + 1
        if following < (trainer.max_epochs or 0) and not trainer.should_stop and self._due(trainer, 0):
            self._write(trainer, following, 0)

    def state_dict(self) -> dict[str, Any]:
        """The random generators' states of all ranks."""
        return {"random": gather_all(random_state.capture())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first batch; until then Lightning may draw numbers of its own."""
        self._random_states = list(state_dict["random"])

    def _due(self, trainer: Trainer, count: int) -> bool:
        """Whether enough time went by. The ranks agree on the answer of the first, but not at every count."""
        if trainer.world_size > 1 and count % _RANKS_AGREE_EVERY:
            return False
        due = time.monotonic() - self._written >= self._seconds
        return bool(trainer.strategy.broadcast(due)) if trainer.world_size > 1 else due

    def _write(self, trainer: Trainer, epoch: int, batch: int) -> None:
        trainer.datamodule.reached(epoch, batch)  # type: ignore[attr-defined]
        partial = self._folder.path / ".partial.ckpt"
        trainer.save_checkpoint(partial, weights_only=False)
        if trainer.is_global_zero:
            self._folder.add(partial, trainer.global_step, self._history.best_file)
        self._written = time.monotonic()
