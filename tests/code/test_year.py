"""The page of `make year`: its months fit the corpus, and its sentences follow from the numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROWS = {"films": 10_603, "products": 3_696, "tweets": 4_140, "editorials": 5_116}
"""Different sentences of each kind in the corpus."""


@pytest.fixture(scope="module")
def bench(repository_root: Path) -> Iterator[ModuleType]:
    """The program, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository_root))
        import bench.year
        import bench.year_page

        yield bench


@pytest.fixture
def lived(bench: Any) -> list[Any]:
    measures = [{"subject": "text", "name": "new words", "effect": 0.2, "flagged": True}]
    retrained = {"outcome": "promoted", "version": "1", "words": "the first | champion", "text": "promoted"}
    drift = {"verdict": "drift", "measures": measures}
    year = [bench.year.Lived(month, 60.0, 0.8, 0.7, "1", 400, drift, retrained) for month in bench.year.MONTHS]
    year[7].retrained = retrained | {"outcome": "refused", "words": "lost 0.1"}
    return year


def test_months_take_no_more_rows_than_the_corpus_has(bench: Any) -> None:
    year, rng = bench.year, random.Random(0)
    corpus = {domain: [year.Row(str(number), "neutral") for number in range(count)] for domain, count in ROWS.items()}
    for domain in corpus:
        year.take(corpus, {domain: 1.0}, year._RESERVE, rng)
    year.take(corpus, year.MONTHS[0].mix, year._FIRST, rng)
    assert len(year.MONTHS) == 12
    for month in year.MONTHS:
        assert sum(month.mix.values()) == pytest.approx(1)
        assert len(year.take(corpus, month.mix, year._CHECKED, rng)) == year._CHECKED
        assert len(year.take(corpus, month.mix, month.traffic, rng)) == month.traffic


def test_page_tells_whether_a_worse_version_was_promoted(bench: Any, lived: list[Any]) -> None:
    judged, months, page = bench.year.Judged, bench.year.MONTHS, bench.year_page.page
    first = judged("1", months[0], "promoted", 0.8, None)
    better = judged("2", months[1], "promoted", 0.85, (0.05, 0.02, 0.08))
    refused = judged("3", months[7], "refused", 0.7, (-0.15, -0.2, -0.1))
    told = page(lived, [first, better, refused], 600)
    assert "10.0 minutes" in told and "| August | 1 | refused | lost 0.1 |" in told
    assert "the first \\| champion" in told
    assert "No. Each of 1 promotions gained; the least by +0.050." in told
    worse = replace(better, difference=(-0.03, -0.05, -0.025))
    told = page(lived, [first, worse, refused], 600)
    assert "1 of 1 promoted versions have a lower value, the lowest -0.030; 1 of them lose more" in told


def test_picture_is_small(bench: Any, lived: list[Any]) -> None:
    from textmill.metrics.plots import png

    assert 10_000 < len(png(bench.year_page.picture(lived))) < 200_000


def test_f1_is_weighted_by_the_labels(bench: Any) -> None:
    rows = [bench.year.Row(text, "positive") for text in "abc"] + [bench.year.Row("d", "negative")]
    assert bench.year.f1(["positive"] * 4, rows) == pytest.approx(0.75 * 6 / 7)
