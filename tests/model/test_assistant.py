"""SmolLM2-135M-Instruct is tuned on conversations from an experiment's rows, and asked before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.untrained_chat import MODEL, RUNTIME, SMOLLM2, TASK

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.train import TrainConfig
from textmill.data.conversations import ConversationsSource, read_fields
from textmill.data.prepare import prepare
from textmill.data.prepared import Prepared
from textmill.fetching.corpus import fetch_corpus
from textmill.fetching.pretrained import fetch_pretrained
from textmill.models.lora import merge_adapters
from textmill.predicting.asked import LOGITS, ask, load_chat
from textmill.predicting.text_continuer import TextContinuer
from textmill.tasks.base import Task
from textmill.tasks.examples.asking import Asking
from textmill.training.trainer import Training

COLOURS = {"red": "warm", "orange": "warm", "yellow": "warm", "blue": "cold", "green": "cold", "violet": "cold"}
THINGS = ["house", "coat", "boat", "chair", "lamp", "book", "cup", "hat"]
REVIEWS = {"_target_": "textmill.tasks.text_classification.TextClassification"}


@pytest.mark.slow
def test_smollm2_learns_an_application_in_a_few_steps(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "project")
    (layout.root / "own").mkdir(parents=True)
    (layout.root / "dvc.yaml").touch()
    rows = [{"text": f"a {colour} {thing}", "label": kind} for colour, kind in COLOURS.items() for thing in THINGS]
    (layout.root / "own/things.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"task": REVIEWS, "read": {"columns": {"text": "text", "label": "label"}}, "duplicates": {"near": False}}
    files = {"_target_": "textmill.fetching.sources.files.FilesSource", "files": {"all": "own/things.jsonl"}}
    source = {
        "_target_": f"{ConversationsSource.__module__}.ConversationsSource",
        "applications": {"things": {"experiment": {"source": files, "prepare": own}}},
    }
    fetch = FetchConfig.model_validate({"source": source, **SMOLLM2})
    fetch_corpus(fetch, layout)
    fetch_pretrained(fetch, layout)
    options: dict[str, Any] = {
        "task": TASK,
        "read": {"columns": {"messages": "messages", "source": "source"}},
        "cleaning": {"repair": False, "normal_form": None},
        "duplicates": {"exact": False, "near": False, "passage_words": None},
        "mixture": {"things": 1.0},
    }
    prepare(PrepareConfig.model_validate(options), RUNTIME, layout)
    prepared = Prepared(layout.prepared)

    task = Task.build(REVIEWS)
    asking = Asking(task, {"labels": ["cold", "warm"]})
    test = pd.DataFrame(read_fields(layout.raw / "files/test/things.jsonl"))
    right = np.array([["cold", "warm"].index(label) for label in test["label"]])
    before = load_chat(layout.pretrained)
    scores = [ask(before, asking, test)[LOGITS]]
    train = {
        "seed": 1,
        "task": TASK,
        "model": {**MODEL, "lora": {"rank": 8, "alpha": 16}},
        "precision": "32-true",
        "optimizer": {"learning_rate": 1e-3},
        "batches": {"tokens": 512, "per_epoch": 8},
        "max_epochs": 1,
    }
    config = TrainConfig.model_validate(train)
    trained = Training(config, RUNTIME, prepared, layout.pretrained, layout.checkpoints).run()
    network: Any = trained.network.eval()
    network.load_state_dict(trained.weights, strict=False)
    merge_adapters(network)
    after = TextContinuer(before.exported, before.tokenizer, network)
    scores.append(ask(after, asking, test)[LOGITS])
    loss = [
        float(np.logaddexp.reduce(each, axis=1).mean() - each[np.arange(len(right)), right].mean()) for each in scores
    ]
    likelihood = [float(each[np.arange(len(right)), right].mean()) for each in scores]
    assert likelihood[1] > likelihood[0] + 1, "the answers and their end are likelier"
    assert loss[1] < loss[0], "and the right ones more than the others"
