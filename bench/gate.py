"""The promotion gate as a statistical instrument: how often it errs, in simulated promotions.

The checks are the gate's own (`slice_checks`, `difference_checks`, `paired_gain`), on simulated answers.
Beside them stands the method until November 2026, which tested each slice by percentiles of a bootstrap with
Holm's correction and gave every comparison the same interval. `--quick` simulates a twentieth, `--growing` only
the comparisons over growing data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from textmill.config.sections.gate import GateConfig
from textmill.evaluation.gate import (
    Costs,
    GateInputs,
    MeasuredVersion,
    UnseenRows,
    deciding_inputs,
    difference_checks,
    slice_checks,
)
from textmill.metrics.base import Metric, mean_of
from textmill.metrics.bootstrap import Bootstrap, paired_gain
from textmill.metrics.holm import holm
from textmill.metrics.swaps import Pair

ACCURACY = Metric("accuracy", mean_of("right"))
LOSS = Metric("log_loss", mean_of("loss"), higher_is_better=False)
PROMOTIONS = 1000
CHALLENGERS = 200
DRAWS = 2000
WORKERS = 2
ROWS = 1500
Right = NDArray[np.bool_]


def answers(rng: np.random.Generator, champion: Right, loss: float, differ: float) -> Right:
    """Answers that differ from the champion's in a share `differ` of the rows and lose `loss` in expectation."""
    share = champion.mean()
    lost = rng.random(len(champion)) < (differ + loss) / 2 / share
    won = rng.random(len(champion)) < (differ - loss) / 2 / (1 - share)
    answered: Right = (champion & ~lost) | (~champion & won)
    return answered


def version(name: str, right: Right) -> MeasuredVersion:
    """A measured version of these answers."""
    table = pd.DataFrame({"id": np.arange(len(right)), "right": right.astype(float)})
    return MeasuredVersion(name, "", table, Costs(1, 1, 1))


def inputs(ours: Right, theirs: Right, slices: int = 1, anchor: Right | None = None, look: int = 1) -> GateInputs:
    """What the gate sees; slices are of equal size and in order."""
    rows = len(ours)
    frame = pd.DataFrame({"length": np.ones(rows, int), "source": np.arange(rows) * slices // rows})
    versions = (version("version 2", ours), version("version 1", theirs))
    before = None if anchor is None else version("version 0", anchor)
    return GateInputs([ACCURACY], "accuracy", [], *versions, "", frame, 0, before, look)


def slice_promotion(slices: int, rows: int, margin: float, loss: float, old: bool, seed: int) -> bool:
    """Whether the gate finds a loss in any slice; the first slice has it. A loss of 1 is of every answer."""
    rng = np.random.default_rng(seed)
    champion = rng.random(slices * rows) < 0.85
    challenger = answers(rng, champion, 0.0, 0.2)
    if loss == 1:
        challenger[:rows] = False
    elif loss:
        challenger[:rows] = answers(rng, champion[:rows], loss, 0.2)
    if old:
        gains = (challenger.astype(int) - champion).reshape(slices, rows)
        counts = np.stack([(gains == value).mean(axis=1) for value in (-1, 0, 1)], axis=1)
        # Drawing rows of three kinds with replacement is drawing their counts.
        drawn = rng.multinomial(rows, counts, (DRAWS, slices))
        harmless = ((drawn[..., 2] - drawn[..., 0]) / rows >= -margin).sum(axis=0)
        return min(holm(((1 + harmless) / (1 + DRAWS)).tolist())) < 0.05
    config = GateConfig.model_validate({"slices": {"margin": margin}, "seed": seed, "resamples": DRAWS})
    checks = slice_checks(inputs(challenger, champion, slices), config)
    return any(check.status == "fail" for check in checks)


def skewed_promotion(slices: int, rows: int, loss: float, old: bool, seed: int) -> bool:
    """Whether the gate finds a loss in any slice if rows gain much seldom and lose little often.

    The first slice loses `loss` on average, in standard deviations of a row's gain; the others lose nothing.
    """
    rng = np.random.default_rng(seed)
    gains = rng.lognormal(0, 1, slices * rows) - np.exp(0.5)
    gains[:rows] -= loss * np.sqrt((np.e - 1) * np.e)
    if old:
        cut = gains.reshape(slices, rows)
        drawn = np.stack([cut[:, rng.integers(rows, size=rows)].mean(axis=1) for _ in range(DRAWS)])
        return min(holm(((1 + (drawn >= -0.02).sum(axis=0)) / (1 + DRAWS)).tolist())) < 0.05
    config = GateConfig.model_validate({"seed": seed, "resamples": DRAWS})
    tables = (pd.DataFrame({"id": np.arange(slices * rows), "loss": 20 - values}) for values in (gains, 0 * gains))
    versions = [MeasuredVersion("version", "", table, Costs(1, 1, 1)) for table in tables]
    frame = inputs(gains > 0, gains > 0, slices).frame
    checks = slice_checks(GateInputs([LOSS], "log_loss", [], versions[0], versions[1], "", frame, 0, None, 1), config)
    return any(check.status == "fail" for check in checks)


def sequence(differ: float, gain: float, spending: str, looks: range, seed: int) -> bool:
    """Whether any of these challengers is promoted; all are compared with one champion on one split."""
    rng = np.random.default_rng(seed)
    champion = rng.random(ROWS) < 0.85
    config = GateConfig.model_validate({"looks": {"spending": spending}})
    margin, bootstrap = config.difference.margin, Bootstrap(DRAWS, config.confidence, seed)
    for look in looks:
        challenger = answers(rng, champion, -gain, differ)
        pair = Pair({"right": challenger.astype(float)}, {"right": champion.astype(float)})
        alpha = (1 - config.confidence) * config.looks.share(look)
        if paired_gain(pair, ACCURACY, -margin, bootstrap, alpha).low > -margin:
            return True
    return False


def ladder(differ: float, gain: float, seed: int) -> bool:
    """Whether the parameter-free Ladder (Blum & Hardt 2015) ranks any of the challengers above the champion."""
    rng = np.random.default_rng(seed)
    champion = rng.random(ROWS) < 0.85
    for _ in range(CHALLENGERS):
        gains = answers(rng, champion, -gain, differ).astype(int) - champion
        if gains.mean() > gains.std() / np.sqrt(ROWS):
            return True
    return False


def creep(with_anchor: bool, seed: int) -> bool:
    """Whether twelve challengers, each 0.3 points below the champion on 20,000 rows, are all promoted."""
    rng = np.random.default_rng(seed)
    champion = anchor = np.ones(20_000, bool)
    for look in range(1, 13):
        challenger = champion.copy()
        challenger[rng.choice(np.flatnonzero(champion), 60, replace=False)] = False
        spending = "decreasing" if with_anchor else "none"
        config = GateConfig.model_validate({"looks": {"spending": spending}})
        before = anchor if with_anchor and look > 1 else None
        checks = difference_checks(inputs(challenger, champion, anchor=before, look=look), config)
        if any(check.status != "pass" for check in checks):
            return False
        champion = challenger
    return True


def growing(counted: bool, seed: int) -> bool:
    """Whether any of the challengers, each worse by the margin, is promoted while the split grows to twice its rows.

    Without `counted` each grown split starts the count of looks anew.
    """
    rng = np.random.default_rng(seed)
    champion = rng.random(2 * ROWS) < 0.85
    config = GateConfig()
    bootstrap = Bootstrap(DRAWS, config.confidence, seed)
    for look in range(1, CHALLENGERS + 1):
        known = champion[: ROWS + ROWS * look // CHALLENGERS]
        challenger = answers(rng, known, 0.005, 0.2)
        gains = challenger.astype(int) - known
        if gains.mean() + config.difference.margin <= 1.9 * gains.std() / np.sqrt(len(gains)):
            continue  # every interval of the gate is wider than this one, which contains the margin
        pair = Pair({"right": challenger.astype(float)}, {"right": known.astype(float)})
        alpha = (1 - config.confidence) * config.looks.share(look if counted else 1)
        if paired_gain(pair, ACCURACY, -config.difference.margin, bootstrap, alpha).low > -config.difference.margin:
            return True
    return False


def grown_promotion(gain: float, unseen_only: bool, seed: int) -> bool:
    """Whether a challenger is promoted if the champion was trained on a third of today's test rows.

    The champion knows their answers; the challenger gains `gain` on the others, and has not seen any.
    """
    rng = np.random.default_rng(seed)
    rows = 2 * ROWS
    seen = np.arange(rows) < rows // 3
    champion = rng.random(rows) < 0.85
    challenger = answers(rng, champion, -gain, 0.2)
    champion |= seen
    whole = inputs(challenger, champion)
    if not unseen_only:
        return all(check.status == "pass" for check in difference_checks(whole, GateConfig()))
    split = UnseenRows(
        "version 2", rows, {"version 1": int(seen.sum())}, set(), inputs(challenger[~seen], champion[~seen])
    )
    deciding = deciding_inputs(replace(whole, unseen=[split]), GateConfig())
    assert deciding is not None
    return all(check.status == "pass" for check in difference_checks(deciding, GateConfig()))


def growing_rows(run: Callable[[Callable[[int], bool], int], str], number: int) -> list[tuple[str, ...]]:
    """Return the rows of the table for growing data."""
    case = f"{CHALLENGERS} challengers worse by the margin, a split that grows to twice its rows: any promoted"
    rows: list[tuple[str, ...]] = [(case, *(run(partial(growing, how), number) for how in (False, True)), "≤ 5 %")]
    for gain, verb, goal in ((-0.005, "worse by the margin", "≤ 5 %"), (0.03, "better by 3 points", "≥ 80 %")):
        case = f"a third of 3000 rows was in the champion's training split; a challenger {verb}: promoted"
        rows.append((case, *(run(partial(grown_promotion, gain, how), number) for how in (False, True)), goal))
    return rows


def share(pool: ProcessPoolExecutor, promote: Callable[[int], bool], number: int) -> str:
    """The share of simulations with the event, as a percentage with their number if it is not the usual one."""
    found = sum(pool.map(promote, range(number), chunksize=max(1, number // 40)))
    print(promote, found, number, file=sys.stderr)
    return f"{found / number:.1%}" + ("" if number == PROMOTIONS else f" (of {number})")


def main() -> None:
    """Print the table."""
    number = PROMOTIONS // 20 if "--quick" in sys.argv else PROMOTIONS
    part = partial(slice_promotion)
    with ProcessPoolExecutor(WORKERS) as pool:
        run = partial(share, pool)
        if "--growing" in sys.argv:
            print("| simulated | all rows, each split a first look | now | goal |\n|---|---:|---:|---:|")
            for row in growing_rows(run, number):
                print("| " + " | ".join(row) + " |")
            return
        rows: list[tuple[str, ...]] = []
        for slices in (2, 10, 100, 500):
            for margin in (0.0, 0.02):
                found = [
                    run(partial(part, slices, 50, margin, 0.0, old), number // 10 if old and slices > 100 else number)
                    for old in (True, False)
                ]
                case = f"no loss in {slices} slices of 50 rows, margin {margin:g}: refused"
                rows.append((case, *found, "≤ 5 %"))
        for slices, size, loss, case, goal in (
            (10, 500, 0.1, "one of 10 slices of 500 rows loses 10 points: found", "≥ 80 %"),
            (110, 50, 1.0, "one of 110 slices of 50 rows loses everything: found", "100 %"),
            (500, 50, 1.0, "one of 500 slices of 50 rows loses everything: found", "100 %"),
        ):
            found = [
                run(partial(part, slices, size, 0.02, loss, old), number // 10 if old and slices > 100 else number)
                for old in (True, False)
            ]
            rows.append((case, *found, goal))
        for slices, size, loss, case, goal in (
            (10, 50, 0, "no loss in 10 slices of 50 rows, skewed gains: refused", "≤ 5 %"),
            (4, 375, 0, "no loss in 4 slices of 375 rows, skewed gains: refused", "≤ 5 %"),
            (4, 375, 0.2, "one of 4 slices of 375 rows loses 0.2 deviations, skewed gains: found", "≥ 80 %"),
        ):
            found = [run(partial(skewed_promotion, slices, size, loss, old), number) for old in (True, False)]
            rows.append((case, *found, goal))
        for differ in (0.2, 0.02):
            case = f"{CHALLENGERS} challengers worse by the margin, {differ:.0%} of {ROWS} rows differ: any promoted"
            looks = range(1, CHALLENGERS + 1)
            found = [run(partial(sequence, differ, -0.005, how, looks), number) for how in ("none", "decreasing")]
            rows.append((case, *found, "≤ 5 %"))
        rows += growing_rows(run, number)
        by_ladder = run(partial(ladder, 0.2, -0.005), number)
        rows.append(
            (
                "12 promotions of -0.3 points each: all promoted",
                run(partial(creep, False), number // 10),
                run(partial(creep, True), number // 10),
                "0 %",
            )
        )
        print("| simulated | before | now | goal |\n|---|---:|---:|---:|")
        for row in rows:
            print("| " + " | ".join(row) + " |")
        print(f"\nThe Ladder ranks one of the {CHALLENGERS} above the champion in {by_ladder} of the sequences.\n")
        print("| a challenger that differs in a fifth of the rows and gains | look 1 | look 10 | look 100 |")
        print("|---|---:|---:|---:|")
        for gain in (0.01, 0.02, 0.04):
            shares = [run(partial(sequence, 0.2, gain, "decreasing", range(k, k + 1)), number) for k in (1, 10, 100)]
            print(f"| {100 * gain:g} points: promoted | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
