"""The dashboard as a process, and its pages in a real browser."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard import provider as standin

START_SECONDS, PAGE_MS = 120.0, 120_000
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# page -> words that it shows once it is drawn
PAGES = {
    "alerts": "as_of is 5.2 h behind",
    "endpoints": "1 of 1 endpoints",
    "endpoint": "Try it",
    "create": "The server has checked it",
    "requests": "100 rows, newest first",
    "drift": "columns drifted",
    "quality": "Label coverage",
    "experiment": "Can the numbers be trusted?",
    "recommendations": "Apply…",
    "": "What needs me?",
    "usage": "Top users",
    "audit": "newest first",
    "settings": "Its text is shown once",
}


# part of an endpoint -> words that it shows once it is drawn
PARTS = {
    "Metrics": "Where the time goes",
    "Events": "2 events, newest first",
    "Logs": "listening",
    "Configuration": "Every change is a numbered configuration",
    "Permissions": "Each level holds the ones before it",
}


@dataclass
class Running:
    """A started dashboard."""

    process: subprocess.Popen[bytes]
    url: str
    ready: Path


def free_port() -> int:
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(url: str, data_dir: Path) -> Running:
    port = free_port()
    env = os.environ | {
        "INFERLAKE_URL": url,
        "INFERLAKE_HOST": "127.0.0.1",
        "INFERLAKE_DASHBOARD_PORT": str(port),
        "INFERLAKE_DATA_DIR": str(data_dir),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dashboard"], env=env, stdout=subprocess.PIPE, cwd=data_dir
    )
    ready = data_dir / "run" / "dashboard.ready"
    deadline = time.monotonic() + START_SECONDS
    while not ready.exists():
        assert process.poll() is None, "the dashboard ended while it started"
        assert time.monotonic() < deadline, "the dashboard was not ready in time"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    return Running(process, f"http://127.0.0.1:{port}", ready)


def end(running: Running) -> bytes:
    """Asks it to end; gives what it wrote to standard output."""
    running.process.send_signal(signal.SIGTERM)
    said, _ = running.process.communicate(timeout=60)
    return said


@pytest.fixture(scope="module")
def dashboard(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Running, standin.Provider]]:
    api = standin.Provider()
    api.start()
    running = start(api.url, tmp_path_factory.mktemp("data"))
    yield running, api
    if running.process.poll() is None:
        end(running)
    api.stop()


@dataclass
class Seen:
    """What a browser complained about, and whom it asked."""

    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


@pytest.fixture
def page(dashboard: tuple[Running, standin.Provider]) -> Iterator[tuple[Any, Seen]]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; the browser tests need it (apt install chromium)")
    from playwright.sync_api import sync_playwright

    seen = Seen()

    def complained(message: Any) -> None:
        # A deep link makes Streamlit look for its server below the page first.
        probing = "/_stcore/" in str(message.location.get("url"))
        if message.type == "error" and not probing:
            seen.errors.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith((dashboard[0].url, "data:", "blob:")):
            seen.foreign.append(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_FLAGS))
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.set_default_timeout(PAGE_MS)
        opened.on("console", complained)
        opened.on("pageerror", lambda error: seen.errors.append(str(error)))
        opened.on("request", asked)
        yield opened, seen
        browser.close()


def test_every_page_draws_without_errors_and_asks_nobody_else(
    dashboard: tuple[Running, standin.Provider], page: tuple[Any, Seen]
) -> None:
    browser, seen = page
    browser.goto(f"{dashboard[0].url}/?code=good&endpoint=flight-delay")
    browser.get_by_text("Signed in as").wait_for()
    for name, words in PAGES.items():
        browser.locator(f'[data-testid="stSidebarNavLink"][href$="/{name}"]').first.click()
        browser.get_by_text(words).first.wait_for()
        browser.wait_for_function("!document.querySelector('[data-testid=\"stStatusWidget\"]')")
        browser.wait_for_url(lambda url: "endpoint=flight-delay" in url)
        assert "code=" not in browser.url
        assert browser.locator('[data-testid="stException"]').count() == 0, name
    assert seen == Seen()


def test_every_part_of_an_endpoint_draws_without_errors(
    dashboard: tuple[Running, standin.Provider], page: tuple[Any, Seen]
) -> None:
    browser, seen = page
    browser.goto(f"{dashboard[0].url}/endpoint?code=good&endpoint=flight-delay")
    for part, words in PARTS.items():
        browser.get_by_text(part, exact=True).first.click()
        browser.get_by_text(words).first.wait_for()
        assert browser.locator('[data-testid="stException"]').count() == 0, part
    assert seen == Seen()


def test_a_first_deep_link_asks_for_a_token_and_then_shows_its_page(
    dashboard: tuple[Running, standin.Provider], page: tuple[Any, Seen]
) -> None:
    browser, seen = page
    browser.goto(f"{dashboard[0].url}/drift?endpoint=flight-delay&column=visib")
    browser.get_by_label("Access token").fill(standin.TOKEN)
    browser.get_by_role("button", name="Sign in").click()
    browser.locator(".js-plotly-plot .main-svg").first.wait_for()
    browser.get_by_role("heading", name="visib, 23 Dec 2013").wait_for()
    assert seen == Seen()


def test_a_cell_of_the_map_opens_its_column_and_window(
    dashboard: tuple[Running, standin.Provider], page: tuple[Any, Seen]
) -> None:
    browser, _ = page
    browser.goto(f"{dashboard[0].url}/drift?code=good&endpoint=flight-delay")
    browser.locator(".js-plotly-plot .main-svg").first.wait_for()
    browser.get_by_role("heading", name="temp, 23 Dec 2013").wait_for()
    spot = browser.evaluate(
        """() => {
          const plot = document.querySelector('.js-plotly-plot'), layout = plot._fullLayout;
          const box = plot.getBoundingClientRect(), x = layout.xaxis, y = layout.yaxis;
          return [box.left + x._offset + x.d2p(x._categories[22]),
                  box.top + y._offset + y.d2p('visib')];
        }"""
    )
    browser.mouse.move(*spot)
    browser.get_by_text("visib, 2 Dec 13").wait_for()
    browser.mouse.click(*spot)
    browser.get_by_role("heading", name="visib, 2 Dec 2013").wait_for()
    assert "column=visib" in browser.url


def test_traffic_is_moved_in_one_dialog_and_back_with_one_button(
    dashboard: tuple[Running, standin.Provider], page: tuple[Any, Seen]
) -> None:
    browser, seen = page
    browser.goto(f"{dashboard[0].url}/experiment?code=good&endpoint=flight-delay")
    browser.get_by_role("button", name="Promote v2 to 90 %").click()
    dialog = browser.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("decided")
    dialog.get_by_role("button", name="Change traffic").click()
    browser.get_by_role("button", name="Undo").click()
    browser.get_by_text("Undone.").wait_for()
    assert [sent[1].rsplit("/", 1)[-1] for sent in dashboard[1].sent[-2:]] == [
        "promote",
        "rollback",
    ]
    assert seen == Seen()


def test_it_says_that_it_is_ready_and_ends_cleanly(tmp_path: Path) -> None:
    running = start("http://127.0.0.1:9", tmp_path)
    assert json.loads(running.ready.read_text()) == {"pid": running.process.pid}
    assert end(running) == b""
    assert running.process.returncode == 0
    assert not running.ready.exists()
