"""Recorded requests as a file: Parquet or CSV, written stretch by stretch so that memory stays
bounded, up to a number of rows that is told."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow.parquet as pq

from capture import errors, filters, recorded, selection
from capture.settings import Settings

MOST_ROWS = 1_000_000
STRETCH_ROWS = 65_536
FORMULA = r"^[=+\-@\t\r]"  # what spreadsheets would run


class Writer(Protocol):
    """Takes frames of the same columns and types, one after the other."""

    def write(self, frame: pl.DataFrame) -> None: ...

    def close(self) -> None: ...


def export(
    settings: Settings, arguments: Mapping[str, Any], most_rows: int = MOST_ROWS
) -> dict[str, Any]:
    """Write unpacked rows with their labels into a file, oldest first: {"path", "rows"}.

    arguments: `format` (parquet | csv), `path` of a file that is not there yet, `table` or
    `endpoint`, and the filters of `filters.parse`. In CSV, times are RFC 3339, and a text that a
    spreadsheet would run as a formula begins with an apostrophe. Raises InvalidParameter where more
    than `most_rows` rows pass.
    """
    given = dict(arguments)
    form, path = given.pop("format", None), Path(given.pop("path"))
    if form not in WRITERS:
        raise errors.InvalidParameter(
            f"format: '{str(form)[:100]}' is not allowed; use {' or '.join(WRITERS)}."
        )
    tables = selection.tables(settings, given)
    if len(tables) != 1:
        raise errors.InvalidParameter("An export is of one endpoint; name it with endpoint=.")
    full_name = tables[0].full_name
    passing = selection.Selection(settings, full_name, filters.parse(given))
    writer = WRITERS[form](path)
    try:
        return {"path": str(path), "rows": _write(settings, full_name, passing, writer, most_rows)}
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        writer.close()


def _write(
    settings: Settings,
    full_name: str,
    passing: selection.Selection,
    writer: Writer,
    most_rows: int,
) -> int:
    kind = recorded.label_kind(settings, full_name)
    written = 0
    writer.write(recorded.labelled(settings, full_name, passing.nothing, kind))
    for within in reversed(list(passing.back(first_rows=STRETCH_ROWS, growth=1))):
        rows = passing.rows(within).sort(selection.NEWEST_FIRST).collect()
        written += len(rows)
        if written > most_rows:
            raise errors.InvalidParameter(
                f"More than {most_rows:,} rows match; an export holds at most so many. Narrow "
                "them with from= and to=, or read the Delta table itself."
            )
        if len(rows):
            writer.write(recorded.labelled(settings, full_name, rows, kind))
    return written


class ParquetFile:
    """Rows as Parquet; types as in the table."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: pq.ParquetWriter | None = None

    def write(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow()
        if self._file is None:
            self._file = pq.ParquetWriter(
                self._path, table.schema, compression="zstd", compression_level=1
            )
        if len(table):
            self._file.write_table(table)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class CsvFile:
    """Rows as CSV with one line of names, in which no cell is a formula."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._has_names = False

    def write(self, frame: pl.DataFrame) -> None:
        _harmless(frame).write_csv(self._file, include_header=not self._has_names)
        self._has_names = True

    def close(self) -> None:
        self._file.close()


def _harmless(frame: pl.DataFrame) -> pl.DataFrame:
    """Cells and names as a spreadsheet may have them."""
    columns = []
    for name, kind in frame.schema.items():
        column = pl.col(name)
        if isinstance(kind, pl.List):
            column = column.cast(pl.List(pl.String)).list.join("; ")
        if isinstance(kind, pl.Datetime):
            column = column.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
        if isinstance(kind, pl.List | pl.String):
            column = pl.when(column.str.contains(FORMULA)).then("'" + column).otherwise(column)
        runs = name[:1] in tuple("=+-@\t\r")
        columns.append(column.alias(f"'{name}" if runs else name))
    return frame.select(columns)


WRITERS: dict[str, Callable[[Path], Writer]] = {"parquet": ParquetFile, "csv": CsvFile}
