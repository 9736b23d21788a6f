"""How long until a person sees the Drift page of 100 columns x 90 days, and one column of it?

    python benchmarks/monitors/drift_page.py [--columns 100] [--days 90] [--rounds 7] [--keep DIR]

The real pages in a real browser (chromium) before a real gateway and its reading child; what they
show was written by a real refresh. A person comes to the Drift page from another page: the clock
runs until the heat map is drawn and the page has come to rest. Then the person chooses another
column: until its distribution is drawn. Both were seen once before the clock runs; the figures are
medians of the rounds. The table is made and refreshed first; --keep DIR makes both there and finds
them again.

Bars: heat map 1 s, column 0.5 s. Exit code 1 if one is missed.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import deltalake
import numpy as np
import polars as pl
import pyarrow as pa
import refresh_cost
from playwright.sync_api import Page, sync_playwright

from capture import catalog, database
from capture.settings import Settings
from monitors import contract, rounds, state

sys.path.append(str(Path(__file__).parents[1] / "capture"))
import page as requests_page
import recorded_requests

MAP_BAR_SECONDS, COLUMN_BAR_SECONDS = 1.0, 0.5
ROWS_PER_DAY = 300
AT_REST = """() => document.querySelector('[data-testid="stApp"]')
  ?.getAttribute('data-test-script-state') === 'notRunning'"""
MAP_DRAWN = f"""() => ({AT_REST})() && location.pathname.endsWith('/drift')
  && document.querySelector('.heatmaplayer image, .heatmaplayer .hm')"""
COLUMN_DRAWN = """(name) => {
  const head = [...document.querySelectorAll('h4')].find((h) => h.innerText.startsWith(name + ','));
  const plots = document.querySelectorAll('[data-testid="stPlotlyChart"] .main-svg');
  return head && plots.length >= 3 && (AT_REST)();
}""".replace("AT_REST", AT_REST)


def make(folder: Path, columns: int, days: int) -> Settings:
    """The recorded table, its monitor, and what a refresh says of all days."""
    settings = Settings(data_dir=folder)
    done = folder / f"columns-{columns}-days-{days}"
    if done.exists():
        return settings
    world = refresh_cost.Tables(settings)
    database.migrate(settings)
    engine = database.open_engine(settings)
    requests_page.known_endpoint(settings)
    config = contract.monitor_config(refresh_cost.monitor(recorded=True))
    with database.transaction(engine) as connection:
        catalog.record(
            connection, recorded_requests.TABLE, "e" * 32, recorded_requests.ENDPOINT, {}, {}, 0
        )
        state.create_monitor(connection, refresh_cost.TABLE, "t1", config, "ann", 1)
        spec = {"kind": "training", "table": refresh_cost.BASELINE}
        state.add_baseline(connection, refresh_cost.TABLE, spec, "ann", 1)
        until = refresh_cost.START + timedelta(days=days)
        state.request_refresh(connection, refresh_cost.TABLE, "MANUAL", contract.unix_ms(until), 1)
    deltalake.write_deltalake(world.uri(refresh_cost.BASELINE), _values(0, 3000, columns, 0))
    for day in range(days):
        world.write_day(_values(day + 1, ROWS_PER_DAY, columns, day / days), day, recorded=True)
    work = rounds.Rounds(engine, settings, lambda: True)
    while work.run_pending():
        pass
    work.close()
    engine.dispose()
    done.touch()
    return settings


def _values(seed: int, rows: int, columns: int, progress: float) -> pa.Table:
    """Every fifth column drifts away in the course of the days; one in seven is a category."""
    random = np.random.default_rng(seed)
    made: dict[str, object] = {"score": random.random(rows)}
    for number in range(columns - 2):  # prediction and score are columns as well
        moved = progress if number % 5 == 0 else 0.0
        values = random.normal(2 * moved, 1, rows)
        name = f"feature_{number:03d}"
        made[name] = np.round(values).astype(str) if number % 7 == 0 else values
    return pl.DataFrame(made).to_arrow(compat_level=pl.CompatLevel.oldest())


def timed(act: Callable[[], None], page: Page, drawn: str, argument: object = None) -> float:
    """Seconds from an act until something is drawn."""
    begun = time.perf_counter()
    act()
    page.wait_for_function(drawn, arg=argument, polling=10)
    return time.perf_counter() - begun


def measure(page: Page, columns: int, rounds_: int) -> dict[str, list[float]]:
    """Seconds of each round."""
    found: dict[str, list[float]] = {"heat map": [], "column": []}
    link = page.get_by_test_id("stSidebarNav").get_by_role("link", name="Drift", exact=True)
    for number in range(rounds_ + 1):
        page.get_by_test_id("stSidebarNav").get_by_role("link", name="Quality", exact=True).click()
        page.wait_for_function(f"() => ({AT_REST})() && location.pathname.endsWith('/quality')")
        seen = timed(link.click, page, MAP_DRAWN)
        box = page.get_by_role("combobox", name="Column")
        name = f"feature_{5 * (number + 1) % (columns - 2):03d}"
        box.click()
        box.fill(name)
        column = timed(lambda box=box: box.press("Enter"), page, COLUMN_DRAWN, name)  # type: ignore[misc]
        if number:
            found["heat map"].append(seen)
            found["column"].append(column)
    return found


def report(found: dict[str, list[float]], columns: int, days: int) -> bool:
    """Prints a line each; whether both bars hold."""
    holds = True
    for (name, seconds), bar in zip(
        found.items(), (MAP_BAR_SECONDS, COLUMN_BAR_SECONDS), strict=True
    ):
        middle = statistics.median(seconds)
        holds &= middle <= bar
        print(
            f"{name}, {columns} columns x {days} days: {middle:.2f} s (worst {max(seconds):.2f}), "
            f"bar {bar:g} s: {'met' if middle <= bar else 'MISSED'}"
        )
    return holds


def main() -> int:
    """0: both bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=Path, default=None)
    asked = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed; this benchmark needs it.")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferlake-drift-")))
        settings = make(asked.keep or folder, asked.columns, asked.days)
        url = stack.enter_context(requests_page.pages(settings))
        playwright = stack.enter_context(sync_playwright())
        flags = list(requests_page.FLAGS)
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{url}/drift?endpoint={recorded_requests.ENDPOINT}")
        page.get_by_label("Access token").fill(requests_page.TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_function(MAP_DRAWN)
        holds = report(measure(page, asked.columns, asked.rounds), asked.columns, asked.days)
        browser.close()
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
