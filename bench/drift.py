"""Alarms of `textmill drift --captured --by day` in quiet years, and requests until a planted change is found.

Texts are from `../shared/data`, the model is a logistic regression on TF-IDF. Each year draws its own training split,
held-out split and requests, and is judged look by look by `measure_over_time`. `--years 5 --changes 5` does less,
`--first 5` goes on.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from textmill.config.sections.prepare import WordsConfig
from textmill.evaluation.drift import _stability
from textmill.evaluation.drift_over_time import LOOKS, WINDOW, YEARLY_ALPHA, Look, measure_over_time
from textmill.evaluation.reference import Reference, TextReference, length_counts, unseen_shares, word_lists

DATA = Path(__file__).resolve().parents[2] / "shared/data"
TRAINING, HELD_OUT = 4000, 800
A_DAY = 250
START = datetime(2026, 1, 5, tzinfo=UTC)
BLOCK, MOST = 100, 500
MEASURES = 5
"""Of a look at captured requests; Holm's procedure shares the probability of an alarm among them."""
CHANGES = (
    "texts of another source (GoEmotions)",
    "German texts (Multi30k)",
    "a new topic in half of the texts (Multi30k, English)",
    "90 % of one label",
    "75 % of one label",
    "texts twice as long",
    "texts cut to a third",
    "the half of the texts of which the model is less sure",
)


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

    def quiet(self, rows: int) -> pd.DataFrame:
        """Return requests like the training texts; all unseen texts come once before one comes again."""
        rounds = [self.random.permutation(len(self.rest)) for _ in range(-(-rows // len(self.rest)))]
        return self.rest.iloc[np.concatenate(rounds)[:rows]]

    def looks(self, requests: pd.DataFrame, a_day: int) -> list[Look]:
        """Judge requests, so many a day, at the end of each day."""
        times = [START + timedelta(days=place // a_day, seconds=place % a_day) for place in range(len(requests))]
        return measure_over_time(self.reference, times, requests[["text"]], *self.answer(requests), "day")

    def changed(self, change: str, rows: int) -> pd.DataFrame:
        """Return requests after a planted change."""
        draw, rest = self.random, self.rest
        if change == CHANGES[0]:
            return goemotions().sample(rows, random_state=int(draw.integers(2**31)))
        if change == CHANGES[1]:
            return captions("de").sample(rows, random_state=int(draw.integers(2**31)))
        if change == CHANGES[2]:
            both = [
                captions("en").sample(rows // 2, random_state=int(draw.integers(2**31))),
                self.quiet(rows - rows // 2),
            ]
            return pd.concat(both).sample(frac=1, random_state=int(draw.integers(2**31)))
        if "one label" in change:
            odds = 9.0 if "90" in change else 3.0
            share = np.where(rest.label == rest.label.iloc[0], odds, 1.0)
            return rest.iloc[draw.choice(len(rest), rows, replace=False, p=share / share.sum())]
        if change == CHANGES[5]:
            texts = self.quiet(2 * rows).text.to_numpy()
            return pd.DataFrame({"text": [f"{a} {b}" for a, b in zip(texts[::2], texts[1::2], strict=True)]})
        if change == CHANGES[6]:
            texts = self.quiet(rows).text.to_numpy()
            return pd.DataFrame({"text": [text[: max(8, len(text) // 3)] for text in texts]})
        sure = self.answer(rest)[0]["logits"].max(axis=1)
        unsure: pd.DataFrame = rest[sure < np.median(sure)]
        return unsure.sample(rows, random_state=int(draw.integers(2**31)))


def goemotions() -> pd.DataFrame:
    """Return the comments with one emotion."""
    names = (DATA / "goemotions/labels.txt").read_text().split()
    parts = [
        pd.read_csv(path, sep="\t", names=["text", "label"], quoting=3, dtype=str).dropna()
        for path in sorted((DATA / "goemotions").glob("*.tsv"))
    ]
    rows = pd.concat(parts).drop_duplicates("text")
    rows = rows[rows.label.str.isdigit()]
    return rows.assign(label=[names[int(label)] for label in rows.label]).reset_index(drop=True)


def captions(language: str) -> pd.DataFrame:
    """Return image captions."""
    with gzip.open(DATA / f"multi30k/val.{language}.gz", "rt", encoding="utf-8") as file:
        return pd.DataFrame({"text": file.read().splitlines()})


def interval(found: int, of: int) -> str:
    """Return the exact 95 % interval of a share, in percent."""
    low, high = binomtest(found, of).proportion_ci(0.95, "exact")
    return f"{low:.1%} to {high:.1%}"


def quiet_years(pool: pd.DataFrame, years: range) -> None:
    """Print one line on simulated years without a change."""
    looks = bad = 0
    largest = 0.0
    for year in years:
        world = World(pool, year)
        found = [look.drift for look in world.looks(world.quiet(365 * A_DAY), A_DAY)]
        looks, bad = looks + len(found), bad + any(drift.verdict == "drift" for drift in found)
        largest = max(largest, *(measure.effect / measure.limit for drift in found for measure in drift.measures))
    cells = [str(len(years)), f"{looks:,}", str(bad), interval(bad, len(years)), f"{largest:.2f}"]
    print(f"| {' | '.join(cells)} |")


def rare_labels(looks: int) -> None:
    """Print one line on the answers of a model of 28 labels, most of them rare, without a change."""
    random, alarms = np.random.default_rng(0), 0
    shares = np.array([0.55, *np.geomspace(0.08, 0.0003, 27)])
    shares /= shares.sum()
    alpha = YEARLY_ALPHA / LOOKS["day"] / MEASURES
    for look in range(looks):
        if look % 365 == 0:
            reference = random.multinomial(5000, shares).tolist()
        measure = _stability("answer label", reference, random.multinomial(A_DAY, shares).tolist())
        alarms += measure.p_value <= alpha and measure.effect >= measure.limit
    print(f"\nAnswers with 28 labels, 20 of them in under 2 % of the rows: {alarms} alarms in {looks:,} quiet looks.")


def planted(pool: pd.DataFrame, number: int) -> None:
    """Print one line for each planted change: how often it is found within `MOST` requests."""
    worlds = [World(pool, 1000 + seed) for seed in range(number)]
    for change in CHANGES:
        needed: list[float] = []
        for world in worlds:
            requests = pd.concat([world.quiet(WINDOW), world.changed(change, MOST)])
            verdicts = [look.drift.verdict for look in world.looks(requests, BLOCK)][WINDOW // BLOCK :]
            needed.append(BLOCK * (verdicts.index("drift") + 1) if "drift" in verdicts else np.inf)
        found = sum(count <= MOST for count in needed)
        median = np.median(needed)
        shown = f"{median:.0f}" if np.isfinite(median) else f"over {MOST}"
        print(f"| {change} | {found} of {number} | {interval(found, number)} | {shown} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=60, help="quiet years of each kind")
    parser.add_argument("--changes", type=int, default=20, help="models for each planted change")
    parser.add_argument("--first", type=int, default=0, help="seed of the first year")
    chosen = parser.parse_args(arguments)
    pool = sst2()
    print("| quiet years | looks | years with an alarm | 95 % interval | largest effect / limit |")
    print("|---:|---:|---:|---:|---:|")
    quiet_years(pool, range(chosen.first, chosen.first + chosen.years))
    if chosen.changes:
        rare_labels(20_000)
        print(f"\n| planted change | found within {MOST} requests | 95 % interval | median of requests |")
        print("|---|---:|---:|---:|")
        planted(pool, chosen.changes)
        print(
            f"\nSST-2, {A_DAY} requests a day. Changes follow {WINDOW} quiet requests; a look after each {BLOCK}.\n"
            "An effect below its limit, such as that of 75 % of one label, does not count as drift, by definition."
        )


if __name__ == "__main__":
    main()
