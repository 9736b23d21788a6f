"""`inferlake drift --html`: what was found, for a person who has never seen such a report. Pure:
JSON form and profiles in, a page out.

Gathered a window at a time. Of each column two windows are kept to be drawn, the one that is
farthest from the reference and the newest; of all others only their distances.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from monitors import file_charts, file_page, file_profiles, profile
from monitors.file_charts import Column, Drawn, counted, number, window_words

MOST_CARDS = 60

# Short name -> its name, and what it says.
MEASURES = {
    "ks": ("KS distance", "the largest gap between the two cumulative distributions, 0 to 1"),
    "wasserstein_normed": (
        "Wasserstein distance",
        "how far values have to be moved on average, in standard deviations of the reference",
    ),
    "wasserstein": ("Wasserstein distance", "how far values have to be moved on average"),
    "psi": (
        "PSI",
        "population stability index: 0 is the same, above 0.2 is commonly called a clear change",
    ),
    "js_distance": ("Jensen-Shannon distance", "difference of the two distributions, 0 to 1"),
    "tv_distance": ("total variation", "share of the rows that would have to change their value"),
    "l_infinity_distance": (
        "largest change of a share",
        "the biggest change in the share of any one value",
    ),
    "chi_squared": ("chi-squared", "test statistic of the two tables of counts"),
    "cramers_v": ("Cramér's V", "association of value and side, 0 to 1"),
}
STATUS = {
    "drifted": ("drifted", "bad"),
    "ok": ("no drift", "good"),
    "not_enough_data": ("not enough data", "none"),
    "undefined": ("cannot be compared", "none"),
}
READING = """<details><summary>How to read this report</summary><dl>
<dt>Reference and window</dt><dd>The reference is the data that is taken as normal, often the
training data. The current data is compared with it, window by window.</dd>
<dt>Drifted</dt><dd>A column drifted in a window when its distribution is farther from the reference
than its limit, and farther than chance alone would make it at these numbers of rows. Twice the
limit is critical. Fewer than 200 rows are never judged.</dd>
<dt>Times the limit</dt><dd>The distance divided by its limit, so that different measures can be
compared: 1 is at the limit, 3 is three times as far.</dd>
%s</dl></details>"""


def measure_words(metric: str) -> str:
    return MEASURES.get(metric, (metric, ""))[0]


class Drift:
    """The report of `inferlake drift`. sides: names of reference and current files."""

    def __init__(self, sides: tuple[str, str], reference: file_profiles.Reference) -> None:
        self.sides = sides
        self.reference = reference
        self.columns: dict[file_profiles.Group, Column] = {}
        self.rows = 0
        self.windows = 0

    def add(
        self, found: Mapping[str, Any], measured: Mapping[file_profiles.Group, profile.Profile]
    ) -> None:
        """Takes in one entry of the JSON form's `windows`, with the profiles of its window."""
        cut = found["slice"]
        slice_ = None if cut is None else (cut["key"], cut["value"])
        if slice_ is None:
            self.rows += found["rows"]
            self.windows += 1
        for name, entry in found["columns"].items():
            group = (slice_, name)
            drawn = Drawn(found["window"], found["rows"], entry, measured.get(group))
            column = self.columns.setdefault(group, Column(name, slice_, drawn, drawn))
            column.windows += 1
            column.drifted += entry["status"] == "drifted"
            column.newest = drawn
            if drawn.place < column.worst.place:
                column.worst = drawn
            judged = entry["status"] in ("ok", "drifted")
            effect = entry["effect"] if judged else None
            column.effects.append(
                (window_words(found["window"]), effect, entry["status"] == "drifted")
            )

    def page(self) -> file_page.Page:
        page = file_page.Page("Drift report")
        ordered = sorted(self.columns.values(), key=lambda c: (c.worst.place, c.title))
        whole = [column for column in ordered if column.slice is None]
        cut = [column for column in ordered if column.slice is not None]
        page.add(
            "<h1>Drift report</h1>",
            f'<p class="facts">{file_page.text(self.sides[1], 200)} ({self.rows:,} rows in '
            f"{counted(self.windows, 'window')}) compared with the reference "
            f"{file_page.text(self.sides[0], 200)} ({self.reference.rows:,} rows)</p>",
            verdict(whole),
        )
        page.add(table(whole, self.windows > 1))
        page.add(READING % explained(whole + cut))
        if self.windows > 1 and any(column.drifted for column in whole):
            page.add("<h2>Which column, since when</h2>", page.place(file_charts.heat_map(whole)))
        page.add("<h2>Columns, the worst first</h2>")
        page.add(*(self._card(page, column, i) for i, column in enumerate(whole[:MOST_CARDS])))
        if len(whole) > MOST_CARDS:
            page.add(
                f'<p class="facts">The other {len(whole) - MOST_CARDS} columns are in the table '
                "above.</p>"
            )
        if cut:
            self._slices(page, cut)
        return page

    def _slices(self, page: file_page.Page, cut: list[Column]) -> None:
        drifted = [column for column in cut if column.drifted]
        page.add(
            "<h2>Slices</h2>",
            f"<p>{len(drifted)} of {len(cut)} pairs of slice and column drifted, each compared "
            "with the same slice of the reference.</p>",
        )
        if drifted:
            page.add(table(drifted[:MOST_CARDS], self.windows > 1, "slice-"))
            shown = enumerate(drifted[: MOST_CARDS // 4])
            page.add(*(self._card(page, column, i, "slice-") for i, column in shown))

    def _card(self, page: file_page.Page, column: Column, place: int, prefix: str = "") -> str:
        worst = column.worst
        reference = self.reference.profiles.get((column.slice, column.name))
        charts = [file_charts.distribution(column, reference)]
        if column.windows > 1:
            charts.append(file_charts.over_windows(column))
        drawn = page.place(*(chart for chart in charts if chart is not None))
        return (
            f'<section class="card" id="{prefix}column-{place}"><div class="head">'
            f"<h3>{file_page.text(column.title)}</h3>{status_badge(worst.entry)}</div>"
            f"<p>{sentence(worst)}</p>"
            f'<p class="facts">{missing(worst, self.reference, column)}</p>{drawn}</section>'
        )


def verdict(columns: Sequence[Column]) -> str:
    """The answer in one sentence."""
    drifted = [column for column in columns if column.drifted]
    judged = [c for c in columns if c.drifted or c.worst.entry["status"] == "ok"]
    if drifted:
        names = ", ".join(file_page.text(column.name, 40) for column in drifted[:5])
        more = f" and {len(drifted) - 5} more" if len(drifted) > 5 else ""
        said = f"{len(drifted)} of {counted(len(columns), 'column')} drifted: {names}{more}."
        return f'<p class="verdict bad">{said}</p>'
    if judged:
        return f'<p class="verdict good">No column drifted ({len(judged)} could be judged).</p>'
    return '<p class="verdict">There are too few rows to judge any column.</p>'


def table(columns: Sequence[Column], several: bool, prefix: str = "") -> str:
    header = ["Column", "Verdict", "Times the limit", "Measure", "Value", "Limit"]
    header += ["Windows drifted", "Worst window"] if several else []
    rows = []
    for place, column in enumerate(columns):
        entry = column.worst.entry
        decisive = entry["metrics"].get(entry["metric"]) or {}
        reason = "; ".join(entry["reasons"])
        name = file_page.text(column.title)
        linked = place < (MOST_CARDS // 4 if prefix else MOST_CARDS)
        rows.append(
            [
                f'<a href="#{prefix}column-{place}">{name}</a>' if linked else name,
                status_badge(entry),
                number(entry["effect"]),
                measure_words(entry["metric"]) if entry["metric"] else file_page.text(reason),
                number(decisive.get("value")),
                number(decisive.get("threshold")),
            ]
        )
        if several:
            rows[-1] += [
                f"{column.drifted:,} of {column.windows:,}",
                file_page.text(window_words(column.worst.window)),
            ]
    return file_page.table(header, rows, (2, 4, 5, 6))


def status_badge(entry: Mapping[str, Any]) -> str:
    word, tint = STATUS[entry["status"]]
    if entry["severity"]:
        word = f"{word}, {entry['severity']}"
        tint = "bad" if entry["severity"] == "critical" else "warn"
    return file_page.badge(word, tint)


def sentence(worst: Drawn) -> str:
    """What was measured in the worst window, in words; HTML."""
    entry, where = worst.entry, file_page.text(window_words(worst.window))
    decisive = entry["metrics"].get(entry["metric"])
    if not decisive or decisive.get("value") is None:
        why = "; ".join(entry["reasons"]) or "no distance could be computed"
        return f"{where}: {file_page.text(why, 300)}."
    said = f"{measure_words(entry['metric'])} {number(decisive['value'])} in {where}"
    if decisive.get("threshold") is not None:
        said += f", limit {number(decisive['threshold'])}"
    if entry["effect"] is not None:
        said += f": {number(entry['effect'])} times the limit"
    if entry["status"] == "ok" and (entry["effect"] or 0) > 1:
        why = "; ".join(entry["reasons"]) or "chance or the reference's own windows go as far"
        said += f". No drift, because {file_page.text(why, 300)}"
    return said + "."


def missing(worst: Drawn, reference: file_profiles.Reference, column: Column) -> str:
    """Rows and missing values of both sides."""
    theirs = reference.profiles.get((column.slice, column.name))
    parts = []
    for said, one in (("Window", worst.profile), ("reference", theirs)):
        if one is not None and one.rows:
            share = f", {one.nulls / one.rows:.1%} missing" if one.nulls else ""
            parts.append(f"{said}: {one.rows:,} rows{share}")
    return "; ".join(parts) + "." if parts else "No rows."


def explained(columns: Sequence[Column]) -> str:
    """The measures that the report names, one by one."""
    used = dict.fromkeys(c.worst.entry["metric"] for c in columns if c.worst.entry["metric"])
    return "".join(
        f"<dt>{MEASURES[metric][0]}</dt><dd>{MEASURES[metric][1].capitalize()}.</dd>"
        for metric in used
        if metric in MEASURES
    )
