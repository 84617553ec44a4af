"""BLEU, chrF and ROUGE of sets of texts and their resamples: the libraries' own figures."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
import sacrebleu

from textmill.metrics import rouge, text_overlap
from textmill.metrics.baselines.nearest_text import NearestText

WORDS = ["the", "a", "dog", "cat", "man", "runs", "sees", "big", "red", "house", "is", "on", "in", "tree", ",", "."]
CHINESE = "这是一个测试我们你好世界中文"


def texts(count: int, words: list[str] | str, seed: int, joint: str = " ") -> list[str]:
    draw = random.Random(seed)
    return [joint.join(draw.choice(words) for _ in range(draw.randint(1, 15))) for _ in range(count)]


@pytest.mark.parametrize(("language", "words", "joint"), [("de", WORDS, " "), (None, WORDS, " "), ("zh", CHINESE, "")])
def test_every_resample_is_what_sacrebleu_says_of_it(language: str | None, words: list[str] | str, joint: str) -> None:
    predictions, references = texts(40, words, 1, joint), texts(40, words, 2, joint)
    predictions[3] = ""
    references[:10] = predictions[:10]
    columns = text_overlap.count_columns(predictions, [references], language)
    index = np.stack([np.arange(40), *np.random.default_rng(0).integers(0, 40, (5, 40))])
    bleu, chrf = text_overlap.metrics(language)
    tokenize = "zh" if language == "zh" else "13a"
    for found, rows in zip(
        zip(bleu.score(columns, index), chrf.score(columns, index), strict=True), index, strict=True
    ):
        chosen, true = [predictions[row] for row in rows], [references[row] for row in rows]
        assert found[0] == pytest.approx(sacrebleu.corpus_bleu(chosen, [true], tokenize=tokenize).score)
        assert found[1] == pytest.approx(sacrebleu.corpus_chrf(chosen, [true]).score)


def test_chrf_of_each_text_and_the_signatures_are_sacrebleus() -> None:
    predictions, references = texts(12, WORDS, 3), texts(12, WORDS, 4)
    found = text_overlap.sentence_chrf(text_overlap.count_columns(predictions, [references], "de"))
    expected = [sacrebleu.sentence_chrf(one, [true]).score for one, true in zip(predictions, references, strict=True)]
    assert found == pytest.approx(expected)
    signatures = text_overlap.signatures("zh")
    assert "tok:zh" in signatures["bleu"] and "nc:6" in signatures["chrf"] and "nrefs:1" in signatures["bleu"]


def test_the_nearest_text_is_found() -> None:
    known = texts(60, WORDS, 5)
    memory = NearestText(known, {"candidates": 10})
    assert [known[number] for number in memory.nearest([known[7], known[33] + " dog"])] == [known[7], known[33]]


def test_rouge_takes_the_nearest_of_several_references() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    frame = pd.DataFrame(
        {
            "id": ["a", "b"],
            "text": ["A dog runs. It is big. A cat sees it.", "The tree is red."],
            "summary": ["a dog runs", "a red tree"],
            "references": ['["a dog runs", "the big dog is seen by a cat"]', None],
        }
    )
    texts_ = ["a cat sees the big dog", "the trees are red"]
    found = rouge.table(frame, "summary", texts_)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    each = [scorer.score(true, texts_[0]) for true in ("a dog runs", "the big dog is seen by a cat")]
    for name in rouge.NAMES:
        assert found[name][0] == pytest.approx(100 * max(one[name].fmeasure for one in each))
    assert found["rouge1"][1] == pytest.approx(100 * scorer.score("a red tree", texts_[1])["rouge1"].fmeasure)
    lead = rouge.lead_baseline(frame, "summary", "sentences")(frame)
    assert lead["prediction"][1] == "The tree is red."
    assert lead["prediction"][0].startswith("A dog runs.")
    metric = rouge.metrics()[0]
    columns = {str(name): found[name].to_numpy() for name in found}
    assert metric.score(columns, np.array([[0, 1], [1, 1]])) == pytest.approx(
        [found["rouge1"].mean(), found["rouge1"][1]]
    )
