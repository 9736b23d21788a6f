"""The demo's data: what a request may know, against loops over the raw files."""

import random
from datetime import datetime, timedelta

import polars as pl
import pytest

from serving.demo import flights


@pytest.fixture(scope="module")
def data() -> flights.Flights:
    return flights.load()


@pytest.fixture(scope="module")
def departures() -> pl.DataFrame:
    raw = flights.read(flights.folder(), "flights.csv", flights.FLIGHT_COLUMNS)
    return flights.departure_times(raw).select("origin", "scheduled", "departed", "dep_delay")


def sampled(data: flights.Flights, count: int) -> list[dict[str, object]]:
    numbers = random.Random(7).sample(range(data.airport_hour.height), count)
    return [data.airport_hour.row(number, named=True) for number in numbers]


def test_traffic_features_count_only_what_had_happened_by_as_of(
    data: flights.Flights, departures: pl.DataFrame
) -> None:
    for row in sampled(data, 60):
        as_of = row["as_of"]
        assert isinstance(as_of, datetime)
        here = departures.filter(pl.col("origin") == row["origin"])
        left = here.filter(
            (pl.col("departed") >= as_of - timedelta(hours=2)) & (pl.col("departed") < as_of)
        )
        assert row["departed_2h"] == left.height
        if left.height:
            assert row["delay_2h"] == pytest.approx(left["dep_delay"].mean())
            assert row["late_share_2h"] == pytest.approx((left["dep_delay"] > 15).mean())
        else:
            assert row["delay_2h"] is None
        overdue = here.filter(
            (pl.col("scheduled") >= as_of - timedelta(hours=3))
            & (pl.col("scheduled") < as_of)
            & (pl.col("departed").is_null() | (pl.col("departed") >= as_of))
        )
        assert row["waiting"] == overdue.height


def test_weather_is_the_row_of_two_hours_before_the_scheduled_hour(data: flights.Flights) -> None:
    weather = flights.read(
        flights.folder(), "weather.csv", ["origin", "time_hour", "temp", "visib"]
    )
    known = {(o, t): (temp, visib) for o, t, temp, visib in weather.iter_rows()}
    for row in sampled(data, 200):
        as_of = row["as_of"]
        assert isinstance(as_of, datetime)
        observed = (as_of - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        temp, visib = known.get((row["origin"], observed), (None, None))
        assert (row["temp"], row["visib"]) == (temp, visib)


def test_every_request_finds_its_airport_hour_and_it_is_from_before(data: flights.Flights) -> None:
    joined = data.flights.join(data.airport_hour, on=["origin", "hour"], how="left")
    assert joined.height == data.flights.height
    assert joined["as_of"].null_count() == 0
    assert (joined["as_of"] <= joined["event_time"]).all()


def test_labels_exist_from_the_real_arrival_on(data: flights.Flights) -> None:
    labelled = data.flights.filter(pl.col("label_time").is_not_null())
    minutes = (labelled["label_time"] - labelled["event_time"]).dt.total_minutes()
    # Found beforehand on the same package: median 230, 95 % 445, longest 2,022 minutes.
    assert (minutes.median(), minutes.quantile(0.95), minutes.max()) == (230, 445, 2022)
    assert data.flights["late"].null_count() == 9_430


def test_the_replay_is_in_order_and_keeps_the_bad_days_whole(data: flights.Flights) -> None:
    replay = flights.replayed(data.flights)
    assert replay["event_time"].is_sorted()
    assert replay["event_time"].min() >= flights.TRAINING_END  # type: ignore[operator]
    assert 24_500 < replay.height < 25_500
    bad = pl.col("event_time").dt.date().is_between(datetime(2013, 10, 7), datetime(2013, 10, 10))
    assert replay.filter(bad).height == data.flights.filter(bad).height
