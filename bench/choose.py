"""`textmill choose` against training every candidate to the end: the advice, the truth, and what both cost.

For two corpora four candidates are trained to completion (`--whole`), then screened. Costs are
processor seconds of the whole command, imports and exports among them: other programs on the machine
change them little. Both sides measure on the validation split.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.applications import children_seconds, shown

ROOT = Path(__file__).resolve().parent.parent
CANDIDATES = ("minilm", "encoder_mini", "tfidf_logistic_regression", "tfidf_naive_bayes")
CORPORA: dict[str, tuple[str, ...]] = {
    "movie_reviews": (),
    "chinese_reviews": ("prepare.max_length=128",),
}
MOST = 0.25  # of the whole cost: the goal


@dataclass(frozen=True)
class Side:
    """What a command printed, and the processor seconds that it took."""

    found: dict[str, Any]
    seconds: float


def run(data: str, settings: tuple[str, ...], *options: str) -> Side:
    """Run the command with a tracking store of its own."""
    command = [str(Path(sys.executable).parent / "textmill"), "choose", "--data", data, "--json", *options]
    command += ["--task", "text_classification"]
    for name in CANDIDATES:
        command += ["--only", name]
    for setting in settings:
        command += ["--set", setting]
    before = children_seconds()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
    return Side(json.loads(done.stdout), children_seconds() - before)


def trained_to_the_end(data: str, kept: Path | None) -> Side:
    """All candidates trained to completion, now or, where a folder keeps it, before."""
    file = kept / f"{data}.json" if kept is not None else None
    if file is not None and file.is_file():
        return Side(**json.loads(file.read_text()))
    side = run(data, CORPORA[data], "--whole")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(side)))
    return side


def print_corpus(data: str, whole: Side, screened: Side) -> bool:
    """One corpus: a row a candidate, and the verdict; whether the winner was named for little enough."""
    by_name = {result["name"]: result for result in screened.found["candidates"]}
    metric = whole.found["metric"].replace("_", " ")
    print(f"\n### {data}\n")
    print(f"| candidate | {metric}, trained to completion | {metric}, screened | share of its recipe | ms, p95 | MB |")
    print("|---|---:|---:|---:|---:|---:|")
    for result in whole.found["candidates"]:
        name, brief = result["name"], by_name[result["name"]]
        expected = f", {brief['expected']:.3f} expected" if brief["expected"] is not None and brief["share"] < 1 else ""
        print(
            f"| {name} | {shown(result['quality'], 3)} | {shown(brief['quality'], 3)}{expected} | {brief['share']:.0%} "
            f"| {brief['latency_ms']:.1f} | {brief['size_mb']:.1f} |"
        )
    truth, advice = whole.found["advice"], screened.found["advice"]
    share = screened.seconds / whole.seconds
    rival = whole.found["candidates"][1]
    print(
        f"\nTruth: **{truth}**, ahead of {rival['name']} by {shown(rival['behind_the_best'], 3, '+')}; advice: "
        f"**{advice}**. Processor seconds: {whole.seconds:.0f} for all to completion, {screened.seconds:.0f} for the "
        f"screening, **{share:.0%}** (goal: at most {MOST:.0%})."
    )
    return truth == advice and share <= MOST


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CORPORA, help="one corpus alone")
    parser.add_argument("--truth", type=Path, help="a folder that keeps the complete training runs, and is read first")
    chosen = parser.parse_args()
    held = []
    for data in [chosen.only] if chosen.only else CORPORA:
        whole = trained_to_the_end(data, chosen.truth)
        held.append(print_corpus(data, whole, run(data, CORPORA[data])))
    print(f"\nThe winner was named within the goal on {sum(held)} of {len(held)} corpora.")


if __name__ == "__main__":
    main()
