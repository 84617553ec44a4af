"""The default experiment with what helps rare labels: class weights, logit adjustment, offsets, and none of them.

`python -m bench.rare_labels` runs `movie_reviews` once for each in throw-away projects, up to the evaluation.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from bench.applications import shown
from bench.semantic import run

RARE = "neutral"
WAYS: dict[str, tuple[str, ...]] = {
    "none": (),
    "class weights": ("+task.balance=class_weights",),
    "logit adjustment": ("+task.balance=logit_adjustment",),
    "offsets": ("+task.offsets=true",),
}


def main() -> None:
    """Print the table."""
    import pandas as pd
    from sklearn.metrics import f1_score

    print(
        f"| for rare labels | weighted F1 | macro F1 | F1 of *{RARE}* | answers *{RARE}* |\n|---|---:|---:|---:|---:|"
    )
    for name, changes in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            evaluation = run("movie_reviews", Path(folder) / "project", *changes) / "data/evaluation"
            figures = json.loads((evaluation / "figures.json").read_text())["test"]
            rows = pd.read_parquet(evaluation / "predictions.parquet")
        rare = f1_score(rows["label"], rows["prediction"], labels=[RARE], average="macro", zero_division=0)
        cells = [shown(figures[metric], 3) for metric in ("weighted_f1", "macro_f1")]
        answers = int((rows["prediction"] == RARE).sum())
        print(f"| {name} | {' | '.join(cells)} | {rare:.3f} | {answers} of {len(rows)} |", flush=True)
    print("\nTest split, one seed, with 95 % bootstrap intervals.")


if __name__ == "__main__":
    main()
