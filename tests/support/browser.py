"""The real MLflow pages in Debian's Chromium, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from support.system_packages import require_package
from support.team_server import TeamServer

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = "/usr/bin/chromium"
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def signed_in(server: TeamServer, user: str, profile: Path) -> Iterator[Page]:
    """A page of a new browser, signed in as a user; it can reach the server and nothing else."""
    require_package("chromium", CHROMIUM)
    from playwright.sync_api import Route, sync_playwright

    def only_the_server(route: Route) -> None:
        if route.request.url.startswith(server.address):
            route.continue_()
        else:
            route.abort()

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=list(_FLAGS),
            http_credentials={"username": user, "password": server.password(user)},
            viewport={"width": 1600, "height": 800},
        )
        context.route("**/*", only_the_server)
        page = context.pages[0]
        page.goto(server.address)
        page.get_by_text("Model training", exact=True).first.click()
        page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
        yield page
        context.close()
