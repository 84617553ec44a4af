"""A real Slurm on this machine: one controller, one node, without accounting."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def lacks_slurm() -> bool:
    """Whether Slurm cannot run here."""
    return bool(os.geteuid()) or not all(shutil.which(name, path=PATH) for name in PROGRAMS)


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Run Slurm with its files in `folder`, and yield its configuration file."""
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o700)
    (folder / "munge/key").write_bytes(os.urandom(1024))
    (folder / "munge/key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    configuration = folder / "slurm.conf"
    configuration.write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(configuration)}
    munge = [f"--{name}={folder}/munge/{name}" for name in ("pid-file", "seed-file", "log-file")]
    key = [f"--socket={folder}/munge.socket", f"--key-file={folder}/munge/key"]
    try:
        for command in (["munged", "--force", *munge, *key], ["slurmctld"], ["slurmd"]):
            subprocess.run(command, env=environment, check=True)
        end = time.monotonic() + 60
        while "idle" not in _state(environment):
            assert time.monotonic() < end, (folder / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield configuration
    finally:
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid-file"):
            with suppress(OSError, ValueError):
                os.kill(int((folder / name).read_text()), signal.SIGTERM)


def _state(environment: dict[str, str]) -> str:
    asked = subprocess.run(["sinfo", "--noheader", "--format=%t"], env=environment, capture_output=True, text=True)
    return asked.stdout
