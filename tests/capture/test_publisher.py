"""Publishing of feature tables: newest rows, whole swaps, only when there is news."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path

import deltalake
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capture import errors, names, publisher, snapshots
from capture.settings import Settings

DAY = datetime(2024, 1, 1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def path_of(settings: Settings, full_name: str) -> str:
    return names.table_path(settings.tables_root, names.table_name(full_name))


def create(settings, full_name, frame, keys, time_column=None):
    deltalake.DeltaTable.create(
        path_of(settings, full_name),
        schema=frame.to_arrow().schema,
        configuration=publisher.configuration(publisher.Definition(tuple(keys), time_column)),
        raise_if_key_not_exists=False,
    )
    append(settings, full_name, frame)


def append(settings, full_name, frame):
    deltalake.write_deltalake(path_of(settings, full_name), frame.to_arrow(), mode="append")


def get(settings, full_name, *key):
    return snapshots.Snapshot.open(settings.snapshots_dir, full_name).get(key)


def test_publishing_gives_the_version_of_the_table(settings):
    create(settings, "a.b.c", pl.DataFrame({"id": [1], "x": [1.0]}), ["id"])
    assert publisher.publish(settings, "a.b.c") == 1
    append(settings, "a.b.c", pl.DataFrame({"id": [2], "x": [2.0]}))
    assert publisher.publish(settings, "a.b.c") == 2
    facts = snapshots.Snapshot.open(settings.snapshots_dir, "a.b.c").facts
    assert (facts.table_version, facts.rows, facts.primary_keys) == (2, 2, ("id",))


def test_of_a_history_the_newest_row_of_each_key_is_served_however_late_it_was_written(settings):
    at = [DAY + timedelta(hours=h) for h in (2, 1, 5)]
    create(settings, "a.b.c", pl.DataFrame({"id": [1, 1, 2], "t": at, "x": [2, 1, 5]}), ["id"], "t")
    append(settings, "a.b.c", pl.DataFrame({"id": [2], "t": [DAY], "x": [0]}))
    publisher.publish(settings, "a.b.c")
    assert get(settings, "a.b.c", 1) == ("2024-01-01T02:00:00Z", 2)
    assert get(settings, "a.b.c", 2) == ("2024-01-01T05:00:00Z", 5)
    facts = snapshots.Snapshot.open(settings.snapshots_dir, "a.b.c").facts
    assert facts.newest_us == snapshots.microseconds(DAY + timedelta(hours=5))


@hypothesis_settings(max_examples=30, suppress_health_check=list(HealthCheck), deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30))
def test_newest_is_what_a_loop_over_the_rows_finds(rows):
    frame = pl.DataFrame(
        [(key, DAY + timedelta(hours=hour), place) for place, (key, hour) in enumerate(rows)],
        schema={"id": pl.Int64, "t": pl.Datetime("us"), "place": pl.Int64},
        orient="row",
    )
    expected: dict[int, tuple[int, int]] = {}
    for place, (key, hour) in enumerate(rows):
        if key not in expected or hour >= expected[key][0]:
            expected[key] = (hour, place)
    found = publisher.newest(frame, publisher.Definition(("id",), "t"))
    assert dict(found.select("id", "place").iter_rows()) == {k: p for k, (_, p) in expected.items()}


def test_rows_without_a_key_are_left_out(settings):
    create(settings, "a.b.c", pl.DataFrame({"id": [None, 1], "x": [1.0, 2.0]}), ["id"])
    publisher.publish(settings, "a.b.c")
    assert snapshots.Snapshot.open(settings.snapshots_dir, "a.b.c").facts.rows == 1


def test_an_empty_table_and_a_table_of_keys_alone_are_published(settings):
    create(settings, "a.b.c", pl.DataFrame(schema={"id": pl.Int64, "x": pl.Float64}), ["id"])
    create(settings, "a.b.d", pl.DataFrame({"id": [1]}), ["id"])
    publisher.follow(settings)
    assert get(settings, "a.b.c", 1) is None
    assert get(settings, "a.b.d", 1) == ()


def test_large_values_fit(settings):
    frame = pl.DataFrame({"id": list(range(200)), "text": ["x" * 5000] * 200})
    create(settings, "a.b.c", frame, ["id"])
    publisher.publish(settings, "a.b.c")
    assert get(settings, "a.b.c", 199) == ("x" * 5000,)


def test_follow_publishes_each_feature_table_with_news_and_no_other_table(settings):
    create(settings, "a.b.c", pl.DataFrame({"id": [1], "x": [1.0]}), ["id"])
    create(settings, "a.b.d", pl.DataFrame({"id": [1], "x": [1.0]}), ["id"])
    append(settings, "a.b.plain", pl.DataFrame({"id": [1]}))
    publisher.follow(settings)
    before = snapshots.identify(snapshots.snapshot_path(settings.snapshots_dir, "a.b.d"))
    append(settings, "a.b.c", pl.DataFrame({"id": [2], "x": [2.0]}))
    publisher.follow(settings)
    assert get(settings, "a.b.c", 2) == (2.0,)
    assert snapshots.identify(snapshots.snapshot_path(settings.snapshots_dir, "a.b.d")) == before
    assert publisher.published_version(settings.snapshots_dir, "a.b.plain") is None


def test_follow_restores_a_snapshot_that_was_deleted(settings):
    create(settings, "a.b.c", pl.DataFrame({"id": [1], "x": [1.0]}), ["id"])
    publisher.follow(settings)
    shutil.rmtree(settings.snapshots_dir)
    publisher.follow(settings)
    assert get(settings, "a.b.c", 1) == (1.0,)


def test_a_table_that_cannot_be_served_is_told_once_and_keeps_no_other_back(settings, capfd):
    create(settings, "a.b.bad", pl.DataFrame({"id": [1], "x": [b"raw"]}), ["id"])
    create(settings, "a.b.c", pl.DataFrame({"id": [1], "x": [1.0]}), ["id"])
    publisher.follow(settings)
    publisher.follow(settings)
    assert get(settings, "a.b.c", 1) == (1.0,)
    assert capfd.readouterr().err.count("publish_failed") == 1


def test_publishing_by_name_says_what_is_wrong(settings):
    with pytest.raises(errors.DoesNotExist, match=r"a\.b\.none"):
        publisher.publish(settings, "a.b.none")
    append(settings, "a.b.plain", pl.DataFrame({"id": [1]}))
    with pytest.raises(errors.InvalidParameter, match="primary keys"):
        publisher.publish(settings, "a.b.plain")
    create(settings, "a.b.c", pl.DataFrame({"id": [1], "x": [b"raw"]}), ["id"])
    with pytest.raises(errors.InvalidParameter, match="'x'"):
        publisher.publish(settings, "a.b.c")
