"""A program for a process of its own: load a registered model and compare its answers with stored ones.

It imports nothing of Textmill before the model is loaded, so that the code that the model brings
along is what answers. Usage: `python fresh_process.py models:/NAME/VERSION examples.json`; prints
one JSON record with `problem` (null when all is well) and `rows`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
_PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".joblib")


def check(uri: str, examples: dict[str, Any]) -> str | None:
    """What is wrong with the registered model, or None."""
    import mlflow
    import pandas as pd

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    pickles = [path.name for path in folder.rglob("*") if path.suffix.lower() in _PICKLES]
    if pickles:
        return f"holds a pickle, {pickles[0]}"
    model = mlflow.pyfunc.load_model(str(folder))
    code = Path(sys.modules["textmill"].__file__ or "")
    if not code.is_relative_to(folder):
        return f"runs code from {code.parent} instead of its own"
    answers = model.predict(pd.DataFrame(examples["inputs"])).to_dict("records")
    if len(answers) != len(examples["outputs"]):
        return f"gives {len(answers)} answers to {len(examples['outputs'])} rows"
    for row, (expected, found) in enumerate(zip(examples["outputs"], answers, strict=True), start=1):
        if not same(expected, found):
            return f"answers row {row} with {str(found)[:120]} instead of {str(expected)[:120]}"
    return None


def same(expected: Any, found: Any) -> bool:
    """Whether two answers are equal: words exactly, numbers within the tolerance; NaN equals nothing."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and expected.keys() == found.keys()
            and all(same(value, found[name]) for name, value in expected.items())
        )
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(expected) == len(found)
            and all(same(*pair) for pair in zip(expected, found, strict=True))
        )
    if isinstance(expected, float):
        return isinstance(found, float) and math.isclose(expected, found, rel_tol=0, abs_tol=TOLERANCE)
    return bool(expected == found)


if __name__ == "__main__":
    stored = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps({"problem": check(sys.argv[1], stored), "rows": len(stored["inputs"])}) + "\n")
