"""Descriptions of experiments, runs, models and versions on MLflow's pages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NOTE = "mlflow.note.content"
"""Tag that MLflow's pages show as a description."""

EXPERIMENT = """\
Runs of Textmill's pipeline. A run is one pass through train, evaluate, export and register.

- `test/…` are metrics on the test split, `…_low` and `…_high` their 95 % intervals; `difference/…` is
  the lead over a baseline, `best/…` the best validation, `train/…` a curve.
- Artifacts: `evaluation/report.html` and `evaluation/plots`, `export/README.md` (the model card).
- Parameters are the resolved values of `conf/` and `params.yaml`.
"""

_LABEL_LENGTH = 14
_VERSION_MARK = re.compile(r"(==|@).*$")


def run_label(model: Mapping[str, Any]) -> str:
    """Return a short name of the model: its pretrained weights, or else its class.

    Cut at whole words: MLflow's table would cut off the fingerprint that follows a longer name.
    """
    pretrained = _VERSION_MARK.sub("", str(model.get("pretrained") or "")).removeprefix("package:")
    name = pretrained.rstrip("/").rpartition("/")[2] or str(model["_target_"]).rpartition(".")[2]
    while len(name) > _LABEL_LENGTH and "-" in name:
        name = name.rpartition("-")[0]
    return name[:_LABEL_LENGTH]


def run_description(title: str, metrics: Mapping[str, Any]) -> str:
    """Return a Markdown table of the test metrics of model and baselines, from `evaluation/metrics.json`."""
    baselines: Mapping[str, Any] = metrics["baselines"]
    heads = ["on the test split", "this model", "95 % interval", *(name.replace("_", " ") for name in baselines)]
    rows = [
        [
            name.replace("_", " "),
            _value(metric),
            f"{metric['low']:.4f} to {metric['high']:.4f}" if "low" in metric else "",
            *(_value(baseline.get(name)) for baseline in baselines.values()),
        ]
        for name, metric in metrics["test"].items()
    ]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def model_description(task: str) -> str:
    """Return the description of a registered model."""
    return (
        f"Made by Textmill for {task.replace('_', ' ')}. The tags of a version are the digests of its data, code and "
        "weights. Each version has reproduced its stored answers in a fresh process. "
        "The alias `challenger` is the newest version, `champion` the promoted one; the tags `textmill.event.…` are "
        "the history that `textmill history` prints.\n\n"
        "`mlflow.pyfunc.load_model` and `textmill predict --model` accept `models:/NAME@ALIAS`.\n"
    )


def version_description(metrics: Mapping[str, Any]) -> str:
    """Return the description of a version: its first three test metrics."""
    texts = [
        f"{name.replace('_', ' ')} {metric['value']:.4f}"
        + (f" ({metric['low']:.3f} to {metric['high']:.3f})" if "low" in metric else "")
        for name, metric in metrics.get("test", {}).items()
    ]
    return f"On the test split: {', '.join(texts[:3])}." if texts else ""


def _value(metric: Any) -> str:
    return f"{metric['value']:.4f}" if isinstance(metric, Mapping) and "value" in metric else "-"
