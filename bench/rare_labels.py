"""The default experiment with what helps rare labels: class weights, logit adjustment, offsets, and none of them.

`python -m bench.rare_labels` runs `movie_reviews` once for each in throw-away projects, up to the evaluation;
`--only offsets` names some. For each it tells the best F1 that a bonus for the rare label can reach, chosen
on the test rows themselves: more than a user may hope for. And it draws single raters about the mean of all twenty,
with the deviation between raters that the corpus has, to see how well a person finds the label.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from bench.applications import shown
from bench.semantic import run

if TYPE_CHECKING:
    import pandas as pd

RARE = "neutral"
WAYS: dict[str, tuple[str, ...]] = {
    "none": (),
    "class weights": ("+task.balance=class_weights",),
    "logit adjustment": ("+task.balance=logit_adjustment",),
    "offsets": ("+task.offsets=true",),
}


FLOOR = 0.84
"""Weighted F1 that must be kept."""
BETWEEN_RATERS = 0.9 / 4
"""Standard deviation between raters on the scale of -1 to 1 (Hutto & Gilbert 2014, `conf/data/movie_reviews.yaml`)."""
DRAWS = 50


def best_bonus(rows: pd.DataFrame, floor: float) -> tuple[float, float] | None:
    """Return the best F1 of the rare label, and its weighted F1, over bonuses chosen on these rows; None below it."""
    from sklearn.metrics import f1_score

    names = [str(column)[12:] for column in rows if str(column).startswith("probability_")]
    scores = np.log(np.clip(rows[[f"probability_{name}" for name in names]].to_numpy(), 1e-9, 1))
    found = []
    for bonus in np.arange(-2, 5, 0.02):
        answers = np.array(names)[(scores + bonus * (np.array(names) == RARE)).argmax(axis=1)]
        weighted = float(f1_score(rows["label"], answers, average="weighted"))
        if weighted >= floor:
            rare = f1_score(rows["label"], answers, labels=[RARE], average="macro", zero_division=0)
            found.append((float(rare), weighted))
    return max(found, default=None)


def single_rater(project: Path) -> tuple[float, float]:
    """Return the F1 of the rare label, and the weighted F1, of one rater's labels against those of the mean rating."""
    from sklearn.metrics import f1_score

    bins = yaml.safe_load((project / "conf/data/movie_reviews.yaml").read_text())["prepare"]["read"]["columns"]["label"]
    edges, names = np.array(bins["bins"]["edges"]), np.array(bins["bins"]["names"])
    [file] = (project / "data/raw/files/all").glob("*.txt")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    ratings = np.array([float(line.split("\t")[1]) for line in lines]) / bins["bins"]["divide_by"]
    right, rng, found = names[np.searchsorted(edges, ratings)], np.random.default_rng(0), []
    for _ in range(DRAWS):
        said = names[np.searchsorted(edges, ratings + rng.normal(0, BETWEEN_RATERS, len(ratings)))]
        rare = f1_score(right, said, labels=[RARE], average="macro")
        found.append((rare, f1_score(right, said, average="weighted")))
    return float(np.mean([rare for rare, _ in found])), float(np.mean([weighted for _, weighted in found]))


def main() -> None:
    """Print the table."""
    import pandas as pd
    from sklearn.metrics import f1_score

    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(WAYS), help="names of ways, with commas between them")
    chosen = [name.strip() for name in parser.parse_args().only.split(",")]
    print(
        f"| for rare labels | weighted F1 | macro F1 | F1 of *{RARE}* | answers *{RARE}* "
        f"| best bonus on the test rows: F1 of *{RARE}* | the same, weighted F1 at least {FLOOR} |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    person = (0.0, 0.0)
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            project = run("movie_reviews", Path(folder) / "project", *WAYS[name])
            evaluation = project / "data/evaluation"
            figures = json.loads((evaluation / "figures.json").read_text())["test"]
            rows = pd.read_parquet(evaluation / "predictions.parquet")
            person = single_rater(project)
        rare = f1_score(rows["label"], rows["prediction"], labels=[RARE], average="macro", zero_division=0)
        cells = [shown(figures[metric], 3) for metric in ("weighted_f1", "macro_f1")]
        answers = int((rows["prediction"] == RARE).sum())
        for floor in (0.0, FLOOR):
            best = best_bonus(rows, floor)
            cells.append("none" if best is None else f"{best[0]:.3f} (weighted {best[1]:.3f})")
        first, last = cells[:2], cells[2:]
        print(
            f"| {name} | {' | '.join(first)} | {rare:.3f} | {answers} of {len(rows)} | {' | '.join(last)} |", flush=True
        )
    print(f"| one rater of twenty, drawn | {person[1]:.3f} | - | {person[0]:.3f} | - | - | - |")
    print("\nTest split, one seed, with 95 % bootstrap intervals; the rater's are means of 50 draws over all rows.")


if __name__ == "__main__":
    main()
