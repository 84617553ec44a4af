"""The `runtime` section: machine-dependent settings that must not change a result.

No stage depends on it: a change never reruns a stage.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from textmill.config.section import Section


class TrainerConfig(Section):
    """Settings of Lightning's trainer. `auto` selects by hardware."""

    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: Annotated[int, Field(ge=1)] = 1
    strategy: str = "auto"


class LauncherConfig(Section):
    """What starts the processes of a training.

    Attributes:
        name: `local`: Lightning, on this machine; `torchrun`: PyTorch's elastic agent, on each of `nodes` machines;
            `slurm`: the same within a job; `ray`: Ray Train.
        nodes: Number of machines; Ray places the processes on those of its cluster.
        processes: Number of processes of a machine, for `ray` of the cluster; None: one for each GPU, one without.
        restarts: Number of times that all processes are started again after one was killed.
        rendezvous: `HOST:PORT` of the first machine, for `torchrun` on several; None uses `$MASTER_ADDR` and
            `$MASTER_PORT`.
        node_rank: Number of this machine for `torchrun` on several, from 0; None uses `$NODE_RANK`, or 0.
        cluster: For `slurm`: `slurm`, or `local` to try it on this machine.
        options: For `slurm` parameters of submitit (`timeout_min`, `slurm_partition`, ...); for `ray` arguments
            of `ray.init` (`address`).
    """

    name: Literal["local", "torchrun", "slurm", "ray"] = "local"
    nodes: Annotated[int, Field(ge=1)] = 1
    processes: Annotated[int, Field(ge=1)] | None = None
    restarts: Annotated[int, Field(ge=0)] = 3
    rendezvous: Annotated[str, Field(pattern=r"^.+:\d+$")] | None = None
    node_rank: Annotated[int, Field(ge=0)] | None = None
    cluster: Literal["slurm", "local"] = "slurm"
    options: dict[str, Any] = {}


class RuntimeConfig(Section):
    """Machine-local settings.

    Attributes:
        trainer: Settings of Lightning's trainer.
        launcher: What starts the processes of a training.
        tracking_uri: Address of MLflow; None uses `$MLFLOW_TRACKING_URI`, or else `mlflow.db` and
            `mlruns` in the project's home.
        tracking_offline: Whether to keep metrics and artifacts on disk for `textmill sync` and not to ask the
            server; `TEXTMILL_OFFLINE=1` does the same. A local store is always used.
        workers: Number of threads or processes of `prepare`; None uses all cores.
        engine: Where `prepare` computes: `threads`; `processes`; `ray`, on the cluster at `$RAY_ADDRESS` or on this
            machine.
        unfinished_trainings: Number of unfinished trainings of other settings whose checkpoints are kept.
        plan: Whether `train` first estimates its time and memory, for which it measures its speed.
        progress: `auto` shows a bar in a terminal and plain lines elsewhere.
    """

    trainer: TrainerConfig = TrainerConfig()
    launcher: LauncherConfig = LauncherConfig()
    tracking_uri: str | None = None
    tracking_experiment: str = "textmill"
    tracking_offline: bool = False
    workers: Annotated[int, Field(ge=1)] | None = None
    engine: Literal["threads", "processes", "ray"] = "threads"
    unfinished_trainings: Annotated[int, Field(ge=0)] = 3
    plan: bool = True
    progress: Literal["auto", "bar", "plain"] = "auto"
