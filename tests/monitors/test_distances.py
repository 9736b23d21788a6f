"""Distances against scipy on raw values, their bounds, and the answer drifted or not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance as spatial

from monitors import distances, profile

DATA = Path(__file__).parent.parent / "data"


def profiled(values: Any, kind: Any = "numeric", centre: float = 0.0) -> profile.Profile:
    return profile.profile_column(pl.Series(values), kind, centre)


def between(current: Any, baseline: Any, kind: Any = "numeric") -> dict[str, distances.Distance]:
    series = pl.Series(baseline)
    centre = profile.choose_centre(series) if kind == "numeric" else 0.0
    return distances.compare(profiled(current, kind, centre), profiled(series, kind, centre))


def judged(
    current: Any, baseline: Any, kind: Any = "numeric", **changes: Any
) -> distances.Judgement:
    found = between(current, baseline, kind)
    sizes = {"n": len(current), "m": len(baseline), "columns": 20, **changes}
    return distances.judge(found, kind, **sizes)


# Real data; its numbers against scipy: tests/benchmarks/test_monitor_benchmarks.py


def test_a_file_sorted_by_place_drifts_in_its_coordinates_in_every_window() -> None:
    houses = DATA / "california_housing"
    reference = pl.read_parquet(houses / "reference.parquet")
    current = pl.read_parquet(houses / "current.parquet")
    verdicts = {
        (column, judged(part[column], reference[column], columns=10).severity)
        for part in current.iter_slices(686)
        for column in ("Latitude", "Longitude")
    }
    assert verdicts == {("Latitude", "critical"), ("Longitude", "critical")}


# Synthetic data against scipy


def test_every_numeric_distance_of_large_samples_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    baseline, current = rng.gamma(2, 3, 60_000), rng.gamma(2.2, 3, 40_000)
    found = between(current, baseline)
    ks = stats.ks_2samp(current, baseline, method="asymp")
    moved = stats.wasserstein_distance(current, baseline)
    assert found["ks"].value == pytest.approx(ks.statistic, abs=0.002)
    assert found["ks"].pvalue == pytest.approx(ks.pvalue, rel=0.05)
    assert found["wasserstein"].value == pytest.approx(moved, rel=0.01)
    assert found["wasserstein_normed"].value == pytest.approx(moved / baseline.std(), abs=0.002)
    cuts = np.quantile(baseline, np.arange(1, 30) / 30)
    p, q = (
        np.bincount(np.searchsorted(cuts, x), minlength=30) / len(x) for x in (current, baseline)
    )
    assert found["js_distance"].value == pytest.approx(
        spatial.jensenshannon(p, q, base=2), abs=0.005
    )
    assert found["tv_distance"].value == pytest.approx(np.abs(p - q).sum() / 2, abs=0.005)
    for name, raw in (("ks", ks.statistic), ("wasserstein", moved)):
        distance = found[name]
        assert distance.value is not None and distance.bound is not None
        assert abs(distance.value - raw) <= distance.bound


@pytest.mark.parametrize("n", [4, 30, 199, 700, 4_000, 60_000])
def test_the_p_value_of_ks_is_that_of_scipy(n: int) -> None:
    """Against kstwo, which scipy's two-sample test uses: within 0.03 of it for the smallest sides,
    within 2 % from 200 rows on."""
    baseline = np.arange(2 * n) / (2 * n)
    for shift in (0.05, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0):
        moved = shift / math.sqrt(n)
        if moved > 0.9:
            continue
        found = between(baseline + moved, baseline)["ks"]
        wanted = stats.kstwo.sf(found.value, n)
        assert found.pvalue == pytest.approx(wanted, rel=0.02, abs=0.03 if n < 200 else 1e-9)


values = st.one_of(
    st.floats(-100, 100), st.integers(-3, 3).map(float), st.sampled_from([1e12, -1e9, 0.1, 1e-300])
)
samples = st.lists(values, min_size=1, max_size=80)


@given(current=samples, baseline=samples, centre=st.sampled_from([0.0, 2.5]), blurred=st.booleans())
def test_no_bound_is_ever_violated(
    current: list[float], baseline: list[float], centre: float, blurred: bool
) -> None:
    sides = [profiled(side, centre=centre) for side in (current, baseline)]
    if blurred:  # without exact values: the histogram alone
        sides = [without_atoms(side) for side in sides]
    found = distances.compare(*sides)
    truth = {
        "ks": largest_gap(current, baseline),
        "wasserstein": stats.wasserstein_distance(current, baseline),
        **binned_truth(np.array(current), np.array(baseline)),
    }
    for name, raw in truth.items():
        distance = found[name]
        assert distance.value is not None and distance.bound is not None
        room = 1e-9 * max(1.0, *(abs(x) for x in current + baseline)) if "wass" in name else 1e-9
        assert abs(distance.value - raw) <= distance.bound + room, name


def largest_gap(current: list[float], baseline: list[float]) -> float:
    every = np.array(current + baseline)
    shares = [np.searchsorted(np.sort(x), every, "right") / len(x) for x in (current, baseline)]
    return float(np.abs(shares[0] - shares[1]).max())


def without_atoms(side: profile.Profile) -> profile.Profile:
    stored = profile.to_dict(side)
    return profile.from_dict({**stored, "atom_values": [], "atom_counts": []})


def binned_truth(current: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    def shares(bins: int) -> tuple[np.ndarray, np.ndarray]:
        cuts = np.unique(np.quantile(baseline, np.arange(1, bins) / bins))
        size = len(cuts) + 1
        counts = [
            np.bincount(np.searchsorted(cuts, x), minlength=size) for x in (current, baseline)
        ]
        return counts[0] / len(current), counts[1] / len(baseline)

    p, q = shares(30)
    floored = [np.maximum(x, 1e-4) for x in shares(10)]
    return {
        "js_distance": float(np.nan_to_num(spatial.jensenshannon(p, q, base=2))),
        "tv_distance": float(np.abs(p - q).sum() / 2),
        "psi": float(((floored[0] - floored[1]) * np.log(floored[0] / floored[1])).sum()),
    }


@given(
    current=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60),
    baseline=st.lists(st.sampled_from("abcxyz"), min_size=1, max_size=60),
)
def test_distances_of_categories_are_the_written_formulas(
    current: list[str], baseline: list[str]
) -> None:
    found = between(current, baseline, "categorical")
    union = sorted({*current, *baseline})
    table = np.array([[side.count(v) for v in union] for side in (current, baseline)])
    p, q = table[0] / len(current), table[1] / len(baseline)
    assert found["tv_distance"].value == pytest.approx(np.abs(p - q).sum() / 2)
    assert found["l_infinity_distance"].value == pytest.approx(np.abs(p - q).max())
    js = np.nan_to_num(spatial.jensenshannon(p, q, base=2))
    assert found["js_distance"].value == pytest.approx(js, abs=1e-7)
    if len(union) > 1:
        expected = stats.chi2_contingency(table)
        assert found["chi_squared"].value == pytest.approx(expected.statistic, abs=1e-9)
        assert found["chi_squared"].pvalue == pytest.approx(expected.pvalue, abs=1e-9)
        cramers = stats.contingency.association(table, method="cramer")
        assert found["cramers_v"].value == pytest.approx(cramers, abs=1e-9)
    assert all(d.bound == 0 for d in found.values() if d.value is not None and d.bound is not None)


def test_values_that_are_not_kept_widen_the_bounds() -> None:
    rare = [f"id-{i}" for i in range(6_000)]
    found = between(["a"] * 9_000 + rare, ["a"] * 20_000, "categorical")
    assert found["tv_distance"].bound == pytest.approx(0.4)
    assert found["tv_distance"].value == pytest.approx(0.4)
    assert found["psi"].bound is None


def test_chi_squared_raises_no_more_false_alarms_than_it_says() -> None:
    """1,000 pairs without drift at 5 %: between 3 and 7 %."""
    rng = np.random.default_rng(4)
    shares, alarms = np.array([0.5, 0.3, 0.15, 0.05]), 0
    for _ in range(1_000):
        one, two = rng.choice(list("abcd"), 800, p=shares), rng.choice(list("abcd"), 400, p=shares)
        alarms += (
            between(one.tolist(), two.tolist(), "categorical")["chi_squared"].pvalue or 0
        ) < 0.05
    assert 30 <= alarms <= 70


# Drifted or not


def test_equal_columns_hardly_ever_drift_whatever_their_size() -> None:
    rng, drifted = np.random.default_rng(5), 0
    for n in (250, 1_000, 20_000):
        for _ in range(40):
            drifted += judged(rng.normal(size=n), rng.normal(size=n)).status == "drifted"
            drifted += (
                judged(
                    rng.choice(list("abcdefgh"), n).tolist(),
                    rng.choice(list("abcdefgh"), n).tolist(),
                    "categorical",
                ).status
                == "drifted"
            )
    assert drifted <= 1


def test_a_tiny_shift_of_a_million_rows_is_no_drift() -> None:
    rng = np.random.default_rng(6)
    baseline, current = rng.normal(size=500_000), rng.normal(0.02, 1, 500_000)
    found = between(current, baseline)
    assert (found["ks"].pvalue or 1) < 0.001
    assert judged(current, baseline).status == "ok"


def test_a_real_shift_names_the_metric_and_how_far_it_is() -> None:
    rng = np.random.default_rng(7)
    answer = judged(rng.normal(0.8, 1, 2_000), rng.normal(size=5_000))
    assert (answer.status, answer.severity) == ("drifted", "critical")
    assert answer.metric in ("ks", "psi", "js_distance")  # 0.31, 0.56 and 0.32 of 0.1, 0.2, 0.1
    assert answer.effect_over_threshold == pytest.approx(3.2, abs=0.5)
    assert any(reason.startswith("ks 0.3") for reason in answer.reasons)


def test_twice_the_threshold_is_critical_and_less_a_warning() -> None:
    rng = np.random.default_rng(8)
    answer = judged(rng.normal(0.18, 1, 9_000), rng.normal(size=9_000), thresholds={"ks": 0.05})
    assert (answer.status, answer.severity) == ("drifted", "warning")


def test_one_absurd_value_raises_no_alarm_alone() -> None:
    rng = np.random.default_rng(9)
    baseline = rng.normal(size=3_000)
    answer = judged(np.r_[rng.normal(size=1_000), 1e12], baseline)
    assert answer.status == "ok"
    found = between(np.r_[rng.normal(size=1_000), 1e12], baseline)
    assert (found["wasserstein_normed"].value or 0) > 1e6


@pytest.mark.parametrize("absurd_side", ["current", "baseline"])
def test_one_absurd_value_hides_no_twofold_change_of_scale(absurd_side: str) -> None:
    rng = np.random.default_rng(10)
    baseline, current = rng.normal(size=3_000), rng.normal(0, 2, 1_000)
    if absurd_side == "current":
        current[0] = 1e12
    else:
        baseline[0] = 1e12
    answer = judged(current, baseline)
    assert answer.status == "drifted"
    assert (between(current, baseline)["psi"].value or 0) > 0.2


def test_a_feed_that_ends_is_drift_of_the_nulls() -> None:
    rng = np.random.default_rng(11)
    baseline = pl.Series(rng.normal(size=1_000))
    gone = pl.Series([None] * 820, dtype=pl.Float64)
    answer = judged(gone, baseline)
    assert (answer.status, answer.severity, answer.metric) == ("drifted", "critical", "null_share")
    half = pl.Series([None if i % 2 else float(x) for i, x in enumerate(rng.normal(size=900))])
    assert judged(half, baseline).metric == "null_share"
    assert judged(baseline, half).status == "ok"


def test_fewer_than_two_hundred_rows_are_never_no_drift() -> None:
    rng = np.random.default_rng(12)
    answer = judged(rng.normal(5, 1, 199), rng.normal(size=5_000))
    assert answer.status == "not_enough_data"
    assert answer.reasons == ["199 and 5000 rows; 200 needed"]
    assert judged(rng.normal(size=500), rng.normal(size=50)).status == "not_enough_data"
    assert judged(rng.normal(5, 1, 60), rng.normal(size=500), minimum_rows=50).status == "drifted"


def test_few_values_among_many_nulls_are_not_enough() -> None:
    rng = np.random.default_rng(13)

    def sparse(n: int) -> pl.Series:
        return pl.Series(
            [float(x) if i % 10 == 0 else None for i, x in enumerate(rng.normal(size=n))]
        )

    assert judged(sparse(1_000), sparse(1_000)).status == "not_enough_data"


def test_what_the_baseline_does_by_itself_is_no_drift() -> None:
    rng = np.random.default_rng(14)
    weeks = [profiled(rng.normal(math.sin(week), 1, 800)) for week in range(10)]
    baseline = profile.empty("numeric")
    for week in weeks:
        baseline = profile.merge(baseline, week)
    own = distances.own_maxima(weeks, baseline)
    found = distances.compare(profiled(rng.normal(0.9, 1, 800)), baseline)
    assert distances.judge(found, "numeric", 800, 8_000, 1).status == "drifted"
    assert distances.judge(found, "numeric", 800, 8_000, 1, own_maxima=own).status == "ok"
    far = distances.compare(profiled(rng.normal(3, 1, 800)), baseline)
    assert distances.judge(far, "numeric", 800, 8_000, 1, own_maxima=own).status == "drifted"
    assert distances.own_maxima(weeks[:7], baseline) == {}


def test_thresholds_are_those_of_the_monitor() -> None:
    rng = np.random.default_rng(15)
    current, baseline = rng.normal(0.4, 1, 2_000), rng.normal(size=5_000)
    blind = dict.fromkeys(distances.THRESHOLDS, 10.0)
    assert judged(current, baseline, thresholds=blind).status == "ok"
    shown = distances.compare(profiled(current), profiled(baseline), {"ks": 0.3})
    assert shown["ks"].threshold == 0.3
    assert shown["psi"].threshold == 0.2


# Odd columns: every answer is a number or a reason


ODD = {
    "empty": [],
    "all null": [None] * 300,
    "one value": [4.2] * 300,
    "NaN only": [math.nan] * 300,
    "infinite": [math.inf] * 150 + [-math.inf] * 150,
    "partly infinite": [math.inf] * 150 + [1.0] * 300,
    "absurd": [1e12] + [0.5] * 300,
    "largest": [1.7e308, -1.7e308] * 150,
    "ordinary": [float(i % 97) for i in range(300)],
    "tiny": [5e-324] * 300,
    "beyond 2**53": [float(2**53 + 2 * i) for i in range(300)],
}


@pytest.mark.parametrize("current", ODD)
@pytest.mark.parametrize("baseline", ODD)
def test_every_odd_pair_of_columns_has_an_answer(current: str, baseline: str) -> None:
    sides = [pl.Series(ODD[name], dtype=pl.Float64) for name in (current, baseline)]
    found = between(*sides)
    json.dumps({name: d.to_dict() for name, d in found.items()}, allow_nan=False)
    assert all(d.value is not None or d.reason for d in found.values())
    answer = distances.judge(found, "numeric", len(sides[0]), len(sides[1]), 10)
    json.dumps(answer.to_dict(), allow_nan=False)
    empty = {"empty", "all null", "NaN only", "infinite"}
    if current in empty and baseline in empty and "empty" not in (current, baseline):
        assert answer.status in ("undefined", "drifted")
    if current == baseline and current not in empty:
        assert answer.status == "ok"


def test_a_constant_baseline_sees_a_change_in_either_direction() -> None:
    for moved in (3.0, 5.0):
        answer = judged([moved] * 300, [4.0] * 300)
        assert answer.status == "drifted"
    assert between([5.0] * 300, [4.0] * 300)["wasserstein_normed"].value is None


def test_a_new_category_is_seen_and_an_unused_one_too() -> None:
    answer = judged(["a"] * 200 + ["new"] * 100, ["a"] * 300, "categorical")
    assert (answer.status, answer.metric) == ("drifted", "psi")
    assert judged(["a"] * 300, ["a"] * 200 + ["old"] * 100, "categorical").status == "drifted"


def test_id_columns_are_undefined_and_no_drift() -> None:
    ids = [[f"{side}{i}" for i in range(6_000)] for side in "ab"]
    answer = judged(ids[0], ids[1], "categorical")
    assert answer.status == "undefined"
    assert answer.reasons == ["most rows hold values too rare to be kept"]


def test_profiles_of_different_kind_or_centre_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different centres"):
        distances.compare(profiled([1.0]), profiled([1.0], centre=2.0))
    with pytest.raises(ValueError, match="different kinds"):
        distances.compare(profiled([1.0]), profiled(["a"], "categorical"))


def test_the_drift_table_has_the_documented_columns() -> None:
    numeric = distances.table_names(between([1.0, 2.0], [1.0, 3.0]))
    assert set(numeric["ks_test"]) == {"statistic", "pvalue"}
    assert numeric["chi_squared_test"] is None and numeric["tv_distance"] is not None
    categorical = distances.table_names(between(["a", "b"], ["a"], "categorical"))
    assert set(categorical["chi_squared_test"]) == {"statistic", "pvalue"}
    assert categorical["ks_test"] is None and categorical["wasserstein_distance"] is None
    assert (numeric["count_delta"], numeric["avg_delta"]) == (0, -0.5)
