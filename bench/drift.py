"""Alarms of `textmill drift --captured --by day` in simulated years, and requests until a planted change is found.

Texts of SST-2 in `../shared/data`; the model is a logistic regression on TF-IDF. Every year draws
its own training split, held-out split and requests. A year stops at its first alarm.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from textmill.config.sections.prepare import WordsConfig
from textmill.evaluation.drift import measure_drift
from textmill.evaluation.drift_over_time import LOOKS, WINDOW, YEARLY_ALPHA
from textmill.evaluation.reference import Reference, TextReference, length_counts, unseen_shares, word_lists

DATA = Path(__file__).resolve().parents[2] / "shared/data"
TRAINING, HELD_OUT, A_DAY = 4000, 800, 250


def sst2() -> pd.DataFrame:
    """Return all texts with their labels."""
    parts = [
        pd.read_csv(path, sep="\t", names=["text", "label"], quoting=3)
        for path in sorted((DATA / "sst2").glob("*.tsv"))
    ]
    return pd.concat(parts).drop_duplicates("text").reset_index(drop=True)


class World:
    """A trained model, its reference, and texts that it has not seen."""

    def __init__(self, pool: pd.DataFrame, seed: int, training: int = TRAINING, held_out: int = HELD_OUT) -> None:
        self.random = np.random.default_rng(seed)
        pool = pool.iloc[self.random.permutation(len(pool))]
        train, held = pool.iloc[:training], pool.iloc[training : training + held_out]
        self.rest = pool.iloc[training + held_out :]
        self.model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(train.text, train.label)
        counts: dict[str, int] = {}
        for words in word_lists(train.text, WordsConfig()):
            for word in words:
                counts[word] = counts.get(word, 0) + 1
        frequent = dict(sorted(counts.items(), key=lambda item: -item[1])[:20_000])
        lengths = train.text.str.len().to_numpy()
        edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 11)[1:-1])).tolist()
        unseen = unseen_shares(word_lists(held.text, WordsConfig()), frequent)
        outputs, answers = self.answer(held)
        labels = [answer["label"] for answer in answers]
        self.reference = Reference(
            rows=training,
            held_out=held_out,
            splitter=WordsConfig(),
            texts={
                "text": TextReference(
                    edges=edges,
                    lengths=length_counts(lengths, edges),
                    words=frequent,
                    unseen_mean=float(unseen.mean()),
                    unseen_variance=float(unseen.var(ddof=1)),
                )
            },
            targets={},
            answers={"label": {name: labels.count(name) for name in sorted(set(labels))}},
            outputs=outputs["logits"][:500].tolist(),
        )

    def answer(self, rows: pd.DataFrame) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """Return the model's outputs, shape (rows, 2), and answers."""
        logits = np.log(self.model.predict_proba(rows.text))
        return {"logits": logits}, [{"label": str(self.model.classes_[place])} for place in logits.argmax(axis=1)]

    def alarms(self, rows: pd.DataFrame) -> list[str]:
        """Return the measures that one look by day flags."""
        found = measure_drift(self.reference, rows[["text"]], {}, *self.answer(rows), alpha=YEARLY_ALPHA / LOOKS["day"])
        return [f"{each.subject}: {each.name}" for each in found.measures if each.flagged]


def changed(world: World, name: str, rows: int) -> pd.DataFrame:
    """Return requests after a planted change."""
    draw = world.random
    if name == "another source":
        parts = [line.split("\t")[0] for line in (DATA / "goemotions/test.tsv").read_text().splitlines()]
        return pd.DataFrame({"text": draw.choice(parts, rows, replace=False)})
    if name == "90 % of one label":
        share = np.where(world.rest.label == world.rest.label.iloc[0], 9.0, 1.0)
        return world.rest.iloc[draw.choice(len(world.rest), rows, replace=False, p=share / share.sum())]
    longer = world.rest.sample(2 * rows, random_state=int(draw.integers(2**31))).text.to_numpy()
    return pd.DataFrame({"text": [f"{a} {b}" for a, b in zip(longer[::2], longer[1::2], strict=True)]})


def main(seconds: float = 240.0) -> None:
    """Print quiet days with their alarms, and requests until each planted change is found."""
    pool, start = sst2(), time.monotonic()
    days = years = alarms = 0
    while time.monotonic() - start < seconds:
        world = World(pool, years)
        years += 1
        for _ in range(60):
            rows = world.rest.sample(A_DAY, random_state=int(world.random.integers(2**31)))
            days, alarms = days + 1, alarms + bool(found := world.alarms(rows))
            if found:
                print(f"seed {years - 1}: {found}", file=sys.stderr)
            if time.monotonic() - start > seconds:
                break
    print(f"Quiet days of {A_DAY} requests: {days:,} over {years} models, {alarms} with an alarm.\n")
    print("| planted change | found within 500 requests | most requests |\n|---|---:|---:|")
    for name in ("another source", "90 % of one label", "texts twice as long"):
        needed = []
        for seed in range(5):
            world = World(pool, 1000 + seed)
            new = changed(world, name, 500)
            quiet = world.rest.sample(WINDOW, random_state=seed)
            windows = ((n, pd.concat([quiet, new.iloc[:n]]).iloc[-max(WINDOW, 100) :]) for n in range(100, 501, 100))
            needed.append(next((n for n, rows in windows if world.alarms(rows)), 10**6))
        most = max(needed)
        print(f"| {name} | {sum(n <= 500 for n in needed)} of {len(needed)} | {most if most <= 500 else 'over 500'} |")


if __name__ == "__main__":
    main(*(float(value) for value in sys.argv[1:]))
