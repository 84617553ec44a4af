"""Made-up rows of the tasks whose targets are sets of labels, numbers, entities or ranks, and their experiments."""

from __future__ import annotations

import json
import random
from typing import Any

from support.project import NEGATIVE, PLACES, POSITIVE, SUBJECTS, Project

KINDS = (
    "multi_label_classification",
    "multi_label_columns",
    "regression",
    "ordered",
    "token_classification",
    "re_ranking",
)
_COLUMNS = {
    "multi_label_classification": {"text": "text", "labels": "labels"},
    "multi_label_columns": {"text": "text", "good": "good", "bad": "bad", "placed": "placed"},
    "regression": {"text": "text", "value": "value"},
    "ordered": {"text": "text", "value": "value"},
    "token_classification": {"text": "text", "entities": "entities"},
    "re_ranking": {"text_a": "text_a", "text_b": "text_b", "relevant": "relevant", "first_rank": "first_rank"},
}
_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "multi_label_classification": ("multi_label_classification", {}),
    "multi_label_columns": ("multi_label_classification", {"columns": ["good", "bad", "placed"]}),
    "regression": ("text_regression", {"heteroscedastic": True, "lowest": -4, "highest": 4}),
    "ordered": ("text_regression", {"classes": ["awful", "poor", "fair", "good", "superb"]}),
    "token_classification": ("token_classification", {"overlap": 4}),
    "re_ranking": ("re_ranking", {"depth": 4}),
}


def task_name(kind: str) -> str:
    """The task's file in conf/task/."""
    return _TASKS[kind][0]


def specification(kind: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The task's file in conf/task/, its options, and its columns."""
    return (*_TASKS[kind], _COLUMNS[kind])


def rows(kind: str, number: int = 300, seed: int = 7) -> list[dict[str, Any]]:
    """Texts of which single words decide the target."""
    draw = random.Random(seed)
    if kind == "re_ranking":
        return [row for query in range(2 * number // 5) for row in _candidates(draw, query)]
    return [_row(kind, draw, index) for index in range(number)]


def _row(kind: str, draw: random.Random, index: int) -> dict[str, Any]:
    good, bad = draw.sample(POSITIVE, draw.randint(0, 2)), draw.sample(NEGATIVE, draw.randint(0, 2))
    placed = draw.sample(PLACES, draw.randint(0, 1))
    words = [*draw.choices(SUBJECTS, k=draw.randint(4, 8)), *good, *bad, *placed]
    draw.shuffle(words)
    words.append(str(index))
    text = " ".join(words)
    flags = {"good": bool(good), "bad": bool(bad), "placed": bool(placed)}
    if kind == "multi_label_classification":
        return {"text": text, "labels": [name for name, there in flags.items() if there]}
    if kind == "multi_label_columns":
        return {"text": text, **{name: int(there) for name, there in flags.items()}}
    score = len(good) - len(bad)
    if kind == "regression":
        return {"text": text, "value": score + draw.choice([-0.5, 0, 0.5])}
    if kind == "ordered":
        return {"text": text, "value": ["awful", "poor", "fair", "good", "superb"][score + 2]}
    return _entities(words)


def _entities(words: list[str]) -> dict[str, Any]:
    """A text that cleaning shortens, with the praise and the blame in it by their positions in it as given."""
    text, entities = "  \ufb01n &amp; ", []
    for word in words:
        start = len(text)
        text += f"{word} "
        label = "praise" if word in POSITIVE else "blame" if word in NEGATIVE else None
        if label is not None:
            entities.append({"start": start, "end": start + len(word), "label": label})
    return {"text": text, "entities": entities}


def _candidates(draw: random.Random, query: int) -> list[dict[str, Any]]:
    """Five documents for a query; one has its words, and the only praise. The first stage has them in any order."""
    asked = draw.sample(POSITIVE, 2)
    documents = [asked, *(draw.sample(NEGATIVE, 2) for _ in range(4))]
    order = draw.sample(range(5), 5)
    made = []
    for number, words in enumerate(documents):
        words = [*words, *draw.sample(SUBJECTS, 3)]
        draw.shuffle(words)
        row = {"text_a": " ".join([*asked, str(query)]), "text_b": " ".join([*words, f"{query}-{number}"])}
        made.append(row | {"relevant": int(number == 0), "first_rank": order[number] + 1, "query": str(query)})
    return made


def lay_task(project: Project, kind: str, epochs: int = 8) -> str:
    """Write rows, a file in conf/data/ and an experiment of the tiny BERT; return the name of the data file."""
    name, options = _TASKS[kind]
    file = f"data/own/{kind}.jsonl"
    (project.root / file).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(kind)))
    columns = json.dumps(_COLUMNS[kind] | ({"query": "query"} if kind == "re_ranking" else {}))
    splits = ", by: group, group: query" if kind == "re_ranking" else ""
    (project.root / f"conf/data/own_{kind}.yaml").write_text(
        "# @package _global_\nfetch:\n  source:\n    _target_: textmill.fetching.sources.files.FilesSource\n"
        f"    files: {{all: {file}}}\nprepare:\n  read:\n    columns: {columns}\n"
        f"  splits: {{validation: 0.25, test: 0.3{splits}}}\n  duplicates: {{near: false, passage_words: null}}\n"
    )
    (project.root / f"conf/experiment/own_{kind}.yaml").write_text(
        "# @package _global_\ndefaults:\n"
        f"  - override /data: own_{kind}\n  - override /task: {name}\n  - override /model: tiny\n"
        f"name: own-{kind.replace('_', '-')}\ntask: {json.dumps(options)}\nprepare: {{max_length: 48}}\n"
        f"train:\n  max_epochs: {epochs}\n  ema_decay: null\n"
        "  optimizer: {learning_rate: 0.01}\n  batches: {tokens: 512}\n"
        "evaluate: {resamples: 100}\nexport: {int8_tolerance: 1.0}\nruntime: {plan: false}\n"
    )
    project.edit("params.yaml", "experiment: tiny", f"experiment: own_{kind}")
    return file
