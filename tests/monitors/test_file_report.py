"""`--html` of `inferlake drift` and `inferlake quality`: one file that a stranger can open."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer
from playwright.sync_api import Browser, Page, sync_playwright
from typer.testing import CliRunner

from monitors import file_page, files_cli

HOSTILE = "</script><script>document.title='stolen'</script><img src=http://example.org/x>"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync"]

app = typer.Typer()
files_cli.register(app)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Parquet files of answers, labels and hostile names; `moved` moves in the second half."""
    rng = np.random.default_rng(1)
    made = tmp_path_factory.mktemp("report")
    for name, shift in (("reference", 0.0), ("current", 2.0)):
        n = 2_000
        score = rng.random(n)
        late = np.arange(n) >= n // 2
        pl.DataFrame(
            {
                "moved": rng.normal(0, 1, n) + shift * late,
                "still": rng.normal(0, 1, n),
                f"kind{HOSTILE}": rng.choice(["a", HOSTILE], n),
                "empty": [None if shift else 1.0] * n,
                "score": score,
                "answer": (score > 0.5).astype(int),
                "label": (rng.random(n) < (score if not shift else 1 - score)).astype(int),
            },
            schema_overrides={"empty": pl.Float64},
        ).write_parquet(made / f"{name}.parquet")
    return made


def drift(folder: Path, *more: object) -> str:
    out = folder / "drift.html"
    run("drift", folder / "reference.parquet", folder / "current.parquet", "--html", out, *more)
    return out.read_text()


def shown(page: str) -> list[str]:
    """First cell of each row of the first table, without its markup."""
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = re.findall(r"<tr><td>(.*?)</td>", body)
    return [re.sub("<[^>]+>", "", row) for row in rows]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield opened
        opened.close()


def opened(browser: Browser, path: Path) -> tuple[Page, list[str]]:
    """The page in a browser, and what went wrong or was asked of a network."""
    page, trouble = browser.new_page(), []
    page.on("console", lambda one: trouble.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    inside = ("file:", "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(inside) else trouble.append(r.url))
    page.goto(path.as_uri())
    return page, trouble


def test_a_report_opens_without_any_network_and_draws_its_charts(
    folder: Path, browser: Browser
) -> None:
    drift(folder, "--window-rows", 500, "--slice", "answer = 1")
    page, trouble = opened(browser, folder / "drift.html")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(
        "document.querySelectorAll('.chart .main-svg').length > 0 && "
        "[...document.querySelectorAll('.chart')].every(one => one.querySelector('.main-svg'))"
    )
    assert trouble == [] and page.title() == "Drift report"
    verdict = page.inner_text(".verdict")
    assert "drifted: moved" in verdict
    assert "script" in page.inner_text("main")  # the hostile name is shown as what it is
    run(
        *("quality", folder / "reference.parquet", folder / "current.parquet"),
        *("--label", "label", "--prediction", "answer", "--score", "score"),
        *("--window-rows", 500, "--html", folder / "quality.html"),
    )
    page, trouble = opened(browser, folder / "quality.html")
    page.wait_for_selector(".chart .main-svg")
    assert trouble == []
    assert "unusual" in page.inner_text(".card .badge") or "limits" in page.inner_text(".card")


def test_the_worst_column_stands_first_and_says_why(folder: Path) -> None:
    page = drift(folder, "--window-rows", 500)
    assert shown(page)[0] == "moved" and "still" in shown(page)[1:]
    card = page[page.index('id="column-0"') :]
    assert "KS distance" in card or "PSI" in card
    assert "times the limit" in card and "rows [" in card
    assert "How to read this report" in page and "2 of 4" in page


def test_nothing_from_a_file_is_markup(folder: Path) -> None:
    page = drift(folder)
    assert HOSTILE not in page and "<img" not in page
    start = page.index('<script type="application/json" id="charts">')
    data = page[page.index(">", start) + 1 : page.index("</script>", start)]
    charts: dict[str, Any] = json.loads(data)
    assert len(charts) == page.count('class="chart"') and "<" not in data
    assert page.count("plotly.js v") == 1


def test_the_table_is_printed_and_json_written_beside_the_report(folder: Path) -> None:
    sides = ("drift", folder / "reference.parquet", folder / "current.parquet")
    assert "COLUMN" in run(*sides, "--html", folder / "a.html")
    assert run(*sides, "--html", folder / "b.html", "--json", folder / "b.json") == ""
    assert (folder / "a.html").read_bytes() == (folder / "b.html").read_bytes()
    assert json.loads((folder / "b.json").read_text())["windows"]


def test_odd_columns_and_no_rows_make_a_report_too(tmp_path: Path) -> None:
    odd = pl.DataFrame(
        {"null": [None] * 300, "nan": [float("nan")] * 300, "one": [1.0] * 300, "t": ["x"] * 300},
        schema_overrides={"null": pl.Float64},
    )
    odd.write_parquet(tmp_path / "reference.parquet")
    odd.clear().write_parquet(tmp_path / "empty.parquet")
    for current in ("reference", "empty"):
        out = tmp_path / f"{current}.html"
        files = (tmp_path / "reference.parquet", tmp_path / f"{current}.parquet")
        run("drift", *files, "--html", out)
        page = out.read_text()
        assert "NaN" not in page[page.index("<main>") : page.index("</main>")]
        assert sorted(shown(page)) == ["nan", "null", "one", "t"]
    assert "too few rows" in (tmp_path / "empty.html").read_text()


def test_long_and_unprintable_words_are_cut_and_cleaned() -> None:
    assert file_page.text("a" * 300) == "a" * 79 + "…"
    assert file_page.text("a\x1b[31m\nb") == "a [31m b"
    assert file_page.text("<b>&") == "&lt;b&gt;&amp;"
