"""What a monitor keeps between refreshes."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from monitors import kept, profile

WEEK = kept.WindowKey("1 week", datetime(2013, 7, 1, tzinfo=UTC))


def profiled(values: list[float | None]) -> profile.NumericProfile | profile.CategoricalProfile:
    return profile.profile_column(pl.Series("temp", values, dtype=pl.Float64), "numeric")


def week_of(folder: Path, filled: set[tuple[str, str]]) -> kept.Kept:
    """Version v1 does not use `temp`; v2 does, and misses one value of four."""
    known = kept.Kept(folder, "fingerprint")
    v1, v2 = profiled([None] * 6), profiled([20.0, 21.0, None, 23.0])
    both = profile.merge(v1, v2)
    profiles = {(None, "temp"): both, ("v1", "temp"): v1, ("v2", "temp"): v2}
    known.add(WEEK, kept.Window(profiles))
    known.filled |= filled
    return known


def test_rows_of_a_version_that_does_not_use_a_column_are_not_missing_values(
    tmp_path: Path,
) -> None:
    judged = week_of(tmp_path, {("v2", "temp")}).judged(WEEK)
    assert judged is not None
    assert (judged[None, "temp"].rows, judged[None, "temp"].nulls) == (4, 1)
    assert ("v1", "temp") not in judged


def test_a_column_that_no_version_ever_filled_is_all_missing(tmp_path: Path) -> None:
    judged = week_of(tmp_path, set()).judged(WEEK)
    assert judged is not None
    assert (judged[None, "temp"].rows, judged[None, "temp"].nulls) == (10, 7)


def test_a_version_that_had_values_once_keeps_its_missing_ones(tmp_path: Path) -> None:
    judged = week_of(tmp_path, {("v1", "temp"), ("v2", "temp")}).judged(WEEK)
    assert judged is not None
    assert (judged[None, "temp"].rows, judged[None, "temp"].nulls) == (10, 7)
