"""Labels of rows that `textmill label` chooses, compared with labels of as many random rows.

`python -m bench.label_next` takes SST-2 and the questions of SQuAD 2.0, whose label is the article that they ask about
(../shared/data), comments of GoEmotions with one of 27 emotions, and the film reviews. A first model learns from 5 % of
the training rows. Then 10 % of the training rows get their labels, chosen or at random, and a second model learns from
both. The encoder is MiniLM, frozen; each model is a logistic regression on its mean vectors, so that twenty seeds take
minutes. In rounds, a fifth of the labels is given at a time, and the next fifth chosen by the model that learned from
them. `--only=sst2 --seeds=3` does less; `--keep=FOLDER` keeps what was computed for the next call, which goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.applications import SHARED
from bench.semantic import run
from bench.wrong_labels import Rows, corpus
from textmill.config.sections.prepare import WordsConfig
from textmill.evaluation.reference import unseen_shares, word_lists
from textmill.metrics.categories import count, encode, weighted_f1
from textmill.selection.labelling import choose_rows, worth

START, CHOSEN, RESAMPLES = 0.05, 0.1, 1000
ROUNDS = 5
EMOTIONS = 6000
SIDES = (
    "first model",
    "random rows",
    "textmill label",
    f"textmill label, {ROUNDS} rounds",
)
STRENGTH = 0.01
"""Of the regularisation: of 0.01, 0.1 (questions) and 0.01, 0.05, 0.3 (SST-2) the best for random rows."""
Floats = NDArray[np.float64]


def vectors(project: Path, texts: Sequence[str], kept: Path) -> Floats:
    """Return the mean vectors of the default encoder as it was fetched, shape (rows, 384); read or write a file."""
    import pyarrow as pa
    import torch
    import yaml

    from textmill.data.tokenizing import load_tokenizer
    from textmill.models.base import Model
    from textmill.tasks.base import Task
    from textmill.training.inference import predict_table

    if kept.is_file():
        return np.asarray(np.load(kept), float)
    config = yaml.safe_load((project / "data/resolved.yaml").read_text())["evaluate"]
    task, state = Task.build(config["task"]), {"labels": ["no", "yes"]}
    network: Any = task.build_network(Model.build(config["model"]), project / "data/pretrained", state).eval()
    network.output = torch.nn.Identity()  # its input is the mean vector
    tokenizer = load_tokenizer(project / "data/prepared/tokenizer")
    table = pa.table(task.encode(pd.DataFrame({"text": texts}), tokenizer, state, 64))
    np.save(kept, predict_table(network, task, table)["logits"])
    return vectors(project, texts, kept)


def questions() -> dict[str, Rows]:
    """Return questions of 16 articles, each once; a quarter, drawn at random, is the test split."""
    data = json.loads((SHARED / "squad2/dev-v2.0.json").read_text(encoding="utf-8"))["data"]
    titled = [(page["title"], asked) for page in data for part in page["paragraphs"] for asked in part["qas"]]
    rows = list({asked["question"].strip(): title for title, asked in reversed(titled)}.items())[::-1]
    order = np.random.default_rng(0).permutation(len(rows))
    test, train = np.split(order, [len(rows) // 4])
    return {"train": [rows[row] for row in train], "test": [rows[row] for row in test]}


def emotions() -> dict[str, Rows]:
    """Return comments that have one emotion, which is not *neutral*; `EMOTIONS` of each split, drawn at random."""
    names = (SHARED / "goemotions/labels.txt").read_text(encoding="utf-8").split()
    found = {}
    for split in ("train", "test"):
        lines = (SHARED / f"goemotions/{split}.tsv").read_text(encoding="utf-8").splitlines()
        pairs = {text: given for text, given, *_ in (line.split("\t") for line in reversed(lines))}
        rows = [(text, names[int(given)]) for text, given in pairs.items() if given.isdigit()]
        rows = sorted(row for row in rows if row[1] != "neutral")
        order = np.random.default_rng(0).permutation(len(rows))[:EMOTIONS]
        found[split] = [rows[row] for row in order]
    return found


def film_reviews(project: Path) -> dict[str, Rows]:
    """Return the texts and labels of the prepared splits."""
    from textmill.data.prepared import Prepared

    prepared = Prepared(project / "data/prepared")
    frames = {split: prepared.frame(split, ["text", "label"]) for split in ("train", "test")}
    return {split: list(frame.itertuples(index=False, name=None)) for split, frame in frames.items()}


def novelty(known: Sequence[str], texts: Sequence[str]) -> Floats:
    """Return the share of words that the known texts lack, beyond its mean."""
    words = Counter(word for text in word_lists(known, WordsConfig()) for word in text)
    shares = unseen_shares([each or ["-"] for each in word_lists(texts, WordsConfig())], words)
    beyond: Floats = np.clip(shares - shares.mean(), 0, 1)
    return beyond


def gains(ours: Floats, theirs: Floats, draws: NDArray[np.intp]) -> str:
    """Return the mean gain over seeds and its 95 % interval, with seeds drawn too.

    Args:
        ours: Metric of each seed, of all rows and of resampled ones, shape (seeds, 1 + resamples).
        theirs: That of the other side.
        draws: Seeds of each resample, shape (resamples, seeds).
    """
    difference = ours - theirs
    resampled = difference[draws, np.arange(1, len(draws) + 1)[:, None]].mean(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return f"{100 * difference[:, 0].mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def measure(name: str, rows: dict[str, Rows], project: Path, seeds: range) -> None:
    """Print one corpus's rows of the table."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = rows["train"], rows["test"]
    texts, labels = [text for text, _ in train], sorted({label for _, label in train})
    given, actual = (encode(np.array([label for _, label in part]), labels) for part in (train, test))
    features = vectors(project, texts, project.parent / f"{name}.npy")
    unseen = vectors(project, [text for text, _ in test], project.parent / f"{name}_test.npy")
    random = np.random.default_rng(0)
    index = np.concatenate([np.arange(len(test))[None], random.integers(0, len(test), (RESAMPLES, len(test)))])

    def learn(positions: NDArray[np.intp]) -> Any:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=300))
        return model.fit(features[positions], given[positions])

    def quality(model: Any) -> Floats:
        counts = [count(actual, model.predict(unseen), part, len(labels)) for part in np.array_split(index, 20)]
        return np.concatenate([weighted_f1(part) for part in counts])

    def label(start: NDArray[np.intp], pool: NDArray[np.intp], rounds: int) -> Any:
        """Return the model that learns from chosen rows too; each round asks the model of the one before."""
        labelled = start
        for part in range(rounds):
            model, pool_texts = learn(labelled), [texts[row] for row in pool]
            members = np.full((1, len(pool), len(labels)), 1e-9)
            members[0][:, model[-1].classes_] = model.predict_proba(features[pool])
            score = worth(members, novelty([texts[row] for row in labelled], pool_texts)).score
            most = number * (part + 1) // rounds - number * part // rounds
            chosen = choose_rows(score, [pool_texts], most)
            labelled, pool = np.concatenate([labelled, pool[chosen]]), np.delete(pool, chosen)
        return learn(labelled)

    number = int(CHOSEN * len(train))
    measured: dict[str, list[Floats]] = {side: [] for side in SIDES}
    for seed in seeds:
        kept = project.parent / f"{name}.{seed}.npz"
        if not kept.is_file():
            order = np.random.default_rng(seed).permutation(len(train))
            start, pool = np.split(order, [int(START * len(train))])
            models = [
                learn(start),
                learn(order[: len(start) + number]),
                label(start, pool, 1),
                label(start, pool, ROUNDS),
            ]
            np.savez(kept, *map(quality, models))
        with np.load(kept) as qualities:
            for side, values in zip(SIDES, qualities.values(), strict=True):
                measured[side].append(values)
    draws = random.integers(0, len(seeds), (RESAMPLES, len(seeds)))
    sides = {side: np.array(values) for side, values in measured.items()}
    for side, values in sides.items():
        labelled = START if side == "first model" else START + CHOSEN
        gain = gains(values, sides["random rows"], draws) if side.startswith("textmill") else ""
        cells = [name, side, f"{int(labelled * len(train)):,}", f"{values[:, 0].mean():.4f}", gain]
        print(f"| {' | '.join(cells)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="questions,emotions,movie_reviews,sst2", help="corpora, separated by commas")
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--keep", type=Path, help="folder of an earlier call to go on from")
    chosen = parser.parse_args(arguments)
    print("| corpus | labelled | rows | weighted F1 | gain over random rows, points |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        project = (chosen.keep or Path(temporary)) / "project"
        if not project.is_dir():
            run("movie_reviews", project, stages=("compose", "fetch", "prepare"))
        for name in chosen.only.split(","):
            made = {"movie_reviews": lambda: film_reviews(project), "questions": questions, "emotions": emotions}
            rows = made[name]() if name in made else corpus(name, Path(temporary))
            measure(name, rows, project, range(chosen.first, chosen.seeds))
    print(
        f"\nTest split, mean of {chosen.seeds} seeds. The intervals (95 %) are of paired draws of seeds and test rows."
    )
    print("Each side but the first learns from the same 5 % and 10 % more. Near-duplicates come once.")


if __name__ == "__main__":
    main()
