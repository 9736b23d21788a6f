from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from capture import errors
from monitors import experiments, formulas, policies, summing, sums

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
MISSED = "CASE WHEN prediction = 0 AND label = 1 THEN amount ELSE 0 END"
COLUMNS = {"amount": pl.Float64(), "prediction": pl.Float64(), "city": pl.String()}


def policy(value: str, **more) -> dict:
    primary = {"name": "loss", "kind": "continuous", "direction": "lower", "mde": 5, "value": value}
    return {"primary": primary | more, "champion": "v1", "challenger": "v2", "min_hours": 0}


def requests(n: int = 2000) -> pl.DataFrame:
    """The challenger misses fewer of what costs: one in ten instead of three."""
    rng = np.random.default_rng(5)
    at = MONDAY + pl.Series(np.sort(rng.integers(0, 48 * 3600, n))).cast(pl.Duration("ms")) * 1000
    version = np.where(rng.random(n) < 0.5, "v2", "v1")
    label = (rng.random(n) < 0.5).astype(float)
    missed = rng.random(n) < np.where(version == "v2", 0.1, 0.3)
    return pl.DataFrame(
        {
            "request_time": at, "label_time": at + timedelta(hours=1),
            "request_id": [str(k) for k in range(n)], "version": version, "route_share": 0.5,
            "status_code": 200, "prediction": np.where(missed, 1 - label, label), "label": label,
            "amount": rng.gamma(2, 50, n), "loss column": rng.random(n),
        }
    )  # fmt: skip


NOW = MONDAY + timedelta(days=3)


def test_a_metric_is_whatever_an_expression_says_of_a_labelled_row():
    rows = requests()
    by_hand = rows.with_columns(
        loss=pl.when((pl.col("prediction") == 0) & (pl.col("label") == 1))
        .then("amount")
        .otherwise(0.0)
    )
    found = experiments.evaluate(rows, policy(MISSED), NOW)
    assert found.action == "promote" and found.metrics["loss"]["effect"] < -5
    assert (
        found.metrics["loss"] == experiments.evaluate(by_hand, policy("loss"), NOW).metrics["loss"]
    )
    truth = experiments.evaluate(rows, policy("prediction = label", kind="binary", mde=0.05), NOW)
    assert truth.metrics["loss"]["value"]["v2"] == pytest.approx(0.9, abs=0.02)


def test_an_expression_says_the_same_of_sums_as_of_rows():
    rows = requests()
    hour = pl.col("request_time").dt.truncate("1h")
    parts = rows.with_columns(hour=hour).partition_by("hour", include_key=False)
    whole = experiments.evaluate(rows, policy(MISSED), NOW).to_dict()
    found = None
    for part in parts:
        one = summing.summarise(part, policy(MISSED), NOW)
        found = one if found is None else sums.merge(found, one)
    assert found is not None
    metric, other = (
        one["metrics"]["loss"] for one in (whole, experiments.decide(found, NOW).to_dict())
    )
    assert len(parts) == 48 and metric["n"] == other["n"]
    for name in ("effect", "se"):
        assert metric[name] == pytest.approx(other[name], rel=1e-9)


def test_a_column_of_that_very_name_goes_before_an_expression():
    rows = requests()
    found = experiments.evaluate(rows, policy("loss column", mde=0.1), NOW)
    assert sum(found.metrics["loss"]["n"].values()) == rows.height


@pytest.mark.parametrize("value", ["absent", "absent + 1", "version - 1", "read_csv('x')"])
def test_what_cannot_be_computed_is_no_value_and_no_crash(value):
    found = experiments.evaluate(requests(), policy(value), NOW)
    assert found.action == "keep_collecting" and sum(found.metrics["loss"]["n"].values()) == 0


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("amont * 2", "Column 'amont' is not there"),
        ("amont", "Column 'amont' is not there"),
        ("read_csv('/etc/passwd')", "not allowed"),
        ("city", "gives String"),
        ("UPPER(city)", "gives String"),
        ("city - 1", "primary.value"),
        ("1 + 1", "names no column"),
    ],
)
def test_a_value_that_the_table_cannot_give_is_refused_by_its_place(value, named):
    metrics = policies.Policy.parse(policy(value)).placed_metrics
    with pytest.raises(errors.InvalidParameter, match=r"primary\.value") as refused:
        formulas.check(metrics, COLUMNS)
    assert named in str(refused.value)


@pytest.mark.parametrize("columns", [COLUMNS, None])
@pytest.mark.parametrize("value", [MISSED, "amount", "latency_ms / 2", "prediction = label"])
def test_a_value_that_the_table_can_give_is_taken(value, columns):
    formulas.check(policies.Policy.parse(policy(value)).placed_metrics, columns)


def test_names_are_found_in_any_case():
    assert formulas.named(["amount", "CITY", "x"], ["Amount", "city"]) == {
        "amount": "Amount",
        "CITY": "city",
    }
