# ruff: noqa: ARG002 - Lightning's hooks get more than each needs
"""Checkpoints that outlive the process: whole or absent, checked before use, the last two kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.distributed import tensor as dtensor
from torch.distributed.checkpoint import filesystem, state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils._pytree import tree_leaves, tree_map

from textmill.errors import UserError, name_full_disk
from textmill.files import folder_digests, read_json, read_optional, sha256_file, write_json
from textmill.training import random_state
from textmill.training.distributed import gather_all, max_over_ranks
from textmill.training.history import History
from textmill.training.interruption import Interruption
from textmill.training.module import ends_step

log = logging.getLogger("textmill")

_KEPT = 2
_RANKS_AGREE_EVERY = 10
_SHORTEST = 5.0
_INTERVAL = 60
"""Ratio of the time between two checkpoints to the time that one takes."""
_RUN_FILE = "run.json"
_LOCK_FILE = ".lock"
_ORPHANS_LIVE = 6.0
"""Seconds that the loaders of a killed process may live on, with its lock."""
_HOLDER_FILE = "holder.json"
_MENTIONED_FILE = "mentioned"
_PARTS_FILE = "parts.json"
_PLAIN_FILE = "plain.pt"
"""File of a checkpoint folder with all that is not divided over the ranks."""
_DIVIDED = "textmill.divided"
"""Key that stands for a divided tensor there."""


class CheckpointFolder:
    """The checkpoints of one training: of one fingerprint of inputs, parameters and code.

    Each `step-N.ckpt`, a file or a folder of the ranks' parts, has a `step-N.json` beside it with its digest and the
    weights file that was the best so far. A checkpoint without one was never finished.

    Args:
        path: Absolute; made when missing.
    """

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path / _LOCK_FILE)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; the system releases it when the process ends, however it ends.

        Raises:
            UserError: Another process holds it.
        """
        from filelock import Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=_ORPHANS_LIVE)
        except Timeout as error:
            raise UserError(
                f"{self._holder()} runs the same training",
                where=str(self.path),
                fix="Wait until it ends, or end it, then run the command again",
            ) from error
        try:
            write_json(self.path / _HOLDER_FILE, {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            self._lock.release()

    def is_held(self) -> bool:
        """Return whether another process trains here."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.path / _LOCK_FILE, blocking=False):
                return False
        except Timeout:
            return True

    def _holder(self) -> str:
        with suppress(OSError, ValueError, KeyError):
            holder = read_json(self.path / _HOLDER_FILE)
            return f"process {holder['pid']} on {holder['host']}"
        return "another process"

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, with its best weights, or None. Says so when a newer one is not."""
        for note in reversed(self._notes()):
            checkpoint = note.with_suffix(".ckpt")
            with suppress(OSError, ValueError, KeyError):
                facts = read_json(note)
                best = facts.get("best_sha256")
                if _digest(checkpoint) == facts["sha256"] and (
                    best is None or sha256_file(self.path / facts["best"]) == best
                ):
                    return checkpoint
            log.warning("the checkpoint %s is damaged; falling back to the one before", checkpoint)
        return None

    def add(self, written: Path, step: int, best: str | None, best_sha256: str | None = None) -> None:
        """Take in a written checkpoint by renaming it, and let older ones go."""
        for path in filter(Path.is_file, written.iterdir() if written.is_dir() else [written]):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        final = self.path / f"step-{step:010d}.ckpt"
        digest = _digest(written)
        if written.is_dir() or final.is_dir():
            _delete(final)
        written.replace(final)
        write_json(final.with_suffix(".json"), {"sha256": digest, "best": best, "best_sha256": best_sha256})
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

    def others(self) -> list[CheckpointFolder]:
        """Return the unfinished trainings of other fingerprints that no process runs, the latest first."""
        files = [path for name in (_RUN_FILE, "step-*.json") for path in self.path.parent.glob(f"*/{name}")]
        times = {path.parent: path.stat().st_mtime for path in sorted(files, key=lambda path: path.stat().st_mtime)}
        latest_first = sorted((path for path in times if path != self.path), key=lambda path: -times[path])
        return [folder for folder in map(CheckpointFolder, latest_first) if not folder.is_held()]

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint, whole or damaged."""
        return bool(self._notes())

    def mention(self) -> bool:
        """Return whether this is the first call for the folder, in any process."""
        try:
            (self.path / _MENTIONED_FILE).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def remove(self) -> None:
        """Remove everything; the training's result is safe elsewhere."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _notes(self) -> list[Path]:
        return sorted(self.path.glob("step-*.json"))

    def _prune(self) -> None:
        notes = self._notes()
        for note in notes[:-_KEPT]:
            _delete(note.with_suffix(".ckpt"))
            note.unlink(missing_ok=True)
        kept = {read_optional(note).get("best") for note in notes[-_KEPT:]}
        for weights in self.path.glob("best-*.safetensors"):
            if weights.name not in kept:
                weights.unlink(missing_ok=True)


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint straight to its file; Lightning's own writes to memory and `$TMPDIR` first.

    A checkpoint with divided tensors becomes a folder: each rank writes its parts, the first one all else. Any number
    of ranks can read it.

    Attributes:
        mesh: The ranks over which tensors are divided when they are read; None reads them as wholes.
    """

    mesh: DeviceMesh | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint.

        Raises:
            UserError: The disk is full.
        """
        tensors = [leaf for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor)]
        divided = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
        if divided:
            self._save_folder(checkpoint, Path(path), divided)
            return
        if Path(path).is_dir():
            _delete(Path(path))
        # A path would be written by C++, whose errors do not say that the disk is full.
        with name_full_disk(Path(path), sum(each.nbytes for each in tensors)), Path(path).open("wb") as file:
            torch.save(checkpoint, file)

    def _save_folder(self, checkpoint: dict[str, Any], path: Path, divided: list[DTensor]) -> None:
        first = torch.distributed.get_rank() == 0
        if first:
            _delete(path)
            path.mkdir()
        torch.distributed.barrier()
        names = {id(tensor): f"tensor-{number}" for number, tensor in enumerate(divided)}
        plain = tree_map(lambda leaf: {_DIVIDED: names[id(leaf)]} if isinstance(leaf, DTensor) else leaf, checkpoint)
        with name_full_disk(path, sum(tensor.to_local().nbytes for tensor in divided)):
            with _quiet():
                state_dict_saver.save({names[id(tensor)]: tensor for tensor in divided}, checkpoint_id=path)
            if first:
                torch.save(plain, path / _PLAIN_FILE)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; of a folder, all ranks together."""
        if not Path(path).is_dir():
            loaded: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return loaded
        file = Path(path) / _PLAIN_FILE
        plain = torch.load(file, map_location="cpu", weights_only=weights_only)  # as asked for  # nosec B614
        described = filesystem.FileSystemReader(path).read_metadata().state_dict_metadata
        tensors = {
            name: self._empty(about.size, about.properties.dtype)
            for name, about in described.items()
            if isinstance(about, TensorStorageMetadata)
        }
        with _quiet():
            state_dict_loader.load(tensors, checkpoint_id=path, no_dist=not torch.distributed.is_initialized())
        complete: dict[str, Any] = tree_map(
            lambda leaf: tensors[leaf[_DIVIDED]] if _stands_for_tensor(leaf) else leaf,
            plain,
            is_leaf=_stands_for_tensor,
        )
        return complete

    def _empty(self, size: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        if self.mesh is None:
            return torch.empty(size, dtype=dtype)
        return dtensor.empty(size, dtype=dtype, device_mesh=self.mesh, placements=[Shard(0)])


def _stands_for_tensor(value: Any) -> bool:
    return isinstance(value, dict) and _DIVIDED in value


def _digest(checkpoint: Path) -> str:
    """Return the digest of a checkpoint, a file or a folder."""
    if not checkpoint.is_dir():
        return sha256_file(checkpoint)
    return sha256(json.dumps(folder_digests(checkpoint), sort_keys=True).encode()).hexdigest()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice of torch.distributed.checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class CheckpointWriter(Callback):
    """Writes a checkpoint now and then, and carries the random generators' states in it.

    It writes only where Lightning can go on from exactly: after a step of the optimizer that no
    validation follows, and at an epoch's end. `seconds` is the least time between two checkpoints; None adapts
    it to the time that one takes, so that they take less than two hundredths of the training. After a signal
    that asks to stop it writes at once, and ends the training.

    Attributes:
        count: Checkpoints that this process wrote.
        seconds: Time that they took.
    """

    def __init__(
        self, folder: CheckpointFolder, seconds: float | None, history: History, interruption: Interruption
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._cost = 0.0
        self.count = 0
        self.seconds = 0.0
        self._history = history
        self._interruption = interruption
        self._written = time.monotonic()
        self._random_states: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and handle signals. Lightning's handlers would send to the other ranks within a step."""
        self._written = time.monotonic()
        self._interruption.install()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first batch of a resumed training: put the random generators back."""
        if self._random_states:
            if trainer.global_rank < len(self._random_states):  # a new rank keeps its own seed
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
            self._interruption.leave(trainer.global_step, checkpoint=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write when another epoch follows and it is time."""
        following = trainer.current_epoch + 1
        if following < (trainer.max_epochs or 0) and not trainer.should_stop and self._due(trainer, 0):
            self._write(trainer, following, 0)
            self._interruption.leave(trainer.global_step, checkpoint=True)

    def state_dict(self) -> dict[str, Any]:
        """The random generators' states of all ranks."""
        return {"random": gather_all(random_state.capture())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until the first batch; until then Lightning may draw numbers of its own."""
        self._random_states = list(state_dict["random"])

    def _due(self, trainer: Trainer, count: int) -> bool:
        """Whether enough time went by. The ranks agree on the answer of the first, but not at every count."""
        if trainer.world_size > 1:  # a signal to one rank is for all
            self._interruption.requested = max_over_ranks(self._interruption.requested or 0) or None
        if self._interruption.requested is not None:
            return True
        if trainer.world_size > 1 and count % _RANKS_AGREE_EVERY:
            return False
        seconds = max(_SHORTEST, _INTERVAL * self._cost) if self._seconds is None else self._seconds
        due = time.monotonic() - self._written >= seconds
        return bool(trainer.strategy.broadcast(due)) if trainer.world_size > 1 else due

    def _write(self, trainer: Trainer, epoch: int, batch: int) -> None:
        started = time.monotonic()
        trainer.datamodule.reached(epoch, batch)  # type: ignore[attr-defined]
        partial = self._folder.path / ".partial.ckpt"
        with self._interruption.writing():
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                history = self._history
                self._folder.add(partial, trainer.global_step, history.best_file, history.best_sha256)
        self._written = time.monotonic()
        self._cost = self._written - started
        self.count += 1
        self.seconds += self._cost
