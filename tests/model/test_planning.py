"""What a training takes: operations, memory, optimum, and the plan that each training logs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import ARCHITECTURE, MODEL, make_project, runtime_config, train_config, write_prepared
from torch.utils.flop_counter import FlopCounterMode

from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.models.base import Model
from textmill.planning.hardware import Load, choose_devices, forecast, read_catalogue
from textmill.planning.optimal import BESIROGLU, HOFFMANN, optimum
from textmill.planning.plan import work_of
from textmill.tasks.base import Task
from textmill.training.footprint import Tracer, largest_batch
from textmill.training.trainer import Training

STATES: dict[str, dict[str, Any]] = {
    "movie_reviews": {"labels": ["bad", "good"]},
    "stsb": {},
    "multi30k": {"vocabulary_size": 4000, "end_of_text": 0},
}


@pytest.fixture
def layout(repository_root: Path) -> Layout:
    return Layout(repository_root)


def project_tracer(layout: Layout, *overrides: str, precision: Any = "32-true") -> tuple[Tracer, Any]:
    """A tracer of a configuration of the project, and its task."""
    config = compose(layout, list(overrides)).train
    task, model = Task.build(config.task), Model.build(config.model)
    state = {"vocabulary_size": 100 if "tiny_shakespeare" in overrides[0] else 4000, "end_of_text": 0}
    return Tracer(task, lambda: task.build_network(model, None, state), state, config, precision), (task, model, state)


def language_batch(rows: int, length: int, vocabulary: int = 100) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def counted(parts: Any, batch: dict[str, torch.Tensor], autocast: bool = False) -> int:
    """Operations of a real step by PyTorch's counter."""
    task, model, state = parts
    network = task.build_network(model, None, state).train()
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = task.loss(network, batch).loss
        loss.backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("overrides", "length", "precision"),
    [
        (("experiment=tiny_shakespeare",), 64, "32-true"),
        (("experiment=tiny_shakespeare", "model.max_length=1024"), 1024, "bf16-mixed"),
    ],
    ids=["dense", "long context"],
)
def test_flops_of_a_decoder_are_those_of_the_counter(
    layout: Layout, overrides: tuple[str, ...], length: int, precision: str
) -> None:
    tracer, parts = project_tracer(layout, *overrides, precision=precision)
    batch = language_batch(2, length)
    expected = counted(parts, batch, autocast=precision != "32-true")
    assert tracer.trace(batch).flops == pytest.approx(expected, rel=0.02)


def test_flops_of_experts_are_those_of_the_counter_and_of_the_chosen_experts(layout: Layout) -> None:
    """The counter does not know grouped products, so that those of the experts are added: 2 and 4 a weight."""
    tracer, parts = project_tracer(layout, "experiment=tiny_shakespeare", "model=shakespeare_moe")
    batch = language_batch(4, 64)
    network = parts[0].build_network(parts[1], None, parts[2])
    active = sum(
        layer.router.experts_per_token / layer.router.n_experts * sum(p.numel() for p in layer.experts.parameters())
        for layer in network.mixtures().values()
    )
    expected = counted(parts, batch) + 6 * active * batch["input_ids"].numel()
    assert tracer.trace(batch).flops == pytest.approx(expected, rel=0.02)
    assert tracer.counts.active < tracer.counts.parameters / 2


def test_flops_of_an_encoder_decoder_are_those_of_the_counter(layout: Layout) -> None:
    tracer, parts = project_tracer(layout, "experiment=multi30k")
    rows = {"source_ids": [[5, 6, 7, 8] * 6] * 3, "target_ids": [[5, 6, 7] * 5] * 3}
    rows |= {"input_ids": rows["source_ids"], "labels": rows["target_ids"]}
    batch = parts[0].collate(rows)
    assert tracer.trace(batch).flops == pytest.approx(counted(parts, batch), rel=0.02)


def test_flops_of_an_epoch_are_those_of_all_its_batches(tmp_path: Path) -> None:
    """Three traced batches give the operations of batches of all lengths."""
    config = train_config(model=MODEL | {"architecture": ARCHITECTURE}, batches={"tokens": 512}, max_epochs=3)
    prepared = Prepared(write_prepared(tmp_path / "prepared", train=400))
    training = Training(config, runtime_config(), prepared, None, tmp_path / "checkpoints")
    task = Task.build(config.task)
    network = task.build_network(Model.build(config.model), None, prepared.state).train()
    total = 0
    for rows in training.batches().plan(0).batches:
        with FlopCounterMode(display=False) as counter:
            task.loss(network, training.collate("train", rows.tolist())).loss.backward()  # type: ignore[no-untyped-call]
        total += counter.get_total_flops()
    work = work_of(training, config)
    assert work.flops == pytest.approx(3 * total, rel=0.02)
    assert work.counts.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert work.steps == training.batches().optimizer_steps(3)


def test_memory_of_a_step_is_that_of_its_tensors(layout: Layout) -> None:
    tracer, parts = project_tracer(layout, "experiment=tiny_shakespeare", "train.optimizer.name=adamw")
    network = parts[0].build_network(parts[1], None, parts[2])
    weights = sum(4 * parameter.numel() for parameter in network.parameters())
    print_ = tracer.trace(language_batch(16, 64))
    assert print_.memory["weights"] >= weights
    assert print_.memory["optimizer"] == pytest.approx(2 * weights, rel=0.01)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = parts[0].loss(network.train(), language_batch(16, 64)).loss
    own = {parameter.untyped_storage().data_ptr() for parameter in (*network.parameters(), *network.buffers())}
    expected = sum(size for address, size in saved.items() if address not in own)
    assert print_.memory["activations"] == pytest.approx(expected, rel=0.1)
    del loss


def test_largest_batch_fits_and_one_row_more_does_not(layout: Layout) -> None:
    tracer, _ = project_tracer(layout, "experiment=tiny_shakespeare")
    whole, half = tracer.trace(language_batch(16, 64)), tracer.trace(language_batch(8, 64))
    memory = 100e6
    rows = largest_batch(half, whole, memory)
    assert tracer.trace(language_batch(round(0.95 * rows), 64)).peak <= memory
    assert tracer.trace(language_batch(round(1.05 * rows) + 1, 64)).peak > memory
    assert largest_batch(half, whole, 1e6) == 0


def test_checkpointing_of_activations_saves_memory_and_costs_operations(layout: Layout) -> None:
    plain, _ = project_tracer(layout, "experiment=tiny_shakespeare")
    thrifty, _ = project_tracer(layout, "experiment=tiny_shakespeare", "train.activation_checkpointing=true")
    batch = language_batch(32, 64)
    assert thrifty.trace(batch).peak < 0.9 * plain.trace(batch).peak
    assert thrifty.trace(batch).flops > 1.2 * plain.trace(batch).flops


@pytest.mark.parametrize("fit", [BESIROGLU, HOFFMANN], ids=["refit", "original"])
@pytest.mark.parametrize("flops", [1e15, 1e19, 5.76e23])
def test_optimal_size_has_the_least_loss_of_its_budget(fit: Any, flops: float) -> None:
    sizes = np.geomspace(1e3, 1e13, 20_000)
    losses = [fit.loss(size, flops / 6 / size) for size in sizes]
    assert fit.size(flops) == pytest.approx(sizes[int(np.argmin(losses))], rel=0.01)


def test_optimum_has_about_twenty_tokens_for_each_parameter_at_the_budget_of_chinchilla() -> None:
    """The refit agrees with approaches 1 and 2 of Hoffmann et al., who trained 70 billion parameters."""
    best = optimum(5.76e23)
    assert 15 < best.tokens / best.parameters < 30
    assert best.parameters_low < 70e9 < best.parameters_high
    assert 6 * best.parameters * best.tokens == pytest.approx(best.flops)
    far = optimum(1e15)
    assert far.parameters_high / far.parameters_low > best.parameters_high / best.parameters_low


def test_every_device_of_the_catalogue_names_its_sources(layout: Layout) -> None:
    catalogue = read_catalogue(layout.conf / "hardware")
    assert set(catalogue) == {"cpu", "t4", "a10", "l4", "a100", "h100", "h200", "b200"}
    for device in catalogue.values():
        assert {"bf16", "fp32", "memory", "power", "link", "network", "efficiency"} <= set(device.sources)
        assert device.cost is None or (device.cost.date and device.cost.source)
    with pytest.raises(UserError, match="Did you mean 'h100'"):
        choose_devices(catalogue, ["h10"])


def test_devices_share_the_steps_and_wait_for_what_the_backward_pass_does_not_hide(layout: Layout) -> None:
    device = read_catalogue(layout.conf / "hardware")["h100"]
    parameters = 1e9
    load = Load(6 * parameters * 8192, 5000, 0.0, 4 * parameters, 16 * parameters, 2e9, True)
    one = forecast("h100", device, load, 100_000)
    assert one.step_seconds >= load.flops / (device.efficiency * device.bf16)
    eight = {strategy: forecast("h100", device, load, 100_000, 8, strategy) for strategy in ("ddp", "fsdp")}
    assert all(each.steps == 12_500 for each in eight.values())
    assert all(one.seconds / 8 * 0.5 <= each.seconds <= one.seconds for each in eight.values())
    assert eight["fsdp"].memory == pytest.approx(16 * parameters / 8 + 2e9)
    far = forecast("h100", device, load, 100_000, 1024, "ddp")
    hidden = 2 / 3 * load.flops / (device.efficiency * device.bf16)
    ring = 2 * 1023 / 1024 * load.parameter_bytes / device.network + 2 * 1023 * device.latency
    assert far.communication_seconds == pytest.approx(max(0.0, ring - hidden))
    assert far.communication_seconds > 0


def test_a_training_logs_its_plan_and_the_error_and_keeps_its_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textmill.stages import train

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = []
    for planned in (False, True):
        root = make_project(tmp_path / f"project-{planned}")
        values = json.loads((root / "config.json").read_text())
        runtime = runtime_config().model_copy(update={"plan": planned})
        train.main(train_config(**values["train"]), runtime, Layout(root))
        weights.append((root / "data/trained/model/model.safetensors").read_bytes())
        metrics = json.loads((root / "data/trained/metrics.json").read_text())
        assert ("plan_seconds_error" in metrics) == planned
    assert weights[0] == weights[1]
    assert metrics["plan_seconds_error"] == pytest.approx(metrics["plan_seconds"] / metrics["plan_actual_seconds"] - 1)
    assert math.isfinite(metrics["plan_memory_error"])
    speeds = json.loads((tmp_path / "cache/textmill/speeds.json").read_text())
    (speed,) = speeds.values()
    assert speed["seconds_per_flop"] > 0 and speed["validation_seconds_per_position"] > 0
