"""Commands on files, without any server: `inferlake drift` and `inferlake quality`.

Modules that compute are imported when a command runs, so that `--help` is instant. Exit code 0:
done, drift found or not; 1: a file cannot be read; 2: wrong use.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from monitors import file_page, files, portions

Reference = Annotated[
    Path, typer.Argument(help="Parquet file or folder, CSV file or Delta table to compare with.")
]
Current = Annotated[
    list[Path], typer.Argument(help="What is compared; several are read as one, in this order.")
]
WindowRows = Annotated[
    int | None, typer.Option(min=1, help="So many rows to a window.", show_default=False)
]
WindowBy = Annotated[
    str | None, typer.Option(help="A window for each value of a column.", show_default=False)
]
Timestamp = Annotated[
    str | None, typer.Option(help="Windows of time, by this column.", show_default=False)
]
Granularity = Annotated[
    str | None,
    typer.Option(
        help='How long they are: "1 hour", "1 day", "2 weeks", "1 month", ...',
        show_default="1 day",
    ),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write JSON there instead; - is standard output.", metavar="OUT"),
]

Html = Annotated[
    Path | None,
    typer.Option("--html", help="Also a report for a browser, one file.", metavar="OUT"),
]


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("drift")(drift)
    app.command("quality")(quality)


def drift(
    reference: Reference,
    current: Current,
    window_rows: WindowRows = None,
    window_by: WindowBy = None,
    timestamp: Timestamp = None,
    granularity: Granularity = None,
    numeric: Annotated[
        str | None, typer.Option(help="Columns to compare as numbers: a,b", show_default=False)
    ] = None,
    categorical: Annotated[
        str | None, typer.Option(help="Columns to compare as categories: c,d", show_default=False)
    ] = None,
    slice: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPR", help="Also each value of an expression; repeat it."),
    ] = None,
    json: Json = None,
    html: Html = None,
) -> None:
    """How far the columns of files are from those of a reference, the worst first."""
    with _failures():
        from monitors import file_profiles, file_tables, files, portions, slices

        windowing = _windowing(window_rows, window_by, timestamp, granularity)
        as_texts = _names(categorical)
        sides = (files.open_files([reference], as_texts), files.open_files(current, as_texts))
        _check_there(windowing, sides[1])
        apart = windowing.columns
        columns = file_profiles.choose(*sides, _names(numeric), as_texts, apart)
        shared = [name for name in sides[0].schema if name in sides[1].schema]
        parsed = slices.parse(slice or [], shared)
        slicing = portions.Slicing(parsed, {}).heaviest(
            lambda cut: (batch for side in sides for batch in side.batches(cut))
        )
        with _pool() as pool, _progress(sides) as seen:
            # The comparison takes a third of a second to import: while the first rows are read.
            later = pool.submit(importlib.import_module, "monitors.file_drift")
            plan = file_profiles.Plan(*sides, columns, windowing, slicing, pool, seen)
            known = plan.of_reference()
            later.result()
            from monitors import file_drift, file_report

            report = file_report.Drift(_sides(reference, current), known) if html else None
            comparison = file_drift.Comparison.of(known, columns)
            found = (
                _reported(report, entry, window.measured)
                for window in plan.of_windows()
                for entry in comparison.entries(window, windowing)
            )
            lines: list[str] = []
            if json is not None:
                _write(json, known.rows, found)
            else:
                summary = file_tables.Drift(known.rows)
                for entry in found:
                    summary.add(entry)
                lines = list(summary.lines())
        if html is not None and report is not None:
            _write_page(html, report.page())
        print("\n".join(lines), end="\n" if lines else "")


def quality(
    reference: Reference,
    current: Current,
    label: Annotated[str, typer.Option(help="Column of the truth.")],
    prediction: Annotated[str, typer.Option(help="Column of the answer.")],
    score: Annotated[
        str | None, typer.Option(help="Column of the score, 0 to 1.", show_default=False)
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="File of labels that came later.", show_default=False)
    ] = None,
    id: Annotated[
        str | None, typer.Option(help="Column that joins them with the rows.", show_default=False)
    ] = None,
    problem: Annotated[
        str | None,
        typer.Option(help="classification or regression", show_default="by the labels"),
    ] = None,
    window_rows: WindowRows = None,
    window_by: WindowBy = None,
    timestamp: Timestamp = None,
    granularity: Granularity = None,
    json: Json = None,
    html: Html = None,
) -> None:
    """How good the answers in files are where labels are there, and are expected to be without."""
    with _failures():
        from capture import errors
        from monitors import file_quality, file_quality_report, file_tables, files

        if (labels is None) != (id is None):
            raise errors.InvalidParameter("--labels and --id belong together.")
        if problem not in (None, *file_quality.METRICS):
            raise errors.InvalidParameter(
                f"--problem is classification or regression, not '{problem}'."
            )
        windowing = _windowing(window_rows, window_by, timestamp, granularity)
        columns = file_quality.Columns(label, prediction, score, id)
        sides = (files.open_files([reference]), files.open_files(current))
        _check_there(windowing, sides[1])
        known_labels = None
        if labels is not None:
            known_labels = file_quality.read_labels(files.open_files([labels]), columns)
        if label not in sides[0].schema:
            raise errors.InvalidParameter(f"The reference has no column '{label}'.")
        kind = problem or file_quality.problem_of(sides[0], label)
        with _pool() as pool, _progress(sides) as seen:
            plan = file_quality.Comparison(
                *sides, columns, kind, known_labels, windowing, pool, seen
            )
            known = plan.measured_reference()
            rows = known.counts.rows
            report = file_quality_report.Quality(_sides(reference, current), kind, rows)
            found = (_reported(report, window) for window in plan.windows(known))
            lines: list[str] = []
            if json is not None:
                _write(json, rows, found)
            else:
                lines = list(file_tables.quality(kind, rows, found))
        if html is not None:
            _write_page(html, report.page())
        print("\n".join(lines), end="\n" if lines else "")


@contextmanager
def _failures() -> Iterator[None]:
    """Our errors as one sentence on standard error: wrong use is 2, what cannot be read is 1."""
    from capture import errors

    try:
        yield
    except errors.InferlakeError as error:
        print(error.message, file=sys.stderr)
        wrong_use = isinstance(error, errors.InvalidParameter)
        raise typer.Exit(2 if wrong_use else 1) from None


def _windowing(
    rows: int | None, column: str | None, timestamp: str | None, granularity: str | None
) -> "portions.Windowing":
    from capture import errors
    from monitors import portions, windows

    if sum(given is not None for given in (rows, column, timestamp)) > 1:
        raise errors.InvalidParameter(
            "--window-rows, --window-by and --timestamp exclude one another."
        )
    if granularity is not None and timestamp is None:
        raise errors.InvalidParameter("--granularity goes with --timestamp.")
    try:
        width = windows.check(granularity or "1 day")
    except ValueError as error:
        raise errors.InvalidParameter(str(error)) from None
    return portions.Windowing(rows, column, timestamp, width)


def _check_there(windowing: "portions.Windowing", current: "files.Source") -> None:
    from capture import errors
    from monitors import files

    for name in windowing.columns:
        if name not in current.schema:
            raise errors.InvalidParameter(
                f"Column '{name}' is not there; there are {', '.join(current.schema)[:500]}."
            )
    if windowing.time_column is not None and not files.has_times(current, windowing.time_column):
        raise errors.InvalidParameter(f"Column '{windowing.time_column}' holds no times.")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()] if text else []


@contextmanager
def _pool() -> "Iterator[Executor]":
    from concurrent.futures import ThreadPoolExecutor

    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
    with ThreadPoolExecutor(workers) as pool:
        yield pool


@contextmanager
def _progress(sides: "tuple[files.Source, ...]") -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where somebody looks at it."""
    if not sys.stderr.isatty():
        yield lambda rows: None
        return
    from rich import console, progress

    known = [side.rows for side in sides]
    total = None if None in known else sum(rows or 0 for rows in known)
    with progress.Progress(console=console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda rows: bar.advance(task, rows)


def _sides(reference: Path, current: list[Path]) -> tuple[str, str]:
    """What both sides are called in a report."""
    return str(reference), ", ".join(map(str, current))


def _reported(report: Any, window: dict[str, Any], *more: Any) -> dict[str, Any]:
    """The window, once the report has taken it in."""
    if report is not None:
        report.add(window, *more)
    return window


def _write(path: Path, reference_rows: int, windows: Iterator[dict[str, Any]]) -> None:
    """The whole JSON, a window at a time."""
    if str(path) == "-":
        _write_to(sys.stdout.buffer, reference_rows, windows)
        sys.stdout.buffer.flush()
        return
    with _whole(path) as out:
        _write_to(out, reference_rows, windows)


def _write_page(path: Path, page: "file_page.Page") -> None:
    with _whole(path) as out:
        for part in page.written():
            out.write(part.encode("utf-8", "replace"))


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that appears when it is complete."""
    from capture import errors

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            yield out
        part.replace(path)
    except OSError as error:
        raise errors.Unavailable(f"'{path}' cannot be written: {error.strerror}.") from None
    finally:
        part.unlink(missing_ok=True)


def _write_to(out: BinaryIO, reference_rows: int, windows: Iterator[dict[str, Any]]) -> None:
    import orjson

    out.write(b'{"reference":{"rows":%d},"windows":[' % reference_rows)
    for number, window in enumerate(windows):
        out.write(b",\n" if number else b"\n")
        out.write(orjson.dumps(window, option=orjson.OPT_SERIALIZE_NUMPY))
    out.write(b"\n]}\n")
