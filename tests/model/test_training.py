"""Training itself: it learns, stops, averages, and its result can be loaded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import ARCHITECTURE, MODEL, TASK, runtime_config, train_config, write_prepared

from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.models.base import Model
from textmill.tasks.base import Task
from textmill.text.batches import length_batches, stack_rows
from textmill.training.inference import predict_table
from textmill.training.loading import load_network, save_network

STATE = {"labels": ["0", "1"]}


def tiny_model(**options: Any) -> Model:
    return Model.build(MODEL | {"architecture": ARCHITECTURE} | options)


def tiny_task() -> Task:
    return Task.build(TASK)


class Recorder:
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((dict(metrics), step))

    def values(self, name: str) -> list[float]:
        return [metrics[name] for metrics, _ in self.logged if name in metrics]


def train(folder: Path, prepared: Path, pretrained: Path | None = None, **changes: Any) -> tuple[Any, Recorder]:
    from textmill.training.trainer import Training

    model = MODEL if pretrained else MODEL | {"architecture": ARCHITECTURE}
    config = train_config(**{"model": model} | changes)
    recorder = Recorder()
    training = Training(config, runtime_config(), Prepared(prepared), pretrained, folder)
    return training.run(recorder), recorder


def test_a_tiny_network_learns_32_rows_by_heart(tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path / "prepared", train=32, validation=8)
    for name in ("train", "validation"):  # the same rows: learning by heart is what is asked
        (prepared / name / "00000.arrow").write_bytes((prepared / "train" / "00000.arrow").read_bytes())
    model = MODEL | {"architecture": ARCHITECTURE, "hidden_dropout": 0.0, "dropout": 0.0}
    trained, recorder = train(
        tmp_path, prepared, model=model, max_epochs=40, optimizer={"learning_rate": 3e-3}, checkpoint_seconds=1e6
    )
    losses = recorder.values("train/loss")
    assert losses[0] > 0.6
    assert losses[-1] < 0.05
    assert trained.metrics["weighted_f1"] == 1.0


def test_every_step_is_logged_with_its_rate_and_speed(tmp_path: Path, prepared_folder: Path) -> None:
    trained, recorder = train(tmp_path, prepared_folder)
    rates = recorder.values("train/learning_rate")
    assert len(rates) == trained.metrics["steps"]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < rates[-2] < max(rates)
    assert min(recorder.values("train/tokens_per_second")) > 0
    assert len(recorder.values("validation/weighted_f1")) == len(trained.history) == 2


def test_training_stops_when_validation_no_longer_improves(tmp_path: Path, prepared_folder: Path) -> None:
    optimizer = {"learning_rate": 1e-9}  # nothing changes, so nothing improves
    trained, _ = train(tmp_path, prepared_folder, optimizer=optimizer, early_stopping=2, max_epochs=50)
    assert len(trained.history) == 3
    assert trained.metrics["best_step"] == trained.history[0]["step"]


def test_the_result_is_the_best_validation_not_the_last(tmp_path: Path, prepared_folder: Path) -> None:
    trained, _ = train(tmp_path, prepared_folder, max_epochs=6, optimizer={"learning_rate": 3e-3})
    scores = [row["validation/weighted_f1"] for row in trained.history]
    assert trained.metrics["weighted_f1"] == max(scores)
    network = trained.network
    network.load_state_dict(trained.weights)
    outputs = predict_table(network.eval(), tiny_task(), Prepared(prepared_folder).split("validation"))
    actual = Prepared(prepared_folder).split("validation")["label_id"].to_pylist()
    figures = tiny_task().validation_metrics(outputs, {"label_id": actual}, STATE)
    assert figures["weighted_f1"] == pytest.approx(max(scores))


def test_frozen_groups_do_not_move_and_the_others_do(tmp_path: Path, prepared_folder: Path, pretrained: Path) -> None:
    trained, _ = train(tmp_path, prepared_folder, pretrained, model=MODEL | {"frozen_groups": 1}, max_epochs=1)
    before = load_file(pretrained / "model.safetensors")
    after = {name.removeprefix("encoder.backbone."): value for name, value in trained.weights.items()}
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith("embeddings")]
    assert len([name for name in moved if name.startswith("encoder")]) > 10


def test_the_average_lags_behind_the_weights_and_is_the_result(tmp_path: Path, prepared_folder: Path) -> None:
    plain, _ = train(tmp_path / "a", prepared_folder, max_epochs=1)
    averaged, _ = train(tmp_path / "b", prepared_folder, max_epochs=1, ema_decay=0.999)
    name = "output.weight"
    # Averaging changes what is validated and kept, not the training.
    assert torch.equal(plain.network.state_dict()[name], averaged.network.state_dict()[name])
    assert not torch.equal(plain.weights[name], averaged.weights[name])


def test_the_average_is_that_of_the_definition() -> None:
    from types import SimpleNamespace

    from textmill.training.ema import ExponentialMovingAverage

    layer = torch.nn.Linear(1, 1, bias=False)
    module, average = SimpleNamespace(parameters=layer.parameters), ExponentialMovingAverage(0.5)
    layer.weight.data.fill_(0.0)
    average.on_train_start(None, module)  # type: ignore[arg-type]
    expected = 0.0
    for step in range(1, 6):
        layer.weight.data.fill_(float(step))
        average.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, 0)  # type: ignore[arg-type]
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    average.on_validation_start(None, module)  # type: ignore[arg-type]
    assert layer.weight.item() == pytest.approx(expected)
    average.on_validation_end(None, module)  # type: ignore[arg-type]
    assert layer.weight.item() == 5.0


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path, prepared_folder: Path) -> None:
    results = [
        train(tmp_path / str(n), prepared_folder, seed=seed, max_epochs=1)[0] for n, seed in enumerate((1, 1, 2))
    ]
    first, same, other = (result.weights["output.weight"] for result in results)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_half_precision_trains(tmp_path: Path, prepared_folder: Path) -> None:
    trained, recorder = train(tmp_path, prepared_folder, precision="bf16-mixed", max_epochs=1)
    assert trained.weights["output.weight"].dtype == torch.float32
    assert np.isfinite(recorder.values("train/loss")).all()


def test_fingerprints_differ_with_what_decides_the_result(tmp_path: Path, prepared_folder: Path) -> None:
    from textmill.training.trainer import Training

    def fingerprint(**changes: Any) -> str:
        config = train_config(**{"model": MODEL | {"architecture": ARCHITECTURE}} | changes)
        return Training(config, runtime_config(), Prepared(prepared_folder), None, tmp_path).fingerprint

    assert fingerprint() == fingerprint() == fingerprint(checkpoint_seconds=1.0)
    assert len({fingerprint(), fingerprint(seed=4), fingerprint(precision="bf16-mixed")}) == 3


@pytest.mark.parametrize("empty", ["train", "validation"])
def test_an_empty_split_is_refused(tmp_path: Path, empty: str) -> None:
    prepared = write_prepared(tmp_path / "prepared", **{empty: 0})
    with pytest.raises(UserError, match=f"the {empty} split is empty"):
        train(tmp_path, prepared)


# -- loading and prediction -----------------------------------------------------------------


def test_a_saved_network_loads_with_its_own_architecture(tmp_path: Path) -> None:
    task = tiny_task()
    network = task.build_network(tiny_model(), None, STATE).eval()
    save_network(tmp_path / "model", network, network.state_dict())
    # Its architecture comes from model/config.json, not from the options.
    loaded = load_network(task, Model.build(MODEL), STATE, tmp_path)
    assert not loaded.training
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_missing_or_unfit_weights_are_told(tmp_path: Path) -> None:
    task = tiny_task()
    with pytest.raises(UserError, match="no trained weights"):
        load_network(task, tiny_model(), STATE, tmp_path)
    network = task.build_network(tiny_model(), None, STATE)
    save_network(tmp_path / "model", network, network.state_dict())
    with pytest.raises(UserError, match="do not fit the network"):
        load_network(task, tiny_model(), {"labels": ["a", "b", "c"]}, tmp_path)


def test_predictions_come_in_the_order_of_the_table_and_equal_single_ones() -> None:
    draw = random.Random(0)
    ids = [[draw.randrange(1, 60) for _ in range(draw.randrange(1, 40))] for _ in range(37)]
    table = pa.table(
        {"id": [str(n) for n in range(37)], "text": ["x"] * 37, "input_ids": ids, "length": list(map(len, ids))}
    )
    network = tiny_task().build_network(tiny_model(), None, STATE).eval()
    batched = predict_table(network, tiny_task(), table, tokens_per_batch=100)
    single = predict_table(network, tiny_task(), table, tokens_per_batch=1)
    for row, tokens in enumerate(ids):
        one = (
            network(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.long))["logits"].detach().numpy()[0]
        )
        np.testing.assert_allclose(batched["logits"][row], one, atol=1e-5)
        np.testing.assert_allclose(single["logits"][row], one, atol=1e-5)
    labelled = table.append_column("label_id", pa.array([0] * 37))
    with_target = predict_table(network, tiny_task(), labelled, tokens_per_batch=100)
    assert set(with_target) == {"logits"}
    np.testing.assert_array_equal(with_target["logits"], batched["logits"])


def test_length_batches_hold_the_budget() -> None:
    lengths = np.array([3, 9, 4, 4, 30, 8])
    batches = length_batches(lengths, tokens=16)
    assert [batch.tolist() for batch in batches] == [[4], [1], [5, 2], [3, 0]]


def test_rows_of_unequal_width_are_filled_with_nan() -> None:
    stacked = stack_rows([np.ones((1, 2), np.float32), np.zeros((2, 3), np.float32)])
    assert stacked.shape == (3, 3)
    assert np.isnan(stacked[0, 2])
    assert np.isfinite(stacked[:, :2]).all()


# -- encoders -------------------------------------------------------------------------------


def test_pretrained_weights_are_in_the_encoder(pretrained: Path) -> None:
    encoder: Any = Model.build(MODEL).build_encoder(pretrained)
    weights = load_file(pretrained / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(encoder.backbone.state_dict()[name], weights[name])
    assert encoder.backbone.config.hidden_dropout_prob == 0.1
    assert encoder.backbone.config.attention_probs_dropout_prob == 0.0


def test_weights_that_do_not_fit_are_told(tmp_path: Path, pretrained: Path) -> None:
    config = json.loads((pretrained / "config.json").read_text())
    weights = load_file(pretrained / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    save_file(weights, tmp_path / "model.safetensors")
    model = Model.build(MODEL)
    with pytest.raises(UserError, match="do not fit the architecture"):
        model.build_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="are missing"):
        model.build_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="do not fit the architecture"):
        model.build_encoder(tmp_path)


def test_neither_weights_nor_architecture_is_told() -> None:
    with pytest.raises(UserError, match="no pretrained weights and no architecture"):
        Model.build(MODEL).build_encoder(None)


@pytest.mark.parametrize(("kind", "positions"), [("bert", 20), ("roberta", 18)])  # RoBERTa's first two are no token's
def test_more_tokens_than_positions_are_told(kind: str, positions: int) -> None:
    shape = {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 60}
    encoder = tiny_model(architecture={**shape, "max_position_embeddings": 20}).build_encoder(None)
    ids = torch.ones(1, positions + 1, dtype=torch.long) * 5
    encoder(ids[:, 1:], torch.ones_like(ids[:, 1:]))
    with pytest.raises(UserError, match=f"{positions + 1} tokens do not fit .* Set prepare.max_length to at most"):
        encoder(ids, torch.ones_like(ids))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_does_not_change_a_vector(pooling: str) -> None:
    model = tiny_model(pooling=pooling)
    network = tiny_task().build_network(model, None, STATE).eval()
    ids = torch.randint(1, 60, (1, 7))
    alone = network(ids, torch.ones_like(ids))["logits"]
    padded = network(torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1), torch.tensor([[1] * 7 + [0] * 5]))[
        "logits"
    ]
    torch.testing.assert_close(alone, padded)
