"""Load a registered model in a fresh process and compare its answers with the stored ones.

Nothing of Textmill is imported before the model is loaded, so that the code stored with the model
answers. Usage: `python fresh_process.py models:/NAME/VERSION examples.json`. Prints one JSON record
with `problem` (null without one) and `rows`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

TOLERANCE = 1e-4
_PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".joblib")


def check(uri: str, examples: dict[str, Any]) -> str | None:
    """Return the problem of the registered model, or None."""
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    pickles = [path.name for path in folder.rglob("*") if path.suffix.lower() in _PICKLES]
    if pickles:
        return f"contains a pickle, {pickles[0]}"
    if unquote(str(folder)) == str(folder):
        return _check_answers(folder, examples)
    with tempfile.TemporaryDirectory() as temporary:  # MLflow decodes the path of a folder and would miss this one
        return _check_answers(Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=temporary)), examples)


def _check_answers(folder: Path, examples: dict[str, Any]) -> str | None:
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(str(folder))
    code = Path(sys.modules["textmill"].__file__ or "")
    if not code.is_relative_to(folder):
        return f"runs code from {code.parent} instead of the code stored with it"
    answers = model.predict(pd.DataFrame(examples["inputs"])).to_dict("records")
    if len(answers) != len(examples["outputs"]):
        return f"gives {len(answers)} answers to {len(examples['outputs'])} rows"
    for row, (expected, answer) in enumerate(zip(examples["outputs"], answers, strict=True), start=1):
        if not answers_equal(expected, answer):
            return f"answers row {row} with {str(answer)[:120]} instead of {str(expected)[:120]}"
    return None


def answers_equal(expected: Any, answer: Any) -> bool:
    """Return whether two answers are equal: numbers within the tolerance, NaN never, all else exactly."""
    if isinstance(expected, dict):
        return (
            isinstance(answer, dict)
            and expected.keys() == answer.keys()
            and all(answers_equal(value, answer[name]) for name, value in expected.items())
        )
    if isinstance(expected, list):
        return (
            isinstance(answer, list)
            and len(expected) == len(answer)
            and all(answers_equal(*pair) for pair in zip(expected, answer, strict=True))
        )
    if isinstance(expected, float):
        return isinstance(answer, float) and math.isclose(expected, answer, rel_tol=0, abs_tol=TOLERANCE)
    return bool(expected == answer)


if __name__ == "__main__":
    stored = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps({"problem": check(sys.argv[1], stored), "rows": len(stored["inputs"])}) + "\n")
