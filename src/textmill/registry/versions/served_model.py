"""The exported model as an MLflow pyfunc. MLflow stores this file and runs it to load the model."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pandas as pd
import yaml
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from textmill.predicting.predictor import Predictor

ARTIFACT = "exported"
_CODE = "code/textmill.zip"
_CODE_SHA256 = ""
"""Digest of the stored code, written here when a version is stored: this file checks the code, the code the rest."""
_REMEDY = "Do not use this version; register the model again."
_MANIFEST_TAG = "textmill.version_manifest_sha256"

log = logging.getLogger("textmill")


class ServedModel(PythonModel):
    """Predicts with an exported model: texts, or rows of the task's text columns -> one row of answers each."""

    def __init__(self) -> None:
        self._predictor: Predictor | None = None

    def load_context(self, context: PythonModelContext) -> None:
        """Check the digests of all files of the version, then load the exported folder."""
        exported = Path(context.artifacts[ARTIFACT])
        check_files(exported.parent.parent)
        from textmill.predicting.loading import load_predictor
        from textmill.registry.versions.version_files import trust_recorded

        trust_recorded(exported.parent.parent, exported)
        self._predictor = load_predictor(exported)

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:  # type: ignore[override]
        """Return one row of answers for each row of `model_input`; MLflow gives a list of texts as column 0."""
        assert self._predictor is not None, "call load_context first"
        alone = 0 in model_input and len(model_input.columns) == 1
        inputs = model_input[0].tolist() if alone else model_input.to_dict("records")
        return pd.DataFrame.from_records(self._predictor.predict(inputs), index=model_input.index)


def check_files(model: Path) -> None:
    """Compare the stored code with its digest and all files of the version with the manifest, before more is imported.

    MLflow has already read `MLmodel` and run this file: `textmill verify` checks those before they run.

    Raises:
        RuntimeError: A file is changed, missing or not in the manifest, or the manifest is not the registered one.
    """
    code = model / _CODE
    if not code.is_file() or hashlib.sha256(code.read_bytes()).hexdigest() != _CODE_SHA256:
        raise RuntimeError(f"{code}: the file was changed or is missing. {_REMEDY}")
    sys.path.insert(0, str(code))
    from textmill.registry.versions import version_manifest

    if problem := version_manifest.find_problem(model, _registered_digest(model / version_manifest.REGISTRY_NOTE)):
        raise RuntimeError(f"{model / problem[0]}: {problem[1]}. {_REMEDY}")


def _registered_digest(note: Path) -> str | None:
    """Return the digest of the manifest in the registry; None, with a warning, if no registry is in reach."""
    if not note.is_file() or not mlflow.is_tracking_uri_set():  # type: ignore[no-untyped-call]
        log.warning("the version is not compared with the registry: load it as models:/NAME/VERSION for that")
        return None
    try:
        named = yaml.safe_load(note.read_text(encoding="utf-8"))
        version = mlflow.MlflowClient().get_model_version(named["model_name"], str(named["model_version"]))
    except Exception as error:  # no network, no permission, or a model that was copied away from its registry
        log.warning("the version is not compared with the registry: %s", str(error).split("\n")[0][:200])
        return None
    return version.tags.get(_MANIFEST_TAG)


set_model(ServedModel())
