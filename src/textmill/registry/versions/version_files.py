"""The files of a version: store them with a manifest, fetch them and compare them with it."""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from textmill.config.layout import Layout
from textmill.config.plugins import packages_in, trust
from textmill.errors import UserError
from textmill.files import atomic_folder, read_json, sha256_file
from textmill.predicting.exported import MANIFEST_FILE, SPECIFICATION_FILE, TamperedError, verify, verify_registered
from textmill.registry.runs.origin import PREFIX
from textmill.registry.versions import version_manifest
from textmill.registry.versions.bill_of_materials import BILL_FILE, bill_of_materials
from textmill.registry.versions.trial import is_untried

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import Model

log = logging.getLogger("textmill")

VERSION_MANIFEST = "version_manifest_sha256"
"""Tag of a version with the digest of its manifest; versions registered before 26 November 2026 have none."""


class SealedPyfunc:
    """MLflow's flavour `pyfunc` with a bill of materials, a manifest over all files and a loader that checks them.

    Attributes:
        name: Name of the registered model.
        digest: Digest of the manifest, once the model is saved.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.digest = ""

    def save_model(self, path: str, mlflow_model: Model, **options: Any) -> None:
        """Save the model as `mlflow.pyfunc.save_model` does; complete and seal its folder."""
        import mlflow.pyfunc

        options.pop("validate_serving_input")  # read by `Model.log`, which has no other way to leave it out
        mlflow.pyfunc.save_model(path=path, mlflow_model=mlflow_model, **options)
        folder = Path(path)
        loader = folder / "served_model.py"
        digest = sha256_file(folder / "code/textmill.zip")
        before, place, after = loader.read_text(encoding="utf-8").partition('_CODE_SHA256 = "')
        assert place and after.startswith('"'), "served_model.py has no place for the digest of the code"
        loader.write_text(f"{before}{place}{digest}{after}", encoding="utf-8")
        provenance = read_json(exported_folder(folder) / "provenance.json")
        bill = bill_of_materials(self.name, options["pip_requirements"], provenance)
        (folder / BILL_FILE).write_text(bill, encoding="utf-8")
        self.digest = version_manifest.seal(folder)


def fetch_folder(version: ModelVersion, layout: Layout, *, fresh: bool = False) -> Path:
    """Return the exported folder of a version, every file of the version compared with the registered digests.

    A remote version is downloaded once, and again when `fresh` or when the local copy is damaged.

    Raises:
        UserError: The version's files are not where the store says, or its registration has not ended.
        TamperedError: A file of the version is changed, missing, not listed in a manifest, or a pickle.
    """
    import mlflow

    if is_untried(version):
        raise UserError(
            "the version was never tried in a fresh process",
            where=f"{version.name}/{version.version}",
            fix="Wait for its registration, or run `dvc repro --force register`, which completes or removes it",
        )
    if mlflow.get_tracking_uri().startswith("sqlite:"):
        model = download_model(version)
        return verify_model(model, version)
    key = version.tags.get(PREFIX + VERSION_MANIFEST) or version.tags.get(f"{PREFIX}manifest_sha256")
    local = layout.state / "models" / str(key)
    if local.is_dir() and not fresh:
        try:
            return verify_model(local, version)
        except TamperedError as error:
            log.warning("the local copy of %s version %s is damaged and is fetched again: %s", *_named(version), error)
    with atomic_folder(local) as folder:
        download_model(version, folder)
        verify_model(folder, version)
    return exported_folder(local)


def download_model(version: ModelVersion, folder: Path | None = None) -> Path:
    """Download the MLflow model of a version; without `folder`, return its place in a local store.

    Raises:
        UserError: Its files are not where the store says.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.utils.file_utils import local_file_uri_to_path

    uri = f"models:/{version.name}/{version.version}"
    try:
        if folder is not None:
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
        # Asked for the whole model, MLflow writes a note into its folder, which may be read-only
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/artifacts")).parent
    except (MlflowException, OSError) as error:
        place = mlflow.MlflowClient().get_model_version_download_uri(version.name, str(version.version))
        local = Path(local_file_uri_to_path(place))  # type: ignore[no-untyped-call]
        if not local.is_absolute() or local.is_dir():
            raise
        fix = "Move it back, or link the old place to the new one (`ln -s NEW OLD`)"
        what = f"its files are recorded at {local}, which does not exist: the store was moved or they were deleted"
        raise UserError(what, where=uri, fix=fix) from error


def verify_model(model: Path, version: ModelVersion) -> Path:
    """Compare the files of a fetched MLflow model with the version's digests and return its exported folder.

    Raises:
        TamperedError: A file is changed, missing, not listed or a pickle, or the registry has no digest.
    """
    digest = version.tags.get(PREFIX + VERSION_MANIFEST)
    fix = "Do not use this version; restore its files from a backup, or register the model again"
    if digest is not None and (problem := version_manifest.find_problem(model, digest)):
        raise TamperedError(problem[1], where=str(model / problem[0]), fix=fix)
    exported = exported_folder(model)
    verify_registered(exported, version.tags.get(f"{PREFIX}manifest_sha256"))
    verify(exported, fix)
    trust_recorded(model, exported)
    return exported


def trust_recorded(model: Path, exported: Path) -> None:
    """Trust the packages that a verified version recorded: stored as source, or pinned as a requirement."""
    stored = {path.stem for path in (model / "code").glob("*")} | {"textmill"}
    requirements = model / "requirements.txt"
    others = set(packages_in(read_json(exported / SPECIFICATION_FILE))) - stored
    if others and requirements.is_file():
        lines = requirements.read_text(encoding="utf-8").split()
        pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
        distributions = metadata.packages_distributions()
        stored |= {name for name in others if pinned & set(map(canonicalize_name, distributions.get(name, [])))}
    trust(stored)


def exported_folder(model: Path) -> Path:
    """Return the exported folder in an MLflow model, or `model` if there is none."""
    places = [*model.glob(f"artifacts/*/{MANIFEST_FILE}"), *model.glob(f"**/{MANIFEST_FILE}")]
    return places[0].parent if places else model


def _named(version: ModelVersion) -> tuple[str, str]:
    return version.name, str(version.version)
