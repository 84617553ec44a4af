"""Check the machine: packages, disks, GPU, clock."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path

from textmill.cli.health.finding import Finding, Health
from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.registry.runs.store import database_file, tracking_uri, without_credentials

_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)\s*==\s*([^\s;#]+)", re.MULTILINE)
_FREE_BYTES = 500_000_000
_SKEW_SECONDS = 5.0
_FUTURE_SECONDS = 60.0


def check_environment(layout: Layout) -> Health:
    """Compare Python and the installed packages with `constraints.txt`; look for git and DVC."""
    findings = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        findings.append(
            Finding(f"Python {platform.python_version()} is not 3.11 or 3.12", "Run `make repro PYTHON=...`")
        )
    for program in ("git", "dvc"):
        if shutil.which(program) is None:
            remedy = "Run `source .venv/bin/activate`" if program == "dvc" else "Install git"
            findings.append(Finding(f"the program {program} is not on $PATH", remedy))
    pins = layout.root / "constraints.txt"
    text = pins.read_text(encoding="utf-8") if pins.is_file() else ""
    pinned = {_plain(name): version for name, version in _PIN.findall(text)}
    installed = {_plain(package.name): package.version for package in metadata.distributions() if package.name}
    same = 0
    for name, version in pinned.items():
        found = installed.get(name)
        if found is None or found.partition("+")[0] == version.partition("+")[0]:
            same += found is not None
            continue
        remedy = f"Run `pip install --constraint constraints.txt {name}`"
        findings.append(Finding(f"{name} is {found}, pinned is {version}", remedy))
    return Health("environment", f"Python {platform.python_version()}, {same} packages as pinned", findings)


def check_disk(layout: Layout, runtime: RuntimeConfig) -> Health:
    """Look at the space and the files that are free where Textmill writes."""
    database = database_file(tracking_uri(runtime, layout))
    places = {"project": layout.root, "home": layout.home, "$TMPDIR": Path(tempfile.gettempdir())}
    if database is not None:
        places["tracking store"] = database.parent
    findings, seen, least = [], set(), float("inf")
    for name, place in places.items():
        folder = next((one for one in (place, *place.parents) if one.is_dir()), place)
        device = folder.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
        least = min(least, free)
        remedy = "Free some: `dvc gc --workspace`, `mlflow gc`, or `textmill doctor --fix` for leftovers"
        if free < _FREE_BYTES:
            what = f"{name} ({folder}) has {free / 1e6:.0f} MB free; a run needs {_FREE_BYTES / 1e6:.0f} MB or more"
            findings.append(Finding(what, remedy))
        elif disk.f_files and disk.f_favail < 1000:
            findings.append(Finding(f"{name} ({folder}) can hold only {disk.f_favail} more files", remedy))
    return Health("disk", f"{least / 1e9:.1f} GB free or more", findings)


def check_gpu(runtime: RuntimeConfig) -> Health:
    """Compare the GPUs of the driver with the build of torch and with the settings."""
    wanted = runtime.trainer.accelerator in ("gpu", "cuda")
    count, problem = _gpus()
    findings = []
    if problem:
        findings.append(
            Finding(f"the NVIDIA driver does not work: {problem}", "Reload or update the driver, or reboot")
        )
    if count and not _torch_cuda():
        what = f"{count} GPUs, but torch {metadata.version('torch')} is built without CUDA"
        findings.append(Finding(what, "Run `pip install --force-reinstall torch` with PyPI's build"))
    if wanted and not count:
        where = "runtime.trainer.accelerator (conf/trainer/)"
        what = f"{where} is {runtime.trainer.accelerator}, and there is no GPU"
        findings.append(Finding(what, "Set it to auto or cpu"))
    return Health("GPU", f"{count}" if count else "none; the CPU is used", findings)


def check_clock(layout: Layout, runtime: RuntimeConfig) -> Health:
    """Compare the clock with that of the file system and of the tracking server; look for files of the future."""
    findings = []
    ntp = "Set the clock, for example with `timedatectl set-ntp true`"
    layout.state.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=layout.state) as file:
        skew = Path(file.name).stat().st_mtime - time.time()
    if abs(skew) > _SKEW_SECONDS:
        findings.append(Finding(f"the file system of {layout.state} is {skew:+.0f} s away from this machine", ntp))
    uri = tracking_uri(runtime, layout)
    if uri.startswith("http") and (server := _server_skew(uri)) is not None and abs(server) > _SKEW_SECONDS:
        where = without_credentials(uri)
        findings.append(Finding(f"the tracking server {where} is {server:+.0f} s away from this machine", ntp))
    future = [path for path in _own_files(layout) if path.lstat().st_mtime > time.time() + _FUTURE_SECONDS]
    if future:
        what = f"{len(future)} files are of the future, such as {future[0]}: the clock was set back"

        def touch() -> None:
            for path in future:
                os.utime(path, follow_symlinks=False)

        findings.append(Finding(what, f"{ntp}, then `touch` them", touch))
    return Health(
        "clock", "agrees with the file system" + (" and the server" if uri.startswith("http") else ""), findings
    )


def _own_files(layout: Layout) -> list[Path]:
    folders = [layout.root / "data", layout.conf, layout.root / "src"]
    return [path for folder in folders if folder.is_dir() for path in folder.rglob("*")]


def _server_skew(uri: str) -> float | None:
    """Return how many seconds the server's clock is ahead; None if it does not tell."""
    import requests  # only here: it costs 0.1 s

    before = time.time()
    try:
        date = requests.get(f"{without_credentials(uri).rstrip('/')}/health", timeout=3).headers.get("Date")
    except (requests.RequestException, ValueError):
        return None
    if date is None:
        return None
    skew = parsedate_to_datetime(date).timestamp() + 0.5 - (before + time.time()) / 2
    return float(skew)


def _gpus() -> tuple[int, str]:
    """Return the number of GPUs by the driver, and its problem."""
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists():
        return 0, ""
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount()), ""
    except pynvml.NVMLError as error:
        return 0, str(error)


def _torch_cuda() -> bool:
    """Return whether torch is built for CUDA, without importing it."""
    for file in metadata.files("torch") or []:
        if str(file) == "torch/version.py":
            return not re.search(r"^cuda.*= None", file.read_text(), re.MULTILINE)
    return True


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
