"""Point-in-time joins: the features that were known at a row's time, and no later ones.

Keys are compared in the types of the table, by the rules that `capture.snapshots` has for a
request's values, so that offline and online agree.
"""

from datetime import datetime, timedelta

import deltalake
import polars as pl

from capture import errors, publisher, snapshots
from serving.features import spec as specs

ROW, TIME, FOUND = "__row", "__time", "__found"
TEXT = (pl.String, pl.Categorical, pl.Enum)


def join(
    frame: pl.DataFrame,
    lookup: specs.TableLookup,
    table: deltalake.DeltaTable,
    definition: publisher.Definition,
) -> pl.DataFrame:
    """The frame with the lookup's columns, rows in their order."""
    keys = [f"__key{place}" for place in range(len(lookup.lookup_key))]
    needed = dict.fromkeys((*definition.identity, *lookup.features))
    rows = publisher.read(table, list(needed))
    wanted = [
        pl.col(name).alias(key) for name, key in zip(definition.primary_keys, keys, strict=True)
    ]
    wanted += [
        pl.col(name).alias(output)
        for name, output in zip(lookup.features, lookup.outputs, strict=True)
    ]
    wanted.append(pl.lit(True).alias(FOUND))
    left = frame.with_columns(
        as_key(frame[name], rows.schema[primary]).alias(key)
        for name, primary, key in zip(lookup.lookup_key, definition.primary_keys, keys, strict=True)
    )
    if lookup.timestamp_key is None:
        right = publisher.newest(rows, definition).select(wanted)
        joined = left.join(right, on=keys, how="left", maintain_order="left")
    else:
        assert definition.time_column is not None
        times = in_utc(rows[definition.time_column]).alias(TIME)
        right = rows.select(*wanted, times).drop_nulls([*keys, TIME])
        joined = _as_of(left, right, keys, in_utc(left[lookup.timestamp_key]), lookup)
    for feature, output in zip(lookup.features, lookup.outputs, strict=True):
        if feature in lookup.defaults:
            default = pl.lit(lookup.defaults[feature]).cast(joined.schema[output])
            joined = joined.with_columns(
                pl.when(pl.col(FOUND).is_null()).then(default).otherwise(output).alias(output)
            )
    return joined.drop(*keys, FOUND)


def _as_of(
    left: pl.DataFrame,
    right: pl.DataFrame,
    keys: list[str],
    times: pl.Series,
    lookup: specs.TableLookup,
) -> pl.DataFrame:
    """The newest row of each key at or before a row's time. Of rows that tie, the last written."""
    tolerance = (
        None if lookup.lookback_seconds is None else timedelta(seconds=lookup.lookback_seconds)
    )
    return (
        left.with_columns(times.alias(TIME))
        .with_row_index(ROW)
        .sort(TIME)
        .join_asof(
            right.sort(TIME, maintain_order=True),
            on=TIME,
            by=keys,
            strategy="backward",
            tolerance=tolerance,
            check_sortedness=False,
        )
        .sort(ROW)
        .drop(ROW, TIME)
    )


def as_key(series: pl.Series, kind: pl.DataType) -> pl.Series:
    """Values in the type of a key column; null where a value does not fit it.

    The rules of `capture.snapshots.key_packers`, for a whole column."""
    given = series.dtype
    key_kind = publisher.key_kind(series.name, kind)
    if key_kind == "string" and (given.is_integer() or given in TEXT):
        return series.cast(kind)
    if key_kind == "int64" and given.is_integer():
        return series.cast(kind, strict=False)
    if key_kind == "int64" and given.is_float():
        whole = series.is_finite() & (series == series.floor())
        return series.set(~whole.fill_null(False), None).cast(kind, strict=False)
    if key_kind == "int64" and given in TEXT:
        digits = series.cast(pl.String).str.contains("^[+-]?[0-9]+$")
        return series.cast(pl.String).set(~digits.fill_null(False), None).cast(kind, strict=False)
    if key_kind == "double" and (given.is_numeric() or given in TEXT):
        return series.cast(kind, strict=False).fill_nan(None)
    if key_kind == "bool" and given == pl.Boolean:
        return series
    if key_kind == "timestamp" and (given.is_temporal() or given in TEXT):
        return _like(in_utc(series), kind)
    if key_kind == "date" and (given.is_temporal() or given in TEXT):
        return in_utc(series).dt.date()
    return pl.Series(series.name, [None] * len(series), dtype=kind)


def in_utc(series: pl.Series) -> pl.Series:
    """Times as microseconds in UTC: ISO 8601 text is read, a time without zone is taken as UTC."""
    kind = series.dtype
    if kind in TEXT:
        texts = series.cast(pl.String)
        known = {text: _instant(text) for text in texts.unique().drop_nulls()}
        return texts.replace_strict(known, default=None, return_dtype=pl.Datetime("us", "UTC"))
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        return series.dt.convert_time_zone("UTC").cast(pl.Datetime("us", "UTC"))
    if kind.is_temporal() or kind == pl.Null:
        return series.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    raise errors.InvalidParameter(f"Column '{series.name}' of type {kind} is no time.")


def _instant(text: str) -> datetime | None:
    try:
        return snapshots.aware(datetime.fromisoformat(text))
    except ValueError:
        return None


def _like(times: pl.Series, kind: pl.DataType) -> pl.Series:
    """Times in UTC, in the unit and zone of a key column."""
    assert isinstance(kind, pl.Datetime)
    if kind.time_zone is None:
        return times.dt.replace_time_zone(None).cast(kind)
    return times.dt.convert_time_zone(kind.time_zone).cast(kind)


def kind_of(kind: pl.DataType) -> str:
    """Kind of a column as the record knows it: double, int64, string, bool or timestamp."""
    if kind == pl.Boolean:
        return "bool"
    if kind.is_integer():
        return "int64"
    if kind.is_numeric():
        return "double"
    return "timestamp" if kind in (pl.Datetime, pl.Date) else "string"
