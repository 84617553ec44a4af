"""Which validation is the best: never one that is not finite, and of equal metrics the one with the lower loss."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_training import ARCHITECTURE, MODEL, runtime_config, train_config, write_prepared

from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.models.base import Model
from textmill.tasks.base import Task
from textmill.training.history import History
from textmill.training.inference import predict_table
from textmill.training.meter import Meter
from textmill.training.module import TrainingModule
from textmill.training.progress import make_progress

PARTS = {"model": MODEL | {"architecture": ARCHITECTURE}}


def best_step(folder: Path, mode: str, *rows: tuple[float, float]) -> float | None:
    """Return the best step of validations of (metric, loss), at steps 1, 2, ..."""
    task = Task.build(train_config(**PARTS).task)
    network = task.build_network(Model.build(PARTS["model"]), None, {"labels": ["0", "1"]})
    module = TrainingModule(task, network, {}, train_config(**PARTS).optimizer, faults=folder / "faults")
    history = History(folder, "validation/score", mode, Meter(None, make_progress("plain", False)))
    progress = SimpleNamespace(current=SimpleNamespace(ready=1))
    for step, (metric, loss) in enumerate(rows, start=1):
        module.validation_metrics = {"score": metric, "loss": loss}
        trainer: Any = SimpleNamespace(
            global_step=step,
            current_epoch=0,
            num_training_batches=1,
            is_global_zero=True,
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
            strategy=SimpleNamespace(lightning_module_state_dict=module.state_dict),
        )
        history.on_validation_end(trainer, module)
    return history.best and history.best["step"]


@pytest.mark.parametrize(
    ("mode", "rows", "expected"),
    [
        ("max", [(math.nan, 1.0), (0.1, 1.0)], 2),
        ("min", [(math.nan, 1.0), (9.0, 1.0)], 2),
        ("max", [(0.5, 1.0), (math.nan, 0.1), (math.inf, 0.1)], 1),
        ("max", [(math.nan, math.nan)], None),
        ("max", [(0.9, 0.9), (0.9, 0.1)], 2),
        ("max", [(0.9, 0.1), (0.9, 0.9)], 1),
        ("max", [(0.9, 0.1), (0.9, 0.1 - 1e-7)], 1),
        ("max", [(0.9, 0.1), (0.91, 0.9)], 2),
        ("max", [(0.9, 0.1), (0.9, math.nan)], 1),
    ],
)
def test_the_best_validation(
    tmp_path: Path, mode: str, rows: list[tuple[float, float]], expected: float | None
) -> None:
    assert best_step(tmp_path, mode, *rows) == expected


def test_a_network_of_nan_is_never_the_best_and_never_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from textmill.training.trainer import Training

    prepared = Prepared(write_prepared(tmp_path / "prepared"))
    config = train_config(**PARTS, max_epochs=1)
    start = tmp_path / "start.safetensors"
    training = Training(config, runtime_config(), prepared, None, tmp_path / "first")
    trained = training.run()
    from safetensors.torch import save_file

    weights = {name: torch.full_like(value, math.nan) for name, value in trained.weights.items()}
    save_file(weights, start)
    trained.network.load_state_dict(weights)
    with pytest.raises(UserError, match="not finite"):
        predict_table(trained.network.eval(), Task.build(config.task), prepared.split("validation"))
    skipping = train_config(**PARTS, max_epochs=1, faulty_steps="skip", batches={"tokens": 2048})
    with pytest.raises(UserError, match=r"validation/weighted_f1 was not finite in any of the 1 validations"):
        Training(skipping, runtime_config(), prepared, None, tmp_path / "second", start=start).run()
    assert "the outputs are not finite, so they have no metrics" in caplog.text
