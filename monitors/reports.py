"""Evidently's report on one window and its baseline, for a person who asks for it.

Runs in a job's process alone: the import takes seconds. Methods and thresholds are set here, since
Evidently chooses others by the number of rows; the numbers that alert are the monitor's own.

Evidently writes names and values into a script of its page without care for what they hold: a
category `</script><script>...` would run in the reader's browser. So none with a `<` gets there.
"""

import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from capture import database, errors, names
from capture.settings import Settings
from monitors import cells, jobs, kept, report_rows, state, watch, watched

MOST_ROWS = 20_000
MOST_COLUMNS = 100
MOST_CATEGORIES = 50
OTHERS = "(other values)"
FILE = "report.html"
NUMERIC_METHOD, CATEGORICAL_METHOD, THRESHOLD = "wasserstein", "jensenshannon", 0.1
# What Evidently's page may do where it is opened: nothing outside of itself.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


def run(
    settings: Settings, arguments: Mapping[str, Any], progress: jobs.Progress
) -> dict[str, Any]:
    """Job `report`. arguments: `table`, a baseline's `spec`, and `window` [start, end],
    `served_entity`, `slice` [expression, value], each of which may be null."""
    monitor, recorded = _monitor(settings, arguments["table"])
    shape = watched.Shape.of(monitor.config, recorded)
    uri = names.table_path(settings.tables_root, names.table_name(monitor.table_name))
    span = _span(arguments["window"])
    version = arguments["served_entity"]
    wanted = report_rows.Wanted(
        shape.time_column,
        span,
        None if version is None or shape.model_id_col is None else (shape.model_id_col, version),
        None if arguments["slice"] is None else tuple(arguments["slice"]),
    )
    current = report_rows.sample(
        uri, wanted, MOST_ROWS, lambda done, of: progress.tell("reading the window", done, of)
    )
    if not current.found:
        raise errors.InvalidParameter("window: the table has no rows in it.")
    reference = _reference(settings, uri, arguments["baseline"], wanted, progress)
    columns = _columns(settings, monitor, shape, reference.rows, current.rows)
    sides = Sides.of(reference.rows, current.rows, columns)
    progress.tell("loading Evidently, which takes some seconds")
    drifted = _write(
        progress.folder / FILE, sides, _heading(arguments, reference, current), progress
    )
    return {
        "file": FILE,
        "table": monitor.table_name,
        "window": arguments["window"],
        "baseline": arguments["baseline"],
        "rows": {"current": current.found, "baseline": reference.found},
        "sampled": {"current": current.rows.height, "baseline": reference.rows.height},
        "columns": len(sides.numeric) + len(sides.categorical),
        "left_out": sides.left_out,
        "drifted": drifted,
    }


def _monitor(settings: Settings, table: str) -> tuple[state.Monitor, bool]:
    engine = database.open_engine(settings)
    try:
        with database.reading(engine) as connection:
            return state.monitor(connection, table), watch.recorded(connection, table)
    finally:
        engine.dispose()


def _span(window: Sequence[str] | None) -> report_rows.Span | None:
    if window is None:
        return None
    start, end = (datetime.fromisoformat(side) for side in window)
    return start, end


def _reference(
    settings: Settings,
    uri: str,
    spec: Mapping[str, Any],
    wanted: report_rows.Wanted,
    progress: jobs.Progress,
) -> report_rows.Sample:
    """The rows that the window is compared with: those of all versions where the baseline does not
    tell versions apart."""

    def step(done: int, of: int) -> None:
        progress.tell("reading the baseline", done, of)

    span: report_rows.Span | None = None
    if spec["kind"] == "training":
        uri = names.table_path(settings.tables_root, names.table_name(spec["table"]))
    elif spec["kind"] == "window":
        span = _span((spec["start"], spec["end"]))
    else:
        if wanted.span is None:
            raise errors.InvalidParameter("baseline: a snapshot has no window before it.")
        start, end = wanted.span
        span = (start - spec["windows"] * (end - start), start)
    of = report_rows.Wanted(wanted.time_column, span, wanted.version, wanted.slice)
    found = report_rows.sample(uri, of, MOST_ROWS, step)
    if not found.found and wanted.version is not None:
        of = report_rows.Wanted(wanted.time_column, span, None, wanted.slice)
        found = report_rows.sample(uri, of, MOST_ROWS, step)
    if not found.found:
        raise errors.InvalidParameter("baseline: there are no rows to compare with.")
    return found


def _columns(
    settings: Settings,
    monitor: state.Monitor,
    shape: watched.Shape,
    *frames: pl.DataFrame,
) -> dict[str, watched.Column]:
    """The watched columns, as the monitor decided; a monitor that has not run yet decides now."""
    manifest = kept.read_manifest(kept.folder_of(settings, monitor.table_id))
    known = (
        {} if manifest is None else {n: watched.Column(**c) for n, c in manifest.columns.items()}
    )
    for frame in frames:
        known |= watched.choose(frame, shape, known)
    return {name: column for name, column in known.items() if column.watched}


# --- what Evidently is given: pure ---------------------------------------------------------------


class Sides:
    """Columns of both sides with harmless names and values. left_out: column -> why."""

    def __init__(self) -> None:
        self.reference: dict[str, pl.Series] = {}
        self.current: dict[str, pl.Series] = {}
        self.numeric: list[str] = []
        self.categorical: list[str] = []
        self.left_out: dict[str, str] = {}

    @classmethod
    def of(
        cls,
        reference: pl.DataFrame,
        current: pl.DataFrame,
        columns: Mapping[str, watched.Column],
    ) -> "Sides":
        made = cls()
        for name, column in columns.items():
            if name not in reference.columns or name not in current.columns:
                side = "baseline" if name not in reference.columns else "window"
                made.left_out[name] = f"the {side} does not have it"
            elif len(made.numeric) + len(made.categorical) >= MOST_COLUMNS:
                made.left_out[name] = f"a report holds {MOST_COLUMNS} columns"
            else:
                made._add(name, column, reference[name], current[name])
        if not made.numeric and not made.categorical:
            raise errors.InvalidParameter(
                "window: no watched column has values on both sides; there is nothing to compare."
            )
        return made

    def _add(
        self, name: str, column: watched.Column, reference: pl.Series, current: pl.Series
    ) -> None:
        sides = [watched.as_kind(side, column) for side in (reference, current)]
        numeric = column.kind == "numeric"
        sides = [_numbers(side) for side in sides] if numeric else _categories(*sides)
        if any(side.null_count() == len(side) for side in sides):
            self.left_out[name] = "one side has no values"
            return
        shown = harmless(name)
        while shown in self.reference:
            shown += "'"
        (self.numeric if numeric else self.categorical).append(shown)
        self.reference[shown], self.current[shown] = sides


def harmless(text: str) -> str:
    """A name or value that can stand in a script of a page."""
    return text.replace("<", "‹").replace(">", "›").replace("\u2028", " ").replace("\u2029", " ")


def _numbers(values: pl.Series) -> pl.Series:
    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite().fill_null(False), None)


def _categories(reference: pl.Series, current: pl.Series) -> list[pl.Series]:
    """Both sides as text with the heaviest values; the rest is one value: a page of ten thousand
    bars says nothing."""
    texts = [cells.texts(side).rename("value") for side in (reference, current)]
    counts = pl.concat(texts).drop_nulls().value_counts(sort=True, name="n")
    heaviest = counts.sort("n", "value", descending=[True, False])["value"].head(MOST_CATEGORIES)
    mapped = {value: harmless(value)[:100] for value in heaviest}
    return [
        side.replace_strict(mapped, default=_others(side), return_dtype=pl.String) for side in texts
    ]


def _others(side: pl.Series) -> pl.Series:
    return pl.select(pl.when(side.is_not_null()).then(pl.lit(OTHERS))).to_series()


# --- Evidently -----------------------------------------------------------------------------------


def _write(path: Path, sides: Sides, heading: str, progress: jobs.Progress) -> list[str]:
    """Write the page; gives the columns that Evidently finds drifted, farthest first."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    progress.tell("comparing")
    known = DataDefinition(numerical_columns=sides.numeric, categorical_columns=sides.categorical)
    columns = [*sides.numeric, *sides.categorical]
    preset = DataDriftPreset(
        columns=columns,
        drift_share=1 / len(columns),  # by itself a page with drifted columns may say "no drift"
        num_method=NUMERIC_METHOD,
        num_threshold=THRESHOLD,
        cat_method=CATEGORICAL_METHOD,
        cat_threshold=THRESHOLD,
    )
    snapshot = Report([preset]).run(
        Dataset.from_pandas(pl.DataFrame(sides.current).to_pandas(), known),
        Dataset.from_pandas(pl.DataFrame(sides.reference).to_pandas(), known),
    )
    progress.tell("writing")
    page = snapshot.get_html_str(as_iframe=False)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    page = page.replace("<head>", f"<head>{policy}", 1).replace("<body>", f"<body>{heading}", 1)
    path.write_text(page, encoding="utf-8")
    return _drifted(snapshot.dict())


def _drifted(found: Mapping[str, Any]) -> list[str]:
    values = {
        metric["config"]["column"]: float(metric["value"])
        for metric in found["metrics"]
        if metric["config"].get("type", "").endswith("ValueDrift")
    }
    return sorted((n for n, v in values.items() if v >= THRESHOLD), key=lambda n: (-values[n], n))


def _spoken(moment: str | None) -> str:
    """A time in UTC, to the minute."""
    return "" if moment is None else datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M")


def _heading(
    arguments: Mapping[str, Any], reference: report_rows.Sample, current: report_rows.Sample
) -> str:
    """What is compared with what, on top of the page."""

    def rows(of: report_rows.Sample) -> str:
        sampled = f", of them {of.rows.height:,} by chance" if of.rows.height < of.found else ""
        return f"{of.found:,} rows{sampled}"

    spec, window = arguments["baseline"], arguments["window"]
    said = {
        "training": f"table {spec.get('table')}",
        "window": f"the rows {_spoken(spec.get('start'))} to {_spoken(spec.get('end'))}",
        "previous": "the window before",
        "rolling": f"the {spec.get('windows')} windows before",
    }[spec["kind"]]
    where = "all rows" if window is None else f"{_spoken(window[0])} to {_spoken(window[1])} UTC"
    of = "".join(
        f", {what} {shown}"
        for what, shown in (
            ("version", arguments["served_entity"]),
            ("slice", " = ".join(arguments["slice"]) if arguments["slice"] else None),
        )
        if shown
    )
    lines = (
        f"{arguments['table']}: {where}{of}",
        f"Current: {rows(current)}. Reference: {said}, {rows(reference)}.",
        f"Numbers: {NUMERIC_METHOD} distance over the reference's standard deviation; categories: "
        f"Jensen-Shannon distance; drift from {THRESHOLD}. Made by Evidently "
        f"{metadata.version('evidently')} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
    )
    first, *others = (html.escape(line) for line in lines)
    style = "font-family:sans-serif;padding:12px 24px;border-bottom:1px solid #ddd"
    return f'<div style="{style}"><b>{first}</b><br>{"<br>".join(others)}</div>'
