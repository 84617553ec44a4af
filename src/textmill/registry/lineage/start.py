"""Bring the version that a training starts from: `train.start: champion`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textmill.config.layout import SEEN_FILE, Layout
from textmill.config.section import Section
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.fetching.sources.base import Provenance, Source
from textmill.files import read_optional, sha256_folder
from textmill.predicting.exported import SPECIFICATION_FILE
from textmill.registry.lineage.dvc_cache import Cache
from textmill.registry.lineage.lineage import origin_of
from textmill.registry.runs.addresses import find_version
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import open_client
from textmill.registry.versions.version_files import fetch_folder
from textmill.registry.versions.versions import configured_uri, seen_record
from textmill.training.loading import MODEL_FOLDER

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger("textmill")

_WHERE = "train.start"
_TRAINED = "data/trained"


class StartConfig(Section):
    """Options: which version.

    Attributes:
        model: Address of a version: `NAME@ALIAS` or `NAME/VERSION`.
    """

    model: str


class StartSource(Source):
    """Copy a version's trained weights, tokenizer, specification and record of seen rows.

    An alias is looked up when `fetch` runs. A moved champion alone therefore reruns nothing. If the champion was made
    from the corpus at hand and started from a version, that version is taken: one corpus gives one training.
    """

    Config: ClassVar[type[Section]] = StartConfig
    config: StartConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write `model/`, `textmill.json`, the tokenizer's files and `seen.parquet`.

        Raises:
            UserError: There is no such version, it has no record of seen rows, its trained weights are in no place,
                a file was changed, or the store does not answer.
        """
        layout = Layout(root)
        with open_client(RuntimeConfig(tracking_uri=configured_uri(layout)), layout) as client:
            version = _same_start(self._version(client, layout), client, layout)
            name = f"{version.name}/{version.version}"
            record = seen_record(version)
            if record is None:
                fix = "Train and promote a version without train.start first"
                raise UserError(f"{name} has no record of the rows that it has seen", where=_WHERE, fix=fix)
            shutil.copyfile(record, destination / SEEN_FILE)
            for path in sorted(fetch_folder(version, layout).iterdir()):
                if path.name == SPECIFICATION_FILE or path.name.startswith("tokenizer"):
                    shutil.copyfile(path, destination / path.name)
            _copy_trained(version, layout, destination)
        log.info("fetch: the training starts from %s", name)
        return Provenance(version.name, str(version.version), None, version.tags[f"{PREFIX}weights_sha256"])

    def _version(self, client: MlflowClient, layout: Layout) -> ModelVersion:
        try:
            return find_version(self.config.model, client, layout)
        except UserError as error:
            fix = "Train and promote a first version without train.start"
            raise UserError(error.what, where=_WHERE, fix=fix) from error


def _same_start(version: ModelVersion, client: MlflowClient, layout: Layout) -> ModelVersion:
    """Return where the version started if it was made from the corpus at hand, else the version."""
    made = read_optional(fetch_folder(version, layout) / "provenance.json")
    files: Any = read_optional(layout.raw / "provenance.json").get("files")
    start = made.get("start")
    if start and made["corpus"].get("files") == files:
        return find_version(f"{start['origin']}/{start['version']}", client, layout)
    return version


def _copy_trained(version: ModelVersion, layout: Layout, destination: Path) -> None:
    """Copy `data/trained/model` of a version from DVC's cache, the workspace or DVC's remote, its digest checked."""
    origin = origin_of(version, layout)
    expected, cache = origin.tag("weights_sha256"), Cache.of(layout.root)
    output = (origin.lock.outputs if origin.lock is not None else {}).get(_TRAINED)

    def from_cache() -> bool:
        if output is None or cache.sha256_of_folder(output, MODEL_FOLDER) != expected:
            return False
        for path, digest in (cache.entries(output) or {}).items():
            if path.startswith(f"{MODEL_FOLDER}/"):
                target = destination / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(cache.object(digest), target)
        return True

    trained = layout.trained / MODEL_FOLDER
    if from_cache():
        return
    if trained.is_dir() and sha256_folder(trained) == expected:
        shutil.copytree(trained, destination / MODEL_FOLDER)
        return
    if output is not None and cache.has_remote:
        cache.fetch([str(output["md5"])])
        inside = {path: md5 for path, md5 in (cache.entries(output) or {}).items() if path.startswith(MODEL_FOLDER)}
        cache.fetch(list(inside.values()))
        if from_cache():
            return
    what = f"the trained weights of {origin.name} are neither in DVC's cache nor in {_TRAINED} nor in DVC's remote"
    raise UserError(what, where=_WHERE, fix="Run `dvc push` where it was trained, or remove train.start")
