"""Reading of published feature snapshots: keys as JSON brings them, swaps, forks."""

import os
from datetime import UTC, date, datetime
from pathlib import Path

import deltalake
import numpy as np
import polars as pl
import pytest

from capture import errors, names, publisher, snapshots
from capture.settings import Settings

TABLE = "main.shop.items"


def write(settings: Settings, frame: pl.DataFrame, *keys: str, time_column: str | None = None):
    path = names.table_path(settings.tables_root, names.table_name(TABLE))
    if not deltalake.DeltaTable.is_deltatable(path):
        definition = publisher.Definition(keys, time_column)
        deltalake.DeltaTable.create(
            path,
            schema=frame.to_arrow().schema,
            configuration=publisher.configuration(definition),
            raise_if_key_not_exists=False,
        )
    deltalake.write_deltalake(path, frame.to_arrow(), mode="append")
    publisher.publish(settings, TABLE)
    return snapshots.Snapshot.open(settings.snapshots_dir, TABLE)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def test_a_row_comes_back_as_it_was_written(settings):
    row = {"id": "a", "n": 3, "x": 1.5, "ok": True, "none": None, "many": [1.0, 2.0], "t": "ä\n"}
    frame = pl.DataFrame([row], schema_overrides={"none": pl.Float64})
    snapshot = write(settings, frame, "id")
    assert snapshot.columns == ("n", "x", "ok", "none", "many", "t")
    assert snapshot.get(("a",)) == (3, 1.5, True, None, [1.0, 2.0], "ä\n")


def test_an_unknown_key_and_a_null_key_find_nothing(settings):
    snapshot = write(settings, pl.DataFrame({"id": ["a"], "x": [1.0]}), "id")
    assert snapshot.get(("b",)) is None
    assert snapshot.get((None,)) is None


@pytest.mark.parametrize(
    ("column", "accepted", "refused"),
    [
        (["7"], ["7", 7, np.str_("7"), np.int64(7)], ["07", 7.0, True, None, ["7"]]),
        ([7], [7, 7.0, "7", np.float64(7)], [7.5, "x", True, None, float("inf"), float("nan")]),
        ([0.5], [0.5, "0.5", np.float32(0.5)], ["x", True, None, float("nan")]),
        ([True], [True, np.True_], [1, "true", None]),
        (
            [datetime(2013, 7, 1, 10, tzinfo=UTC)],
            ["2013-07-01T10:00:00Z", "2013-07-01T12:00:00+02:00", datetime(2013, 7, 1, 10)],
            ["2013-07-01T10:00:01Z", "soon", 1372672800],
        ),
        ([date(2013, 7, 1)], ["2013-07-01", date(2013, 7, 1)], ["2013-07-02", "soon", 20130701]),
    ],
)
def test_keys_of_each_type_are_found_in_the_forms_that_json_and_numpy_bring(
    settings, column, accepted, refused
):
    snapshot = write(settings, pl.DataFrame({"id": column, "x": [1.0]}), "id")
    assert [snapshot.get((key,)) for key in accepted] == [(1.0,)] * len(accepted)
    assert [snapshot.get((key,)) for key in refused] == [None] * len(refused)


def test_a_key_of_several_columns_and_a_key_longer_than_the_file_format_allows(settings):
    frame = pl.DataFrame({"a": ["x" * 600, "x" * 600, "y"], "b": [1, 2, 1], "v": [1, 2, 3]})
    snapshot = write(settings, frame, "a", "b")
    assert snapshot.get(("x" * 600, 2)) == (2,)
    assert snapshot.get(("x" * 600, 3)) is None
    assert snapshot.get(("y", 1)) == (3,)


def test_times_are_served_as_iso_text(settings):
    frame = pl.DataFrame(
        {
            "id": ["a", "b"],
            "t": [datetime(2013, 7, 1, 10, tzinfo=UTC), None],
            "d": [date(2013, 7, 1)] * 2,
        }
    )
    snapshot = write(settings, frame, "id")
    assert snapshot.get(("a",)) == ("2013-07-01T10:00:00Z", "2013-07-01")
    assert snapshot.get(("b",)) == (None, "2013-07-01")


def test_a_missing_snapshot_is_unavailable_and_named(settings):
    with pytest.raises(errors.Unavailable, match=r"main\.shop\.items"):
        snapshots.Snapshot.open(settings.snapshots_dir, TABLE)


def test_a_broken_snapshot_is_unavailable_and_named(settings):
    path = snapshots.snapshot_path(settings.snapshots_dir, TABLE)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(errors.Unavailable, match=r"main\.shop\.items"):
        snapshots.Snapshot.open(settings.snapshots_dir, TABLE)


def test_a_name_that_climbs_out_of_the_folder_is_refused(settings):
    with pytest.raises(errors.InvalidParameter):
        snapshots.Snapshot.open(settings.snapshots_dir, "../../etc")


def test_a_reader_keeps_its_rows_while_a_new_snapshot_is_swapped_in(settings):
    old = write(settings, pl.DataFrame({"id": ["a"], "x": [1.0]}), "id")
    new = write(settings, pl.DataFrame({"id": ["b"], "x": [2.0]}), "id")
    assert (old.get(("a",)), old.get(("b",))) == ((1.0,), None)
    assert (new.get(("a",)), new.get(("b",))) == ((1.0,), (2.0,))
    assert snapshots.Snapshot.open(settings.snapshots_dir, TABLE) is new


def test_a_forked_child_reads_what_its_parent_opened(settings):
    snapshot = write(settings, pl.DataFrame({"id": ["a"], "x": [1.0]}), "id")
    reader, writer = os.pipe()
    # os.fork and not multiprocessing: this is what the zygote does to a worker.
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.write(writer, repr(snapshot.get(("a",))).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"(1.0,)"
    os.close(reader)
    os.close(writer)
