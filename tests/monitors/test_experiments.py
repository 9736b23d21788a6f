"""Decisions on experiments: every row of the decision table, every check, and odd input.

The numbers are compared with scikit-learn, least squares, or a formula written out in loops."""

import dataclasses
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from monitors import experiments

START = datetime(2026, 3, 2, tzinfo=UTC)
ACCURACY = {"name": "accuracy", "kind": "binary", "mde": 0.02}
LATE = START + timedelta(days=60)


def policy(**changes: Any) -> dict[str, Any]:
    return {"primary": ACCURACY, "champion": "v2", "challenger": "v3", **changes}


def requests(
    hours: int = 48,
    per_hour: int = 200,
    share: float | list[float] = 0.5,
    right: tuple[float, float] = (0.85, 0.85),
    errors: tuple[float, float] = (0.0, 0.0),
    slower: float = 1.0,
    delay_hours: float = 1.0,
    units: int | None = None,
    seed: int = 7,
) -> pl.DataFrame:
    """Traffic split by draw; right, errors: champion, challenger; label 1 half the time."""
    rng = np.random.default_rng(seed)
    n = hours * per_hour
    hour = np.repeat(np.arange(hours), per_hour)
    shares = np.broadcast_to(np.asarray(share, dtype=float), (hours,))[hour]
    unit = np.arange(n) if units is None else rng.integers(0, units, n)
    draw = rng.random(n if units is None else units)[unit]
    c = draw < shares
    time = (hour * 3600 + rng.random(n) * 3600) * 1e6
    label = rng.integers(0, 2, n)
    hit = rng.random(n) < np.where(c, right[1], right[0])
    prediction = np.where(hit, label, 1 - label)
    return pl.DataFrame(
        {
            "request_time": pl.Series(time.astype(np.int64)).cast(pl.Duration("us")) + START,
            "request_id": [f"r{i}" for i in range(n)],
            "unit_id": [None] * n if units is None else [f"u{u}" for u in unit],
            "version": np.where(c, "v3", "v2"),
            "route_share": shares,
            "status_code": np.where(rng.random(n) < np.where(c, errors[1], errors[0]), 503, 200),
            "latency_ms": rng.lognormal(4, 0.5, n) * np.where(c, slower, 1.0),
            "prediction": prediction,
            "score": np.clip(0.5 + 0.2 * (2 * prediction - 1) + rng.normal(0, 0.2, n), 0, 1),
            "label": label,
            "region": rng.choice(["eu", "us", "apac"], n),
        },
        schema_overrides={"unit_id": pl.String},
    ).with_columns(label_time=pl.col("request_time") + timedelta(hours=delay_hours))


def decide(rows: pl.DataFrame, now: datetime = LATE, **changes: Any) -> dict[str, Any]:
    result = experiments.evaluate(rows, policy(**changes), now).to_dict()
    assert_plain(result)
    return result


def assert_plain(value: Any) -> None:
    """JSON-able, without NaN and infinity."""
    json.dumps(value, allow_nan=False)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return one == other


# The decision table, row by row


def test_row_1_no_rows_are_no_data() -> None:
    result = decide(requests().clear())
    assert (result["action"], result["reasons"]) == ("keep_collecting", ["no_data"])
    assert result["metrics"]["accuracy"]["effect"] is None
    assert result["health"]["srm_log_e"] is None


def test_row_1_one_version_without_named_roles_is_no_data() -> None:
    rows = requests().filter(pl.col("version") == "v2")
    result = experiments.evaluate(rows, {"primary": ACCURACY}, LATE).to_dict()
    assert result["reasons"] == ["no_data"]
    assert (result["champion"], result["challenger"]) == ("v2", None)


def test_row_1_rows_that_the_split_did_not_draw_are_no_part_of_the_experiment() -> None:
    rows = requests().with_columns(route_share=pl.lit(None, pl.Float64))
    assert decide(rows)["reasons"] == ["no_data"]


def test_row_2_errors_of_the_challenger_roll_back_at_once() -> None:
    rows = requests(hours=3, share=0.5, errors=(0.003, 0.08)).drop("label")
    result = decide(rows)
    assert (result["action"], result["reasons"]) == ("roll_back", ["error_rate"])
    assert result["summary"].startswith("Roll back v3: error_rate is ")
    assert "more than the allowed margin of 0.002." in result["summary"]


def test_row_2_a_slower_challenger_rolls_back_on_latency() -> None:
    result = decide(requests(hours=48, slower=1.5))
    assert (result["action"], result["reasons"]) == ("roll_back", ["latency_p95"])
    assert 0.3 < result["guardrails"]["latency_p95"]["effect"] < 0.7


def test_row_2_comes_before_a_broken_split() -> None:
    rows = requests(errors=(0.0, 0.2)).with_columns(route_share=pl.lit(0.3))
    result = decide(rows)
    assert result["reasons"] == ["error_rate"]
    assert result["health"]["srm_p"] < 0.001


def test_row_3_a_split_that_is_not_the_configured_one_holds() -> None:
    rows = requests(right=(0.8, 0.9)).with_columns(route_share=pl.lit(0.45))
    result = decide(rows)
    assert (result["action"], result["reasons"]) == ("hold", ["sample_ratio"])


def test_row_3_a_version_that_is_missing_altogether_is_a_broken_split() -> None:
    rows = requests().filter(pl.col("version") == "v3")
    assert decide(rows)["reasons"] == ["sample_ratio"]


def test_row_4_labels_lost_for_one_version_hold() -> None:
    rng = np.random.default_rng(1)
    rows = requests(right=(0.8, 0.9))
    lost = (rows["version"] == "v3").to_numpy() & (rng.random(len(rows)) < 0.1)
    rows = rows.with_columns(label=pl.Series(np.where(lost, np.nan, rows["label"].to_numpy())))
    result = decide(rows)
    assert (result["action"], result["reasons"]) == ("hold", ["labels_uneven"])
    assert result["health"]["coverage_difference"] == pytest.approx(-0.1, abs=0.02)


def test_row_5_no_label_yet_says_how_many_answers_wait() -> None:
    result = decide(requests(hours=48, per_hour=10).with_columns(label=pl.lit(None)))
    assert (result["action"], result["reasons"]) == ("keep_collecting", ["no_labels"])
    assert result["summary"] == "No data yet: 0 labels of 480 answered requests have arrived."


def test_row_5_too_few_labels_give_an_interval_but_no_verdict() -> None:
    rows = requests(hours=2, per_hour=40, right=(0.1, 0.9))
    result = decide(rows, primary={**ACCURACY, "mde": 0.3})
    assert result["reasons"] == ["min_labels"]
    assert result["metrics"]["accuracy"]["interval"][0] > 0


def test_row_5_too_few_units_are_not_enough() -> None:
    rows = requests(units=40, right=(0.5, 0.9))
    assert decide(rows, min_units=30)["reasons"] == ["min_labels"]


def test_row_5_a_loss_that_never_varies_is_no_evidence() -> None:
    rows = requests().with_columns(prediction=pl.lit(1.0), label=pl.lit(0.0))
    result = decide(rows, primary={"name": "mse", "mde": 0.1})
    assert (result["action"], result["reasons"]) == ("keep_collecting", ["zero_variance"])
    assert result["metrics"]["mse"]["interval"] is None


def late_labels(rows: pl.DataFrame) -> pl.DataFrame:
    """Labels that come after 1 to 25 hours, all hours equally likely."""
    hours = np.random.default_rng(5).uniform(1, 25, len(rows))
    return rows.with_columns(
        label_time=pl.col("request_time") + pl.Series(hours * 3.6e9).cast(pl.Duration("us"))
    )


def test_row_6_labels_younger_than_their_delay_wait() -> None:
    rows = late_labels(requests(hours=24, per_hour=400, right=(0.8, 0.9)))
    result = decide(rows, now=START + timedelta(hours=24))
    assert (result["action"], result["reasons"]) == ("keep_collecting", ["labels_immature"])
    assert 15 < result["health"]["delay_90_hours"] < 24
    assert result["health"]["immature_weight"] > 0.5


def test_row_6_a_label_that_says_when_it_comes_waits_for_a_third() -> None:
    rows = requests(hours=36, per_hour=400, right=(0.8, 0.9))
    delay = pl.when(pl.col("label") == 1).then(pl.lit(20)).otherwise(pl.lit(1))
    rows = rows.with_columns(label_time=pl.col("request_time") + pl.duration(hours=delay))
    result = decide(rows, now=START + timedelta(hours=36))
    assert result["reasons"] == ["labels_immature"]
    assert 1 / 3 < result["health"]["immature_weight"] < 1 / 2
    assert abs(result["health"]["delay_label_z"]) > 4


def test_row_6_is_cured_by_a_label_window() -> None:
    rows = late_labels(requests(hours=24, per_hour=400, right=(0.8, 0.9)))
    now = START + timedelta(hours=24)
    assert decide(rows, now=now)["reasons"] == ["labels_immature"]
    result = decide(rows, now=now, label_window_hours=12, min_hours=6)
    assert result["reasons"] == ["better"]
    delay = (rows["label_time"] - rows["request_time"]).dt.total_microseconds() / 3.6e9
    known = (rows["request_time"] <= now - timedelta(hours=12)) & (delay <= 12)
    assert sum(result["metrics"]["accuracy"]["n"].values()) == known.sum()


def test_row_7_a_worse_challenger_rolls_back_without_waiting_for_hours() -> None:
    result = decide(requests(hours=8, right=(0.9, 0.7)), min_hours=24)
    assert (result["action"], result["reasons"]) == ("roll_back", ["worse"])


def test_row_7_a_quality_guardrail_rolls_back_a_better_challenger() -> None:
    rows = requests(right=(0.8, 0.9)).with_columns(
        cost=pl.when(pl.col("version") == "v3").then(3.0).otherwise(1.0) + pl.col("score")
    )
    guardrail = {
        **{"name": "cost", "kind": "continuous", "value": "cost"},
        **{"direction": "lower", "margin": 0.5},
    }
    result = decide(rows, guardrails=[guardrail])
    assert (result["action"], result["reasons"]) == ("roll_back", ["cost"])
    assert result["guardrails"]["cost"]["crossed"] is True


def test_row_8_a_slice_that_gets_worse_holds() -> None:
    rows = requests(right=(0.8, 0.9), per_hour=400)
    rows = rows.with_columns(dice=pl.int_range(pl.len()) % 4)
    broken = (pl.col("region") == "apac") & (pl.col("version") == "v3") & (pl.col("dice") == 0)
    rows = rows.with_columns(
        prediction=pl.when(broken).then(1 - pl.col("label")).otherwise(pl.col("prediction"))
    )
    result = decide(rows, slices=["region"])
    assert (result["action"], result["reasons"]) == ("hold", ["slice_regression:region=apac"])
    assert [s["comparisons"] for s in result["slices"]] == [3, 3, 3]


def test_row_9_better_waits_for_the_minimum_of_hours() -> None:
    result = decide(requests(hours=12, per_hour=400, right=(0.8, 0.95)), min_hours=24)
    assert (result["action"], result["reasons"]) == ("keep_collecting", ["min_hours"])
    assert result["summary"].endswith("12 of 24 hours with labels.")


def fading_rows(last_gain: float) -> pl.DataFrame:
    days = [
        requests(hours=24, per_hour=400, right=(0.7, 0.7 + gain), seed=day).with_columns(
            pl.col("request_time", "label_time") + timedelta(days=day),
            pl.col("request_id") + f"-{day}",
        )
        for day, gain in enumerate((0.25, 0.2, 0.1, 0.0, last_gain, last_gain))
    ]
    return pl.concat(days)


def test_row_10_a_gain_that_fades_is_no_promotion() -> None:
    result = decide(fading_rows(-0.05))
    assert result["metrics"]["accuracy"]["interval"][0] > 0
    assert (result["action"], result["reasons"]) == ("hold", ["fading"])
    assert result["health"]["fading"]["slope_per_day"] < 0


def test_row_11_a_better_challenger_is_promoted() -> None:
    result = decide(requests(right=(0.80, 0.90)))
    assert (result["action"], result["reasons"]) == ("promote", ["better"])
    n = result["metrics"]["accuracy"]["n"]
    assert f"from {n['v3']:,} and {n['v2']:,} labels; guardrails respected." in result["summary"]
    assert result["summary"].startswith("Promote v3: v3 against v2 on accuracy: +")


def test_row_11_not_worse_is_enough_where_the_policy_says_so() -> None:
    primary = {**ACCURACY, "mode": "non_inferiority", "margin": 0.03}
    result = decide(requests(hours=120), primary=primary)
    assert (result["action"], result["reasons"]) == ("promote", ["not_worse"])


def test_row_12_a_worthwhile_gain_that_is_ruled_out_stops_the_experiment() -> None:
    result = decide(requests(hours=120), primary={**ACCURACY, "mde": 0.06})
    assert (result["action"], result["reasons"]) == ("hold", ["below_mde"])


def test_row_13_a_fading_effect_holds_an_undecided_experiment() -> None:
    result = decide(fading_rows(-0.25), primary={**ACCURACY, "mde": 0.2})
    low, high = result["metrics"]["accuracy"]["interval"]
    assert low <= 0 <= high
    if high >= 0.2:
        assert result["reasons"] == ["fading"]
    assert result["health"]["fading"]["log_e"] > math.log(1 / 0.05)


def test_row_14_what_is_not_decided_goes_on_and_says_how_long() -> None:
    result = decide(requests(hours=30, per_hour=60, right=(0.85, 0.87)))
    assert (result["action"], result["reasons"]) == ("keep_collecting", ["undecided"])
    left = result["remaining"]
    assert 0 < left["labels"] <= left["labels_at_most"]
    assert left["hours"] == pytest.approx(left["labels"] / 60, rel=0.05)


# The numbers


def test_the_effect_is_least_squares_with_a_constant_per_stratum() -> None:
    rows = requests(hours=6, per_hour=50, share=[0.1, 0.3, 0.5, 0.5, 0.7, 0.2])
    result = decide(rows)["metrics"]["accuracy"]
    y = (rows["prediction"] == rows["label"]).cast(pl.Float64).to_numpy()
    c = (rows["version"] == "v3").to_numpy()
    stratum = rows["request_time"].dt.hour().to_numpy()
    design = np.column_stack([c, *(stratum == s for s in range(6))]).astype(float)
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    assert result["effect"] == pytest.approx(solution[0], rel=1e-9)
    assert result["value"]["v3"] == pytest.approx(y[c].mean())
    assert result["strata"] == 6


def test_the_standard_error_is_the_written_formula() -> None:
    rows = requests(hours=5, per_hour=40, units=60, share=0.3)
    result = decide(rows)["metrics"]["accuracy"]
    table = rows.with_columns(
        y=(pl.col("prediction") == pl.col("label")).cast(pl.Float64),
        c=(pl.col("version") == "v3").cast(pl.Float64),
        s=pl.col("request_time").dt.hour(),
    )
    h_sum, pooled, squares, by_unit = 0.0, 0.0, 0.0, {}
    for part in table.partition_by("s"):
        n, n1 = len(part), part["c"].sum()
        h = n1 * (n - n1) / n
        h_sum += h
        pooled += h * float(part["y"].var())
    for part in table.partition_by("s"):
        n = len(part)
        for y, c, unit in part.select("y", "c", "unit_id").iter_rows():
            from_mean = c - part["c"].mean()
            u = from_mean * (y - part["y"].mean() - result["effect"] * from_mean)
            u *= math.sqrt(n / (n - 1))
            squares += u * u
            by_unit[unit] = by_unit.get(unit, 0.0) + u
    clustered = max(1.0, sum(u * u for u in by_unit.values()) / squares)
    se = max(math.sqrt(pooled), math.sqrt(squares)) / h_sum * math.sqrt(clustered)
    assert result["design_effect"] == pytest.approx(clustered)
    assert result["se"] == pytest.approx(se)


def test_a_ramp_while_the_world_gets_harder_shows_no_effect_where_there_is_none() -> None:
    easy = requests(hours=48, per_hour=300, share=0.05, right=(0.95, 0.95))
    hard = requests(hours=48, per_hour=300, share=0.5, right=(0.60, 0.60), seed=8).with_columns(
        pl.col("request_time", "label_time") + timedelta(hours=48), pl.col("request_id") + "b"
    )
    metric = decide(pl.concat([easy, hard]))["metrics"]["accuracy"]
    assert metric["value"]["v3"] - metric["value"]["v2"] < -0.1
    assert metric["interval"][0] < 0 < metric["interval"][1]


def test_repeated_requests_of_a_unit_are_not_new_evidence() -> None:
    rows = requests(hours=48, per_hour=100, units=200)
    right = (rows["unit_id"].hash(seed=3) % 4 > 0).to_numpy()
    label = rows["label"].to_numpy()
    rows = rows.with_columns(prediction=pl.Series(np.where(right, label, 1 - label)))
    assert decide(rows)["metrics"]["accuracy"]["design_effect"] > 10


def test_unique_units_leave_the_standard_error_alone() -> None:
    rows = requests(hours=10)
    with_units = rows.with_columns(unit_id="u" + pl.col("request_id"))
    assert decide(with_units)["metrics"]["accuracy"]["design_effect"] == 1
    assert same(decide(with_units), decide(rows))


def test_all_right_answers_of_both_versions_keep_a_finite_interval() -> None:
    rows = requests(hours=48, right=(1.0, 1.0))
    metric = decide(rows)["metrics"]["accuracy"]
    n = sum(metric["n"].values())
    h = 0.0
    for _, part in rows.group_by(pl.col("request_time").dt.truncate("1h")):
        n1 = (part["version"] == "v3").sum()
        h += n1 * (len(part) - n1) / len(part)
    p = (n + 1) / (n + 2)
    assert metric["effect"] == 0
    assert metric["se"] == pytest.approx(math.sqrt(p * (1 - p) / h))


@pytest.mark.parametrize("kind", ["recall", "precision"])
def test_recall_and_precision_count_the_rows_they_are_defined_on(kind: str) -> None:
    rows = requests(hours=30)
    result = decide(rows, primary={"name": kind, "mde": 0.02})["metrics"][kind]
    c = (rows["version"] == "v3").to_numpy()
    score = {"recall": sk.recall_score, "precision": sk.precision_score}[kind]
    expected = score(rows["label"].to_numpy()[c], rows["prediction"].to_numpy()[c])
    assert result["value"]["v3"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["brier", "log_loss", "mse", "mae"])
def test_losses_agree_with_scikit_learn(name: str) -> None:
    rows = requests(hours=30).with_columns(score=pl.col("score").clip(0.01, 0.99))
    result = decide(rows, primary={"name": name, "mde": 0.02})["metrics"][name]
    side = rows.filter(pl.col("version") == "v2")
    y, score, prediction = (side[c].to_numpy() for c in ("label", "score", "prediction"))
    expected = {
        "brier": lambda: sk.brier_score_loss(y, score),
        "log_loss": lambda: sk.log_loss(y, score),
        "mse": lambda: sk.mean_squared_error(y, prediction),
        "mae": lambda: sk.mean_absolute_error(y, prediction),
    }[name]()
    assert result["value"]["v2"] == pytest.approx(expected)
    assert result["direction"] == "lower"


def test_a_lower_loss_is_a_gain() -> None:
    rows = requests(hours=48, right=(0.7, 0.9))
    result = decide(rows, primary={"name": "mse", "mde": 0.05})
    assert result["action"] == "promote"
    assert result["metrics"]["mse"]["effect"] < 0
    assert result["metrics"]["mse"]["log_e_better"] > result["metrics"]["mse"]["log_e_worse"]


def test_auc_agrees_with_scikit_learn_and_with_delong_written_out() -> None:
    rows = requests(hours=4, per_hour=100).with_columns(pl.col("score").round(1))
    metric = decide(rows, primary={"name": "auc", "mde": 0.02})["metrics"]["auc"]
    side = rows.filter(pl.col("version") == "v3")
    y, score = side["label"].to_numpy() == 1, side["score"].to_numpy()
    assert metric["value"]["v3"] == pytest.approx(sk.roc_auc_score(y, score))
    wins = np.sign(score[y][:, None] - score[~y][None, :]) / 2 + 0.5
    v10, v01 = wins.mean(axis=1), wins.mean(axis=0)
    se = math.sqrt(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))
    assert metric["value_se"]["v3"] == pytest.approx(se)


def test_the_auc_difference_is_weighted_over_blocks_of_hours() -> None:
    rows = requests(hours=7, per_hour=120, right=(0.7, 0.9))
    metric = decide(rows, primary={"name": "auc", "mde": 0.02})["metrics"]["auc"]
    blocks, held = [], []
    for hour in sorted(rows["request_time"].dt.hour().unique()):
        held.append(rows.filter(pl.col("request_time").dt.hour() == hour))
        block = pl.concat(held)
        counts = block.group_by("version", "label").len()["len"]
        if len(counts) == 4 and counts.min() >= 20:
            blocks.append(block)
            held = []
    effects, weights = [], []
    for block in blocks:
        parts = [block.filter(pl.col("version") == v) for v in ("v3", "v2")]
        one, two = (sk.roc_auc_score(p["label"], p["score"]) for p in parts)
        sizes = [(p["label"] == side).sum() for p in parts for side in (0, 1)]
        effects.append(one - two)
        weights.append(1 / sum(1 / size for size in sizes))
    assert metric["strata"] == len(blocks) >= 2
    assert metric["effect"] == pytest.approx(np.average(effects, weights=weights))


def test_an_auc_experiment_can_promote() -> None:
    rows = requests(hours=48, right=(0.7, 0.95))
    result = decide(rows, primary={"name": "auc", "mde": 0.02})
    assert (result["action"], result["reasons"]) == ("promote", ["better"])
    assert result["health"]["fading"]["log_e"] is None


def test_every_share_of_a_ramp_enters_the_sample_ratio() -> None:
    shares = [0.01] * 10 + [0.05] * 10 + [0.2] * 10 + [0.5] * 10
    result = decide(requests(hours=40, share=shares))["health"]
    assert result["srm_log_e"] < math.log(1000)
    assert result["expected_share"] == pytest.approx(0.19)
    assert result["observed_share"] == pytest.approx(0.19, abs=0.02)


def test_a_sticky_split_is_recognised_and_counted_by_unit() -> None:
    by_unit = decide(requests(units=500, per_hour=100))["health"]
    by_request = decide(requests(per_hour=100))["health"]
    assert (by_unit["assignment"], by_unit["switches"]) == ("unit", 0)
    assert by_request["assignment"] == "request"


def test_units_that_are_drawn_anew_each_time_are_no_sticky_split() -> None:
    rows = requests(per_hour=100).with_columns(
        unit_id=pl.Series(np.random.default_rng(2).integers(0, 50, 4800)).cast(pl.String)
    )
    health = decide(rows)["health"]
    assert health["assignment"] == "request"
    assert health["switches"] > 2000


def test_a_sticky_split_with_heavy_users_is_not_taken_for_a_broken_one() -> None:
    rows = requests(hours=40, per_hour=100, units=30, seed=3)
    assert decide(rows, assignment="request")["health"]["srm_p"] < 0.001
    assert decide(rows)["health"]["srm_p"] > 0.001


def test_the_error_column_decides_where_it_says_something() -> None:
    rows = requests(hours=3).with_columns(
        status_code=pl.lit(400), error=(pl.col("version") == "v3") & (pl.col("region") == "eu")
    )
    result = decide(rows)
    assert result["reasons"] == ["error_rate"]
    assert result["metrics"]["error_rate"]["value"]["v2"] == 0


def test_bad_requests_of_clients_are_no_errors() -> None:
    rows = requests(hours=3).with_columns(
        status_code=pl.when(pl.col("version") == "v3").then(429).otherwise(200)
    )
    assert decide(rows)["metrics"]["error_rate"]["value"] == {"v3": 0, "v2": 0}


def test_a_guardrail_needs_a_champion_to_compare_with() -> None:
    rows = requests(hours=3, errors=(0.0, 1.0), share=0.9)
    few = rows.filter(pl.col("version") == "v2").head(49)
    rows = pl.concat([rows.filter(pl.col("version") == "v3"), few])
    result = decide(rows, min_requests=50)
    assert result["guardrails"]["error_rate"]["crossed"] is False
    assert result["metrics"]["error_rate"]["log_e_worse"] > 10


def test_several_challengers_share_the_error_budget() -> None:
    rows = requests(hours=30)
    one, three = decide(rows), decide(rows, challengers=3)
    width = [np.diff(r["metrics"]["accuracy"]["interval"])[0] for r in (one, three)]
    third = decide(rows, alpha=0.05 / 3)
    assert width[1] > width[0]
    assert same(third["metrics"]["accuracy"], three["metrics"]["accuracy"])


def test_of_several_that_may_be_promoted_the_surest_is_and_the_others_hold() -> None:
    found = [
        experiments.evaluate(requests(right=(0.7, rate)), policy(challengers=3), LATE)
        for rate in (0.8, 0.9, 0.7)
    ]
    first, best, equal = (
        dataclasses.replace(one, challenger=name)
        for one, name in zip(found, ("v3", "v4", "v5"), strict=True)
    )
    chosen = experiments.choose([first, best, equal])
    assert [(one.action, one.reasons) for one in chosen[:2]] == [
        ("hold", ["lost_to:v4"]),
        ("promote", ["better"]),
    ]
    assert chosen[2] == equal and chosen[0].metrics == first.metrics
    assert experiments.choose([equal]) == [equal]


def test_of_several_losses_the_one_that_surely_falls_most_wins() -> None:
    primary = {"name": "brier", "mde": 0.02}
    rows = requests(right=(0.7, 0.9), hours=72)
    weak = requests(right=(0.7, 0.8), hours=72)
    found = [
        experiments.evaluate(rows if name == "v3" else weak, policy(primary=primary), LATE)
        for name in ("v3", "v4")
    ]
    assert [one.action for one in found] == ["promote", "promote"]
    assert [one.action for one in experiments.choose(found)] == ["promote", "hold"]


def test_information_is_shown_and_never_decides() -> None:
    rows = requests(right=(0.80, 0.90))
    result = decide(rows, information=[{"name": "log_loss"}, {"name": "recall"}])
    assert result["reasons"] == ["better"]
    assert {"log_loss", "recall", "accuracy", "error_rate", "latency_p95"} == set(result["metrics"])


def test_remaining_labels_shrink_the_interval_to_half_the_mde() -> None:
    rows = requests(hours=30, per_hour=60)
    few = decide(rows)
    more = few["remaining"]["labels_at_most"]
    hours = 30 + math.ceil(more / 60)
    again = decide(requests(hours=hours, per_hour=60))
    low, high = again["metrics"]["accuracy"]["interval"]
    assert (high - low) / 2 == pytest.approx(0.01, rel=0.05)


def test_slices_take_the_values_with_most_labels() -> None:
    rows = requests(hours=30).with_columns(
        shop=pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("rare")).otherwise(pl.lit("big")),
    )
    result = decide(rows, slices=["shop", "absent"], max_slice_values=1)
    assert [s["slice"] for s in result["slices"]] == ["shop=big"]


# Odd input


def test_the_order_of_rows_does_not_matter() -> None:
    rows = requests(hours=30, units=400, share=0.3, right=(0.8, 0.85))
    changes = {"slices": ["region"], "information": [{"name": "auc"}]}
    first = decide(rows, **changes)
    assert same(first, decide(rows.sample(fraction=1, shuffle=True, seed=1), **changes))
    assert same(first, decide(rows.reverse(), **changes))


def test_of_rows_with_one_id_the_first_counts() -> None:
    rows = requests(hours=30)
    wrong = rows.with_columns(prediction=1 - pl.col("prediction"))
    later = wrong.with_columns(pl.col("request_time") + timedelta(seconds=1))
    assert same(decide(rows), decide(pl.concat([rows, wrong])))
    assert same(decide(rows), decide(pl.concat([later, rows])))


def test_labels_and_requests_of_the_future_do_not_exist() -> None:
    rows = requests(hours=48)
    now = START + timedelta(hours=30)
    known = rows.filter(pl.col("request_time") <= now).with_columns(
        label=pl.when(pl.col("label_time") <= now).then(pl.col("label"))
    )
    assert same(decide(rows, now=now), decide(known, now=now))


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_times_of_any_unit_and_zone_mean_the_same_instant(unit: Any, zone: str | None) -> None:
    rows = requests(hours=30, per_hour=50)
    times = pl.col("request_time", "label_time").dt.truncate("1s")
    expected = decide(rows.with_columns(times))
    moved = rows.with_columns(times.dt.cast_time_unit(unit).dt.convert_time_zone(zone or "UTC"))
    if zone is None:
        moved = moved.with_columns(pl.col("request_time", "label_time").dt.replace_time_zone(None))
    now = (
        LATE.replace(tzinfo=None) if zone is None else LATE.astimezone(timezone(timedelta(hours=9)))
    )
    assert same(expected, decide(moved, now=now))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_nothing_or_everything_gives_no_verdict_on_quality(share: float) -> None:
    result = decide(requests(share=share, right=(0.5, 0.9)))
    assert result["action"] in ("keep_collecting", "hold")
    assert result["metrics"]["accuracy"]["effect"] is None


def test_hours_with_one_version_have_no_say() -> None:
    both = requests(hours=30)
    alone = requests(hours=30, share=1.0, right=(0.0, 0.0), seed=9).with_columns(
        pl.col("request_time", "label_time") + timedelta(hours=30), pl.col("request_id") + "x"
    )
    with_tail = decide(pl.concat([both, alone]))["metrics"]["accuracy"]
    assert with_tail["effect"] == pytest.approx(decide(both)["metrics"]["accuracy"]["effect"])
    assert with_tail["strata"] == 30


def test_text_answers_are_compared_as_text() -> None:
    rows = requests(right=(0.8, 0.9)).with_columns(
        pl.col("label").replace_strict({0: "no", 1: "yes"}),
        pl.col("prediction").replace_strict({0: "no", 1: "yes"}),
    )
    assert decide(rows)["reasons"] == ["better"]
    recall = decide(rows, primary={"name": "recall", "mde": 0.02, "positive": "yes"})
    assert sum(recall["metrics"]["recall"]["n"].values()) == (rows["label"] == "yes").sum()


def test_numbers_and_texts_of_one_value_are_equal() -> None:
    rows = requests(hours=30)
    texts = rows.with_columns(label=pl.col("label").cast(pl.String))
    floats = rows.with_columns(label=pl.col("label").cast(pl.Float64))
    expected = decide(rows)["metrics"]["accuracy"]
    assert same(expected, decide(texts)["metrics"]["accuracy"])
    assert same(expected, decide(floats)["metrics"]["accuracy"])


def test_versions_are_ordered_as_people_count() -> None:
    rows = requests(hours=30).with_columns(
        version=pl.when(pl.col("version") == "v3").then(pl.lit("v10")).otherwise(pl.lit("v9"))
    )
    result = experiments.evaluate(rows, {"primary": ACCURACY}, LATE)
    assert (result.champion, result.challenger) == ("v9", "v10")


def test_columns_that_are_absent_are_all_missing() -> None:
    rows = requests(hours=30).select("request_time", "request_id", "version", "route_share")
    result = decide(rows, slices=["region"])
    assert result["reasons"] == ["no_labels"]
    assert result["metrics"]["latency_p95"]["value"] == {"v3": None, "v2": None}
    assert decide(pl.DataFrame())["reasons"] == ["no_data"]


odd_numbers = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, 1.0]))


@st.composite
def odd_rows(draw: st.DrawFn) -> pl.DataFrame:
    n = draw(st.integers(0, 25))
    seconds = st.one_of(st.none(), st.integers(0, 10 * 3600))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    def times() -> pl.Series:
        return pl.Series(
            [None if s is None else START + timedelta(seconds=s) for s in column(seconds)]
        )

    return pl.DataFrame(
        {
            "request_time": times(),
            "request_id": column(st.sampled_from(["a", "b", "c", "d", None])),
            "unit_id": column(st.sampled_from(["x", "y", None])),
            "version": column(st.sampled_from(["v2", "v3", "v4", None])),
            "route_share": column(st.sampled_from([0.0, 0.1, 0.5, 1.0, None, float("nan"), -1.0])),
            "status_code": column(st.sampled_from([200, 500, 429, None])),
            "latency_ms": column(odd_numbers),
            "prediction": column(odd_numbers),
            "score": column(odd_numbers),
            "label": column(odd_numbers),
            "label_time": times(),
        },
        schema_overrides={
            "request_time": pl.Datetime("us", "UTC"),
            "label_time": pl.Datetime("us", "UTC"),
            "latency_ms": pl.Float64,
            "prediction": pl.Float64,
            "score": pl.Float64,
            "label": pl.Float64,
        },
    )


@settings(max_examples=60, deadline=None)
@given(rows=odd_rows(), name=st.sampled_from(["accuracy", "auc", "mse", "log_loss", "recall"]))
def test_no_rows_however_odd_raise_or_give_a_verdict_on_quality(
    rows: pl.DataFrame, name: str
) -> None:
    result = decide(
        rows,
        primary={"name": name, "mde": 0.1},
        information=[{"name": "auc"}, {"name": "brier"}, {"name": "precision"}],
        slices=["version"],
    )
    assert result["action"] in ("keep_collecting", "hold", "roll_back")
    assert not {"better", "worse", "not_worse"} & set(result["reasons"])


# The policy


@pytest.mark.parametrize(
    ("given_policy", "named"),
    [
        ({}, "policy.primary"),
        ({"primary": ACCURACY, "colour": 1}, "colour"),
        ({"primary": {**ACCURACY, "mode": "best"}}, "policy.primary.mode"),
        ({"primary": {**ACCURACY, "mde": 0}}, "policy.primary.mde"),
        ({"primary": {"name": "accuracy"}}, "policy.primary.mde"),
        ({"primary": {**ACCURACY, "margin": -0.1}}, "policy.primary.margin"),
        ({"primary": {**ACCURACY, "size": 1}}, "size"),
        ({"primary": {"name": "revenue", "kind": "continuous", "mde": 1}}, "policy.primary.value"),
        ({"primary": {"name": "magic", "mde": 1}}, "policy.primary.kind"),
        ({"primary": ACCURACY, "alpha": 1}, "policy.alpha"),
        ({"primary": ACCURACY, "guardrail_alpha": 0}, "policy.guardrail_alpha"),
        ({"primary": ACCURACY, "health_alpha": "x"}, "policy.health_alpha"),
        ({"primary": ACCURACY, "assignment": "sticky"}, "policy.assignment"),
        ({"primary": ACCURACY, "guardrails": [{"name": "x", "kind": "y"}]}, "guardrails[0].kind"),
        ({"primary": ACCURACY, "slices": "region"}, "policy.slices"),
        ({"primary": ACCURACY, "champion": "a", "challenger": "a"}, "policy.challenger"),
        ({"primary": ACCURACY, "min_labels": 1.5}, "policy.min_labels"),
    ],
)
def test_a_bad_policy_is_refused_by_the_name_of_its_field(
    given_policy: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named.replace("[", r"\[")):
        experiments.evaluate(requests(hours=1), given_policy, LATE)


# Simulations with fixed seeds, small; the long form is benchmarks/experiments/simulate.py


@pytest.mark.parametrize(
    ("share", "units"), [(0.5, None), (0.1, None), (0.5, 300)], ids=["half", "tenth", "sticky"]
)
@pytest.mark.slow
def test_equal_versions_are_hardly_ever_told_apart_however_often_one_looks(
    share: float, units: int | None
) -> None:
    wrong, crossed, broken = 0, 0, 0
    for seed in range(60):
        rows = requests(hours=168, per_hour=20, share=share, units=units, seed=1000 + seed)
        looks = [decide(rows, now=START + timedelta(days=day, hours=6)) for day in range(1, 8)]
        accuracy = [look["metrics"]["accuracy"] for look in looks]
        acted = [m for m in accuracy if min(m["n"].values()) >= 100 and m["interval"]]
        wrong += any(m["interval"][0] > 0 or m["interval"][1] < 0 for m in acted)
        crossed += any(g["crossed"] for look in looks for g in look["guardrails"].values())
        broken += any(look["health"]["srm_log_e"] >= math.log(1000) for look in looks)
    assert wrong <= 6  # 5 % of 60 are 3; 7 and more have probability 2 %
    assert crossed <= 2
    assert broken <= 1


@pytest.mark.slow
def test_a_canary_with_many_errors_goes_back_within_about_a_hundred_requests() -> None:
    """1,000 runs at every request: median 42, 90 % by 96; here 40 runs at every tenth."""
    needed = []
    for seed in range(40):
        rows = requests(hours=100, per_hour=1000, share=0.01, errors=(0.003, 0.08), seed=seed)
        rows = rows.sort("request_time").drop("label")
        challenger = (rows["version"] == "v3").cum_sum()
        for count in range(10, 310, 10):
            if decide(rows.filter(challenger <= count), now=LATE)["reasons"] == ["error_rate"]:
                break
        needed.append(count)
    assert np.median(needed) <= 60
    assert np.quantile(needed, 0.9) <= 150
