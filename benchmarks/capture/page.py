"""How long until a filter on the Requests page shows its first rows? Bar: 1 s, over 1 M rows.

    python benchmarks/capture/page.py [--rows 1000000]

The real pages in a real browser (chromium) before a real gateway and its reading child. A person
types into a field and presses Enter; the clock runs until the rows of that filter are drawn and the
page has come to rest. Some filters match many rows, some one row anywhere in the table. Each round
asks for other values; the figure is the median of the rounds.

The table is made first and not counted. --keep DIR makes it there and finds it again.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import recorded_requests as sample
from playwright.sync_api import Page, sync_playwright

from capture import database
from capture.settings import Settings
from serving import state

BAR_SECONDS = 1.0
START_SECONDS = 120.0
TOKEN = "benchmark-token"
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
# name -> (field, a value by the round, what the answer's caption says)
FILTERS: dict[str, tuple[str, str, str]] = {
    "a feature's range": ("Features", "amount > {}", "100 rows, newest first"),
    "two features": ("Features", "amount > {}; city = bern", "100 rows, newest first"),
    "a frequent text": ("Text in request or answer", '"distance":{}', "row"),
    "one client id": ("Client request id", "order-{}", "1 row in all"),
    "a text of one row": ("Text in request or answer", '"order-{}"', "1 row in all"),
}


def known_endpoint(settings: Settings) -> None:
    """The endpoint that the record is of: stopped, as nobody is to answer."""
    engine = database.open_engine(settings)
    with database.transaction(engine) as db:
        if state.find_endpoint(db, sample.ENDPOINT) is None:
            state.insert_endpoint(db, endpoint())
    engine.dispose()


def endpoint() -> state.Endpoint:
    nothing = dict.fromkeys(field for field in state.Endpoint.__dataclass_fields__)
    given = {
        "id": "e" * 32,
        "name": sample.ENDPOINT,
        "creator": "admin",
        "created_ms": 0,
        "updated_ms": 0,
        "config_update": "NOT_UPDATING",
        "stopped": True,
        "tags": [],
        "route_optimized": False,
        "row_version": 1,
    }
    return state.Endpoint(**{**nothing, **given})


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(settings: Settings, module: str, ready: str, **more: str) -> Iterator[dict[str, Any]]:
    """A process of the server until the end of the block; gives what its ready file tells."""
    file = settings.run_dir / f"{ready}.ready"
    file.unlink(missing_ok=True)
    given = {"INFERLAKE_DATA_DIR": str(settings.data_dir.absolute()), "DO_NOT_TRACK": "1", **more}
    with (settings.data_dir / f"{ready}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module], env={**os.environ, **given}, stdout=log, stderr=log
        )
        try:
            ends = time.monotonic() + START_SECONDS
            while not file.exists():
                if process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(Path(log.name).read_text()[-3000:])
                time.sleep(0.05)
            yield json.loads(file.read_text())
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def pages(settings: Settings) -> Iterator[str]:
    """A gateway and the pages before it, until the end of the block; gives the pages' address."""
    ours = {"INFERLAKE_ADMIN_TOKEN": TOKEN, "INFERLAKE_PORT": "0"}
    with running(settings, "serving.gateway", "gateway", **ours) as told:
        port = free_port()
        face = {
            "INFERLAKE_URL": f"http://127.0.0.1:{told['port']}",
            "INFERLAKE_DASHBOARD_PORT": str(port),
        }
        with running(settings, "dashboard", "dashboard", **face):
            yield f"http://127.0.0.1:{port}"


def took(page: Page, field: str, text: str, expected: str) -> float:
    """Seconds from Enter until the rows of the filter are drawn."""
    box = page.get_by_label(field, exact=True)
    box.fill(text)
    begin = time.perf_counter()
    box.press("Enter")
    page.wait_for_function(
        """([text, expected]) => {
          const at = new URLSearchParams(location.search);
          const app = document.querySelector('[data-testid="stApp"]');
          const said = document.querySelector('[data-testid="stMain"]').innerText;
          return [...at.values()].includes(text) && said.includes(expected)
            && app.getAttribute('data-test-script-state') === 'notRunning';
        }""",
        arg=[text, expected],
        polling=10,
    )
    spent = time.perf_counter() - begin
    box.fill("")
    box.press("Enter")
    page.wait_for_function(
        """() => document.querySelector('[data-testid="stApp"]')
          .getAttribute('data-test-script-state') === 'notRunning'
          && !/[?&](where|text|client)=/.test(location.search)"""
    )
    return spent


def measure(page: Page, rows: int, rounds: int) -> float:
    """Prints a line for each filter; gives the slowest median."""
    medians = []
    for name, (field, text, expected) in FILTERS.items():
        values = [20 + 7 * number for number in range(rounds + 1)]
        if "order" in text:
            values = [number * rows // (rounds + 2) + 11 for number in range(rounds + 1)]
        seconds = [took(page, field, text.format(value), expected) for value in values][1:]
        medians.append(statistics.median(seconds))
        met = "met" if medians[-1] <= BAR_SECONDS else "MISSED"
        print(
            f"{name}, {rows:,} rows: first rows after {medians[-1]:.2f} s (worst "
            f"{max(seconds):.2f} s), bar {BAR_SECONDS:g} s: {met}",
            flush=True,
        )
    return max(medians)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=Path, default=None)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed; this benchmark needs it.")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferlake-page-")))
        settings = sample.make(options.keep or folder, options.rows, options.files)
        known_endpoint(settings)
        url = stack.enter_context(pages(settings))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{url}/requests?endpoint={sample.ENDPOINT}")
        page.get_by_label("Access token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_text("100 rows, newest first").wait_for()
        slowest = measure(page, options.rows, options.rounds)
        browser.close()
    return 0 if slowest <= BAR_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
