"""What docs/extending.md promises: plugins from outside the package, with nothing edited in it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.fetching.sources.base import Source
from textmill.models.base import Model
from textmill.tasks.base import Task

OUTSIDE = """
from textmill.config.section import Section
from textmill.fetching.sources.base import Provenance, Source
from textmill.models.pretrained_encoder import PretrainedEncoder
from textmill.tasks.text_classification import TextClassification


class TicketSource(Source):
    class Config(Section):
        queue: str

    def fetch(self, destination, root):
        folder = destination / "all"
        folder.mkdir(parents=True)
        (folder / "tickets.csv").write_text(f"text,label\\n{self.config.queue},open\\n")
        return Provenance(origin=f"tickets of {self.config.queue}", version=None, licence=None, sha256=None)


class TicketModel(PretrainedEncoder):
    name = "ticket_model"


class TicketRouting(TextClassification):
    name = "ticket_routing"
"""

DATA = """# @package _global_
fetch:
  source:
    _target_: outside_plugins.TicketSource
    queue: billing
prepare:
  read:
    columns: {text: text, label: label}
"""


@pytest.fixture
def layout(tmp_path: Path, repository_root: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """This checkout's configuration with three files added, and their classes in a module outside."""
    shutil.copytree(repository_root / "conf", tmp_path / "conf")
    shutil.copy(repository_root / "params.yaml", tmp_path)
    (tmp_path / "outside_plugins.py").write_text(OUTSIDE)
    (tmp_path / "conf/data/tickets.yaml").write_text(DATA)
    (tmp_path / "conf/task/ticket_routing.yaml").write_text("_target_: outside_plugins.TicketRouting\n")
    (tmp_path / "conf/model/tickets.yaml").write_text("_target_: outside_plugins.TicketModel\npretrained: null\n")
    (tmp_path / "conf/experiment/tickets.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: tickets\n  - override /task: ticket_routing\n"
        "  - override /model: tickets\nname: tickets\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "outside_plugins", raising=False)
    return Layout(tmp_path)


def test_outside_plugins_compose_and_work(layout: Layout, tmp_path: Path) -> None:
    config = compose(layout, ["experiment=tickets"])
    assert Task.build(config.prepare.task).name == "ticket_routing"
    assert Model.build(config.train.model).name == "ticket_model"
    source = Source.build(config.fetch.source)
    assert source.fetch(tmp_path / "raw", tmp_path).origin == "tickets of billing"
    assert (tmp_path / "raw/all/tickets.csv").is_file()


def test_option_of_an_outside_plugin_is_checked_with_its_place(layout: Layout) -> None:
    path = layout.conf / "data/tickets.yaml"
    path.write_text(path.read_text().replace("queue:", "quue:"))
    with pytest.raises(UserError, match=r"fetch\.source\.(quue|queue)"):
        compose(layout, ["experiment=tickets"])
