"""What a visitor sees on MLflow's pages: the runs' names and columns, a comparison, pictures, the model.

The screenshots go into pytest's folder, or into `$TEXTMILL_SCREENSHOTS`; look at them after a change
of what is logged.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from support.browser import signed_in
from support.team_server import Team

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

NAME = "tiny-reviews"
SECONDS = 30_000

Visit = Callable[[str], "Page"]


@pytest.fixture(scope="module")
def page(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with signed_in(team.server, "ben", tmp_path_factory.mktemp("profile")) as page:
        page.set_default_timeout(SECONDS)
        yield page


@pytest.fixture
def visit(page: Page, team: Team) -> Visit:
    def go(path: str) -> Page:
        page.goto(f"{team.server.address}/#{path}")
        page.reload()
        return page

    return go


@pytest.fixture
def screenshot(page: Page, tmp_path: Path) -> Callable[[str], None]:
    def take(name: str) -> None:
        page.wait_for_timeout(500)  # what slides in has arrived
        page.screenshot(path=Path(os.environ.get("TEXTMILL_SCREENSHOTS", tmp_path)) / f"{name}.png")

    return take


@pytest.fixture(scope="module")
def runs(team: Team) -> list[dict[str, str]]:
    """Id, name and experiment of the runs, the newest first."""
    program = (
        "import json\nfrom mlflow import MlflowClient\nclient = MlflowClient()\n"
        f"experiment = client.get_experiment_by_name('{NAME}').experiment_id\n"
        "print(json.dumps([{'id': run.info.run_id, 'name': run.info.run_name, 'experiment': experiment}"
        " for run in client.search_runs([experiment])]))"
    )
    return json.loads(team.project.run("python", "-c", program, env=team.server.environment("ben")).stdout)


@pytest.fixture(scope="module")
def aliases(team: Team) -> list[str]:
    """Those of the model, at least one."""
    program = (
        "import json\nfrom mlflow import MlflowClient\n"
        f"print(json.dumps(list(MlflowClient().get_registered_model('{NAME}').aliases)))"
    )
    found: list[str] = json.loads(team.project.run("python", "-c", program, env=team.server.environment("ben")).stdout)
    assert found
    return found


def choose_columns(page: Page, *names: str) -> None:
    """Show or hide columns as a visitor does; MLflow shows neither metrics nor parameters by itself."""
    page.get_by_role("button", name="Columns").click()
    search = page.get_by_placeholder("Search columns")
    for name in names:
        search.fill(name)
        page.wait_for_timeout(500)  # the list follows what is typed with a delay
        page.locator("[class*=tree-title]").filter(has_text=re.compile(f"^{re.escape(name)}$")).first.click()
    page.keyboard.press("Escape")


def test_runs_table(visit: Visit, runs: list[dict[str, str]], screenshot: Callable[[str], None]) -> None:
    page = visit(f"/experiments/{runs[0]['experiment']}/runs")
    for run in runs:
        assert run["name"].startswith("tiny_bert-")
        page.get_by_text(run["name"]).first.wait_for()
    choose_columns(page, "Source", "Models", "test/weighted_f1", "train.seed")  # two go, two come
    for column in ("Run Name", "Created", "Dataset", "Duration", "test/weighted_f1", "train.seed"):
        page.get_by_text(column, exact=True).filter(visible=True).first.wait_for()
    assert not page.get_by_text("Agent versions").count(), "the page takes this for an experiment with agents"
    screenshot("runs")


def test_run_tells_its_figures(visit: Visit, runs: list[dict[str, str]], screenshot: Callable[[str], None]) -> None:
    page = visit(f"/experiments/{runs[0]['experiment']}/runs/{runs[0]['id']}")
    page.get_by_text("95 % interval").first.wait_for()
    page.get_by_text("ada", exact=True).first.wait_for()
    screenshot("run")


def test_two_runs_side_by_side(visit: Visit, runs: list[dict[str, str]], screenshot: Callable[[str], None]) -> None:
    ids = quote(json.dumps([run["id"] for run in runs]))
    page = visit(f"/compare-runs?runs={ids}&experiments={quote(json.dumps([runs[0]['experiment']]))}")
    for run in runs:
        page.get_by_text(run["name"]).first.wait_for()
    for switch in page.get_by_text("Show diff only").all():
        switch.click()
    page.get_by_text("Parameters", exact=True).last.scroll_into_view_if_needed()
    for differs in ("train.seed", "best/loss"):
        page.get_by_text(differs, exact=True).filter(visible=True).first.wait_for()
    assert not page.get_by_text("train.optimizer.learning_rate", exact=True).filter(visible=True).count()
    screenshot("compare")


def test_pictures_of_evaluation(visit: Visit, runs: list[dict[str, str]], screenshot: Callable[[str], None]) -> None:
    page = visit(f"/experiments/{runs[0]['experiment']}/runs/{runs[0]['id']}/artifacts/evaluation/plots/confusion.png")
    page.wait_for_function("[...document.images].some(image => image.naturalWidth > 300 && image.complete)")
    screenshot("picture")


def test_registered_model(visit: Visit, aliases: list[str], screenshot: Callable[[str], None]) -> None:
    page = visit(f"/models/{NAME}")
    page.get_by_text("Version 2").first.wait_for()
    for alias in aliases:
        page.get_by_text(alias).first.wait_for()
    page.get_by_text("Made by Textmill").first.wait_for()
    page.get_by_text("Tags", exact=True).first.click()  # folds them up
    screenshot("model")
    page = visit(f"/models/{NAME}/versions/2")
    for text in ("textmill.manifest_sha256", "On the test split"):
        page.get_by_text(text).first.wait_for()
    screenshot("version")
