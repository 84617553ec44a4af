"""What MLflow's pages tell in words: the descriptions of experiments, runs, models and versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NOTE = "mlflow.note.content"
"""The tag that MLflow's pages show as a description."""

EXPERIMENT = """\
Runs of Textmill's pipeline. A run is one pass through train, evaluate, export and register.

- `test/…` are the figures on the test split, `…_low` and `…_high` the ends of their 95 % interval;
  `difference/…` is the lead over a baseline, `best/…` the best validation, `train/…` a curve.
- Artefacts: `evaluation/report.html` and `evaluation/plots`, `export/README.md` (the model card).
- Parameters are the resolved values of `conf/` and `params.yaml`.
"""

_LABEL_LENGTH = 14
_VERSION_MARK = re.compile(r"(==|@).*$")


def run_label(model: Mapping[str, Any]) -> str:
    """A short name of what is trained: its pretrained weights, or else its class.

    Whole words up to the length at which MLflow's table would cut off the fingerprint that follows.
    """
    pretrained = _VERSION_MARK.sub("", str(model.get("pretrained") or "")).removeprefix("package:")
    name = pretrained.rstrip("/").rpartition("/")[2] or str(model["_target_"]).rpartition(".")[2]
    while len(name) > _LABEL_LENGTH and "-" in name:
        name = name.rpartition("-")[0]
    return name[:_LABEL_LENGTH]


def evaluated_run(title: str, metrics: Mapping[str, Any]) -> str:
    """A run's description: its figures on the test split beside the baselines', as a Markdown table.

    Args:
        title: What the run is about.
        metrics: `data/evaluation/metrics.json`.
    """
    baselines: Mapping[str, Any] = metrics["baselines"]
    heads = ["on the test split", "this model", "95 % interval", *(name.replace("_", " ") for name in baselines)]
    rows = [
        [
            name.replace("_", " "),
            _value(figure),
            f"{figure['low']:.4f} to {figure['high']:.4f}" if "low" in figure else "",
            *(_value(found.get(name)) for found in baselines.values()),
        ]
        for name, figure in metrics["test"].items()
    ]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def registered_model(task: str) -> str:
    """A registered model's description."""
    return (
        f"Made by Textmill for {task.replace('_', ' ')}. Every version carries the digests of its data, code and "
        "weights as tags, and has reproduced its stored answers in a fresh process. "
        "The newest has the alias `challenger`, the promoted one `champion`; the tags `textmill.event.…` are the "
        "history that `textmill history` prints.\n\n"
        "`mlflow.pyfunc.load_model` and `textmill predict --model` take `models:/NAME@ALIAS`.\n"
    )


def version(metrics: Mapping[str, Any]) -> str:
    """A version's description: its headline figures, the main one first."""
    told = [
        f"{name.replace('_', ' ')} {figure['value']:.4f}"
        + (f" ({figure['low']:.3f} to {figure['high']:.3f})" if "low" in figure else "")
        for name, figure in metrics.get("test", {}).items()
    ]
    return f"On the test split: {', '.join(told[:3])}." if told else ""


def _value(figure: Any) -> str:
    return f"{figure['value']:.4f}" if isinstance(figure, Mapping) and "value" in figure else "-"
