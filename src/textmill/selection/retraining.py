"""Train again if data, settings or code changed, and let the gate decide: `textmill retrain`."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from textmill.config.layout import Layout
from textmill.config.secrets import reveal
from textmill.config.sections.fetch import FetchConfig
from textmill.errors import UserError, first_line
from textmill.files import read_json, read_optional
from textmill.predicting.exported import MANIFEST_FILE, TamperedError
from textmill.processes import end_family
from textmill.registry.promotion.aliases import read_aliases
from textmill.registry.promotion.events import Event, read_events
from textmill.registry.promotion.promotion import current_configuration, promote
from textmill.registry.runs.addresses import find_version
from textmill.registry.runs.store import open_client
from textmill.registry.versions.version_files import fetch_folder

log = logging.getLogger("textmill")

_END_SECONDS = 60.0
_NOTIFY_SECONDS = 10.0
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_REVISION = re.compile(r"[0-9a-f]{40}|v?\d.*")
_ABOUT_ORIGIN = ("README.md", "provenance.json")
_OUTCOMES = {"moved": "promoted", "inconclusive": "inconclusive"}


class BusyError(UserError):
    """Another `textmill retrain` works in this project."""


@dataclass(frozen=True)
class Retraining:
    """What a retraining came to.

    Attributes:
        outcome: `unchanged` if the newest version was judged before.
        model: Registered model.
        version: Its newest version.
        champion: The champion before, or None.
        stages: Stages that ran.
        words: Reason of the outcome.
        decision: Address of the stored decision, if the gate ran.
        dry_run: Whether no alias was moved.
    """

    outcome: Literal["promoted", "refused", "inconclusive", "unchanged"]
    model: str
    version: str
    champion: str | None
    stages: tuple[str, ...]
    words: str
    decision: str | None = None
    dry_run: bool = False

    @property
    def line(self) -> str:
        """The outcome in one line."""
        version = f"{self.model} version {self.version}"
        if self.outcome == "unchanged":
            return f"unchanged: {version} {self.words}"
        instead = f" in place of version {self.champion}" if self.champion else ""
        done = {"promoted": "would be promoted" if self.dry_run else "is now the champion"}
        told = done.get(self.outcome, "is not promoted")
        return f"{self.outcome}: {version} {told}{instead if self.outcome == 'promoted' else ''}. {self.words}"


def retrain(layout: Layout, *, reason: str, dry_run: bool = False) -> Retraining:
    """Fetch new data, run the pipeline, and promote the new version if it passes the gate.

    A version is judged once. It is judged by the next call if this one was killed before. A version that was rolled
    back is not promoted again. A version that is the champion again, as after a batch of duplicates, is not judged.

    Args:
        layout: The project.
        reason: Reason, shown in the history.
        dry_run: Move no alias.

    Raises:
        BusyError: Another retraining works in this project.
        UserError: A stage failed, or the registry does not answer; the champion is as before.
    """
    with _alone(layout):
        for imported in _imports(layout):
            _dvc(layout, "update", str(imported.relative_to(layout.root)))
        stages: list[str] = []
        if outside := _outside(current_configuration(layout).fetch, layout):
            log.info("retrain: fetches again, because DVC does not see changes at %s", ", ".join(outside))
            stages += _dvc(layout, "repro", "compose")
            stages += _dvc(layout, "repro", "--force", "--single-item", "fetch")
        stages += _dvc(layout, "repro")
        return _judge(layout, tuple(dict.fromkeys(stages)), reason, dry_run=dry_run)


def notify(address: str, document: dict[str, Any]) -> None:
    """Send a JSON document to a webhook by POST; a failure is logged and changes nothing.

    Args:
        address: http or https address, often with a secret in it, which messages do not show.
        document: JSON values; chats such as Slack show the field `text`.
    """
    host = urlsplit(address).hostname
    body = json.dumps(document, ensure_ascii=False).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_NOTIFY_SECONDS):  # http, by check_webhook  # nosec B310
            pass
    except (OSError, ValueError) as error:
        log.warning("retrain: the webhook at %s was not notified (%s)", host, first_line(error).replace(address, "***"))


def check_webhook(address: str) -> str:
    """Return the address of a webhook, its secrets revealed.

    Raises:
        UserError: It is no http or https address.
    """
    revealed = str(reveal(address, "--notify"))
    if urlsplit(revealed).scheme not in ("http", "https") or not urlsplit(revealed).hostname:
        raise UserError("not an http or https address", where="--notify", fix="Give https://HOST/PATH")
    return revealed


def _judge(layout: Layout, stages: tuple[str, ...], reason: str, *, dry_run: bool) -> Retraining:
    """Run the gate for the newest version, unless it, or the same model, was judged or rolled back before."""
    from mlflow.exceptions import MlflowException

    registered = read_optional(layout.registered / "registered.json")
    name, version = str(registered["name"]), str(registered["version"])
    with open_client(current_configuration(layout).runtime, layout) as client:
        find_version(f"{name}/{version}", client, layout)
        champion = read_aliases(client, name).champion
        events = read_events(client.get_registered_model(name).tags)
        back: dict[str, Event] = {}
        for event in events:
            if event.outcome == "moved":
                back.pop(event.version, None)
                back |= {event.champion: event} if event.action == "rollback" and event.champion else {}
        same = None
        for other in dict.fromkeys(filter(None, (champion, *reversed(back)))):
            with suppress(TamperedError, MlflowException):  # the gate refuses such a version; one may be deleted
                pair = [client.get_model_version(name, each) for each in (other, version)]
                if len({_served_files(fetch_folder(each, layout)) for each in pair}) == 1:
                    same = other
                    break
    if champion == version:
        return Retraining("unchanged", name, version, champion, stages, "is the champion")
    if same is not None and same == champion:
        words = f"is the same model as the champion, version {champion}: the new rows are none to train on"
        return Retraining("unchanged", name, version, champion, stages, words)
    if same is not None and same != version:
        words = f"is the same model as version {same}, which was rolled back on {back[same].time[:10]}"
        return Retraining("unchanged", name, version, champion, stages, words)
    if judged := _judgement(events, version):
        words = f"was judged on {judged.time[:10]}: {judged.words or judged.outcome}"
        return Retraining("unchanged", name, version, champion, stages, words, judged.decision)
    made = promote(f"{name}/{version}", layout, reason=reason, dry_run=dry_run)
    done = made.event
    outcome: Any = _OUTCOMES.get(done.outcome, "refused")
    words = _main_reason(made.decision["checks"]) if outcome == "promoted" else done.words
    return Retraining(outcome, name, version, done.champion, stages, words, done.decision, dry_run)


def _main_reason(checks: Sequence[Mapping[str, Any]]) -> str:
    """Return the words of the comparison with the champion, else of the first check, and the number of the others."""
    told = [check["words"] for check in checks if check["name"] == "difference"] or [checks[0]["words"]]
    return f"{told[0]}; {len(checks) - 1} other checks are in `textmill history`"


def _served_files(folder: Path) -> str:
    """Return the digests of an exported folder's files, without those that only name its origin."""
    digests = read_json(folder / MANIFEST_FILE)
    return json.dumps({name: digest for name, digest in digests.items() if name not in _ABOUT_ORIGIN}, sort_keys=True)


def _judgement(events: list[Event], version: str) -> Event | None:
    """Return the last event that decided about the version, or could not."""
    judged = [event for event in events if event.version == version]
    return next((event for event in reversed(judged) if event.outcome in ("moved", "refused", "inconclusive")), None)


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """Hold the project's lock of retrainings; the system releases it when this process dies."""
    from filelock import FileLock, Timeout

    path = layout.writing / "retrain.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError("another textmill retrain runs in this project", where=str(layout.root)) from error
    try:
        yield
    finally:
        lock.release()


def _imports(layout: Layout) -> list[Path]:
    """Return the `.dvc` files of data brought by `dvc import` and `dvc import-url`."""
    notes = sorted(layout.root.glob("data/**/*.dvc"))
    return [note for note in notes if note.is_file() and "deps" in (yaml.safe_load(note.read_text("utf-8")) or {})]


def _outside(config: FetchConfig, layout: Layout) -> list[str]:
    """Return the addresses of the corpus whose changes DVC does not see, without secrets.

    DVC watches `data/own`. A revision of a hub dataset that is a commit or a version does not change.
    """
    own = layout.root / "data/own"
    found: dict[str, None] = {}

    def visit(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            if "name" in value and not _REVISION.fullmatch(str(value.get("revision", "v1"))):
                found[f"hub:{value['name']}"] = None
            for name, each in value.items():
                visit(each, "files" if key == "files" else str(name))
        elif isinstance(value, list | tuple):
            for each in value:
                visit(each, key)
        elif key == "files" and isinstance(value, str):
            local = "://" not in value and "${" not in value
            if not (local and (layout.root / value).resolve().is_relative_to(own.resolve())):
                found[value.partition("?")[0]] = None

    visit(config.model_dump(mode="json", by_alias=True)["source"])
    return list(found)


def _dvc(layout: Layout, *arguments: str) -> list[str]:
    """Run DVC, its output on the standard error, and return the stages that ran.

    Raises:
        UserError: It failed; the outputs are then those of the last complete run.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    parent = os.getpid()

    def end_with_parent() -> None:
        """Let the system end DVC if this process is killed; its stage then ends by itself."""
        with suppress(OSError, AttributeError):  # only Linux has it
            ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    process = subprocess.Popen(
        command, cwd=layout.root, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=end_with_parent
    )
    stages = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(line)
            sys.stderr.flush()
            stages += re.findall(r"Running stage '([a-z]+)'", line)
        status = process.wait()
    except BaseException:
        end_family(process, _END_SECONDS)
        raise
    if status:
        subprocess.run([sys.executable, "-m", "dvc", "checkout", "--quiet"], cwd=layout.root, capture_output=True)
        what = f"the stage {stages[-1]} failed" if stages else f"`dvc {' '.join(arguments)}` failed"
        raise UserError(f"{what}; the champion is as before", fix="The lines above tell the reason")
    return stages
