"""Requests as series over time."""

from datetime import timedelta
from typing import Any

import pytest

from capture import errors, series
from tests.capture import shop

RANGE = {
    "table": shop.TABLE,
    "from": "2024-03-01T12:00:00Z",
    "to": "2024-03-01T12:03:00Z",
    "step": 60,
}


def values(reply: dict[str, Any], metric: str, by: str | None = None) -> list[Any]:
    (found,) = [one for one in reply["series"] if (one["metric"], one["by"]) == (metric, by)]
    return [value for _, value in found["points"]]


def test_requests_errors_and_latencies_per_step(shop_settings):
    shop.write_requests(
        shop_settings,
        {"after": 0},
        {"after": 59, "gateway_us": 21_000},
        {"after": 60, "status_code": 400, "error_source": "model"},
        {"after": 61, "status_code": 400, "error_source": "request"},
        {"after": 62, "status_code": 503, "error_source": "server"},
        {"after": 63, "shadow": True},
        {"after": 180},
        {"after": -1},
    )
    reply = series.timeseries(shop_settings, RANGE)
    assert reply["step_seconds"] == 60
    assert values(reply, "requests") == [2, 3, 0]
    assert values(reply, "errors") == [0, 2, 0]
    assert values(reply, "p99") == [30.0, 10.0, None]
    assert values(reply, "execution") == [4.0, 4.0, None]
    times = [time for time, _ in reply["series"][0]["points"]]
    assert times == [shop.START + timedelta(minutes=n) for n in range(3)]


def test_a_recorded_request_counts_for_those_that_the_share_left_out(shop_settings):
    shop.write_requests(
        shop_settings,
        {"after": 0, "sampling_fraction": 0.25, "gateway_us": 21_000},
        {"after": 1, "sampling_fraction": 0.25, "status_code": 503, "error_source": "server"},
        {"after": 2, "sampling_fraction": 1.0},
        {"after": 3, "sampling_fraction": None},
    )
    reply = series.timeseries(shop_settings, {**RANGE, "metrics": "requests,errors,p50,p99"})
    assert values(reply, "requests") == [10, 0, 0]
    assert values(reply, "errors") == [4, 0, 0]
    assert values(reply, "p99") == [30.0, None, None]
    coded = series.timeseries(shop_settings, {**RANGE, "metrics": "requests", "by": "status_code"})
    assert values(coded, "requests", "200") == [6, 0, 0]
    assert values(coded, "requests", "503") == [4, 0, 0]


def test_series_per_version(shop_settings):
    shop.write_requests(
        shop_settings, {"after": 0}, {"after": 1, "served_entity_name": "v2"}, {"after": 61}
    )
    reply = series.timeseries(
        shop_settings, {**RANGE, "by": "served_entity", "metrics": "requests,p50"}
    )
    assert {(one["metric"], one["by"]) for one in reply["series"]} == {
        (metric, by) for metric in ("requests", "p50") for by in ("v1", "v2")
    }
    assert values(reply, "requests", "v1") == [1, 1, 0]
    assert values(reply, "requests", "v2") == [1, 0, 0]


def test_a_stay_is_split_into_its_parts_and_counted_by_status(shop_settings):
    shop.write_requests(
        shop_settings,
        {"after": 0},
        {"after": 1, "queue_us": 4000, "features_us": None},
        {"after": 2, "status_code": 503, "error_source": "server", "predict_us": 0},
    )
    parts = series.timeseries(shop_settings, {**RANGE, "metrics": "gateway,queue,features,predict"})
    found = [values(parts, part)[0] for part in series.PARTS]
    assert found == pytest.approx([1, 8 / 3, 2, 8 / 3])
    coded = series.timeseries(shop_settings, {**RANGE, "metrics": "requests", "by": "status_code"})
    assert values(coded, "requests", "200") == [2, 0, 0]
    assert values(coded, "requests", "503") == [1, 0, 0]


def test_a_table_that_is_not_there_yet_has_empty_series(shop_settings):
    reply = series.timeseries(shop_settings, {**RANGE, "metrics": "requests,p50"})
    assert values(reply, "requests") == [0, 0, 0]
    assert values(reply, "p50") == [None] * 3


@pytest.mark.parametrize(
    ("days", "step", "expected"),
    [
        (1, 60, 60),
        (1, 1, 60),
        (1, None, 600),
        (30, 60, 1800),
        (365, 3600, 21_600),
        (4000, 1, 259_200),
    ],
)
def test_no_series_has_more_than_2000_points(shop_settings, days, step, expected):
    end = shop.START + timedelta(days=days)
    asked = {
        "table": shop.TABLE,
        "from": shop.START.isoformat(),
        "to": end.isoformat(),
        "step": step,
    }
    reply = series.timeseries(shop_settings, {**asked, "metrics": "requests"})
    assert reply["step_seconds"] == expected
    assert len(reply["series"][0]["points"]) <= series.MOST_POINTS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metrics": "requests,joy"}, "joy"),
        ({"by": "colour"}, "colour"),
        ({"from": "then"}, "then"),
        ({"to": None}, "to"),
        ({"to": "2024-03-01T12:00:00Z"}, "before"),
        ({"step": "fast"}, "fast"),
        ({"step": 0}, "step"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_by_name(shop_settings, change, named):
    with pytest.raises(errors.InvalidParameter, match=named):
        series.timeseries(shop_settings, {**RANGE, **change})
