"""Recorded tables as frames: typed rows, labels, both together.

For monitors and for the child that answers reads; never loaded by a gateway.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import polars as pl

from capture import labels as label_rows
from capture import listings, names, rows, unpack
from capture.settings import Settings

_EMPTY = pl.from_arrow(rows.PAYLOAD_SCHEMA.empty_table())
assert isinstance(_EMPTY, pl.DataFrame)
PAYLOAD_TYPES = _EMPTY.schema
UNPACKED_TYPES = pl.Schema(
    {
        **{name: PAYLOAD_TYPES.get(name, pl.Int32) for name in unpack.FIXED},
        "prediction": pl.Float64,
        "score": pl.Float64,
        "unpack_errors": pl.List(pl.String),
    }
)


def scan(
    settings: Settings,
    full_name: str,
    start: datetime | None = None,
    end: datetime | None = None,
) -> pl.LazyFrame | None:
    """A table's newest version; None if there is no such table. With times, of a table that has a
    `request_time`: the files alone that may hold `start <= request_time < end`, unfiltered."""
    listing = listings.of(settings, full_name)
    return None if listing is None else listing.scan(start, end)


def sibling(full_name: str, suffix: str) -> str:
    """The table beside a recorded one, whichever of them was named."""
    return str(names.table_name(full_name).sibling(suffix))


def unpacked(
    settings: Settings,
    full_name: str,
    start: datetime | None = None,
    end: datetime | None = None,
    columns: Sequence[str] | None = None,
    time_column: str = "request_time",
) -> pl.LazyFrame:
    """Typed rows with `start <= time < end`, times aware; no table yet: no rows.

    `prediction`, `score` and `unpack_errors` are always there. full_name: of the payload table or
    one beside it. Rows are pruned by day where the time is `request_time`.
    """
    limits = (start, end) if time_column == "request_time" else (None, None)
    found = scan(settings, sibling(full_name, "unpacked"), *limits)
    frame = pl.LazyFrame(schema=UNPACKED_TYPES) if found is None else found
    known = frame.collect_schema()
    missing = [name for name in UNPACKED_TYPES if name not in known]
    frame = frame.with_columns(pl.lit(None, UNPACKED_TYPES[name]).alias(name) for name in missing)
    frame = frame.filter(*within(start, end, time_column))
    return frame if columns is None else frame.select(columns)


def within(
    start: datetime | None, end: datetime | None, time_column: str = "request_time"
) -> list[pl.Expr]:
    """Conditions for `start <= time < end`; by `request_time` they name the days, too, so that
    whole partitions are left out."""
    time, day = pl.col(time_column), pl.col("request_date")
    wanted = [pl.lit(True)]
    if start is not None:
        wanted.append(time >= start)
    if end is not None:
        wanted.append(time < end)
    if time_column == "request_time":
        wanted += [] if start is None else [day >= start.astimezone(UTC).date()]
        wanted += [] if end is None else [day <= end.astimezone(UTC).date()]
    return wanted


def labels(
    settings: Settings,
    full_name: str,
    until: datetime | None = None,
    of: pl.DataFrame | None = None,
) -> pl.LazyFrame:
    """The newest label of each request row, among those with `label_time <= until`.

    of: only labels that may be of these few rows are looked at."""
    found = scan(settings, sibling(full_name, "labels"))
    if found is None:
        empty = pl.from_arrow(rows.LABEL_SCHEMA.empty_table())
        assert isinstance(empty, pl.DataFrame)
        found = empty.lazy()
    if until is not None:
        found = found.filter(pl.col("label_time") <= until)
    if of is not None:
        ids = ("databricks_request_id", "client_request_id")
        found = found.filter(
            pl.any_horizontal(pl.col(name).is_in(of[name].drop_nulls().to_list()) for name in ids)
        )
    return label_rows.newest(found)


def joined(
    settings: Settings,
    full_name: str,
    until: datetime | None = None,
    time_column: str = "request_time",
) -> pl.DataFrame:
    """Unpacked rows up to a time with what was known of their truth by then.

    Adds `label` (double, or text; booleans are 1 and 0) and `label_time`; null where none has come.
    A label goes by databricks_request_id, else by client_request_id, and row_index.
    """
    frame = unpacked(settings, full_name, time_column=time_column)
    if until is not None:
        frame = frame.filter(pl.col(time_column) <= until)
    return with_labels(frame.collect(), labels(settings, full_name, until).collect())


def labelled(
    settings: Settings,
    full_name: str,
    frame: pl.DataFrame,
    kind: pl.DataType | None = None,
) -> pl.DataFrame:
    """A few rows with their newest labels, in their order; kind: as for `with_labels`."""
    return with_labels(frame, labels(settings, full_name, of=frame).collect(), kind)


def with_labels(
    frame: pl.DataFrame, newest: pl.DataFrame, kind: pl.DataType | None = None
) -> pl.DataFrame:
    """Rows with the columns `label` and `label_time`, in their order. newest: as `labels` gives;
    kind: type of `label` where rows go on that are read later, else by these labels."""
    parsed = newest.with_columns(label_values(newest["label"], kind))
    found = frame
    for id_column in ("databricks_request_id", "client_request_id"):
        by = [id_column, "row_index"]
        known = parsed.drop_nulls(id_column)
        if id_column == "client_request_id":
            known = known.filter(pl.col("databricks_request_id").is_null())
        known = known.select(
            *by,
            pl.col("label").alias(f"label_by_{id_column}"),
            pl.col("label_time").alias(f"label_time_by_{id_column}"),
        )
        found = found.join(known, on=by, how="left", maintain_order="left")
    return found.with_columns(
        pl.coalesce(f"{name}_by_databricks_request_id", f"{name}_by_client_request_id").alias(name)
        for name in ("label", "label_time")
    ).drop(
        f"{name}_by_{id_column}"
        for name in ("label", "label_time")
        for id_column in ("databricks_request_id", "client_request_id")
    )


def label_kind(settings: Settings, full_name: str) -> pl.DataType:
    """Type of `label` for all rows of a table: text if one of the labels ever was, else double."""
    found = scan(settings, sibling(full_name, "labels"))
    if found is None:
        return pl.Float64()
    texts = found.select(pl.col("label").str.starts_with('"').any()).collect().item()
    return pl.String() if texts else pl.Float64()


def label_values(texts: pl.Series, kind: pl.DataType | None = None) -> pl.Series:
    """JSON texts of labels as one column: double if all are numbers or booleans, else text.

    `null` is no label: it takes back the one before. kind: double or text for certain."""
    known = _known(texts)
    if kind == pl.Float64 or (kind is None and _are_numbers(known)):
        numbers = {text: float(value) for text, value in known.items()}
        return texts.replace_strict(numbers, default=None, return_dtype=pl.Float64)
    words = {text: value if isinstance(value, str) else text for text, value in known.items()}
    return texts.replace_strict(words, default=None, return_dtype=pl.String)


def _known(texts: pl.Series) -> dict[str, Any]:
    values = {text: orjson.loads(text) for text in texts.unique().drop_nulls()}
    return {text: value for text, value in values.items() if value is not None}


def _are_numbers(known: Mapping[str, Any]) -> bool:
    return all(isinstance(value, int | float) for value in known.values())
