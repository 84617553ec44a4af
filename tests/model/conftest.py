"""Fixtures over the tiny BERT and the tiny prepared data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_training, whichever way pytest imports

from tiny_training import ARCHITECTURE, write_prepared


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, as `fetch` would bring it."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained")
    values = {key: value for key, value in ARCHITECTURE.items() if key != "model_type"}
    BertModel(BertConfig(**values)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny prepared data."""
    return write_prepared(tmp_path_factory.mktemp("data") / "prepared")
