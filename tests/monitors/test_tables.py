import contextlib
import threading
from datetime import UTC, datetime, timedelta

import deltalake
import duckdb
import polars as pl
import pyarrow as pa
from deltalake.exceptions import DeltaError
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import tables

START = datetime(2024, 1, 1, tzinfo=UTC)


def rows_of(week: int, refresh: int, columns: str = "ab") -> list[dict]:
    start = START + timedelta(days=7 * week)
    return [
        {
            "window": {"start": start, "end": start + timedelta(days=7)},
            "log_type": "INPUT",
            "granularity": "1 week",
            "column_name": column,
            "count": refresh,
            "quantiles": [0.5] * 10,
            "window_key": key(week),
            "refresh_id": refresh,
        }
        for column in columns
    ]


def key(week: int) -> str:
    return tables.window_key("1 week", START + timedelta(days=7 * week), "columns")


def write(uri: str, refresh: int, weeks: list[int]) -> int:
    given = {key(week): rows_of(week, refresh) for week in weeks}
    return tables.replace_windows(uri, tables.profile_schema("model"), given, "m", refresh)


def seen(uri: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    frame = pl.scan_delta(uri).sort("window_key", "column_name").collect()
    for row in frame.iter_rows(named=True):
        found.setdefault(row["window_key"], []).append(row["refresh_id"])
    return found


def test_a_recomputed_window_replaces_itself_in_one_commit(tmp_path):
    uri = str(tmp_path / "t")
    write(uri, 1, [0, 1, 2])
    version = write(uri, 2, [2, 3])
    assert version == 2  # creation, first refresh, second refresh
    assert seen(uri) == {key(0): [1, 1], key(1): [1, 1], key(2): [2, 2], key(3): [2, 2]}
    assert deltalake.DeltaTable(uri).transaction_version("m") == 2


def test_a_window_without_rows_disappears(tmp_path):
    uri = str(tmp_path / "t")
    write(uri, 1, [0, 1])
    tables.replace_windows(uri, tables.profile_schema("model"), {key(1): []}, "m", 2)
    assert seen(uri) == {key(0): [1, 1]}


def test_other_windows_survive_in_a_file_that_compaction_made(tmp_path):
    uri = str(tmp_path / "t")
    write(uri, 1, [0, 1, 2])
    deltalake.DeltaTable(uri).optimize.compact()
    assert len(deltalake.DeltaTable(uri).file_uris()) == 1
    write(uri, 2, [1])
    assert seen(uri) == {key(0): [1, 1], key(1): [2, 2], key(2): [1, 1]}


def test_other_engines_read_the_documented_columns(tmp_path):
    uri = str(tmp_path / "t")
    write(uri, 1, [0])
    arrow = deltalake.DeltaTable(uri).to_pyarrow_table()
    assert arrow.schema.names[:3] == ["window", "log_type", "logging_table_commit_version"]
    connection = duckdb.connect()
    duck = connection.sql("select column_name, quantiles[1] from arrow order by 1").fetchall()
    assert duck == [("a", 0.5), ("b", 0.5)]


def test_a_table_made_by_an_older_version_gets_the_new_columns(tmp_path):
    uri = str(tmp_path / "t")
    narrow = pa.schema([f for f in tables.profile_schema("model") if f.name != "quality"])
    tables.replace_windows(uri, narrow, {key(0): rows_of(0, 1)}, "m", 1)
    write(uri, 2, [1])
    assert seen(uri) == {key(0): [1, 1], key(1): [2, 2]}
    assert "quality" in pl.scan_delta(uri).collect_schema()


def test_a_decision_is_appended_once(tmp_path):
    uri = str(tmp_path / "d")
    row = {"decided_time": START, "endpoint": "delay", "action": "hold", "reasons": ["no_data"]}
    first = tables.append(uri, tables.DECISIONS, [row], "m", 5)
    assert tables.append(uri, tables.DECISIONS, [row], "m", 5) == first
    tables.append(uri, tables.DECISIONS, [row], "m", 6)
    assert pl.scan_delta(uri).collect().height == 2


def test_no_table_is_none_and_not_an_error(tmp_path):
    assert tables.open_table(str(tmp_path / "nothing")) is None


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 4), min_size=1, unique=True), st.booleans()),
        max_size=5,
    )
)
def test_no_window_is_ever_doubled_or_lost(tmp_path_factory, steps):
    uri = str(tmp_path_factory.mktemp("t"))
    expected: dict[str, list[int]] = {}
    for number, (weeks, compact) in enumerate(steps):
        write(uri, number, weeks)
        expected |= {key(week): [number, number] for week in weeks}
        if compact:
            deltalake.DeltaTable(uri).optimize.compact()
    if steps:
        assert seen(uri) == expected


def test_a_compaction_while_a_refresh_commits_doubles_nothing(tmp_path):
    uri, stop = str(tmp_path / "t"), threading.Event()
    write(uri, 0, [0, 1, 2])

    def compact() -> None:
        while not stop.is_set():
            with contextlib.suppress(DeltaError):  # the refresh was faster, and it is told so
                deltalake.DeltaTable(uri).optimize.compact()

    maintenance = threading.Thread(target=compact)
    maintenance.start()
    try:
        for refresh in range(1, 15):
            write(uri, refresh, [1, 2])
            assert seen(uri) == {key(0): [0, 0], key(1): [refresh] * 2, key(2): [refresh] * 2}
    finally:
        stop.set()
        maintenance.join()
