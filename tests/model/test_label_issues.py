"""Labels that are likely wrong are found; a label that is never predicted is told; rare labels can be helped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from textmill.metrics.categories import best_offsets, never_predicted
from textmill.metrics.label_issues import NEAR, find_label_issues, rank_labels

SST2 = Path(__file__).resolve().parents[2].parent / "shared/data/sst2/train.tsv"


def test_rank_labels_confident_joint_of_the_paper() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.3, 0.7], [0.45, 0.55]])
    given = np.array([0, 0, 0, 1, 1])
    margin, other, confident = rank_labels(probabilities, given)
    # Thresholds: (0.9 + 0.8 + 0.2) / 3 and (0.7 + 0.55) / 2
    assert confident.tolist() == [False, False, True, False, False]
    assert margin.argmin() == 2 and margin[2] == pytest.approx(-0.6)
    assert other.tolist() == [1, 1, 1, 0, 0]


def test_near_duplicate_with_another_label_is_named_with_its_twin() -> None:
    words = ["alpha", "beta", "gamma", "delta", "kappa", "sigma"]
    texts = [f"{one} {other} is fine and dandy here {one}" for one in words for other in words if one != other]
    frame = pd.DataFrame({"id": [str(row) for row in range(len(texts))], "text": texts, "words": texts})
    frame["label"] = "good"
    frame.loc[::3, "label"] = "bad"
    frame.loc[len(frame)] = ["twin", texts[0], texts[0], "good"]
    found = find_label_issues(frame, ["bad", "good"], 0)
    twins = found[found["reason"] == NEAR]
    assert {"0", "twin"} <= {*twins["id"]}
    assert twins.set_index("id").loc["twin", "similar_to"] == "0"
    assert twins.set_index("id").loc["twin", "suggested"] == "bad"


def flipped(texts: list[str], labels: list[str]) -> float:
    """The share of 5 % flipped labels that is among the tenth of the rows that is ranked first."""
    names = sorted(set(labels))
    chooser = np.random.default_rng(5)
    wrong = chooser.choice(len(texts), len(texts) // 20, replace=False)
    given = list(labels)
    for row in wrong:
        given[row] = chooser.choice([name for name in names if name != labels[row]])
    frame = pd.DataFrame({"id": np.arange(len(texts)).astype(str), "text": texts, "words": texts, "label": given})
    found = find_label_issues(frame, names, 0)
    first = {int(row) for row in found["id"].head(len(texts) // 10)}
    return len(first & set(wrong.tolist())) / len(wrong)


@pytest.mark.slow
@pytest.mark.skipif(not SST2.is_file(), reason="needs ../shared/data")
def test_flipped_labels_of_sentiments_are_ranked_first() -> None:
    rows = [line.split("\t") for line in SST2.read_text().splitlines()]
    assert flipped([row[0] for row in rows], [row[1] for row in rows]) >= 0.6


def test_flipped_labels_of_modules_are_ranked_first() -> None:
    """Sentences of Python's own documentation, with the package of their module as label."""
    import ast
    import asyncio
    import email
    import logging
    import unittest

    texts, labels = [], []
    for package in (asyncio, email, logging, unittest):
        for file in sorted(Path(str(package.__file__)).parent.glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and (
                    doc := ast.get_docstring(node)
                ):
                    texts.append(" ".join(doc.split())[:300])
                    labels.append(package.__name__)
    assert len(texts) > 500
    assert flipped(texts, labels) >= 0.6


def test_never_predicted_labels_with_their_rows() -> None:
    actual = np.array(["a", "b", "c", "c", "a", "d"], dtype=object)
    assert never_predicted(actual, np.array(["a"] * 5 + ["d"], dtype=object)) == {"c": 2, "b": 1}
    assert never_predicted(actual, actual) == {}


def test_offsets_help_a_rare_label_within_the_allowed_loss() -> None:
    chooser = np.random.default_rng(0)
    actual = np.repeat([0, 1, 2], [450, 450, 100])
    logits = chooser.normal(size=(1000, 3))
    logits[np.arange(1000), actual] += 2.5
    logits[:, 2] -= 3.0  # as a model of unbalanced data has it
    before = (logits.argmax(axis=1)[actual == 2] == 2).mean()
    offsets = best_offsets(logits, actual.tolist(), 0.005)
    after = ((logits + offsets).argmax(axis=1)[actual == 2] == 2).mean()
    assert before < 0.3 and after > 0.5 and offsets[2] > 1
