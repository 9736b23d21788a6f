"""Fairness of Boolean slices, against scikit-learn on the raw rows of both sides."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from monitors import fairness, quality

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
SLICE = "carrier = 'UA'"


def rates(y: Any, p: Any, classes: list[Any]) -> dict[str, dict[str, float]]:
    """The four rates of one side, one class against all others."""
    found: dict[str, dict[str, float]] = {name: {} for name in fairness.NAMES}
    for one in classes:
        truth, said = (np.asarray([value == one for value in side]) for side in (y, p))
        tn, fp, _, _ = confusion_matrix(truth, said, labels=[False, True]).ravel()
        name = f"{one:g}" if isinstance(one, float) else str(one)
        nan = float("nan")
        found["predictive_parity"][name] = precision_score(truth, said, zero_division=nan)
        found["predictive_equality"][name] = fp / (fp + tn) if fp + tn else nan
        found["equal_opportunity"][name] = recall_score(truth, said, zero_division=nan)
        found["statistical_parity"][name] = said.mean()
    return found


def differences(frame: pl.DataFrame, protected: pl.Expr) -> dict[str, dict[str, float]]:
    sides = [frame.filter(protected), frame.filter(~protected)]
    one, other = (rates(side["label"], side["prediction"], [0.0, 1.0]) for side in sides)
    return {rate: {c: one[rate][c] - other[rate][c] for c in one[rate]} for rate in one}


def table_rows(lake, value: str, version: str | None = None) -> pl.DataFrame:
    rows = lake.metrics("profile").filter(
        (pl.col("column_name") == ":table")
        & (pl.col("slice_key") == SLICE)
        & (pl.col("slice_value") == value)
        & pl.col("served_entity_name").eq_missing(pl.lit(version, pl.String))
    )
    assert rows.height == 1
    return rows


def maps(rows: pl.DataFrame) -> dict[str, dict[str, float]]:
    return {name: dict(rows[name][0]) for name in fairness.NAMES}


def test_the_protected_side_is_compared_with_the_other_one(lake):
    lake.monitor(slicing_exprs=[SLICE, "carrier"])
    skill = {"v1": 0.4, "v2": 0.44}
    frame = lake.rows(MONDAY, 1500, split={"v1": 50, "v2": 50}, skill=skill)
    unlabelled = lake.rows(MONDAY, 100)
    lake.write(pl.concat([frame, unlabelled]))
    lake.label(frame)
    lake.done(MONDAY + timedelta(weeks=2))
    known = [float(lake.late[one]) for one in frame["databricks_request_id"].to_list()]
    labelled = frame.with_columns(label=pl.Series(known))
    protected = pl.col("carrier") == "UA"
    for version, part in (
        (None, labelled),
        ("v2", labelled.filter(pl.col("served_entity_name") == "v2")),
    ):
        found, expected = maps(table_rows(lake, "true", version)), differences(part, protected)
        for rate, by_class in expected.items():
            assert found[rate] == pytest.approx(by_class), rate
        assert any(abs(value) > 0 for value in found["equal_opportunity"].values())
    other = table_rows(lake, "false")
    everything = lake.metrics("profile").filter(pl.col("slice_key").is_null())
    by_carrier = lake.metrics("profile").filter(pl.col("slice_key") == "carrier")
    for rows in (other, everything, by_carrier):
        assert all(rows[name].is_null().all() for name in fairness.NAMES)


def test_rows_of_the_other_side_alone_move_the_comparison(lake):
    lake.monitor(slicing_exprs=[SLICE])
    first = lake.rows(MONDAY, 600)
    lake.write(first)
    lake.label(first)
    lake.done(MONDAY + timedelta(weeks=2))
    before = maps(table_rows(lake, "true"))
    lake.restart()
    late = lake.rows(MONDAY, 600).filter(pl.col("carrier") != "UA").with_columns(
        prediction=pl.lit(1.0)
    )  # fmt: skip
    lake.write(late)
    lake.label(late)
    lake.done(MONDAY + timedelta(weeks=2))
    after = maps(table_rows(lake, "true"))
    whole = pl.concat([first, late])
    known = [float(lake.late[one]) for one in whole["databricks_request_id"].to_list()]
    expected = differences(whole.with_columns(label=pl.Series(known)), pl.col("carrier") == "UA")
    assert after["statistical_parity"] == pytest.approx(expected["statistical_parity"])
    assert before["statistical_parity"] != after["statistical_parity"]


@pytest.mark.parametrize(
    "change", [{"problem_type": "PROBLEM_TYPE_REGRESSION"}, {"label_col": None}]
)
def test_where_no_classes_are_judged_there_is_no_fairness(lake, change):
    lake.monitor(slicing_exprs=[SLICE], inference_log=change)
    frame = lake.rows(MONDAY, 300)
    lake.write(frame)
    if "problem_type" in change:
        lake.label(frame)
    lake.done(MONDAY + timedelta(weeks=2))
    rows = table_rows(lake, "true")
    assert all(rows[name].is_null().all() for name in fairness.NAMES)


@given(
    sides=st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1),
        min_size=2,
        max_size=2,
    )
)
def test_every_pair_of_sides_has_the_rates_of_scikit_learn(sides):
    counts = [
        quality.summarise(
            pl.DataFrame(side, schema=["prediction", "label"], orient="row"), "classification"
        )
        for side in sides
    ]
    found = fairness.compare(*counts)
    classes = sorted({name for side in sides for pair in side for name in pair})
    one, other = (rates([y for _, y in side], [p for p, _ in side], classes) for side in sides)
    for rate in fairness.NAMES:
        for name in classes:
            expected = one[rate][name] - other[rate][name]
            if np.isnan(expected):
                assert found[rate][name] is None
            else:
                assert found[rate][name] == pytest.approx(expected)


def test_without_labels_on_a_side_nothing_is_said():
    some = quality.summarise(
        pl.DataFrame({"prediction": ["a"], "label": ["a"]}), "classification"
    )  # fmt: skip
    assert fairness.compare(some, quality.empty("classification")) == {}
