"""`inferlake quality --html`: how good the answers were, window by window, for a person who has
never seen such a report. Pure: JSON form in, a page out."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from monitors import file_charts, file_page
from monitors.file_charts import counted, number, window_words

# Short name -> its name, what it says, and whether more is better.
METRICS = {
    "accuracy": ("accuracy", "share of the answers that were right", True),
    "precision": ("precision", "share of the positive answers that were right", True),
    "recall": ("recall", "share of the positive cases that were found", True),
    "f1": ("F1", "harmonic mean of precision and recall", True),
    "roc_auc": ("ROC AUC", "chance that a positive case scores above a negative one", True),
    "log_loss": ("log loss", "price of confident wrong scores", False),
    "brier": ("Brier score", "mean squared error of the score", False),
    "mae": ("mean absolute error", "average distance of answer and truth", False),
    "mse": ("mean squared error", "average squared distance of answer and truth", False),
    "rmse": ("root mean squared error", "its root, in the unit of the label", False),
    "mape": ("mean absolute percentage error", "average distance in percent of the truth", False),
    "r2": ("R²", "share of the variance that the answers explain", True),
}
READING = """<details><summary>How to read this report</summary><dl>
<dt>Measured and expected</dt><dd>Measured numbers come from rows whose label is known. Expected
ones need no labels: the scores, calibrated on the reference, say what quality to expect.</dd>
<dt>Unusual</dt><dd>A number is marked where it lies outside the mean ± 3 standard deviations of
what the reference's own windows realised.</dd>
%s</dl></details>"""


class Quality:
    """The report of `inferlake quality`. sides: names of reference and current files."""

    def __init__(self, sides: tuple[str, str], problem: str, reference_rows: int) -> None:
        self.sides = sides
        self.problem = problem
        self.reference_rows = reference_rows
        self.rows = self.labelled = self.count = 0
        self.windows: deque[Mapping[str, Any]] = deque(maxlen=file_charts.MOST_WINDOWS)

    def add(self, window: Mapping[str, Any]) -> None:
        """Takes in one entry of the JSON form's `windows`."""
        self.rows += window["rows"]
        self.labelled += window["labelled"]
        self.count += 1
        self.windows.append(window)

    def page(self) -> file_page.Page:
        page = file_page.Page("Quality report")
        windows = list(self.windows)
        shown = [name for name in METRICS if any(_known(w, name) for w in windows)]
        shown.sort(key=lambda name: -_alerts(windows, name))
        share = f"{self.labelled / self.rows:.0%}" if self.rows else "none"
        page.add(
            "<h1>Quality report</h1>",
            f'<p class="facts">{file_page.text(self.sides[1], 200)} ({self.rows:,} rows in '
            f"{counted(self.count, 'window')}, {share} of them labelled) compared with the "
            f"reference {file_page.text(self.sides[0], 200)} ({self.reference_rows:,} rows). "
            f"Problem: {self.problem}.</p>",
            verdict(windows, shown),
        )
        if self.count > len(windows):
            page.add(f'<p class="facts">The newest {len(windows)} of {self.count:,} windows.</p>')
        page.add(READING % "".join(f"<dt>{METRICS[n][0]}</dt><dd>{_says(n)}.</dd>" for n in shown))
        page.add("<h2>Metrics, the most unusual first</h2>")
        page.add(*(card(page, windows, name) for name in shown))
        page.add("<h2>All windows</h2>", table(windows, shown))
        return page


def _known(window: Mapping[str, Any], name: str) -> bool:
    sides = (window["realized"].get(name), window["estimated"].get(name))
    return any(one is not None and one["value"] is not None for one in sides)


def _says(name: str) -> str:
    _, said, more = METRICS[name]
    return f"{said.capitalize()}; {'higher' if more else 'lower'} is better"


def _alerts(windows: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(
        bool((window[side].get(name) or {}).get("alert"))
        for window in windows
        for side in ("realized", "estimated")
    )


def verdict(windows: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> str:
    """The answer in one sentence."""
    unusual = [window for window in windows if window["alert"]]
    if unusual:
        names = ", ".join(METRICS[name][0] for name in shown if _alerts(windows, name))
        said = (
            f"{len(unusual)} of {counted(len(windows), 'window')} have an unusual number: {names}."
        )
        return f'<p class="verdict bad">{said}</p>'
    marks = [
        one.get("alert")
        for window in windows
        for side in ("realized", "estimated")
        for one in window[side].values()
    ]
    if any(mark is not None for mark in marks):
        return '<p class="verdict good">No window has an unusual number.</p>'
    return (
        '<p class="verdict">Nothing is called unusual here: without several windows in the '
        "reference there are no limits to compare with.</p>"
    )


def card(page: file_page.Page, windows: Sequence[Mapping[str, Any]], name: str) -> str:
    """One metric: its newest numbers in words, and its course."""
    alerts = _alerts(windows, name)
    badge = file_page.badge("unusual", "bad") if alerts else file_page.badge("as usual", "good")
    if not any((w[s].get(name) or {}).get("limits") for w in windows for s in ("realized",)):
        badge = file_page.badge("no limits known", "none")
    return (
        f'<section class="card"><div class="head"><h3>{METRICS[name][0]}</h3>{badge}</div>'
        f"<p>{_newest(windows, name)}</p>"
        f"{page.place(file_charts.course(windows, name, METRICS[name][0]))}</section>"
    )


def _newest(windows: Sequence[Mapping[str, Any]], name: str) -> str:
    """The newest window with a number, in words; HTML."""
    for window in reversed(windows):
        said = []
        one = window["realized"].get(name) or {}
        if one.get("value") is not None:
            interval = ""
            if one.get("low") is not None and one.get("high") is not None:
                interval = f" (95 % interval {number(one['low'])} to {number(one['high'])})"
            said.append(f"measured {number(one['value'])}{interval}")
        expected = window["estimated"].get(name) or {}
        if expected.get("value") is not None:
            said.append(f"expected {number(expected['value'])}")
        if said:
            where = file_page.text(window_words(window["window"]))
            rows = f"{window['labelled']:,} of {window['rows']:,} rows labelled"
            return f"{where}: {', '.join(said)}; {rows}. {_says(name)}."
    return "No window has a number."


def table(windows: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> str:
    """A line per window; unusual numbers carry a badge."""
    wanted = [(side, name) for name in shown for side in ("realized", "estimated")]
    wanted = [(s, n) for s, n in wanted if any(_value(w, s, n) is not None for w in windows)]
    header = ["Window", "Rows", "Labelled"]
    header += [("expected " if s == "estimated" else "") + METRICS[n][0] for s, n in wanted]
    rows = []
    for window in windows:
        cells = [
            file_page.text(window_words(window["window"])),
            f"{window['rows']:,}",
            f"{window['labelled']:,}",
        ]
        for side, name in wanted:
            mark = (window[side].get(name) or {}).get("alert")
            badge = f" {file_page.badge('unusual', 'bad')}" if mark else ""
            cells.append(number(_value(window, side, name)) + badge)
        rows.append(cells)
    return file_page.table(header, rows, range(1, len(header)))


def _value(window: Mapping[str, Any], side: str, name: str) -> float | None:
    found: float | None = (window[side].get(name) or {}).get("value")
    return found
