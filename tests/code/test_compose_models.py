"""Models and routers in the configuration: what stands in `conf/` can be built, mistakes are located."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.models.base import Model


@pytest.fixture
def layout(tmp_path: Path, repository_root: Path) -> Layout:
    """A project with this checkout's own configuration."""
    shutil.copytree(repository_root / "conf", tmp_path / "conf")
    shutil.copy(repository_root / "params.yaml", tmp_path)
    return Layout(tmp_path)


def problem(layout: Layout, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        compose(layout, overrides)
    return str(caught.value)


def test_every_router_composes_and_is_built(layout: Layout) -> None:
    names = sorted(path.stem for path in (layout.conf / "router").glob("*.yaml"))
    assert len(names) >= 9
    for name in names:
        config = compose(layout, ["model=shakespeare_moe", f"router={name}", "model.width=16", "model.n_layers=1"])
        model = Model.build(config.train.model)
        counts = model.build_decoder(11, None).parameter_counts()
        assert counts["active"] < counts["total"]


def test_small_dense_model_keeps_to_its_size(layout: Layout) -> None:
    config = compose(layout, ["model=shakespeare_dense"])
    assert config.train.model["router"] is None
    counts = Model.build(config.train.model).build_decoder(65, None).parameter_counts()
    assert counts["total"] == counts["active"] <= 850_000


def test_gpt2_small_has_124_million_weights(layout: Layout) -> None:
    import torch

    config = compose(layout, ["model=gpt2_small"])
    with torch.device("meta"):
        counts = Model.build(config.train.model).build_decoder(50_257, None).parameter_counts()
    assert 123e6 < counts["total"] < 125e6


def test_wrong_router_option_is_located_in_its_file(layout: Layout) -> None:
    file = layout.conf / "router/top_k.yaml"
    file.write_text(file.read_text().replace("k: 2", "k: none"))
    text = problem(layout, "model=shakespeare_moe")
    line = file.read_text().splitlines().index(next(x for x in file.read_text().splitlines() if x.startswith("k:"))) + 1
    assert f"conf/router/top_k.yaml:{line}" in text and "router.k = 'none'" in text


def test_unknown_router_option_names_the_allowed_ones(layout: Layout) -> None:
    text = problem(layout, "model=shakespeare_moe", "router.balanse=0.1")
    assert "router.balanse: unknown key" in text and "Did you mean 'balance'?" in text


def test_experts_without_a_router_are_refused(layout: Layout) -> None:
    assert "need a router" in problem(layout, "model=shakespeare_dense", "model.feed_forward=experts")
