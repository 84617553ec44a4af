"""Start the processes of a training: by PyTorch's elastic agent, within a job of Slurm, or by Ray.

The stage `train` stays one process for DVC, which starts the ranks and waits for them. The first rank writes the
MLflow run and the output. A rank that is killed, or whose machine is lost, is started again together with all others,
and they go on from the last checkpoint. An error that would come again ends them all: the first rank that meets
one notes it in a file.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from textmill.config.layout import Layout
from textmill.config.sections.runtime import LauncherConfig, RuntimeConfig
from textmill.config.sections.train import TrainConfig
from textmill.errors import UserError, first_line
from textmill.processes import LAUNCHED, end_family, is_first_process, is_launched

log = logging.getLogger("textmill")

_SECONDS_TO_END = "10"
"""Time that a rank has after SIGTERM, such as one that waits for another; the agent's default is 30."""
_OF_ANOTHER_RANK = ("NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID")
"""Variables of this process that would tell a rank the wrong number."""
_FIRST_PORT, _PORTS = 20_000, 10_000
_LOOK_SECONDS = 0.5
_ASK_SECONDS = 2.0
_OF_JOB = {"tasks_per_node": 1, "timeout_min": 1440}
"""Parameters of submitit where the settings have no others; its own limit is five minutes."""
_AGENT = "TEXTMILL_AGENT"
"""Environment variable with the number of the agent's process, for its ranks."""
_AGAIN = "The next run continues from the last checkpoint"


class Place(NamedTuple):
    """Where an agent runs.

    Attributes:
        node: Number of its machine.
        nodes: Number of machines.
        host: Host of the first machine.
        port: Port there at which the agents meet; 0 takes a free one, for one machine.
    """

    node: int
    nodes: int
    host: str
    port: int


def launch(main: Callable[..., None], config: TrainConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Run a stage's `main` in several processes and wait for them.

    Raises:
        UserError: A rank met an error, was killed too often, or the launcher is not installed.
        SystemExit: With status 128 + n after signal n.
    """
    launcher = runtime.launcher
    failure = layout.writing / "train.failure"
    failure.parent.mkdir(parents=True, exist_ok=True)
    if is_first_process():
        failure.unlink(missing_ok=True)
    if launcher.name == "ray":
        ended = _by_ray(main, config, runtime, layout, failure)
    else:
        processes = 1 if runtime.trainer.accelerator == "cpu" and launcher.processes is None else launcher.processes
        command = launcher.model_copy(update={"processes": processes}), _own_command(), str(layout.root), str(failure)
        ended = _by_slurm(layout, *command) if launcher.name == "slurm" else run_agent(_place(launcher), *command)
    if ended is not None:
        if failure.exists():
            raise UserError(failure.read_text(encoding="utf-8"))
        raise UserError(f"{ended}, after {launcher.restarts} restarts", where="train", fix=_AGAIN)


@contextmanager
def noted_errors() -> Iterator[None]:
    """Let the process that launched this rank report an error that a new start would not avoid."""
    from textmill.training.distributed import LostRankError

    failure = Path(os.environ[LAUNCHED])
    if failure.exists():  # of another rank, or an earlier start
        _end_agent()
        sys.exit(1)
    try:
        yield
    except LostRankError as error:
        if is_first_process():
            log.warning("train: %s", error)
        sys.exit(1)
    except Exception as error:
        with suppress(FileExistsError), failure.open("x", encoding="utf-8") as file:
            file.write(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}")
        _end_agent()
        if not isinstance(error, UserError):
            raise
        sys.exit(1)


def run_agent(place: Place, launcher: LauncherConfig, command: list[str], root: str, failure: str) -> str | None:
    """Run the elastic agent of one machine until its ranks end; return what ended them, None if they succeeded.

    Args:
        place: Where it runs.
        launcher: Processes and restarts.
        command: Command of a rank.
        root: The project.
        failure: File for an error of a rank.

    Raises:
        SystemExit: With status 128 + n after signal n.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    processes = launcher.processes or max(1, torch.cuda.device_count())
    os.chdir(root)
    for name in _OF_ANOTHER_RANK:
        os.environ.pop(name, None)
    os.environ |= {LAUNCHED: failure, _AGENT: str(os.getpid())}
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SECONDS_TO_END)
    # The ranks would connect by the store of the agents, which a new start of the ranks finds full of old keys.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    address = _address_towards(place) if place.nodes > 1 else None
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # it tells the end of a rank in a page
            logging.getLogger(name).setLevel(logging.CRITICAL)
    options = LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=processes,
        run_id=f"textmill-{place.port}",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{place.host}:{place.port}",
        rdzv_configs={"is_host": place.node == 0},
        local_addr=address,
        max_restarts=launcher.restarts,
    )
    log.info("train: starts %d processes on each of %d machines", processes, place.nodes)
    try:
        elastic_launch(options, command[0])(*command[1:])
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        how = signal.Signals(-first.exitcode).name if first.exitcode < 0 else f"status {first.exitcode}"
        return f"process {rank} of the training ended with {how}"
    except SignalException as error:
        if not Path(failure).exists():
            sys.exit(128 + error.sigval)
        return "a process of the training met an error"
    except (RuntimeError, OSError) as error:  # of the meeting of several machines
        return f"the machines do not find each other at {place.host}:{place.port} ({first_line(error)})"
    finally:
        for name in (LAUNCHED, _AGENT):
            os.environ.pop(name)
    return None


# -- inner ------------------------------------------------------------------------------------


def _end_agent() -> None:
    """Keep the agent of this rank from starting its ranks again."""
    if agent := os.environ.get(_AGENT):
        os.kill(int(agent), signal.SIGTERM)


def _own_command() -> list[str]:
    """Return the command of this program."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = [str(Path(sys.argv[0]).absolute())] if spec is None else ["-m", spec.name]
    return [sys.executable, *program, *sys.argv[1:]]


def _place(launcher: LauncherConfig) -> Place:
    """Return the place of this machine's agent for `torchrun`.

    Raises:
        UserError: Several machines have no place to meet.
    """
    if launcher.nodes == 1:
        return Place(0, 1, "127.0.0.1", 0)
    meeting = launcher.rendezvous or ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    host, _, port = meeting.rpartition(":")
    if not (host and port.isdigit()):
        fix = "Set it to HOST:PORT of the first machine, the same on all, or set MASTER_ADDR and MASTER_PORT"
        raise UserError("several machines need a place to meet", where="runtime.launcher.rendezvous", fix=fix)
    node = int(os.environ.get("NODE_RANK") or 0) if launcher.node_rank is None else launcher.node_rank
    return Place(node, launcher.nodes, host, int(port))


def _address_towards(place: Place) -> str:
    """Return this machine's address in the network of the first machine, and let gloo use that network."""
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((place.host, place.port))  # sends nothing
        address = str(probe.getsockname()[0])
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return address


def _by_slurm(layout: Layout, launcher: LauncherConfig, command: list[str], root: str, failure: str) -> str | None:
    """Submit a job with one agent a machine, show the log of its first, and wait for its end."""
    try:
        import submitit
    except ImportError as error:
        raise _missing("submitit") from error
    is_local = launcher.cluster == "local"
    folder = layout.writing.parent / "slurm"
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=launcher.cluster)
        tasks = {"nodes": 1, "tasks_per_node": launcher.nodes} if is_local else {"nodes": launcher.nodes}
        executor.update_parameters(name="textmill-train", **(_OF_JOB | launcher.options | tasks))
        job = executor.submit(_agent_of_job, launcher, command, root, failure)
    except (RuntimeError, ValueError, TypeError, NameError, submitit.core.utils.FailedJobError) as error:
        fix = "See the options of submitit and `sbatch`"
        raise UserError(f"submitit refuses the job: {first_line(error)}", where="runtime.launcher", fix=fix) from error
    log.info("train: job %s, its log: %s", job.job_id, job.paths.stderr)
    try:
        with _shown(job.paths.stderr) as show:
            while not _has_results(job) and (not job.done() if is_local else _is_queued(job.job_id)):
                show()
                time.sleep(_LOOK_SECONDS if is_local else _ASK_SECONDS)
    except BaseException:
        if is_local:
            end_family(job._process, float(_SECONDS_TO_END))  # type: ignore[attr-defined]
        else:
            job.cancel(check=False)
        raise
    if not _has_results(job):
        return f"job {job.job_id} ended without a result (its log: {job.paths.stderr})"
    try:
        results = job.results()
    except Exception as error:
        return f"job {job.job_id} failed ({first_line(error)}; its log: {job.paths.stderr})"
    return next((ended for ended in results if ended is not None), None)


def _has_results(job: Any) -> bool:
    return all(job.task(number).paths.result_pickle.exists() for number in range(job.num_tasks))


def _is_queued(job_id: str) -> bool:
    """Return whether Slurm has the job; unlike `sacct`, which submitit asks, `squeue` needs no accounting."""
    asked = subprocess.run(["squeue", "--noheader", "--jobs", job_id], capture_output=True, text=True, check=False)
    if asked.returncode:
        return "Invalid job id" not in asked.stderr  # else Slurm does not answer now
    return bool(asked.stdout.strip())


def _agent_of_job(launcher: LauncherConfig, command: list[str], root: str, failure: str) -> str | None:
    """Run the agent of one machine of a job."""
    import submitit

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    job = submitit.JobEnvironment()
    port = _FIRST_PORT + int(job.raw_job_id) % _PORTS
    place = Place(job.global_rank, job.num_tasks, job.hostnames[0] if job.num_nodes > 1 else "127.0.0.1", port)
    return run_agent(place, launcher, command, root, failure)


@contextmanager
def _shown(path: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that copies new lines of a log to stderr; copy the rest at the end."""
    position = 0

    def show() -> None:
        nonlocal position
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(position)
                sys.stderr.write(file.read())
                position = file.tell()

    try:
        yield show
    finally:
        show()


def _by_ray(
    main: Callable[..., None], config: TrainConfig, runtime: RuntimeConfig, layout: Layout, failure: Path
) -> str | None:
    """Run the ranks as workers of Ray Train and wait for them."""
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise _missing("ray") from error
    launcher = runtime.launcher
    started = not ray.is_initialized()
    if started:
        ray.init(**({"include_dashboard": False, "log_to_driver": True} | launcher.options))
    gpus = 0 if runtime.trainer.accelerator == "cpu" else int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    workers = launcher.processes or max(1, gpus)
    log.info("train: starts %d workers of Ray", workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"arguments": (main, config, runtime, layout.root, failure)},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(gpus)),
        run_config=RunConfig(
            name="train",
            storage_path=str(layout.writing.parent / "ray"),
            failure_config=FailureConfig(max_failures=launcher.restarts),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        return f"Ray ended the training ({first_line(error)})"
    finally:
        if started:
            ray.shutdown()
    return None


def _worker(options: dict[str, Any]) -> None:
    """Train as one rank in a worker of Ray."""
    from ray.train import get_context

    main, config, runtime, root, failure = options["arguments"]
    context = get_context()
    os.environ |= {
        LAUNCHED: str(failure),
        "RANK": str(context.get_world_rank()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "GROUP_RANK": str(context.get_node_rank()),
    }
    os.chdir(root)
    level = logging.INFO if is_first_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    assert is_launched()
    try:
        main(config, runtime, Layout(root))
    except SystemExit as error:
        raise RuntimeError(f"the worker ended with status {error.code}") from error


def _missing(package: str) -> UserError:
    fix = "Run pip install --constraint constraints.txt -e '.[cluster]', or set launcher: torchrun"
    return UserError(f"{package} is not installed", where="runtime.launcher", fix=fix)
