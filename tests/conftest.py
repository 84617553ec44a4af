"""What every test needs: no phoning home, no surprise from the user's own environment."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from support import covered
from support.skips import unexpected

ROOT = Path(__file__).resolve().parent.parent

# Before any test imports textmill's heavy friends: quiet, offline, the same on every machine.
os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "MPLBACKEND": "agg",
        "GIT_AUTHOR_NAME": "tester",
        "GIT_AUTHOR_EMAIL": "tester@example.invalid",
        "GIT_COMMITTER_NAME": "tester",
        "GIT_COMMITTER_EMAIL": "tester@example.invalid",
    }
)
# In the background of a script SIGINT is ignored, and so it would be in every process that a test starts. A handler is
# not inherited: those processes get the default, and this one still does not react.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: None)
# Tests that run side by side share the cores: threads that spin while they wait slow each other tenfold.
if (_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // _workers))
    os.environ["OMP_WAIT_POLICY"] = "passive"
for _variable in ("MLFLOW_TRACKING_URI", "TEXTMILL_HOME", "DVC_EXP_NAME", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(_variable, None)

# How long one example takes says more about the machine and what else runs on it than about the code.
hypothesis.settings.register_profile("textmill", deadline=None)
hypothesis.settings.load_profile("textmill")

_COVERAGE = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_PROCESS_")}
_paused = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips", action="store_true", help="fail if a test skips that support/skips.py does not expect"
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count the skips and name those that are not expected."""
    skips = _skips(terminalreporter)
    surprising = unexpected(skips)
    if skips:
        terminalreporter.section("skips")
        terminalreporter.line(f"{len(skips)} skipped, {len(surprising)} of them not expected by tests/support/skips.py")
    for test, reason in surprising:
        terminalreporter.line(f"NOT EXPECTED {test}: {reason}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a session with a skip that is not expected, under --strict-skips."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if session.config.getoption("--strict-skips") and reporter and not exitstatus and unexpected(_skips(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skips(reporter: Any) -> list[tuple[str, str]]:
    reports = reporter.stats.get("skipped", [])
    return [
        (report.nodeid, str(report.longrepr[2] if isinstance(report.longrepr, tuple) else "")) for report in reports
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of many slow tests, so that no worker is left with one of them when the others are done."""
    slow = Counter(item.path for item in items if "slow" in item.keywords)
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Count the lines that a slow test's processes execute only for the files of support/covered.py."""
    slow = "slow" in item.keywords
    for name in _COVERAGE:
        if slow and item.path.stem not in covered.SLOW_FILES:
            os.environ.pop(name, None)
        else:
            os.environ[name] = _COVERAGE[name]
    global _paused
    pause = slow and item.path.stem in covered.NOT_EVEN_THEIR_OWN
    if _COVERAGE and pause != _paused and (own := _own_coverage()) is not None:
        own.stop() if pause else own.start()
        _paused = pause


@cache
def _own_coverage() -> Any:
    """Return what counts this process's lines; a paused one is no longer the current one."""
    from coverage import Coverage

    return Coverage.current()


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The checkout under test."""
    return ROOT


@pytest.fixture(autouse=True)
def no_store_left_behind() -> Iterator[None]:
    """MLflow notes a store that a test opened in the environment, where the next test's commands would find it."""
    yield
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)
