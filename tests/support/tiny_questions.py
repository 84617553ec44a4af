"""Made-up questions whose answers are passages, and a project that goes through the stages on them in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.project import NEGATIVE, PLACES, POSITIVE, SUBJECTS, write_tiny_bert
from textmill.config.layout import Layout
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import TrainConfig

TASK = {"_target_": "textmill.tasks.question_answering.QuestionAnswering", "max_answer": 4, "overlap": 8}
MODEL = {"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder"}
MAX_LENGTH = 24
RUNTIME = RuntimeConfig.model_validate(
    {"trainer": {"accelerator": "cpu", "devices": 1}, "progress": "plain", "tracking_experiment": "tiny-questions"}
)


def squad(articles: int = 8, seed: int = 0) -> dict[str, Any]:
    """Articles in SQuAD's form: "plot" asks for the word after "plot"; what is not mentioned has no answer."""
    draw = random.Random(seed)
    content: list[dict[str, Any]] = []
    for article in range(articles):
        paragraphs = []
        for number in range(4):
            subjects = draw.sample(SUBJECTS, 6)
            words = [word for subject in subjects[:5] for word in (subject, draw.choice([*POSITIVE, *NEGATIVE]))]
            filler = [draw.choice(PLACES) for _ in range(draw.choice([0, 30]))]  # longer than a window
            context = "  " + " ".join([*words[:6], *filler, *words[6:]]) + f" ﬁn{article}{number} "
            questions = []
            for subject in subjects[3:]:
                start = context.find(f"{subject} ") + len(subject) + 1
                found = subject in words
                answers = [{"text": context[start:].split()[0], "answer_start": start}] if found else []
                identity = f"{article}-{number}-{subject}"
                questions.append({"id": identity, "question": subject, "answers": answers, "is_impossible": not found})
            paragraphs.append({"context": context, "qas": questions})
        content.append({"title": f"article {article}", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": content}


def prepared_project(root: Path) -> Layout:
    """A project with such articles, prepared."""
    from textmill.data.prepare import prepare

    layout = Layout(root)
    raw = layout.raw / "files" / "all"
    raw.mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    provenance = {"origin": "made up", "version": None, "licence": "MIT", "sha256": None, "files": {}}
    (layout.raw / "provenance.json").write_text(json.dumps(provenance))
    (raw / "made.json").write_text(json.dumps(squad()))
    write_tiny_bert(layout.pretrained)
    origin = {"origin": "package:tiny==1", "sha256": "0" * 64, "version": "1"}
    (layout.pretrained / "provenance.json").write_text(json.dumps(origin))
    columns = {"id": "id", "question": "question", "context": "context", "answers": "answers", "source": "title"}
    values: dict[str, Any] = {
        "task": TASK,
        "read": {"format": "squad", "columns": columns},
        "splits": {"by": "group", "group": "source", "validation": 0.25, "test": 0.25},
        "duplicates": {"near": False},
        "max_length": MAX_LENGTH,
    }
    prepare(PrepareConfig.model_validate(values), RUNTIME, layout)
    return layout


def run_stages(layout: Layout, seed: int = 1) -> None:
    """Train, evaluate and export."""
    from textmill.stages import evaluate, export, train

    values: dict[str, Any] = {
        "seed": seed,
        "task": TASK,
        "model": MODEL,
        "precision": "32-true",
        "optimizer": {"learning_rate": 0.01},
        "batches": {"tokens": 512},
        "max_epochs": 2,
    }
    train.main(TrainConfig.model_validate(values), RUNTIME, layout)
    measured = {"seed": 1, "task": TASK, "model": MODEL, "resamples": 100, "min_slice": 5}
    evaluate.main(EvaluateConfig.model_validate(measured), RUNTIME, layout)
    exported = {"task": TASK, "model": MODEL, "title": "Tiny questions", "max_length": MAX_LENGTH}
    export.main(ExportConfig.model_validate(exported | {"int8_tolerance": 1.0}), RUNTIME, layout)
