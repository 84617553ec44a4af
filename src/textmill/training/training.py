"""One training from prepared data to the best weights, resumable at any time."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.strategies import FSDPStrategy
from pytorch_lightning.utilities.exceptions import (  # type: ignore[attr-defined]
    MisconfigurationException,
    SIGTERMException,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import TrainConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.metrics.base import Outputs
from textmill.models.base import Model
from textmill.tasks.abilities import CalibratesWeights
from textmill.tasks.base import Task
from textmill.training.allocation import keep_freed_memory
from textmill.training.checkpoints import CheckpointFolder, CheckpointWriter
from textmill.training.datamodule import PreparedDataModule
from textmill.training.distributed import is_first_process
from textmill.training.ema import ExponentialMovingAverage
from textmill.training.fingerprint import describe_changes, digest, fingerprint_parts
from textmill.training.history import History
from textmill.training.layers import LayerCompiler, checkpoint_activations
from textmill.training.loading import with_architecture
from textmill.training.meter import Meter, MetricLog
from textmill.training.module import TrainingModule
from textmill.training.precision import choose_precision, use_all_cores
from textmill.training.progress import make_progress

log = logging.getLogger("textmill")

_REASONS = 5
_WORKERS_ON_A_GPU = 2


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        network: The network, for its architecture; its weights are not the best ones.
        weights: The best weights by name.
        history: A row a validation.
        curve: The training loss over the steps, some two hundred rows.
        figures: Those of the best validation, and of the training as a whole.
        outputs: The outputs of these weights for the validation split, in its order; None where the task
            calibrated the weights afterwards, or an earlier process validated them.
    """

    network: nn.Module
    weights: dict[str, Tensor]
    history: list[dict[str, float]]
    curve: list[dict[str, float]]
    figures: dict[str, float]
    outputs: Outputs | None = None


class Training:
    """A training that is set up and can be run once.

    Args:
        config: The `train` section.
        runtime: Devices and progress.
        prepared: The data.
        pretrained: The folder of pretrained weights; None, or one without `config.json`, trains
            from scratch.
        checkpoints: The folder in which each training has a folder named by its fingerprint.
        start: A file with weights of the whole network, as another training of it left them, to
            begin with in place of the pretrained or random ones; None for none.

    Attributes:
        fingerprint: Of everything that decides the result.
        folder: Of the checkpoints.
        precision: In use.

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
        self._config = config
        self._task = Task.build(config.task)
        self._runtime = runtime
        self._prepared = prepared
        self._start = start
        self._pretrained = with_architecture(pretrained)
        if self._pretrained is not None and not (self._pretrained / "model.safetensors").is_file():
            raise UserError(
                "no weights beside the configuration",
                where=str(self._pretrained / "model.safetensors"),
                fix="Run `dvc repro --force fetch`",
            )
        self.precision = choose_precision(config.precision, runtime.trainer.accelerator)
        hardware = {"precision": self.precision, "trainer": runtime.trainer.model_dump(), "gpus": _gpus()}
        self._parts = fingerprint_parts(config, prepared, self._pretrained, hardware, start)
        self.fingerprint = digest(self._parts)
        self.folder = CheckpointFolder(checkpoints.absolute() / self.fingerprint)

    def refused_checkpoint(self) -> str | None:
        """Return why training does not go on from the latest unfinished one; None when there is nothing to refuse."""
        other = self.folder.other()
        if other is None:
            return None
        changes = describe_changes(other.parts(), self._parts) if other.parts() else []
        why = "; ".join(changes[:_REASONS]) or "an earlier version wrote it and kept no record of what it depends on"
        more = f"; and {len(changes) - _REASONS} more" if len(changes) > _REASONS else ""
        return f"does not go on from the unfinished training in {other.path}: {why}{more}"

    def run(self, metrics: MetricLog | None = None) -> Trained:
        """Train, from the last checkpoint if there is one.

        Args:
            metrics: Takes the figures of each step.

        Raises:
            UserError: A loss is not finite, memory is short, Lightning refuses its settings, or
                torch.compile was asked for and fails.
            KeyboardInterrupt: On Ctrl-C.
            SystemExit: With status 143 on SIGTERM.
        """
        config = self._config
        if is_first_process():
            self.folder.note_parts(self._parts)
        seed_everything(config.seed, workers=True, verbose=False)
        use_all_cores()
        keep_freed_memory()
        task = self._task
        model = Model.build(config.model)
        network = task.build_network(model, self._pretrained, self._prepared.state).train()
        if self._start is not None:
            network.load_state_dict(load_file(self._start))
        if config.activation_checkpointing:
            checkpoint_activations(network)
        module = TrainingModule(task, network, self._prepared.state, config.optimizer)
        workers = _WORKERS_ON_A_GPU if torch.cuda.is_available() else 0
        data = PreparedDataModule(task, self._prepared, config.batches, config.seed, workers)
        meter = Meter(metrics, make_progress(self._runtime.progress, is_first_process()))
        history = History(self.folder.path, task.monitor, task.monitor_mode, meter)
        callbacks: list[Callback] = [meter, history]
        if config.ema_decay is not None:
            callbacks.append(ExponentialMovingAverage(config.ema_decay))
        if config.compile != "off":
            callbacks.append(LayerCompiler(config.compile, self.folder.path))
        if config.early_stopping is not None:
            callbacks.append(EarlyStopping(task.monitor, patience=config.early_stopping, mode=task.monitor_mode))
        callbacks.append(CheckpointWriter(self.folder, config.checkpoint_seconds, history))
        trainer = self._trainer(callbacks)
        torch.manual_seed(config.seed + trainer.global_rank)
        checkpoint = self.folder.latest()
        if checkpoint is not None:
            log.info("going on from %s", checkpoint)
        _fit(trainer, module, data, checkpoint)
        return self._result(trainer, network, history, meter)

    def _trainer(self, callbacks: list[Callback]) -> Trainer:
        config = self._config
        try:
            trainer = Trainer(
                **self._runtime.trainer.model_dump(),
                precision=self.precision,
                max_epochs=config.max_epochs,
                accumulate_grad_batches=config.batches.accumulate,
                gradient_clip_val=config.optimizer.gradient_clip,
                val_check_interval=1 / config.validations_per_epoch,
                callbacks=callbacks,
                # Every epoch has batches, and a number of them, of its own.
                reload_dataloaders_every_n_epochs=1,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                deterministic=config.deterministic or None,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=self.folder.path,
            )
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise UserError(
                f"Lightning refuses these settings: {' '.join(str(error).split())[:300]}",
                where="trainer",
                fix="See conf/trainer/ for settings that go together",
            ) from error
        if config.ema_decay is not None and isinstance(trainer.strategy, FSDPStrategy):
            raise UserError("the moving average of weights does not work with fsdp", where="train.ema_decay")
        return trainer

    def _result(self, trainer: Trainer, network: nn.Module, history: History, meter: Meter) -> Trained:
        if history.best is None or history.best_file is None:
            raise UserError("training ended without a validation", where="train.validations_per_epoch")
        ranks = trainer.world_size
        figures = {
            **{name.removeprefix("validation/"): value for name, value in history.best.items() if "/" in name},
            "best_step": history.best["step"],
            "steps": trainer.global_step,
            "epochs": history.rows[-1]["epoch"],
            "train_seconds": meter.seconds,
            "samples_per_second": ranks * meter.samples / max(meter.seconds, 1e-9),
            "tokens_per_second": ranks * meter.tokens / max(meter.seconds, 1e-9),
            "padding_share": sum(meter.padding.values()) / max(1, len(meter.padding)),
        }
        weights = load_file(self.folder.path / history.best_file) if trainer.is_global_zero else {}
        if isinstance(self._task, CalibratesWeights):
            weights = self._task.calibrate_weights(weights, figures)
            return Trained(network, weights, history.rows, meter.curve.rows, figures)
        return Trained(network, weights, history.rows, meter.curve.rows, figures, history.outputs)


def _fit(trainer: Trainer, module: TrainingModule, data: PreparedDataModule, checkpoint: Path | None) -> None:
    """Fit, and tell what went wrong in the user's words."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException as error:
        raise SystemExit(143) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    except (RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            raise UserError(
                f"out of memory at step {trainer.global_step}",
                where="train.batches.tokens",
                fix="Choose a smaller number of tokens, and a larger train.batches.accumulate to make up for it",
            ) from error
        if _is_from_the_compiler(error):
            raise UserError(
                f"torch.compile fails here ({_beginning(error)})",
                where="train.compile",
                fix="Set it to off, or to auto, which does without where it fails",
            ) from error
        raise


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _is_from_the_compiler(error: BaseException) -> bool:
    # By name: the class is private, and its module slow to load.
    return any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__)


def _beginning(error: BaseException) -> str:
    """The first paragraph of what it says, which is followed by advice on how to debug the compiler."""
    return str(error).strip().split("\n\n")[0][:200]


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _be_quiet() -> None:
    """Silence Lightning's notes on hardware, and advice that does not fit our loaders."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for message in (
        ".*does not have many workers.*",
        ".*dataloader is not resumable.*",
        ".*is not resumable.*",
        ".*GPU available but not used.*",
        ".*Precision bf16-mixed is not supported by the model summary.*",
        ".*isinstance.treespec, LeafSpec.. is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)
