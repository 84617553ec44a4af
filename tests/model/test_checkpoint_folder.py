"""The folder of a training's checkpoints: what is whole, what is kept, who holds it, when one is due."""

from __future__ import annotations

import json
import logging
import os
import socket
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from textmill.errors import UserError
from textmill.files import sha256_file
from textmill.training import checkpoints
from textmill.training.checkpoints import CheckpointFile, CheckpointFolder, CheckpointWriter
from textmill.training.interruption import Interruption


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "all" / "this")


def add(folder: CheckpointFolder, step: int, best: str | None = None) -> Path:
    written = folder.path / ".partial.ckpt"
    written.write_text(f"step {step}")
    digest = None
    if best is not None:
        (folder.path / best).write_text(f"weights {best}")
        digest = sha256_file(folder.path / best)
    folder.add(written, step, best, digest)
    return folder.path / f"step-{step:010d}.ckpt"


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir() if not path.name.startswith("."))


def test_checkpoint_is_taken_in_with_its_digest(folder: CheckpointFolder) -> None:
    assert folder.latest() is None
    assert not folder.has_checkpoint()
    checkpoint = add(folder, 7, "best-7.safetensors")
    assert folder.has_checkpoint()
    assert folder.latest() == checkpoint
    assert checkpoint.read_text() == "step 7"
    assert names(folder) == ["best-7.safetensors", "step-0000000007.ckpt", "step-0000000007.json"]
    assert json.loads(checkpoint.with_suffix(".json").read_text()) == {
        "sha256": sha256_file(checkpoint),
        "best": "best-7.safetensors",
        "best_sha256": sha256_file(folder.path / "best-7.safetensors"),
    }


def test_two_checkpoints_and_their_weights_are_kept(folder: CheckpointFolder) -> None:
    for step, best in ((9, None), (10, "best-10.safetensors"), (100, "best-100.safetensors"), (200, None)):
        add(folder, step, best)
    kept = [f"step-0000000{step}.{kind}" for step in (100, 200) for kind in ("ckpt", "json")]
    assert names(folder) == ["best-100.safetensors", *kept]
    assert folder.latest() == folder.path / "step-0000000200.ckpt"


def test_prune_bears_what_is_already_gone(folder: CheckpointFolder) -> None:
    add(folder, 1).unlink()
    add(folder, 2)
    add(folder, 3)
    assert [name for name in names(folder) if name.endswith("json")] == ["step-0000000002.json", "step-0000000003.json"]


@pytest.mark.parametrize("what", ["ckpt", "json", "best", "gone", "note", "no digest"])
def test_damaged_checkpoint_gives_way_to_the_one_before(
    folder: CheckpointFolder, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, newest = add(folder, 1), add(folder, 2, "best-2.safetensors")
    note = newest.with_suffix(".json")
    if what == "ckpt":
        newest.write_text("other")
    elif what == "json":
        note.write_text("{")
    elif what == "best":
        (folder.path / "best-2.safetensors").write_text("other")
    elif what == "gone":
        newest.unlink()
    elif what == "note":
        note.write_text(json.dumps({"sha256": "0" * 64, "best": None, "best_sha256": None}))
    else:
        note.write_text("{}")
    caplog.set_level(logging.WARNING)
    assert folder.latest() == before
    assert caplog.messages == [f"the checkpoint {newest} is damaged; falling back to the one before"]
    before.unlink()
    assert folder.latest() is None


def test_checkpoint_of_an_earlier_version_has_no_digest_of_the_weights(folder: CheckpointFolder) -> None:
    checkpoint = add(folder, 1)
    note = checkpoint.with_suffix(".json")
    note.write_text(json.dumps({"sha256": sha256_file(checkpoint), "best": "gone.safetensors"}))
    assert folder.latest() == checkpoint


def test_only_one_process_trains(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_ORPHANS_LIVE", 0.05)
    assert not folder.is_held()
    other = CheckpointFolder(folder.path)
    with folder.lock():
        assert folder.is_held()
        assert other.is_held()
        with pytest.raises(UserError) as caught, other.lock():
            pytest.fail("it is held")
        assert str(caught.value) == (
            f"{folder.path}: process {os.getpid()} on {socket.gethostname()} runs the same training. "
            "Wait until it ends, or end it, then run the command again."
        )
        assert caught.value.where == str(folder.path)
        (folder.path / "holder.json").unlink()
        with pytest.raises(UserError, match="another process runs the same training"), other.lock():
            pytest.fail("it is held")
        (folder.path / "holder.json").write_text("{")
        with pytest.raises(UserError, match="another process runs the same training"), other.lock():
            pytest.fail("it is held")
        (folder.path / "holder.json").write_text("{}")
        with pytest.raises(UserError, match="another process runs the same training"), other.lock():
            pytest.fail("it is held")
    assert not folder.is_held()
    with other.lock():
        assert folder.is_held()


def test_lock_makes_a_removed_folder_again_and_is_released_by_an_error(folder: CheckpointFolder) -> None:
    folder.remove()
    assert not folder.path.exists()
    folder.remove()  # nothing to remove is no error
    with pytest.raises(ZeroDivisionError), folder.lock():
        assert json.loads((folder.path / "holder.json").read_text()) == {
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        raise ZeroDivisionError
    assert not folder.is_held()


def test_notes_outlive_the_process(folder: CheckpointFolder) -> None:
    assert folder.run_id() is None
    assert folder.parts() == {}
    folder.note_run("abc")
    folder.note_parts({"config": {"a": 1}})
    again = CheckpointFolder(folder.path)
    assert again.run_id() == "abc"
    assert again.parts() == {"config": {"a": 1}}
    assert [again.mention(), again.mention(), folder.mention()] == [True, False, False]


def test_others_are_unfinished_unheld_and_the_latest_first(folder: CheckpointFolder) -> None:
    made = [CheckpointFolder(folder.path.parent / name) for name in ("a", "b", "c", "held", "empty")]
    for age, other in enumerate(made[:4]):
        add(other, 1)
        os.utime(other.path / "step-0000000001.json", (1000 + age, 1000 + age))
    made[0].note_run("x")
    os.utime(made[0].path / "run.json", (2000, 2000))
    made[1].note_run("y")
    os.utime(made[1].path / "run.json", (900, 900))
    add(folder, 1)
    with FileLock(made[3].path / ".lock"):
        assert [other.path.name for other in folder.others()] == ["a", "c", "b"]
    assert [other.path.name for other in folder.others()] == ["a", "held", "c", "b"]


def test_checkpoint_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    CheckpointFile().save_checkpoint({"a": torch.arange(3), "b": [1]}, tmp_path / "one.ckpt")
    found = torch.load(tmp_path / "one.ckpt")
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"] == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_full_disk_is_told_with_the_space_needed(tmp_path: Path) -> None:
    file = tmp_path / "one.ckpt"
    file.symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"^{file}: the disk is full: .* free, at least 4\.0 MB needed"):
        CheckpointFile().save_checkpoint({"a": torch.zeros(1_000_000)}, file)
    assert not file.is_symlink()


# -- when a checkpoint is written ---------------------------------------------------------------


class _Strategy:
    def broadcast(self, value: bool) -> bool:
        return value


class _DataModule:
    def __init__(self) -> None:
        self.places: list[tuple[int, int]] = []

    def reached(self, epoch: int, batch: int) -> None:
        self.places.append((epoch, batch))


@dataclass
class _Trainer:
    """What the writer needs of Lightning's trainer."""

    num_training_batches: int = 10
    val_check_batch: int | None = 4
    accumulate_grad_batches: int = 1
    global_step: int = 3
    current_epoch: int = 1
    max_epochs: int | None = 3
    should_stop: bool = False
    world_size: int = 1
    global_rank: int = 0
    is_global_zero: bool = True
    strategy: _Strategy = field(default_factory=_Strategy)
    datamodule: _DataModule = field(default_factory=_DataModule)

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        assert weights_only is False
        path.write_text("checkpoint")


class _History:
    best_file = "best-2.safetensors"
    best_sha256 = sha256(b"weights").hexdigest()


class _Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    made = _Clock()
    monkeypatch.setattr(checkpoints, "time", made)
    return made


def writer(folder: CheckpointFolder, seconds: float | None = 0.0) -> CheckpointWriter:
    return CheckpointWriter(folder, seconds, _History(), Interruption())  # type: ignore[arg-type]


def end_batch(one: CheckpointWriter, trainer: Any, batch: int) -> None:
    one.on_train_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]


def test_written_after_steps_that_no_validation_follows(folder: CheckpointFolder) -> None:
    (folder.path / "best-2.safetensors").write_text("weights")
    one, trainer = writer(folder), _Trainer()
    for batch in range(10):
        end_batch(one, trainer, batch)
    # Validation follows batches 4 and 8; the epoch's end follows batch 10.
    assert trainer.datamodule.places == [(1, done) for done in (1, 2, 3, 5, 6, 7, 9)]
    assert one.count == 7
    assert folder.latest() == folder.path / "step-0000000003.ckpt"
    note = json.loads((folder.path / "step-0000000003.json").read_text())
    assert (note["best"], note["best_sha256"]) == (_History.best_file, _History.best_sha256)
    accumulating = _Trainer(accumulate_grad_batches=2)
    for batch in range(10):
        end_batch(writer(folder), accumulating, batch)
    assert accumulating.datamodule.places == [(1, 2), (1, 6)]


def test_no_validation_within_the_epoch(folder: CheckpointFolder) -> None:
    trainer = _Trainer(val_check_batch=None)
    end_batch(writer(folder), trainer, 0)
    assert trainer.datamodule.places == [], "1: validation after each"


def test_epoch_end_is_written_if_another_follows(folder: CheckpointFolder) -> None:
    for trainer, places in (
        (_Trainer(), [(2, 0)]),
        (_Trainer(current_epoch=2), []),
        (_Trainer(max_epochs=None), []),
        (_Trainer(should_stop=True), []),
    ):
        writer(folder).on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        assert trainer.datamodule.places == places


def test_time_between_checkpoints_is_kept_or_adapts(folder: CheckpointFolder, clock: _Clock) -> None:
    one, trainer = writer(folder, seconds=10.0), _Trainer(num_training_batches=1000, val_check_batch=1000)
    one.on_train_start(trainer, None)  # type: ignore[arg-type]
    for now, count in ((109.9, 0), (110.0, 1), (119.9, 1), (120.0, 2)):
        clock.now = now
        end_batch(one, trainer, 0)
        assert one.count == count, now
    adapting = writer(folder, seconds=None)
    adapting.on_train_start(trainer, None)  # type: ignore[arg-type]
    save = trainer.save_checkpoint

    def slowly(path: Path, weights_only: bool) -> None:
        clock.now += 2.0
        save(path, weights_only)

    trainer.save_checkpoint = slowly  # type: ignore[method-assign]
    clock.now = 124.9
    end_batch(adapting, trainer, 0)
    assert adapting.count == 0, "at least five seconds"
    clock.now = 125.0
    end_batch(adapting, trainer, 0)
    assert (adapting.count, adapting.seconds) == (1, 2.0)
    clock.now = 246.9  # 60 times the 2 s that the last one took, after its end at 127
    end_batch(adapting, trainer, 0)
    assert adapting.count == 1
    clock.now = 247.0
    end_batch(adapting, trainer, 0)
    assert (adapting.count, adapting.seconds) == (2, 4.0)


def test_ranks_agree_every_tenth_step(folder: CheckpointFolder) -> None:
    trainer = _Trainer(world_size=2, num_training_batches=1000, val_check_batch=1000)
    asked: list[bool] = []

    class Strategy(_Strategy):
        def broadcast(self, value: bool) -> bool:
            asked.append(value)
            return False

    one = writer(folder)
    trainer.strategy = Strategy()
    for step in range(1, 31):
        trainer.global_step = step
        end_batch(one, trainer, step)
    assert asked == [True] * 3
    assert one.count == 0, "the first rank decides"
    other = writer(folder)
    trainer.strategy = _Strategy()
    trainer.is_global_zero = False
    end_batch(other, trainer, 20)
    assert other.count == 1
    assert not folder.has_checkpoint(), "one rank takes it in"


def test_signal_writes_at_once_and_ends(folder: CheckpointFolder) -> None:
    one, trainer = writer(folder, seconds=1e9), _Trainer()
    end_batch(one, trainer, 0)
    assert one.count == 0
    one._interruption.requested = 15
    with pytest.raises(SystemExit) as ended:
        end_batch(one, trainer, 0)
    assert ended.value.code == 143
    assert one.count == 1
    trainer.world_size = 2
    with pytest.raises(SystemExit):
        one.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert one.count == 2


def test_random_states_come_back_before_the_first_batch(folder: CheckpointFolder) -> None:
    one = writer(folder)
    state = one.state_dict()
    assert list(state) == ["random"]
    expected = torch.rand(3)
    again = writer(folder)
    again.on_train_batch_start(_Trainer(), None, None, 0)  # type: ignore[arg-type]
    again.load_state_dict(state)
    torch.rand(5)
    again.on_train_batch_start(_Trainer(), None, None, 0)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)
    again.on_train_batch_start(_Trainer(), None, None, 1)  # type: ignore[arg-type]
    assert not torch.equal(torch.rand(3), expected), "once"
