"""A student with its teacher, the same student without one, and the teacher; prints Markdown.

Usage: `python -m bench.distillation [--seeds=1,2,3] [--keep=FOLDER]`, after `make repro`, whose exported model is
the teacher. Each student is trained by the pipeline's own stages in a folder of its own, from `movie_reviews_student`.
Without a teacher it begins with the same layers of the public weights and learns the labels alone; rows, tokens,
steps and learning rate are the same. Sentences per second are those of the graph that serves, in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = "movie_reviews_student"
STAGES = ("compose", "fetch", "prepare", "train", "evaluate", "export")
REPETITIONS = 3
RESAMPLES = 1000
GOALS = {"f1": 0.97, "speed": 3.0, "size": 1 / 3}


def params(seed: int, *, taught: bool) -> dict[str, Any]:
    """The content of `params.yaml`."""
    from omegaconf import OmegaConf

    values: dict[str, Any] = {"experiment": EXPERIMENT, "seed": seed}
    values["fetch"] = {"teacher": {"model": str(ROOT / "data/exported/model")}}
    if not taught:
        public: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/model/minilm.yaml"))
        values["model"] = {name: public[name] for name in ("pretrained", "pretrained_sha256")}
        values["task"] = {"distillation": 0.0}
    return values


def train(folder: Path, seed: int, *, taught: bool, first: Path | None) -> Path:
    """Run the stages in a new project, with the prepared data of the `first` one; return the exported folder."""
    import yaml

    (folder / "data/own").mkdir(parents=True)
    for name in ("conf", "dvc.yaml", "constraints.txt", "src"):
        (folder / name).symlink_to(ROOT / name)
    if first is not None:
        for name in ("raw", "prepared"):
            (folder / "data" / name).symlink_to(first / "data" / name)
        (folder / "data/pretrained").symlink_to((first if taught else ROOT) / "data/pretrained")
    (folder / "params.yaml").write_text(yaml.safe_dump(params(seed, taught=taught)))
    environment = {**os.environ, "TEXTMILL_HOME": str(folder)}
    for stage in STAGES:
        if first is None or stage not in ("fetch", "prepare"):
            command = [sys.executable, "-m", f"textmill.stages.{stage}"]
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
    return folder / "data/exported/model"


def predictor(model: Path) -> Any:
    """The exported model with the graph that serves, on all cores."""
    from textmill.predicting.loading import load_predictor

    return load_predictor(model, threads=len(os.sched_getaffinity(0)))


def rates(models: dict[str, Path], texts: list[str]) -> dict[str, tuple[float, float]]:
    """Sentences per second by side: of the graph over token ids, and of `predict` over texts; medians, in turn."""
    loaded = {name: predictor(model) for name, model in models.items()}
    ids = {name: [each.ids for each in side.tokenizer.encode_batch_fast(texts)] for name, side in loaded.items()}
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in models}
    for repetition in range(REPETITIONS + 1):
        for name, side in loaded.items():
            for part, (run, given) in enumerate(((side.outputs_of_ids, ids[name]), (side.predict, texts))):
                started = time.perf_counter()
                run(given)
                if repetition:
                    taken[name][part].append(time.perf_counter() - started)
    found = {}
    for name, (graph, whole) in taken.items():
        found[name] = len(texts) / statistics.median(graph), len(texts) / statistics.median(whole)
    return found


def megabytes(model: Path) -> tuple[float, float]:
    """Size of the graph that serves, and of the weights."""
    from textmill.predicting.exported import read_specification

    exported = read_specification(model)
    graph = exported.graphs[exported.resolved("auto")]
    return tuple((model / name).stat().st_size / 1e6 for name in (graph, "model.safetensors"))  # type: ignore[return-value]


def f1(actual: Any, predicted: Any, rows: Any) -> float:
    """Weighted F1 of some rows; labels by number."""
    score, y, p = 0.0, actual[rows], predicted[rows]
    for label in np.unique(y):
        hits = ((y == label) & (p == label)).sum()
        score += (y == label).mean() * 2 * hits / ((y == label).sum() + (p == label).sum())
    return float(score)


def interval(actual: Any, first: list[Any], second: list[Any], *, ratio: bool = False) -> tuple[float, float, float]:
    """Mean over seeds of F1, first less second (or divided by it), with a paired bootstrap interval over the rows."""
    draw = np.random.default_rng(0)

    def value(rows: Any) -> float:
        ours, theirs = (statistics.mean(f1(actual, each, rows) for each in side) for side in (first, second))
        return ours / theirs if ratio else ours - theirs

    everything = np.arange(len(actual))
    drawn = [value(draw.integers(0, len(actual), len(actual))) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return value(everything), float(low), float(high)


def main(seeds: list[int], keep: Path | None) -> None:
    """Measure and print."""
    from textmill.data.prepared import Prepared

    models: dict[str, list[Path]] = {"teacher": [ROOT / "data/exported/model"], "with": [], "without": []}
    with nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory() as scratch:
        for seed in seeds:
            for name in ("with", "without"):
                folder = Path(scratch) / f"{name}-{seed}"
                done = folder / "data/exported/model"
                first = Path(scratch) / f"with-{seeds[0]}"
                shared = None if folder == first else first
                taught = name == "with"
                models[name].append(done if done.is_dir() else train(folder, seed, taught=taught, first=shared))
        test = Prepared(ROOT / "data/prepared").split("test")
        labels = Prepared(ROOT / "data/prepared").state["labels"]
        texts, actual = test.column("text").to_pylist(), np.array(test.column("label_id"))
        predicted = {
            name: [np.array([labels.index(each["label"]) for each in predictor(one).predict(texts)]) for one in side]
            for name, side in models.items()
        }
        speeds = rates({name: side[0] for name, side in models.items()}, texts)
        sizes = {name: megabytes(side[0]) for name, side in models.items()}
    names = {"teacher": "teacher, 6 layers", "with": "student with teacher", "without": "the same without"}
    rows = np.arange(len(actual))
    listed = ", ".join(map(str, seeds))
    print(f"{len(texts)} test sentences. Students: mean of the seeds {listed}; each in brackets if there are several.")
    print(f"Speeds on {len(os.sched_getaffinity(0))} threads, medians of {REPETITIONS} turns.\n")
    print("| model | weighted F1 | sentences/s, graph | by `predict` | served graph | weights |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, title in names.items():
        each = [f1(actual, one, rows) for one in predicted[name]]
        listed = f" ({', '.join(f'{one:.4f}' for one in each)})" if len(each) > 1 else ""
        (graph, whole), (size, weights) = speeds[name], sizes[name]
        cells = [title, f"{statistics.mean(each):.4f}{listed}", f"{graph:.0f}", f"{whole:.0f}"]
        print(f"| {' | '.join([*cells, f'{size:.1f} MB', f'{weights:.1f} MB'])} |")
    kept = interval(actual, predicted["with"], predicted["teacher"], ratio=True)
    gain = interval(actual, predicted["with"], predicted["without"])
    of_graph, of_whole = (speeds["with"][part] / speeds["teacher"][part] for part in (0, 1))
    of_size, of_weights = (sizes["with"][part] / sizes["teacher"][part] for part in (0, 1))
    print(f"\n- F1 kept: {kept[0]:.1%} (95 % interval {kept[1]:.1%} to {kept[2]:.1%}); goal {GOALS['f1']:.0%}.")
    print(f"- Speed: {of_graph:.2f} times by graph, {of_whole:.2f} times by `predict`; goal {GOALS['speed']:.0f}.")
    print(f"- Size: {of_size:.1%} of the served graph, {of_weights:.1%} of the weights; goal {GOALS['size']:.1%}.")
    paired = f"{gain[1]:+.4f} to {gain[2]:+.4f}"
    print(f"- Gain of the teacher: {gain[0]:+.4f} F1 (95 % interval {paired}, paired); goal above 0.")


if __name__ == "__main__":
    options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    chosen = [int(seed) for seed in options.get("seeds", "1,2,3").split(",")]
    main(chosen, Path(options["keep"]).resolve() if "keep" in options else None)
