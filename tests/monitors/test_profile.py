"""Profiles: what is kept is right, merging is addition, and odd columns have an answer."""

import itertools
import json
import math
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors import profile

numbers = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-5, 5).map(float),
    st.floats(-1e3, 1e3),
    st.sampled_from([1e12, -1e300, 1e308, 5e-324, -0.0]),
)
texts = st.one_of(st.none(), st.text(max_size=6), st.sampled_from(["a", "b", "ä€"]))


def numeric(values: Any, centre: float = 0.0) -> profile.NumericProfile:
    found = profile.profile_column(pl.Series(values, dtype=pl.Float64), "numeric", centre)
    assert isinstance(found, profile.NumericProfile)
    return found


def categorical(values: Any) -> profile.CategoricalProfile:
    found = profile.profile_column(pl.Series(values, dtype=pl.String), "categorical")
    assert isinstance(found, profile.CategoricalProfile)
    return found


def same(a: profile.Profile, b: profile.Profile) -> bool:
    """Equal, the moments up to rounding."""
    one, other = profile.to_dict(a), profile.to_dict(b)
    for moment in ("mean", "m2"):
        x, y = one.pop(moment, None), other.pop(moment, None)
        scale = max(abs(one.get("minimum") or 0), abs(one.get("maximum") or 0), 1e-300)
        if x is not None and y is not None and scale < 1e100:
            room = scale if moment == "mean" else scale * scale
            assert math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9 * room)
    return one == other


# What is kept


@given(values=st.lists(numbers, max_size=60), centre=st.sampled_from([0.0, 3.5]))
def test_counts_and_moments_are_those_of_the_values(
    values: list[float | None], centre: float
) -> None:
    found = numeric(values, centre)
    held = [v for v in values if v is not None]
    finite = [v for v in held if math.isfinite(v)]
    assert found.rows == len(values)
    assert found.nulls == len(values) - len(held)
    assert found.nans == sum(math.isnan(v) for v in held)
    assert found.infinities == sum(math.isinf(v) for v in held)
    assert found.zeros == sum(v == 0 for v in held)
    assert found.minimum == (min(finite) if finite else None)
    assert found.maximum == (max(finite) if finite else None)
    assert found.counts.sum() == found.atom_counts.sum() == len(finite)
    if finite and max(map(abs, finite)) < 1e100:
        assert profile.average(found) == pytest.approx(np.mean(finite), abs=1e-9)


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60))
def test_the_standard_deviation_is_that_of_a_sample(values: list[float]) -> None:
    expected = np.std(values, ddof=1)
    assert profile.standard_deviation(numeric(values)) == pytest.approx(expected, abs=1e-6)


def test_a_bin_is_at_most_a_hundredth_of_the_distance_from_the_centre_wide() -> None:
    rng = np.random.default_rng(1)
    found = numeric(rng.lognormal(0, 3, 5000), 1.0)
    shape = profile.shape(found)
    middle = (shape.low + shape.high) / 2
    assert ((shape.high - shape.low) <= 0.01 * np.abs(middle - 1.0) + 1e-12).all()


def test_categories_and_their_lengths_are_counted_exactly() -> None:
    found = categorical(["a", "bb", "a", None, "äöü", ""])
    assert dict(found.values) == {"a": 2, "bb": 1, "äöü": 1, "": 1}
    assert (found.rows, found.nulls, found.other, profile.distinct(found)) == (6, 1, 0, 4)
    assert (found.min_length, found.max_length, found.total_length) == (0, 3, 7)


def test_an_id_column_is_not_kept_by_value_but_counted() -> None:
    found = categorical([f"id-{i}" for i in range(20_000)])
    assert (len(found.values), found.other) == (0, 20_000)
    assert profile.distinct(found) == pytest.approx(20_000, rel=0.05)


def test_the_heaviest_categories_stay_where_there_are_too_many() -> None:
    rare = [f"id-{i}" for i in range(5_000)]
    found = categorical([*rare, *["heavy"] * 300, *["light"] * 2])
    assert dict(found.values) == {"heavy": 300, "light": 2}
    assert found.other == 5_000


@pytest.mark.parametrize("n", [10, 1_000, 30_000, 300_000])
def test_distinct_numbers_are_counted_within_five_percent(n: int) -> None:
    rng = np.random.default_rng(n)
    assert profile.distinct(numeric(rng.normal(size=n))) == pytest.approx(n, rel=0.05)


def test_heavy_values_of_a_large_column_have_exact_counts() -> None:
    rng = np.random.default_rng(3)
    values = np.where(rng.random(200_000) < 0.3, 0.0, rng.exponential(1, 200_000))
    values[rng.random(200_000) < 0.01] = 7.25
    found = numeric(values)
    atoms = dict(zip(found.atom_values.tolist(), found.atom_counts.tolist(), strict=True))
    assert atoms[0.0] == (values == 0).sum()
    assert atoms[7.25] == (values == 7.25).sum()


# Merging


@given(
    parts=st.lists(st.lists(numbers, max_size=30), min_size=1, max_size=4),
    centre=st.sampled_from([0.0, 3.5]),
)
def test_merging_numbers_is_profiling_the_concatenation(
    parts: list[list[float | None]], centre: float
) -> None:
    merged: profile.Profile = profile.empty("numeric", centre)
    for part in parts:
        merged = profile.merge(merged, numeric(part, centre))
    assert same(merged, numeric([v for part in parts for v in part], centre))


@given(parts=st.lists(st.lists(texts, max_size=30), min_size=1, max_size=4))
def test_merging_categories_is_profiling_the_concatenation(parts: list[list[str | None]]) -> None:
    merged: profile.Profile = profile.empty("categorical")
    for part in parts:
        merged = profile.merge(merged, categorical(part))
    assert same(merged, categorical([v for part in parts for v in part]))


@pytest.mark.parametrize("kind", ["numeric", "categorical"])
def test_merging_is_associative_and_commutative_beyond_what_is_kept(kind: Any) -> None:
    rng = np.random.default_rng(5)
    sides = []
    for scale in (1, 2, 3):
        values = rng.integers(0, 6000, 20_000) * scale
        series = pl.Series(values).cast(pl.Float64 if kind == "numeric" else pl.String)
        sides.append(profile.profile_column(series, kind))
    a, b, c = sides
    left = profile.merge(profile.merge(a, b), c)
    assert same(left, profile.merge(a, profile.merge(b, c)))
    assert same(left, profile.merge(c, profile.merge(b, a)))
    assert same(left, profile.merge(left, profile.empty(kind)))


def test_profiles_of_different_kind_or_centre_do_not_merge() -> None:
    with pytest.raises(ValueError, match=r"centres: 0\.0 and 1\.0"):
        profile.merge(numeric([1.0]), numeric([1.0], 1.0))
    with pytest.raises(ValueError, match="kinds: numeric and categorical"):
        profile.merge(numeric([1.0]), categorical(["1"]))


def test_compacting_forgets_light_values_and_keeps_every_count() -> None:
    rng = np.random.default_rng(6)
    merged: profile.Profile = profile.empty("numeric")
    for _ in range(6):
        merged = profile.merge(merged, numeric(np.r_[rng.normal(size=500), np.zeros(20)]))
    small = profile.compact(merged)
    assert isinstance(merged, profile.NumericProfile) and isinstance(small, profile.NumericProfile)
    assert len(merged.atom_values) > 1024
    assert small.atom_values.tolist() == [0.0] and small.atom_counts.tolist() == [120]
    assert small.counts.tolist() == merged.counts.tolist()


# Reading a profile


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    q=st.floats(0, 1),
)
def test_quantiles_of_few_values_are_numpys(values: list[float], q: float) -> None:
    expected = np.quantile(values, q)
    assert profile.quantile(numeric(values), q) == pytest.approx(expected, abs=1e-6)


def test_quantiles_of_many_values_are_within_a_bin() -> None:
    values = np.random.default_rng(7).normal(50, 10, 100_000)
    series = pl.Series(values)
    found = numeric(values, profile.choose_centre(series))
    for q in (0.001, 0.1, 0.5, 0.9, 0.999):
        expected = np.quantile(values, q)
        assert profile.quantile(found, q) == pytest.approx(
            expected, abs=abs(expected - 50) / 128 + 0.01
        )
    thousand = profile.quantiles(found)
    assert thousand is not None and len(thousand) == 1000
    assert thousand[500] == pytest.approx(np.median(values), abs=0.01)
    assert np.all(np.diff(thousand) >= 0)


def test_the_centre_is_the_median_where_the_data_lie_far_from_zero() -> None:
    rng = np.random.default_rng(8)
    assert profile.choose_centre(pl.Series(rng.normal(0, 1, 1000))) == 0.0
    assert profile.choose_centre(pl.Series(rng.normal(-118, 2, 1001))) == pytest.approx(-118, abs=1)
    assert profile.choose_centre(pl.Series([], dtype=pl.Float64)) == 0.0
    assert profile.choose_centre(pl.Series([math.nan, math.inf, None])) == 0.0


@given(values=st.lists(numbers, max_size=50), bins=st.integers(1, 100))
def test_bars_hold_every_finite_value_once(values: list[float | None], bins: int) -> None:
    found = numeric(values)
    bars = profile.histogram(found, bins)
    assert sum(bar["count"] for bar in bars) == found.finite
    assert len(bars) <= bins
    assert all(one["high"] == two["low"] for one, two in itertools.pairwise(bars))
    json.dumps(bars, allow_nan=False)


def test_one_absurd_value_does_not_flatten_the_picture() -> None:
    values = np.r_[np.random.default_rng(9).normal(0, 1, 10_000), 1e12]
    bars = profile.histogram(numeric(values), 20)
    assert bars[-1]["high"] < 10
    assert max(bar["count"] for bar in bars) < 3000


def test_two_sides_are_drawn_over_common_edges() -> None:
    one, two = numeric(np.arange(100.0)), numeric(np.arange(50.0, 300.0))
    at = profile.edges([one, two], 10)
    first, second = profile.histogram(one, at=at), profile.histogram(two, at=at)
    assert [bar["low"] for bar in first] == [bar["low"] for bar in second]
    assert (at[0], at[-1]) == (0.0, 299.0)
    assert sum(bar["count"] for bar in second) == 250


def test_bars_of_categories_end_with_the_rest() -> None:
    found = categorical(["a"] * 5 + ["b"] * 3 + ["c"] + ["d"])
    assert profile.histogram(found, 2) == [
        {"value": "a", "count": 5},
        {"value": "b", "count": 3},
        {"value": None, "count": 2},
    ]
    assert profile.frequent_items(found, 1) == [{"item": "a", "count": 5}]


def test_percentages_are_of_all_rows() -> None:
    found = numeric([0.0, 0.0, 1.0, math.nan, None])
    assert profile.percent_null(found) == 20
    assert profile.percent_nan(found) == 20
    assert profile.percent_zeros(found) == 40
    assert profile.percent_distinct(found) == 40
    assert profile.percent_null(numeric([])) is None


# Storing


@given(values=st.lists(numbers, max_size=40))
def test_a_stored_profile_of_numbers_comes_back(values: list[float | None]) -> None:
    found = numeric(values, 3.5)
    text = json.dumps(profile.to_dict(found), allow_nan=False)
    assert profile.to_dict(profile.from_dict(json.loads(text))) == profile.to_dict(found)


@given(values=st.lists(texts, max_size=40))
def test_a_stored_profile_of_categories_comes_back(values: list[str | None]) -> None:
    found = categorical(values)
    text = json.dumps(profile.to_dict(found))
    assert profile.to_dict(profile.from_dict(json.loads(text))) == profile.to_dict(found)


def test_the_same_rows_in_another_order_give_the_same_bytes() -> None:
    values = [f"v{i % 50}" for i in range(1000)]
    one, other = categorical(values), categorical(values[::-1])
    assert json.dumps(profile.to_dict(one)) == json.dumps(profile.to_dict(other))


# Odd columns


@pytest.mark.parametrize(
    ("series", "kind", "expected"),
    [
        (pl.Series([date(1970, 1, 2), None]), "numeric", 86_400e6),
        (pl.Series([datetime(1970, 1, 1, 1, tzinfo=UTC)]), "numeric", 3_600e6),
        (pl.Series([timedelta(seconds=2)]), "numeric", 2e6),
        (pl.Series([time(0, 0, 1)]), "numeric", 1e6),
        (pl.Series([[1, 2, 3]]), "numeric", 3.0),
        (pl.Series([2**53 + 1]), "numeric", float(2**53)),
        (pl.Series(["1.5", "many", None]), "numeric", 1.5),
        (pl.Series([1], dtype=pl.Decimal(10, 2)), "numeric", 1.0),
    ],
)
def test_times_lists_and_large_integers_are_numbers(
    series: pl.Series, kind: Any, expected: float
) -> None:
    found = profile.profile_column(series, kind)
    assert isinstance(found, profile.NumericProfile)
    assert found.maximum == pytest.approx(expected)
    if series.dtype != pl.String:
        assert profile.kind_of(series.dtype) == "numeric"


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (pl.Series([True, False, None, True]), {"true": 2, "false": 1}),
        (pl.Series(["x"], dtype=pl.Categorical), {"x": 1}),
        (pl.Series([None, None]), {}),
        (pl.Series([{"a": 1}]), {"{'a': 1}": 1}),
        (pl.Series([b"raw"]), {"b'raw'": 1}),
    ],
)
def test_booleans_and_everything_else_are_categories(
    series: pl.Series, expected: dict[str, int]
) -> None:
    assert profile.kind_of(series.dtype) == "categorical"
    found = profile.profile_column(series, "categorical")
    assert isinstance(found, profile.CategoricalProfile)
    assert dict(found.values) == expected


def test_whole_numbers_taken_as_categories_have_no_fraction() -> None:
    found = profile.profile_column(pl.Series([3.0, 1.0, math.nan, 2.5]), "categorical")
    assert isinstance(found, profile.CategoricalProfile)
    assert dict(found.values) == {"3": 1, "1": 1, "2.5": 1}
    assert found.nulls == 1


def test_scores_are_kept_by_label() -> None:
    found = profile.by_label(pl.Series([0.1, 0.9, 0.8, 0.3]), pl.Series([0.0, 1.0, 1.0, None]))
    assert {value: p.rows for value, p in found.items()} == {"0": 1, "1": 2}
    assert found["1"].minimum == 0.8


@pytest.mark.parametrize("values", [[], [None, None], [math.nan], [math.inf, -math.inf]])
def test_columns_without_a_finite_value_have_no_numbers(values: list[float | None]) -> None:
    found = numeric(values)
    assert profile.quantile(found, 0.5) is None
    assert profile.average(found) is None
    assert profile.standard_deviation(found) is None
    assert profile.histogram(found) == []
    assert profile.distinct(found) == 0
    json.dumps(profile.to_dict(found), allow_nan=False)
