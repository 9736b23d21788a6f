"""The client: tables, point-in-time training sets, logged models; offline equals online."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from capture import errors
from capture.settings import Settings
from serving.features import FeatureEngineeringClient, FeatureLookup, joins, spec
from serving.features.online import Lookup

WEATHER = "main.flights.weather"
START = datetime(2013, 7, 1, tzinfo=UTC)


def hour(n: float) -> datetime:
    return START + timedelta(hours=n)


@pytest.fixture
def client(tmp_path: Path) -> FeatureEngineeringClient:
    return FeatureEngineeringClient(Settings(data_dir=tmp_path))


@pytest.fixture
def weather(client):
    frame = pl.DataFrame(
        {
            "origin": ["JFK", "JFK", "JFK", "LGA"],
            "hour": [hour(0), hour(1), hour(2), hour(0)],
            "temp": [10.0, 11.0, 12.0, 20.0],
            "visib": [1.0, None, 3.0, 4.0],
        }
    )
    client.create_table(name=WEATHER, primary_keys=["origin"], timeseries_column="hour", df=frame)
    return client


def training(client, df, **lookup):
    wanted = FeatureLookup(WEATHER, "origin", **lookup)
    return client.create_training_set(df=df, feature_lookups=[wanted], label=None)


def test_a_row_sees_what_was_known_at_its_time(weather):
    flights = pl.DataFrame(
        {
            "origin": ["JFK", "LGA", "JFK", "JFK", "XXX", None, "JFK"],
            "dep": [hour(1.5), hour(5), hour(0), hour(-1), hour(1), hour(1), None],
        }
    )
    got = training(weather, flights, feature_names="temp", timestamp_lookup_key="dep").load_df()
    assert got.columns == ["origin", "dep", "temp"]
    assert got["temp"].to_list() == [11.0, 20.0, 10.0, None, None, None, None]


def test_rows_older_than_the_lookback_window_are_not_seen(weather):
    flights = pl.DataFrame({"origin": ["JFK"] * 2, "dep": [hour(3), hour(3.01)]})
    got = training(
        weather,
        flights,
        feature_names="temp",
        timestamp_lookup_key="dep",
        lookback_window=timedelta(hours=1),
    )
    assert got.load_df()["temp"].to_list() == [12.0, None]


def test_without_a_time_the_newest_row_is_seen(weather):
    got = training(weather, pl.DataFrame({"origin": ["JFK", "LGA"]})).load_df()
    assert got.rows() == [("JFK", 12.0, 3.0), ("LGA", 20.0, 4.0)]


def test_defaults_stand_for_missing_rows_and_not_for_nulls_in_a_row(weather):
    flights = pl.DataFrame({"origin": ["JFK", "XXX"], "dep": [hour(1), hour(1)]})
    got = training(
        weather,
        flights,
        feature_names=["visib"],
        timestamp_lookup_key="dep",
        default_values={"visib": 10},
        rename_outputs={"visib": "view"},
    )
    assert got.load_df()["view"].to_list() == [None, 10.0]


def test_pandas_in_pandas_out_with_the_label_and_without_the_excluded(weather):
    flights = pd.DataFrame({"origin": ["JFK"], "late": [1], "dep": [pd.Timestamp(hour(1))]})
    got = weather.create_training_set(
        df=flights,
        feature_lookups=[FeatureLookup(WEATHER, "origin", timestamp_lookup_key="dep")],
        label="late",
        exclude_columns=["origin", "dep"],
    )
    assert isinstance(got.load_df(), pd.DataFrame)
    assert list(got.load_df().columns) == ["late", "temp", "visib"]
    assert got.spec.request_columns == {"origin": "string", "dep": "timestamp"}
    assert got.spec.looked_up_columns == {"temp": "double", "visib": "double"}


def test_a_training_set_keeps_the_table_version_it_was_made_with(weather):
    got = training(weather, pl.DataFrame({"origin": ["JFK"]}), feature_names="temp")
    row = pl.DataFrame({"origin": ["JFK"], "hour": [hour(9)], "temp": [99.0], "visib": [9.0]})
    weather.write_table(name=WEATHER, df=row)
    assert got.load_df()["temp"].to_list() == [12.0]


@pytest.mark.parametrize(
    ("lookup", "named"),
    [
        ({"feature_names": "wind"}, "wind"),
        ({"feature_names": "origin"}, "origin"),
        ({"timestamp_lookup_key": "when"}, "when"),
        ({"lookback_window": timedelta(hours=1)}, "timestamp_lookup_key"),
        ({"default_values": {"wind": 1}}, "wind"),
        ({"rename_outputs": {"temp": "dep"}}, "dep"),
    ],
)
def test_a_lookup_that_cannot_work_is_refused_by_name(weather, lookup, named):
    flights = pl.DataFrame({"origin": ["JFK"], "dep": [hour(1)]})
    with pytest.raises(errors.InvalidParameter, match=named):
        training(weather, flights, **lookup)


def test_a_table_that_does_not_exist_or_has_other_keys_is_refused_by_name(weather):
    flights = pl.DataFrame({"origin": ["JFK"]})
    with pytest.raises(errors.DoesNotExist, match=r"a\.b\.c"):
        weather.create_training_set(
            df=flights, feature_lookups=[FeatureLookup("a.b.c", "origin")], label=None
        )
    with pytest.raises(errors.InvalidParameter, match="primary keys are origin"):
        weather.create_training_set(
            df=flights, feature_lookups=[FeatureLookup(WEATHER, ["origin", "x"])], label=None
        )


def test_a_merge_replaces_the_row_of_a_key_and_time_and_adds_the_others(weather):
    rows = pl.DataFrame({"origin": ["JFK", "EWR"], "hour": [hour(2), hour(2)], "temp": [5.0, 6.0]})
    weather.write_table(name=WEATHER, df=rows)
    got = weather.read_table(name=WEATHER).filter(pl.col("hour") == hour(2)).sort("origin")
    assert got.rows() == [("EWR", hour(2), 6.0, None), ("JFK", hour(2), 5.0, 3.0)]


def test_an_append_adds_new_rows_and_refuses_known_ones(weather):
    new = pl.DataFrame({"origin": ["JFK"], "hour": [hour(3)], "temp": [1.0], "visib": [1.0]})
    weather.write_table(name=WEATHER, df=new, mode="append")
    assert len(weather.read_table(name=WEATHER)) == 5
    with pytest.raises(errors.InvalidParameter, match="merge"):
        weather.write_table(name=WEATHER, df=new, mode="append")


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        ({"origin": ["A", "A"], "hour": [hour(0)] * 2, "temp": [1.0, 2.0]}, "repeat"),
        ({"origin": [None], "hour": [hour(0)], "temp": [1.0]}, "null"),
        ({"origin": ["A"], "temp": [1.0]}, "hour"),
        ({"origin": ["A"], "hour": [hour(0)], "wind": [1.0]}, "wind"),
        ({"origin": ["A"], "hour": [hour(0)], "temp": ["warm"]}, "temp"),
    ],
)
def test_rows_that_do_not_fit_the_table_are_refused(weather, frame, named):
    for mode in ("merge", "append"):
        with pytest.raises(errors.InvalidParameter, match=named):
            weather.write_table(name=WEATHER, df=pl.DataFrame(frame), mode=mode)
    assert len(weather.read_table(name=WEATHER)) == 4


def test_a_table_is_created_once_and_only_from_columns_that_can_be_served(weather):
    with pytest.raises(errors.AlreadyExists):
        weather.create_table(name=WEATHER, primary_keys="a", df=pl.DataFrame({"a": [1]}))
    for keys, frame, named in [
        ("b", {"a": [1]}, "b"),
        ("a", {"a": [1], "x": [b"raw"]}, "x"),
        ("a", {"a": [1, 1]}, "repeat"),
        ("a", {"a": [[1]]}, "a"),
    ]:
        with pytest.raises(errors.InvalidParameter, match=named):
            weather.create_table(name="a.b.c", primary_keys=keys, df=pl.DataFrame(frame))


def test_a_table_can_begin_empty_and_a_plain_one_has_no_keys(client):
    client.create_table(name="a.b.c", primary_keys="id", schema={"id": pl.String, "x": pl.Float64})
    assert client.read_table(name="a.b.c").schema == {"id": pl.String, "x": pl.Float64}
    client.create_table(name="a.b.baseline", primary_keys=[], df=pl.DataFrame({"x": [1.0, 1.0]}))
    with pytest.raises(errors.InvalidParameter, match="no primary keys"):
        client.publish_table(name="a.b.baseline")


def test_column_names_of_any_form_can_be_merged(client):
    frame = pl.DataFrame({"Key Id": [1], "petal length (cm)": [1.0], "A.b": ["x"]})
    client.create_table(name="a.b.c", primary_keys="Key Id", df=frame)
    client.write_table(name="a.b.c", df=frame.with_columns(pl.lit(2.0).alias("petal length (cm)")))
    assert client.read_table(name="a.b.c").rows() == [(1, 2.0, "x")]


# Point in time, against a loop: no row may ever see a value written for a later time.
table_rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 12)), max_size=25, unique=True
)
asked_rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(-1, 13)), min_size=1, max_size=25
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(known=table_rows, asked=asked_rows, lookback=st.one_of(st.none(), st.integers(1, 6)))
def test_no_row_of_a_training_set_sees_the_future(tmp_path_factory, known, asked, lookback):
    client = FeatureEngineeringClient(Settings(data_dir=tmp_path_factory.mktemp("data")))
    table = pl.DataFrame(
        [(key, hour(h), place) for place, (key, h) in enumerate(known)],
        schema={"id": pl.String, "at": pl.Datetime("us", "UTC"), "place": pl.Int64},
        orient="row",
    )
    client.create_table(name="a.b.c", primary_keys="id", timeseries_column="at", df=table)
    frame = pl.DataFrame(
        [(key, hour(h)) for key, h in asked],
        schema={"key": pl.String, "time": pl.Datetime("us", "UTC")},
        orient="row",
    )
    wanted = FeatureLookup(
        "a.b.c",
        "key",
        feature_names="place",
        timestamp_lookup_key="time",
        lookback_window=None if lookback is None else timedelta(hours=lookback),
    )
    got = client.create_training_set(df=frame, feature_lookups=[wanted], label=None).load_df()
    expected = []
    for key, now in asked:
        seen = [
            (h, place)
            for place, (other, h) in enumerate(known)
            if other == key and h <= now and (lookback is None or h >= now - lookback)
        ]
        expected.append(max(seen)[1] if seen else None)
    assert got["place"].to_list() == expected


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    first=table_rows,
    late=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), max_size=8, unique=True),
)
def test_offline_and_online_agree_for_every_key_once_all_is_known(tmp_path_factory, first, late):
    client = FeatureEngineeringClient(Settings(data_dir=tmp_path_factory.mktemp("data")))
    columns = {"id": pl.String, "at": pl.Datetime("us", "UTC"), "value": pl.Float64}
    client.create_table(name="a.b.c", primary_keys="id", timeseries_column="at", schema=columns)
    for offset, written in ((0.0, first), (0.5, late)):
        rows = [(key, hour(h), offset + place) for place, (key, h) in enumerate(written)]
        if rows:
            client.write_table(name="a.b.c", df=pl.DataFrame(rows, schema=columns, orient="row"))
    client.publish_table(name="a.b.c")
    asked = pl.DataFrame({"key": ["a", "b", "c", "d"], "time": [hour(13)] * 4})
    wanted = FeatureLookup("a.b.c", "key", feature_names="value", default_values={"value": -1.0})
    timed = FeatureLookup(
        "a.b.c",
        "key",
        feature_names="value",
        default_values={"value": -1.0},
        timestamp_lookup_key="time",
        lookback_window=timedelta(hours=6),
    )
    for one in (wanted, timed):
        training = client.create_training_set(df=asked, feature_lookups=[one], label=None)
        served = Lookup(spec.written(training.spec), client.settings.snapshots_dir).add(
            {name: asked[name].to_list() for name in asked.columns}, len(asked)
        )
        assert served == {"value": training.load_df()["value"].to_list()}


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        (["7", "x"], pl.Series([7, 8])),
        (["7", "7.0", "true"], pl.Series([7.0, 1.0])),
        ([7, 8], pl.Series(["7", "+8", "x", "7.0", " 7", None])),
        ([7, 8], pl.Series([7.0, 8.5, float("nan"), float("inf"), None])),
        ([0.5], pl.Series(["0.5", "nan", "x"])),
        ([True], pl.Series([1, 0])),
        ([START], pl.Series(["2013-07-01T00:00:00Z", "2013-07-01", "soon", None])),
        ([date(2013, 7, 1)], pl.Series(["2013-07-01", "2013-07-01T05:00:00", "soon"])),
        ([1], pl.Series([None, None])),
    ],
)
def test_keys_of_another_type_find_the_same_rows_offline_and_online(client, keys, asked):
    table = pl.DataFrame({"id": keys, "place": range(len(keys))})
    client.create_table(name="a.b.c", primary_keys="id", df=table)
    client.publish_table(name="a.b.c")
    training = client.create_training_set(
        df=pl.DataFrame({"key": asked}), feature_lookups=[FeatureLookup("a.b.c", "key")], label=None
    )
    served = Lookup(spec.written(training.spec), client.settings.snapshots_dir).add(
        {"key": asked.to_list()}, len(asked)
    )
    assert training.load_df()["place"].to_list() == served["place"]


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")
def test_a_logged_model_carries_its_spec_and_its_own_signature(weather, tmp_path, monkeypatch):
    import mlflow
    from sklearn.linear_model import LinearRegression

    monkeypatch.chdir(tmp_path)
    frame = pl.DataFrame({"origin": ["JFK", "LGA"], "distance": [1.5, 2.5], "delay": [0.0, 1.0]})
    training = weather.create_training_set(
        df=frame,
        feature_lookups=[FeatureLookup(WEATHER, "origin", feature_names="temp")],
        label="delay",
        exclude_columns=["origin"],
    )
    joined = training.load_df().to_pandas()
    model = LinearRegression().fit(joined[["distance", "temp"]], joined["delay"])
    before = mlflow.get_tracking_uri()
    try:
        info = weather.log_model(
            model=model,
            artifact_path="model",
            flavor=mlflow.sklearn,
            training_set=training,
            registered_model_name="main.flights.delay",
            pip_requirements=[],
        )
        assert info.registered_model_version == 1
        uri = "models:/main.flights.delay/1"
        folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "copy")))
        written = json.loads((folder / "feature_spec.json").read_text())
        signature = mlflow.models.get_model_info(uri).signature
        client = mlflow.MlflowClient()
        source = client.get_model_version_download_uri("main.flights.delay", "1")
    finally:
        mlflow.set_tracking_uri(before)
    assert written["request_columns"] == {"origin": "string", "distance": "double"}
    assert written["lookups"][0]["table"] == WEATHER
    assert written["lookups"][0]["table_version"] == 1
    assert [(c.name, c.type.name, c.required) for c in signature.inputs] == [
        ("distance", "double", True),
        ("temp", "double", False),
    ]
    assert source.startswith(weather.settings.mlflow_artifacts_dir.as_uri())
    assert not (tmp_path / "mlruns").exists()


def test_frames_of_unusual_types_are_stored_in_types_that_every_engine_reads(client):
    frame = pl.DataFrame(
        {
            "id": pl.Series(["a"], dtype=pl.Categorical),
            "naive": [datetime(2013, 7, 1)],
            "unsigned": pl.Series([7], dtype=pl.UInt32),
        }
    )
    client.create_table(name="a.b.c", primary_keys="id", df=frame)
    stored = client.read_table(name="a.b.c")
    expected = pl.DataFrame({"id": ["a"], "naive": [START], "unsigned": [7]})
    assert_frame_equal(stored, expected)
    assert joins.kind_of(stored.schema["naive"]) == "timestamp"
