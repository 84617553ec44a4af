"""Pages of real servers in Debian's Chromium, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.system_packages import require_package

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

    from support.team_server import TeamServer

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
def browser(reached: str, profile: Path, **options: Any) -> Iterator[BrowserContext]:
    """A new browser that can reach addresses with this beginning and nothing else."""
    require_package("chromium", CHROMIUM)
    from playwright.sync_api import Route, sync_playwright

    def only_the_server(route: Route) -> None:
        if route.request.url.startswith(reached):
            route.continue_()
        else:
            route.abort()

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=list(_FLAGS),
            **options,
        )
        context.route("**/*", only_the_server)
        yield context
        context.close()


@contextmanager
def signed_in(server: TeamServer, user: str, profile: Path) -> Iterator[Page]:
    """A page of MLflow in a new browser, signed in as a user."""
    login = {"username": user, "password": server.password(user)}
    viewport = {"width": 1600, "height": 800}
    with browser(server.address, profile, http_credentials=login, viewport=viewport) as context:
        page = context.pages[0]
        page.goto(server.address)
        page.get_by_text("Model training", exact=True).first.click()
        page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()
        yield page
