"""Lookups of a batch against published snapshots."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from capture import errors
from capture.settings import Settings
from serving.features import FeatureEngineeringClient
from serving.features.online import CHECK_SECONDS, Lookup

PLANES = "main.flights.planes"
HOURS = "main.flights.airport_hour"


@pytest.fixture
def client(tmp_path: Path) -> FeatureEngineeringClient:
    return FeatureEngineeringClient(Settings(data_dir=tmp_path))


@pytest.fixture
def planes(client):
    frame = pl.DataFrame({"tailnum": ["N1", "N2"], "seats": [100, 200], "engines": [2, None]})
    client.create_table(name=PLANES, primary_keys="tailnum", df=frame)
    client.publish_table(name=PLANES)
    return client


def lookup(client, table=PLANES, key=("tailnum",), features=("seats", "engines"), **more) -> Lookup:
    one = {"table": table, "lookup_key": list(key), "features": list(features), **more}
    return Lookup({"lookups": [one]}, client.settings.snapshots_dir)


def test_every_row_gets_the_features_of_its_key(planes):
    added = lookup(planes).add({"tailnum": ["N2", "N1", "N2"], "x": [1, 2, 3]}, 3)
    assert added == {"seats": [200, 100, 200], "engines": [None, 2, None]}


def test_a_missing_key_gives_defaults_else_null_and_is_counted(planes):
    one = lookup(planes, defaults={"seats": 150})
    added = one.add({"tailnum": ["N9", None, "N1", "N2"]}, 4)
    assert added == {"seats": [150, 150, 100, 200], "engines": [None, None, 2, None]}
    assert one.misses == {PLANES: 2}


def test_features_take_the_names_that_the_model_knows(planes):
    added = lookup(planes, renames={"seats": "capacity"}).add({"tailnum": ["N1"]}, 1)
    assert added == {"capacity": [100], "engines": [2]}


def test_a_column_in_the_request_overrides_its_lookup(planes):
    assert lookup(planes).add({"tailnum": ["N1"], "seats": [7]}, 1) == {"engines": [2]}


def test_no_key_is_needed_where_the_request_brings_all_features(planes):
    assert lookup(planes).add({"seats": [7], "engines": [1]}, 1) == {}


def test_a_request_without_the_key_column_is_refused_by_name(planes):
    with pytest.raises(errors.BadRequest, match="tailnum"):
        lookup(planes).add({"x": [1]}, 1)


def test_a_table_without_snapshot_is_unavailable_by_name_and_served_once_published(client):
    one = lookup(client)
    with pytest.raises(errors.Unavailable, match=r"main\.flights\.planes"):
        one.add({"tailnum": ["N1"]}, 1)
    frame = pl.DataFrame({"tailnum": ["N1"], "seats": [1], "engines": [1]})
    client.create_table(name=PLANES, primary_keys="tailnum", df=frame)
    client.publish_table(name=PLANES)
    assert one.add({"tailnum": ["N1"]}, 1) == {"seats": [1], "engines": [1]}


def test_a_feature_or_key_that_the_table_lacks_is_unavailable_by_name(planes):
    with pytest.raises(errors.Unavailable, match="wings"):
        lookup(planes, features=["wings"]).add({"tailnum": ["N1"]}, 1)
    with pytest.raises(errors.Unavailable, match="tailnum"):
        lookup(planes, key=["tailnum", "day"]).add({"tailnum": ["N1"], "day": [1]}, 1)


def test_a_new_snapshot_is_seen_without_a_restart(planes):
    one = lookup(planes)
    assert one.add({"tailnum": ["N3"]}, 1)["seats"] == [None]
    new = pl.DataFrame({"tailnum": ["N3"], "seats": [300], "engines": [4]})
    planes.write_table(name=PLANES, df=new)
    planes.publish_table(name=PLANES)
    deadline = datetime.now(UTC) + timedelta(seconds=100 * CHECK_SECONDS)
    while one.add({"tailnum": ["N3"]}, 1)["seats"] != [300]:
        assert datetime.now(UTC) < deadline
    assert one.facts()[PLANES].table_version == 2


def test_a_row_older_than_the_lookback_window_counts_as_missing(client):
    noon = datetime(2013, 7, 1, 12, tzinfo=UTC)
    frame = pl.DataFrame({"origin": ["JFK"], "hour": [noon], "temp": [20.0]})
    client.create_table(name=HOURS, primary_keys="origin", timeseries_column="hour", df=frame)
    client.publish_table(name=HOURS)
    one = lookup(
        client, HOURS, ["origin"], ["temp"], timestamp_key="event_time", lookback_seconds=3600.0
    )
    times = ["2013-07-01T12:30:00Z", "2013-07-01T13:00:00Z", "2013-07-01T13:00:01Z", None]
    added = one.add({"origin": ["JFK"] * 4, "event_time": times}, 4)
    assert added == {"temp": [20.0, 20.0, None, None]}


def test_a_worker_that_looks_up_loads_neither_polars_nor_delta_nor_arrow(planes):
    code = (
        "import sys, pathlib\n"
        "from serving.features import online\n"
        "one = online.Lookup({'lookups': [{'table': sys.argv[1], 'lookup_key': ['tailnum'],"
        " 'features': ['seats']}]}, pathlib.Path(sys.argv[2]))\n"
        "print(one.add({'tailnum': ['N1']}, 1))\n"
        "print(sorted({'polars', 'deltalake', 'pyarrow', 'pandas', 'mlflow'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, PLANES, str(planes.settings.snapshots_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["{'seats': [100]}", "[]"]
