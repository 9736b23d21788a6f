"""The cells of a column as numbers, texts or instants, whatever type they came in. Never raises."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def numeric(dtype: pl.DataType) -> bool:
    """True for numbers and booleans."""
    return dtype.is_numeric() or dtype == pl.Boolean


def column(rows: pl.DataFrame, name: str) -> pl.Series:
    """The column, all null where it is absent."""
    if name in rows.columns:
        return rows[name]
    return pl.Series(name, [None]).new_from_index(0, len(rows)).alias(name)


def instants(series: pl.Series) -> pl.Series:
    """Microseconds since 1970 UTC as Int64 (naive = UTC); null where the value is no time."""
    if isinstance(series.dtype, pl.Datetime):
        if series.dtype.time_zone is not None:
            series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return series.dt.cast_time_unit("us").cast(pl.Int64)
    if series.dtype == pl.Date:
        return series.cast(pl.Datetime("us")).cast(pl.Int64)
    return pl.Series(series.name, [None], dtype=pl.Int64).new_from_index(0, len(series))


def numbers(series: pl.Series) -> Floats:
    """The values as float64, NaN where missing, infinite or no number."""
    if series.dtype.is_nested() or series.dtype == pl.Object or series.dtype.is_temporal():
        return np.full(len(series), np.nan)
    if series.dtype in (pl.Categorical, pl.Enum, pl.Binary):
        series = series.cast(pl.String, strict=False)
    values = series.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def floats(series: pl.Series) -> pl.Series:
    """Numbers as Float64; times as microseconds; lists as their length; what is none as null."""
    dtype = series.dtype
    if isinstance(dtype, pl.Datetime) or dtype == pl.Date:
        return instants(series).cast(pl.Float64)
    if isinstance(dtype, pl.Duration):
        return series.dt.total_microseconds().cast(pl.Float64)
    if dtype == pl.Time:
        return series.cast(pl.Int64).cast(pl.Float64) / 1000
    if isinstance(dtype, pl.List):
        return series.list.len().cast(pl.Float64)
    if isinstance(dtype, pl.Array):
        return series.arr.len().cast(pl.Float64)
    if dtype.is_numeric() or dtype == pl.Boolean:
        return series.cast(pl.Float64)
    return texts(series).cast(pl.Float64, strict=False)


def texts(series: pl.Series) -> pl.Series:
    """The values as text: whole numbers without a fraction, booleans as true and false."""
    if series.dtype == pl.String:
        return series
    if series.dtype in (pl.Object, pl.Binary) or series.dtype.is_nested():
        shown = [None if value is None else str(value) for value in series.to_list()]
        return pl.Series(series.name, shown, dtype=pl.String)
    if series.dtype.is_float():
        whole = series.cast(pl.Int64, strict=False)
        is_whole = (whole.cast(pl.Float64) == series).fill_null(False)
        return whole.cast(pl.String).zip_with(is_whole, series.cast(pl.String))
    return series.cast(pl.String, strict=False)


def present(series: pl.Series) -> Flags:
    """True where a value is there: neither null nor NaN."""
    there = series.is_not_null()
    if series.dtype.is_float():
        there &= series.is_not_nan().fill_null(False)
    return there.to_numpy()


def equal(one: pl.Series, other: pl.Series) -> Flags:
    """One truth value per row: same number, or same text where either side is text."""
    if numeric(one.dtype) and numeric(other.dtype):
        return numbers(one) == numbers(other)
    return (texts(one) == texts(other)).fill_null(False).to_numpy()


def is_value(series: pl.Series, value: object) -> Flags:
    """True where the row holds this scalar, number or text alike."""
    return equal(series, pl.Series([value], strict=False).new_from_index(0, len(series)))
