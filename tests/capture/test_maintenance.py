import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import compaction, delta, delta_history, delta_log, errors, maintenance, rows

TODAY = datetime(2024, 10, 4, tzinfo=UTC)
NOON = TODAY + timedelta(hours=12)
NEXT_DAY = TODAY + timedelta(days=1, hours=2)


def arrow(*names: str, time: datetime = TODAY) -> pa.Table:
    """Rows of the payload table, a microsecond after one another."""
    fixed: dict[str, Any] = {"status_code": 200, "endpoint_id": "e", "shadow": False}
    fixed |= {"request_encoding": "utf-8", "usage_context": {"a": "b"}}
    found = [
        {
            **dict.fromkeys(rows.PAYLOAD_SCHEMA.names),
            **fixed,
            "request_date": time.date(),
            "request_time": time + timedelta(microseconds=n),
            "databricks_request_id": name,
        }
        for n, name in enumerate(names)
    ]
    return pa.Table.from_pylist(found, schema=rows.PAYLOAD_SCHEMA)


def fill(table: delta.Table, commits: int) -> list[str]:
    """Commits of two rows each, each a second later than the one before."""
    names = []
    for n in range(commits):
        own = [f"{n:03}a", f"{n:03}b"]
        table.append(arrow(*own, time=TODAY + timedelta(seconds=n)), "app", n + 1)
        names += own
    return names


def ids(path: Path) -> list[str]:
    return sorted(pl.read_delta(str(path))["databricks_request_id"])


def files(path: Path) -> list[str]:
    return deltalake.DeltaTable(path).file_uris()


def test_many_small_files_of_today_become_one_in_order_of_time(table: delta.Table) -> None:
    names = fill(table, compaction.SMALL_FILES + 1)
    done = maintenance.maintain(table.path, NOON)
    assert done.merged_files == compaction.SMALL_FILES + 1
    (merged,) = files(table.path)
    assert pq.ParquetFile(merged).read()["databricks_request_id"].to_pylist() == names
    assert ids(table.path) == names


def test_a_few_small_files_of_today_are_left_alone(table: delta.Table) -> None:
    fill(table, 3)
    assert maintenance.maintain(table.path, NOON).merged_files == 0
    assert len(files(table.path)) == 3


def test_a_closed_day_becomes_one_file_once(table: delta.Table) -> None:
    names = fill(table, 3)
    assert maintenance.maintain(table.path, NEXT_DAY).merged_files == 3
    assert maintenance.maintain(table.path, NEXT_DAY).merged_files == 0
    assert len(files(table.path)) == 1
    assert ids(table.path) == names


def test_days_are_not_merged_with_each_other(table: delta.Table) -> None:
    for n in range(4):
        table.append(arrow(f"{n}", time=TODAY + timedelta(days=n % 2)), "app", n + 1)
    maintenance.maintain(table.path, NEXT_DAY + timedelta(days=1))
    assert len(files(table.path)) == 2
    assert ids(table.path) == ["0", "1", "2", "3"]


def test_merged_files_are_not_new(table: delta.Table) -> None:
    fill(table, 3)
    before = delta_history.files_since(table.path, -1).files
    maintenance.maintain(table.path, NEXT_DAY)
    since = delta_history.files_since(table.path, -1)
    assert since.files == before
    assert since.version > before[-1].commit_version


def test_a_handle_that_did_not_see_the_compaction_appends_all_the_same(table: delta.Table) -> None:
    names = fill(table, 3)
    compaction.compact(deltalake.DeltaTable(table.path), table.path, NEXT_DAY)
    table.append(arrow("x"), "app", 4)
    assert ids(table.path) == [*names, "x"]


def test_of_two_compactions_at_once_one_fails_and_no_row_is_doubled(table: delta.Table) -> None:
    names = fill(table, 3)
    late = deltalake.DeltaTable(table.path)
    compaction.compact(deltalake.DeltaTable(table.path), table.path, NEXT_DAY)
    with pytest.raises(Exception, match="transaction"):
        compaction.compact(late, table.path, NEXT_DAY)
    assert ids(table.path) == names


def test_a_data_file_that_lost_rows_is_not_merged(table: delta.Table) -> None:
    fill(table, 3)
    kept = pq.ParquetFile(files(table.path)[0]).read()
    pq.write_table(kept.slice(0, 1), files(table.path)[0])
    assert maintenance.maintain(table.path, NEXT_DAY).merged_files == 0
    assert len(files(table.path)) == 3


def test_a_torn_data_file_holds_up_neither_checkpoint_nor_other_days(table: delta.Table) -> None:
    fill(table, 48)
    torn = Path(files(table.path)[0])
    for n in range(2):
        table.append(arrow(f"next {n}", time=TODAY + timedelta(days=1, seconds=n)), "app", 49 + n)
    torn.write_bytes(torn.read_bytes()[:100])
    done = maintenance.maintain(table.path, NEXT_DAY + timedelta(days=1))
    assert (done.checkpointed, done.merged_files) == (True, 2)
    assert len(files(table.path)) == 48 + 1


def test_tables_that_others_rewrite_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rewritten"
    for n in range(3):
        deltalake.write_deltalake(path, pa.table({"n": [n]}), mode="append")
    done = maintenance.maintain(path, NEXT_DAY, maintenance.Wish(keep_days=1, vacuum_hours=1))
    assert "not append-only" in (done.skipped or "")
    assert pl.read_delta(str(path)).height == 3


def test_a_checkpoint_is_made_every_fifty_commits(table: delta.Table) -> None:
    fill(table, maintenance.CHECKPOINT_COMMITS - 2)
    assert not maintenance.is_due(table.path)
    table.append(arrow("x"), "app", 50)
    assert maintenance.is_due(table.path)
    assert maintenance.maintain(table.path, NOON).checkpointed
    assert not maintenance.is_due(table.path)
    assert delta_log.checkpoint_versions(table.path) == [table.version]


@pytest.mark.slow
def test_the_log_stays_short_and_the_table_whole(table: delta.Table) -> None:
    names = []
    for n in range(400):
        table.append(arrow(f"{n:03}", time=TODAY + timedelta(seconds=n)), "app", n + 1)
        names.append(f"{n:03}")
        if maintenance.is_due(table.path):
            maintenance.maintain(table.path, NOON)
    assert len(delta_log.commit_versions(table.path)) <= 256 + 50
    assert len(delta_log.checkpoint_versions(table.path)) == 2
    assert ids(table.path) == names
    told = delta_history.files_since(table.path, -1)
    assert sum(file.rows or 0 for file in told.files) == 400


def test_vacuum_takes_what_no_version_of_the_last_week_has(table: delta.Table) -> None:
    names = fill(table, 3)
    maintenance.maintain(table.path, NEXT_DAY)
    orphan = table.path / "request_date=2024-10-04" / "part-of-a-killed-writer.zstd.parquet"
    orphan.write_bytes(b"PAR1")
    young = orphan.with_name("part-not-committed-yet.zstd.parquet")
    young.write_bytes(b"PAR1")
    weeks_ago = datetime.now(UTC).timestamp() - 30 * 86_400
    os.utime(orphan, (weeks_ago, weeks_ago))
    later = NEXT_DAY + timedelta(days=8)
    assert maintenance.maintain(table.path, later).deleted_files == 1
    assert not orphan.exists()
    assert young.exists()
    assert ids(table.path) == names
    assert (table.path / delta_history.HISTORY).exists()


def test_days_that_are_kept_no_longer_go_whole_and_the_open_day_never(table: delta.Table) -> None:
    for day in range(4):
        table.append(arrow(f"day {day}", time=TODAY + timedelta(days=day)), "app", day + 1)
    now = TODAY + timedelta(days=3, hours=1)
    done = maintenance.maintain(table.path, now, maintenance.Wish(keep_days=2))
    assert done.dropped_files == 1
    assert ids(table.path) == ["day 1", "day 2", "day 3"]
    assert maintenance.maintain(table.path, now, maintenance.Wish(keep_days=1)).dropped_files == 1
    assert ids(table.path) == ["day 2", "day 3"]
    later = maintenance.maintain(table.path, now, maintenance.Wish(keep_days=1))
    assert later.dropped_files == 0


def test_a_table_goes_on_after_days_were_dropped(table: delta.Table) -> None:
    table.append(arrow("old"), "app", 1)
    wish = maintenance.Wish(keep_days=1)
    maintenance.maintain(table.path, TODAY + timedelta(days=9), wish)
    assert table.append(arrow("old"), "app", 1) is None
    table.append(arrow("new", time=TODAY + timedelta(days=9)), "app", 2)
    assert ids(table.path) == ["new"]
    since = delta_history.files_since(table.path, -1)
    assert [file.commit_version for file in since.files] == [1, 3]


def test_a_table_without_days_has_none_to_drop(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("at", rows.TIMESTAMP)])
    path = delta.open_or_create(tmp_path / "plain", schema).path
    with pytest.raises(errors.InvalidParameter, match="not partitioned by day"):
        maintenance.maintain(path, NOON, maintenance.Wish(keep_days=1))


def test_a_vacuum_that_is_asked_for_comes_now_and_spares_the_last_hour(table: delta.Table) -> None:
    names = fill(table, 3)
    maintenance.maintain(table.path, NEXT_DAY)
    orphan = table.path / "request_date=2024-10-04" / "part-of-a-killed-writer.zstd.parquet"
    young = orphan.with_name("part-not-committed-yet.zstd.parquet")
    for file, hours in ((orphan, 2), (young, 0)):
        file.write_bytes(b"PAR1")
        at = datetime.now(UTC).timestamp() - hours * 3600
        os.utime(file, (at, at))
    done = maintenance.maintain(table.path, NEXT_DAY, maintenance.Wish(vacuum_hours=0))
    assert done.deleted_files >= 1
    assert not orphan.exists()
    assert young.exists()
    assert ids(table.path) == names


FILES = st.lists(
    st.builds(
        compaction.ActiveFile,
        path=st.uuids().map(str),
        partition=st.sampled_from(["2024-10-03", "2024-10-04", None]).map(
            lambda value: (("request_date", value),)
        ),
        size_bytes=st.integers(1, 200 << 20),
        rows=st.integers(1, 600_000),
        first_time=st.integers(0, 10**6).map(str),
    ),
    max_size=100,
)


@given(found=FILES)
def test_groups_hold_each_file_once_within_a_partition_and_below_the_limits(
    found: list[compaction.ActiveFile],
) -> None:
    groups = compaction.groups_to_merge(found, NOON)
    taken = [file.path for group in groups for file in group]
    assert len(taken) == len(set(taken))
    for group in groups:
        assert len(group) > 1
        assert len({file.partition for file in group}) == 1
        assert [f.first_time for f in group] == sorted(f.first_time for f in group)
        assert sum(file.size_bytes for file in group) <= compaction.MERGED_BYTES
        assert sum(file.rows for file in group) <= compaction.MERGED_ROWS


def test_a_failed_job_is_tried_again_later_and_later() -> None:
    moments = [0.0]
    attempts = maintenance.Attempts(monotonic=lambda: moments[0])
    tried: list[float] = []

    def fails() -> None:
        tried.append(moments[0])
        raise OSError("no")

    for second in range(16):
        moments[0] = float(second)
        attempts.run("job", fails)
    assert tried == [0.0, 1.0, 3.0, 7.0, 15.0]


def test_a_job_that_succeeds_is_run_whenever_asked() -> None:
    attempts = maintenance.Attempts(monotonic=lambda: 0.0)
    ran: list[int] = []
    assert attempts.run("job", lambda: ran.append(1))
    assert attempts.run("job", lambda: ran.append(2))
    assert ran == [1, 2]
