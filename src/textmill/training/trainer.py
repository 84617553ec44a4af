"""A training from prepared data to the best weights, resumable at any time."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import psutil
import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities.exceptions import (  # type: ignore[attr-defined]
    MisconfigurationException,
    SIGTERMException,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import Precision, TrainConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.files import read_json
from textmill.metrics.base import Outputs
from textmill.models.base import Model
from textmill.models.encoder import keep_tokens
from textmill.models.ranks import rank_count
from textmill.processes import is_first_process, is_launched
from textmill.tasks.abilities import CalibratesWeights, ComparesRows, examples_of
from textmill.tasks.base import Task
from textmill.training.allocation import keep_freed_memory
from textmill.training.checkpoints import CheckpointFile, CheckpointFolder, CheckpointWriter
from textmill.training.datamodule import PreparedDataModule
from textmill.training.distributed import connect, from_first, gather_all, name_lost_rank
from textmill.training.ema import ExponentialMovingAverage
from textmill.training.fingerprint import describe_changes, digest, fingerprint_parts
from textmill.training.footprint import Footprint, Tracer, largest_batch
from textmill.training.history import History
from textmill.training.interruption import Interruption
from textmill.training.layers import LayerCompiler, checkpoint_activations
from textmill.training.loading import config_alone, with_architecture
from textmill.training.memory import OutOfMemoryError, available_memory, is_out_of_memory
from textmill.training.meter import Meter, MetricLog
from textmill.training.module import TrainingModule
from textmill.training.precision import Shape, choose_orthogonal_format, choose_precision, use_all_cores
from textmill.training.progress import make_progress
from textmill.training.sharding import ShardedStrategy
from textmill.training.start import start_weights, unfitting

log = logging.getLogger("textmill")

_REASONS = 5
_FORMATS = "TEXTMILL_FORMATS"
"""Environment variable by which the first process tells the number formats to those that it starts."""
_WORKERS_ON_A_GPU = 2
_ROOM_TO_COUNT = 200e6
"""Bytes that counting what would fit may need."""


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        network: The network, for its architecture; its weights are not the best ones.
        weights: The best weights by name.
        history: One row a validation.
        curve: The training loss over the steps, about two hundred rows.
        metrics: Metrics of the best validation and of the whole training.
        outputs: Outputs of the best weights for the validation split, in its order; None if the task
            calibrated the weights afterwards, or an earlier process validated them.
    """

    network: nn.Module
    weights: dict[str, Tensor]
    history: list[dict[str, float]]
    curve: list[dict[str, float]]
    metrics: dict[str, float]
    outputs: Outputs | None = None


class Training:
    """A configured training, to run once.

    Args:
        config: The `train` section.
        runtime: Devices and progress.
        prepared: The data.
        pretrained: Folder of pretrained weights; None, or one without `config.json`, trains from scratch.
        checkpoints: Folder with a folder for each training, named by its fingerprint.
        start: File with weights of the whole network from another training, to start from in place of the
            pretrained or random ones; None for those of `train.start`, if it is set.

    Attributes:
        fingerprint: Digest of everything that decides the result.
        folder: Folder of the checkpoints.
        precision: Number format of the training.

    Raises:
        UserError: The configuration does not fit the machine, or the pretrained folder is broken.
    """

    def __init__(
        self,
        config: TrainConfig,
        runtime: RuntimeConfig,
        prepared: Prepared,
        pretrained: Path | None,
        checkpoints: Path,
        start: Path | None = None,
    ) -> None:
        _be_quiet()
        connect(runtime.trainer.accelerator)
        self._config = config
        self._task = Task.build(config.task)
        self._runtime = runtime
        self._prepared = prepared
        start = start or start_weights(config, prepared, pretrained)
        self._start = start
        self._pretrained = with_architecture(pretrained)
        if self._pretrained is not None and not (self._pretrained / "model.safetensors").is_file():
            raise UserError(
                "the pretrained model has no weights",
                where=str(self._pretrained / "model.safetensors"),
                fix="Run `dvc repro --force fetch`",
            )
        use_all_cores()
        # Not the number of ranks and how they share the weights: any of them goes on where another stopped.
        gpus = sorted({torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())})
        hardware = {"accelerator": runtime.trainer.accelerator, "gpus": gpus}
        self._parts = fingerprint_parts(config, prepared, self._pretrained, hardware, start)
        self._choose_formats(checkpoints.absolute())
        self.fingerprint = digest(self._parts)
        if len(set(gather_all(self.fingerprint))) > 1:
            fix = "Use one shared folder with the project and the same packages on all machines"
            raise UserError("the processes of the training have different data, settings or code", fix=fix)
        self.folder = CheckpointFolder(checkpoints.absolute() / self.fingerprint)

    def _choose_formats(self, checkpoints: Path) -> None:
        """Choose the number formats: those of the first rank, as all must have the same."""
        self.precision: Precision
        self._orthogonal: str | None
        if is_launched():
            if is_first_process():
                self._fastest_formats(checkpoints)
            formats: Any = (self.precision, self._orthogonal) if is_first_process() else None
            self.precision, self._orthogonal = from_first(formats)
        elif not is_first_process() and _FORMATS in os.environ:  # started by the first one
            self.precision, self._orthogonal = json.loads(os.environ[_FORMATS])
        else:
            self._fastest_formats(checkpoints)
            os.environ[_FORMATS] = json.dumps([self.precision, self._orthogonal])
        self._parts["hardware"] |= self._formats()

    def _fastest_formats(self, checkpoints: Path) -> None:
        """Choose the formats of an unfinished training of these settings, else the fastest."""
        config, accelerator = self._config, self._runtime.trainer.accelerator
        uses_muon = config.optimizer.name == "muon"
        orthogonal = ("bfloat16", "float32") if uses_muon else (None,)
        for self.precision in (config.precision,) if config.precision else get_args(Precision):
            for self._orthogonal in orthogonal:
                self._parts["hardware"] |= self._formats()
                if any((checkpoints / digest(self._parts)).glob("step-*.json")):
                    return
        options = [config.model, config.model.get("architecture") or {}, config.task]
        if self._pretrained is not None:
            options.append(read_json(self._pretrained / "config.json"))
        shape = Shape.of(config.batches.tokens, *options)
        self.precision = choose_precision(config.precision, accelerator, shape=shape)
        self._orthogonal = choose_orthogonal_format(accelerator, shape=shape) if uses_muon else None

    def _formats(self) -> dict[str, str]:
        muon = {} if self._orthogonal is None else {"orthogonalisation": self._orthogonal}
        return {"precision": self.precision, **muon}

    def refused_checkpoint(self) -> str | None:
        """Return, once for each, why training does not continue the latest unfinished one; None without such a one."""
        others = [] if self.folder.has_checkpoint() else self.folder.others()
        other = next((folder for folder in others if folder.has_checkpoint()), None)
        if other is None or not other.mention():
            return None
        changes = describe_changes(other.parts(), self._parts) if other.parts() else []
        why = "; ".join(changes[:_REASONS]) or "an earlier version wrote it and kept no record of what it depends on"
        more = f"; and {len(changes) - _REASONS} more" if len(changes) > _REASONS else ""
        return f"does not continue the unfinished training in {other.path}: {why}{more}"

    def run(self, metrics: MetricLog | None = None) -> Trained:
        """Train, from the last checkpoint if there is one; each step's metrics go to the log `metrics`.

        Raises:
            UserError: A loss is not finite, memory is short, Lightning refuses its settings, the configured
                torch.compile fails, another process runs this training, or another rank of it ended.
            KeyboardInterrupt: On Ctrl-C.
            SystemExit: With status 143 on SIGTERM.
        """
        with self.folder.lock() if is_first_process() else nullcontext(), name_lost_rank():
            return self._run(metrics)

    def _run(self, metrics: MetricLog | None) -> Trained:
        config = self._config
        if is_first_process():
            self.folder.note_parts(self._parts)
        seed_everything(config.seed, workers=True, verbose=False)
        keep_freed_memory()
        resident = 0 if torch.cuda.is_available() else psutil.Process().memory_info().rss
        task = self._task
        network = self._network()
        module = self._module(network, self.folder.path.parent / "faulty-steps" / self.fingerprint[:12])
        module.accumulation.check(config.batches.accumulate, self.ranks)
        data = self._data()
        meter = Meter(metrics, make_progress(self._runtime.progress, is_first_process()))
        history = History(self.folder.path, task.monitor, task.monitor_mode, meter)
        callbacks: list[Callback] = [meter, history]
        if config.ema_decay is not None:
            callbacks.append(ExponentialMovingAverage(config.ema_decay))
        if config.compile != "off":
            callbacks.append(LayerCompiler(config.compile, self.folder.path))
        if config.early_stopping is not None:
            patience: Any = {"patience": config.early_stopping, "mode": task.monitor_mode, "check_finite": False}
            callbacks.append(EarlyStopping(task.monitor, **patience))
        interruption = Interruption()
        writer = CheckpointWriter(self.folder, config.checkpoint_seconds, history, interruption)
        callbacks.append(writer)
        trainer = self._trainer(callbacks)
        torch.manual_seed(config.seed + trainer.global_rank)
        checks = is_first_process() or not is_launched()  # reading all of it once is enough
        checkpoint = from_first(self.folder.latest() if checks else None)
        if checkpoint is not None:
            log.info("continuing from %s", checkpoint)
        with interruption:
            try:
                _fit(trainer, module, data, checkpoint)
            except OutOfMemoryError as error:
                if not (advice := self._what_fits(resident)):
                    raise
                raise OutOfMemoryError(error.what, where=error.where, fix=f"{error.fix}. {advice}") from error
            interruption.leave(trainer.global_step, checkpoint=False)
        share = 100 * writer.seconds / max(meter.seconds, 1e-9)
        log.info("%d checkpoints took %.1f s, %.1f %% of the training", writer.count, writer.seconds, share)
        return self._result(trainer, network, history, meter)

    # -- planning ---------------------------------------------------------------------------

    @property
    def ranks(self) -> int:
        """Number of processes that train together."""
        if is_launched():
            return rank_count()
        trainer = self._runtime.trainer
        devices: Any = trainer.devices
        if devices == "auto" or devices in (-1, "-1"):
            uses_gpus = trainer.accelerator in ("auto", "gpu", "cuda")
            devices = max(1, torch.cuda.device_count()) if uses_gpus else 1
        if isinstance(devices, str):
            devices = devices.split(",") if "," in devices else int(devices)
        return trainer.num_nodes * (len(devices) if isinstance(devices, list) else int(devices))

    @property
    def _is_sharded(self) -> bool:
        return self._runtime.trainer.strategy == "fsdp"

    @property
    def repeats_forward(self) -> bool:
        """Whether each step has a first forward pass over all its micro-batches; see `training.accumulation`."""
        router = self._config.model.get("router") if self._config.model.get("feed_forward") == "experts" else None
        compares = isinstance(self._task, ComparesRows) and self._task.compares_rows
        return self._config.batches.accumulate > 1 and bool(compares or router)

    def tracer(self) -> Tracer:
        """Return what counts the operations and the memory of this training's steps."""
        model, state = Model.build(self._config.model), self._prepared.state

        def build() -> nn.Module:
            with config_alone(self._pretrained) if self._pretrained else nullcontext() as shape:
                network = self._task.build_network(model, shape, state)
            self._reduce(network)
            return network

        return Tracer(self._task, build, state, self._config, self.precision)

    def batches(self) -> PreparedDataModule:
        """Return the batches of this training, of one rank."""
        return self._data()

    def collate(self, split: str, rows: list[int]) -> dict[str, Tensor]:
        """Return examples of a split, `train` or `validation`, as a batch."""
        examples = examples_of(self._task, self._prepared.split(split))
        if split == "train":
            examples = examples.in_epoch(0, self._config.seed)
        return self._task.collate(examples.__getitems__(rows))

    def probe(self, callback: Callback) -> None:
        """Train without validation, checkpoints and logs until the callback stops the trainer, and keep nothing."""
        config = self._config
        with tempfile.TemporaryDirectory() as scratch:
            seed_everything(config.seed, workers=True, verbose=False)
            keep_freed_memory()
            network = self._network()
            module = self._module(network, Path(scratch) / "faulty")
            average = [] if config.ema_decay is None else [ExponentialMovingAverage(config.ema_decay)]
            trainer = self._trainer([*average, callback], limit_val_batches=0, default_root_dir=scratch)
            _fit(trainer, module, self._data(), None)

    def footprints(self) -> tuple[Footprint, Footprint, Tracer]:
        """Return the costs of a step with the longest batch, those with half of its rows, and what counted them."""
        data, tracer = self._data(), self.tracer()
        shapes = data.shapes(0)
        rows = data.plan(0).batches[int((shapes[:, 0] * shapes[:, 1] ** 2).argmax())].tolist()
        whole = tracer.trace(self.collate("train", rows))
        return whole, tracer.trace(self.collate("train", rows[: max(1, len(rows) // 2)])), tracer

    # -- inner ------------------------------------------------------------------------------

    def _what_fits(self, resident: int) -> str:
        """Return what the memory model expects to fit; nothing where it does not expect the lack of memory."""
        memory = available_memory() - resident
        if not torch.cuda.is_available() and available_memory() - psutil.Process().memory_info().rss < _ROOM_TO_COUNT:
            return ""
        answers = []
        plain = self._config
        try:
            for how in (False, True) if not plain.activation_checkpointing else (True,):
                self._config = plain.model_copy(update={"activation_checkpointing": how})
                whole, half, _ = self.footprints()
                rows = largest_batch(half, whole, memory)
                if rows >= whole.rows and how == plain.activation_checkpointing:
                    return ""
                name = "train.activation_checkpointing" if how else "these settings"
                fitting = f"{rows * (whole.positions // whole.rows):,} positions" if rows else "not even one row"
                answers.append(f"with {name} {fitting}")
        except (RuntimeError, MemoryError):
            return ""  # too little memory even to count
        finally:
            self._config = plain
        return f"The memory model expects to fit in {memory / 1e6:,.0f} MB: {', '.join(answers)}"

    def _network(self) -> nn.Module:
        """Build the network with the weights that the training starts from."""
        config = self._config
        network = self._task.build_network(Model.build(config.model), self._pretrained, self._prepared.state).train()
        self._reduce(network)
        if self._start is not None:
            try:
                network.load_state_dict(load_file(self._start))
            except RuntimeError as error:
                raise unfitting(error) from error
        if config.activation_checkpointing:
            checkpoint_activations(network)
        return network

    def _reduce(self, network: nn.Module) -> None:
        if self._pretrained is not None and (kept := self._prepared.kept_tokens) is not None:
            keep_tokens(network, kept)

    def _module(self, network: nn.Module, faults: Path) -> TrainingModule:
        return TrainingModule(
            self._task,
            network,
            self._prepared.state,
            self._config.optimizer,
            getattr(torch, self._orthogonal or "bfloat16"),
            faults=faults,
            skips_faults=self._config.faulty_steps == "skip",
        )

    def _data(self) -> PreparedDataModule:
        workers = _WORKERS_ON_A_GPU if torch.cuda.is_available() else 0
        return PreparedDataModule(self._task, self._prepared, self._config.batches, self._config.seed, workers)

    def _trainer(self, callbacks: list[Callback], **changes: Any) -> Trainer:
        config = self._config
        options = {"default_root_dir": self.folder.path} | changes
        if self._is_sharded and self.precision == "16-mixed":
            fix = "Set it to bf16-mixed or 32-true, or choose another trainer.strategy"
            raise UserError("float16 does not work with sharded weights", where="trainer.precision", fix=fix)
        settings: dict[str, Any] = self._runtime.trainer.model_dump()
        plugins: list[Any] = [CheckpointFile()]
        if is_launched():
            plugins.append(TorchElasticEnvironment())
            here = int(os.environ["LOCAL_WORLD_SIZE"])
            settings |= {"devices": here, "num_nodes": self.ranks // here}
            settings |= {"strategy": "ddp"} if settings["strategy"] == "auto" else {}
        settings |= {"strategy": ShardedStrategy()} if self._is_sharded else {}
        try:
            trainer = Trainer(
                **settings,
                precision=self.precision,
                max_epochs=config.max_epochs,
                accumulate_grad_batches=config.batches.accumulate,
                gradient_clip_val=config.optimizer.gradient_clip,
                val_check_interval=1 / config.validations_per_epoch,
                callbacks=callbacks,
                plugins=plugins,
                # The batches and their number differ between epochs.
                reload_dataloaders_every_n_epochs=1,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                deterministic=config.deterministic or None,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **options,
            )
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise UserError(
                f"Lightning refuses these settings: {' '.join(str(error).split())[:300]}",
                where="trainer",
                fix="See conf/trainer/ for valid combinations",
            ) from error
        return trainer

    def _result(self, trainer: Trainer, network: nn.Module, history: History, meter: Meter) -> Trained:
        if history.rows and history.best is None:
            raise UserError(
                f"{self._task.monitor} was not finite in any of the {len(history.rows)} validations",
                where="train.optimizer",
                fix="Lower learning_rate, lengthen warmup, or set trainer.precision to 32-true",
            )
        if history.best is None or history.best_file is None:
            fix = "Raise it, or raise train.max_epochs"
            raise UserError("training ended without a validation", where="train.validations_per_epoch", fix=fix)
        metrics = {
            **{name.removeprefix("validation/"): value for name, value in history.best.items() if "/" in name},
            "best_step": history.best["step"],
            "steps": trainer.global_step,
            "epochs": history.rows[-1]["epoch"],
            "train_seconds": meter.seconds,
            "samples_per_second": meter.samples / max(meter.seconds, 1e-9),
            "tokens_per_second": meter.tokens / max(meter.seconds, 1e-9),
            "padding_share": sum(meter.padding.values()) / max(1, len(meter.padding)),
        }
        weights = load_file(self.folder.path / history.best_file) if trainer.is_global_zero else {}
        outputs = history.outputs
        if isinstance(self._task, CalibratesWeights) and self._task.calibrates:
            weights, outputs = self._task.calibrate_weights(weights, metrics), None
        return Trained(network, weights, history.rows, meter.curve.rows, metrics, outputs)


def _fit(trainer: Trainer, module: TrainingModule, data: PreparedDataModule, checkpoint: Path | None) -> None:
    """Fit, and raise failures that a user can correct as `UserError`."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException as error:
        raise SystemExit(143) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"out of memory at step {trainer.global_step}",
                where="train.batches.tokens",
                fix="Lower it, and raise train.batches.accumulate by the same factor",
            ) from error
        if _is_from_the_compiler(error):
            # The later paragraphs are advice on debugging the compiler.
            reason = str(error).strip().split("\n\n")[0][:200]
            raise UserError(
                f"torch.compile fails ({reason})",
                where="train.compile",
                fix="Set it to off, or to auto, which trains without it where it fails",
            ) from error
        raise


def _is_from_the_compiler(error: BaseException) -> bool:
    # Compared by name, because the class is private and its module slow to load.
    return any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__)


def _be_quiet() -> None:
    """Silence Lightning's messages on hardware, and advice that does not apply to our loaders."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for message in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*is not resumable.*",
        ".*srun. command is available.*",
        ".*sync_dist=True.*",  # the metrics are those of all ranks
        ".*GPU available but not used.*",
        ".*Precision bf16-mixed is not supported by the model summary.*",
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)
