"""The exported model as an MLflow pyfunc. MLflow stores this file and runs it to load the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from textmill.predicting.predictor import Predictor

ARTIFACT = "exported"


class ServedModel(PythonModel):
    """Predicts with an exported model: rows of the task's text columns -> one row of answers each."""

    def __init__(self) -> None:
        self._predictor: Predictor | None = None

    def load_context(self, context: PythonModelContext) -> None:
        """Load the exported folder and check its digests."""
        from textmill.predicting.loading import load_predictor

        self._predictor = load_predictor(Path(context.artifacts[ARTIFACT]))

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:  # type: ignore[override]
        """Return one row of answers for each row of `model_input`."""
        assert self._predictor is not None, "call load_context first"
        answers = self._predictor.predict(model_input.to_dict("records"))
        return pd.DataFrame.from_records(answers, index=model_input.index)


set_model(ServedModel())
