import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.exceptions import DeltaError
from deltalake.transaction import RemoveAction

from capture import data_files, delta, delta_commits, delta_history, delta_log, errors, rows
from capture.settings import Settings

DAY_US = 86_400_000_000


def payload(name: str, time_us: int = 20_000 * DAY_US, **other: Any) -> dict[str, Any]:
    """A row of the payload table as pyarrow takes it."""
    time = datetime.fromtimestamp(time_us / 1e6, UTC)
    values: dict[str, Any] = dict.fromkeys(rows.PAYLOAD_SCHEMA.names)
    values |= {"request_date": time.date(), "databricks_request_id": name, "request_time": time}
    values |= {"status_code": 200, "endpoint_id": "e", "shadow": False}
    return values | {"request_encoding": "utf-8", "request": f'{{"name": "{name}"}}'} | other


def arrow(*found: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(found), schema=rows.PAYLOAD_SCHEMA)


def ids(path: Path) -> list[str]:
    frame = pl.read_delta(str(path))
    return sorted(frame["databricks_request_id"])


def reopened(path: Path) -> delta.Table:
    return delta.open_or_create(path, rows.PAYLOAD_SCHEMA, "request_date")


def log_file(path: Path, name: str) -> Path:
    return path / "_delta_log" / name


def test_appended_rows_are_read_by_delta_rs_polars_and_duckdb(table: delta.Table) -> None:
    row = payload(
        "a",
        request='{"text": "Grüße,\\n\\"quoted\\""}',
        usage_context={"team": "x"},
        logging_error_codes=["MAX_REQUEST_SIZE_EXCEEDED"],
    )
    table.append(arrow(row), "app", 1)
    handle = deltalake.DeltaTable(table.path)
    by_polars = pl.read_delta(str(table.path)).row(0, named=True)
    with duckdb.connect() as connection:
        by_duckdb = connection.read_parquet(handle.file_uris()).select("request").fetchall()
    query = deltalake.QueryBuilder().register("t", handle).execute("select * from t")
    by_delta_rs = pa.table(query)
    assert by_polars["request"] == row["request"]
    assert by_duckdb == [(row["request"],)]
    assert by_polars["usage_context"] == {"team": "x"}
    assert by_delta_rs["request"].to_pylist() == [row["request"]]
    assert by_delta_rs["logging_error_codes"].to_pylist() == [["MAX_REQUEST_SIZE_EXCEEDED"]]


def test_a_new_table_asks_nothing_of_its_readers(table: delta.Table) -> None:
    protocol = deltalake.DeltaTable(table.path).protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
    assert deltalake.DeltaTable(table.path).metadata().configuration["delta.appendOnly"] == "true"


def test_a_version_of_an_application_is_taken_once(table: delta.Table) -> None:
    assert table.append(arrow(payload("a")), "app", 1) == 1
    assert table.append(arrow(payload("a")), "app", 1) is None
    assert reopened(table.path).append(arrow(payload("a")), "app", 1) is None
    assert table.append(arrow(payload("b")), "app", 2) == 2
    assert reopened(table.path).append(arrow(payload("a")), "app", 1) is None
    assert ids(table.path) == ["a", "b"]


def test_applications_do_not_know_of_each_other(table: delta.Table) -> None:
    table.append(arrow(payload("a")), "one", 7)
    assert table.append(arrow(payload("b")), "other", 1) == 2
    assert (table.transaction_version("one"), table.transaction_version("other")) == (7, 1)
    assert table.transaction_version("third") is None


def test_of_two_handles_the_one_that_looked_earlier_fails_and_then_knows(
    table: delta.Table,
) -> None:
    late = reopened(table.path)
    assert not late.is_committed("app", 1)
    table.append(arrow(payload("a")), "app", 1)
    with pytest.raises(Exception, match="transaction"):
        late.commit(arrow(payload("a")), {"app": 1})
    assert late.append(arrow(payload("a")), "app", 1) is None
    assert ids(table.path) == ["a"]


def test_a_checkpoint_in_between_does_not_hide_that_another_was_earlier(
    table: delta.Table,
) -> None:
    late = reopened(table.path)
    assert not late.is_committed("app", 1)
    table.append(arrow(payload("a")), "app", 1)
    deltalake.DeltaTable(table.path).create_checkpoint()
    with pytest.raises(delta_commits.LogMoved, match="transaction"):
        late.commit(arrow(payload("a")), {"app": 1})
    assert late.append(arrow(payload("a")), "app", 1) is None
    assert ids(table.path) == ["a"]


def test_segments_of_several_incarnations_share_a_commit(table: delta.Table) -> None:
    table.commit(arrow(payload("a"), payload("b")), {"one": 3, "other": 5})
    assert table.version == 1
    assert reopened(table.path).is_committed("one", 3)
    assert reopened(table.path).is_committed("other", 5)


def test_rows_of_two_dates_are_two_files_of_one_commit(table: delta.Table) -> None:
    late, early = payload("b", 20_001 * DAY_US), payload("a", 20_001 * DAY_US - 1_000_000)
    table.append(arrow(late, early), "app", 1)
    files = delta_history.files_since(table.path, 0).files
    assert table.version == 1
    assert {file.partition["request_date"] for file in files} == {"2024-10-04", "2024-10-05"}
    assert [file.path.parent.name for file in files] == [
        f"request_date={file.partition['request_date']}" for file in files
    ]
    assert ids(table.path) == ["a", "b"]


def test_a_file_is_sorted_by_time_and_carries_its_range_in_the_log(table: delta.Table) -> None:
    times = [20_000 * DAY_US + n for n in (3_000_001, 1_000_001, 2_000_001)]
    table.append(arrow(*(payload(str(time), time) for time in times)), "app", 1)
    (file,) = delta_history.files_since(table.path, 0).files
    written = pq.ParquetFile(file.path).read()["request_time"].to_pylist()
    assert written == sorted(written)
    adds = pa.table(deltalake.DeltaTable(table.path).get_add_actions(flatten=True)).to_pylist()
    assert (adds[0]["min.request_time"], adds[0]["max.request_time"]) == (written[0], written[-1])
    assert adds[0]["num_records"] == 3


def test_a_filter_on_time_skips_files_and_loses_no_row(table: delta.Table) -> None:
    for n in range(3):
        table.append(arrow(payload(str(n), 20_000 * DAY_US + n * 1_000_001)), "app", n + 1)
    scan = pl.scan_delta(str(table.path))
    at = datetime.fromtimestamp((20_000 * DAY_US + 1_000_001) / 1e6, UTC)
    found = scan.filter(pl.col("request_time") == at, pl.col("request_date") == at.date())
    assert found.collect()["databricks_request_id"].to_list() == ["1"]


def test_files_are_zstd_with_dictionaries_only_where_values_repeat(table: delta.Table) -> None:
    table.append(arrow(payload("a")), "app", 1)
    (file,) = delta_history.files_since(table.path, 0).files
    group = pq.ParquetFile(file.path).metadata.row_group(0)
    by_name = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    assert {column.compression for column in by_name.values()} == {"ZSTD"}
    assert by_name["endpoint_id"].has_dictionary_page
    assert not by_name["request"].has_dictionary_page
    assert not by_name["databricks_request_id"].has_dictionary_page


def test_columns_come_in_any_order_and_missing_ones_are_null(table: delta.Table) -> None:
    row = {name: value for name, value in payload("a").items() if value is not None}
    names = sorted(row, reverse=True)
    table.append(arrow(payload("a")).select(names), "app", 1)
    assert pl.read_delta(str(table.path)).row(0, named=True)["response"] is None


def test_a_column_that_the_table_lacks_is_refused_by_name(table: delta.Table) -> None:
    extra = arrow(payload("a")).append_column("extra", pa.array([1]))
    with pytest.raises(errors.InvalidParameter, match="extra"):
        table.append(extra, "app", 1)


def test_no_rows_commit_the_transaction_alone(table: delta.Table) -> None:
    assert table.append(rows.PAYLOAD_SCHEMA.empty_table(), "app", 4) == 1
    assert reopened(table.path).append(arrow(payload("a")), "app", 4) is None
    assert delta_history.files_since(table.path, -1) == (1, [])


def test_a_wider_schema_adds_its_columns_as_nullable(table: delta.Table) -> None:
    table.append(arrow(payload("a")), "app", 1)
    wider = pa.schema([*rows.PAYLOAD_SCHEMA, pa.field("seats", pa.int64())])
    wide = delta.open_or_create(table.path, wider, "request_date")
    row = arrow(payload("b")).append_column("seats", pa.array([4]))
    wide.append(row, "app", 2)
    frame = pl.read_delta(str(table.path)).sort("databricks_request_id")
    assert frame["seats"].to_list() == [None, 4]
    assert reopened(table.path).append(arrow(payload("c")), "app", 3) is not None


def test_another_type_for_a_column_is_refused_by_name(table: delta.Table) -> None:
    other = pa.schema([pa.field("status_code", pa.string())])
    with pytest.raises(errors.InvalidParameter, match="status_code"):
        delta.open_or_create(table.path, other, "request_date")


def test_a_table_without_partitions_takes_rows(settings: Settings) -> None:
    path = delta.path_of(settings, "main.default.plain")
    plain = delta.open_or_create(path, pa.schema([("at", pa.timestamp("us", "UTC"))]))
    plain.append(pa.table({"at": [datetime(2024, 1, 1, tzinfo=UTC)]}), "app", 1)
    assert pl.read_delta(str(path)).height == 1


@pytest.mark.parametrize("value", ["../up", "a/b", "", None])
def test_a_partition_value_that_would_make_an_odd_path_is_refused(
    settings: Settings, value: str | None
) -> None:
    path = delta.path_of(settings, "main.default.by_name")
    odd = delta.open_or_create(path, pa.schema([("name", pa.string()), ("n", pa.int64())]), "name")
    with pytest.raises(errors.InvalidParameter, match="'name'"):
        odd.append(pa.table({"name": pa.array([value], pa.string()), "n": [1]}), "app", 1)


def test_rows_are_counted_over_the_life_of_the_table(table: delta.Table) -> None:
    table.append(arrow(payload("a"), payload("b")), "app", 1)
    assert table.rows == 2
    again = reopened(table.path)
    again.append(arrow(payload("c")), "app", 2)
    assert again.rows == 3


def test_a_table_on_object_storage_is_refused_in_words(settings: Settings) -> None:
    remote = settings.model_copy(update={"tables_uri": "s3://bucket/tables"})
    with pytest.raises(errors.NotImplementedHere, match="object storage"):
        delta.path_of(remote, "main.default.model_payload")


# Beside other writers ---------------------------------------------------------------------------


def add_by_delta_rs(table: delta.Table, name: str, app_id: str, version: int) -> None:
    """A commit of rows as another program makes it, with a transaction."""
    deltalake.write_deltalake(
        table.path,
        arrow(payload(name)),
        mode="append",
        commit_properties=deltalake.CommitProperties(
            app_transactions=[deltalake.Transaction(app_id, version)]
        ),
    )


def test_a_commit_goes_behind_those_of_others_and_counts_their_rows(table: delta.Table) -> None:
    table.append(arrow(payload("a")), "app", 1)
    assert not table.is_committed("app", 2)
    add_by_delta_rs(table, "b", "other", 5)
    add_by_delta_rs(table, "c", "other", 6)
    assert table.commit(arrow(payload("d")), {"app": 2}) == 4
    assert table.transaction_version("other") == 6
    assert table.rows == 4
    assert ids(table.path) == ["a", "b", "c", "d"]


def test_what_others_committed_is_found_where_it_is_asked_for(table: delta.Table) -> None:
    assert table.transaction_version("other") is None
    add_by_delta_rs(table, "b", "other", 5)
    assert table.transaction_version("other") == 5
    assert table.version == 1


def test_a_table_that_asks_for_more_meanwhile_is_loaded_anew(table: delta.Table) -> None:
    table.append(arrow(payload("a")), "app", 1)
    other = deltalake.DeltaTable(table.path)
    other.alter.set_table_properties({"delta.enableChangeDataFeed": "true"})
    with pytest.raises(delta_commits.LogMoved, match="asks"):
        table.commit(arrow(payload("b")), {"app": 2})
    assert len(list(table.path.glob("*/*.parquet"))) == 1, "its file went with it"
    assert table.append(arrow(payload("b")), "app", 2) == 3
    assert ids(table.path) == ["a", "b"]


@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_table_of_a_newer_protocol_gets_its_commits_from_delta_rs(
    table: delta.Table, is_loaded: bool
) -> None:
    table.append(arrow(payload("a")), "app", 1)
    other = deltalake.DeltaTable(table.path)
    other.alter.set_table_properties({"delta.minWriterVersion": "4"}, raise_if_not_exists=False)
    assert deltalake.DeltaTable(table.path).protocol().min_writer_version == 4
    used = reopened(table.path)
    if is_loaded:
        assert used.append(arrow(payload("a")), "app", 1) is None
    assert used.append(arrow(payload("b")), "app", 2) == 3
    add_by_delta_rs(table, "c", "other", 1)
    assert used.append(arrow(payload("d")), "app", 3) == 5
    assert used.append(arrow(payload("d")), "app", 3) is None
    assert used.transaction_version("other") == 1
    text = delta_log.commit_file(table.path, 5).read_text()
    assert "delta-rs" in text
    assert ids(table.path) == ["a", "b", "c", "d"]
    late = reopened(table.path)
    assert not late.is_committed("app", 4)
    used.append(arrow(payload("e")), "app", 4)
    with pytest.raises(DeltaError, match="transaction"):
        late.commit(arrow(payload("e")), {"app": 4})


def test_a_log_that_was_cleaned_behind_us_is_not_written_into(three_commits: delta.Table) -> None:
    path = three_commits.path
    asleep = reopened(path)
    assert asleep.is_committed("app", 3)
    for version in (4, 5, 6):
        three_commits.append(arrow(payload(f"d{version}")), "app", version)
        checkpoint(path)
    delta_history.move_to_history(path, keep=1)
    assert delta_log.commit_versions(path) == [5, 6]
    assert asleep.append(arrow(payload("d4")), "app", 4) is None
    assert asleep.append(arrow(payload("e")), "app", 7) == 7
    assert ids(path) == ["a", "b", "c", "d4", "d5", "d6", "e"]


def test_a_log_that_is_cleaned_while_a_file_is_written_is_not_written_into(
    three_commits: delta.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = three_commits.path
    late = reopened(path)
    write = delta.Table._write

    def slowly(table: delta.Table, found: pa.Table) -> Any:
        written = write(table, found)
        if table is late:
            for version in (4, 5, 6):
                three_commits.append(arrow(payload(f"d{version}")), "other", version)
                checkpoint(path)
            delta_history.move_to_history(path, keep=1)
        return written

    with monkeypatch.context() as patched, pytest.raises(delta_log.LogCleaned, match="Commit 3"):
        patched.setattr(delta.Table, "_write", slowly)
        late.append(arrow(payload("e")), "app", 4)
    assert delta_log.commit_versions(path) == [5, 6]
    assert late.append(arrow(payload("e")), "app", 4) == 7
    assert ids(path) == ["a", "b", "c", "d4", "d5", "d6", "e"]


def test_rows_are_counted_anew_when_days_were_dropped_or_files_merged(table: delta.Table) -> None:
    for version in range(1, 4):
        table.append(arrow(payload(str(version))), "app", version)
    handle = deltalake.DeltaTable(table.path)
    gone = delta_commits.present_files(handle).to_pylist()[0]
    partition = {"request_date": "2024-10-04"}
    removal = RemoveAction(gone["path"], False, 1, gone["size_bytes"], partition)
    delta_commits.publish(handle, [removal], {"removals": 1})
    table.append(arrow(payload("d")), "app", 4)
    assert table.rows == 3
    assert len(ids(table.path)) == 3


# Damage ------------------------------------------------------------------------------------------


@pytest.fixture
def three_commits(table: delta.Table) -> delta.Table:
    for version, name in enumerate("abc", start=1):
        table.append(arrow(payload(name)), "app", version)
    return table


@pytest.mark.parametrize("lines", [0, 0.5, 1, 1.5, 2, 2.5])
def test_an_empty_or_torn_last_commit_is_replaced_and_its_rows_can_come_again(
    three_commits: delta.Table, lines: float
) -> None:
    path = three_commits.path
    last = delta_log.commit_file(path, 3)
    text = last.read_bytes().splitlines(keepends=True)
    assert len(text) == 3
    whole, part = text[: int(lines)], text[int(lines)]
    last.write_bytes(b"".join(whole) + part[: int(lines % 1 * len(part))])
    mended = reopened(path)
    assert ids(path) == ["a", "b"]
    assert mended.append(arrow(payload("c")), "app", 3) == 4
    assert ids(path) == ["a", "b", "c"]
    (kept,) = delta_log.damaged_files(path)
    assert kept.name.endswith(last.name)


def test_a_commit_that_a_killed_process_never_named_is_swept_away(table: delta.Table) -> None:
    left = [log_file(table.path, f".{1:020}.json.{pid}") for pid in (77, 78)]
    for file in left:
        file.write_text("{")
    os.utime(left[0], (0, 0))
    reopened(table.path)
    assert [file.exists() for file in left] == [False, True], "the other may be under way"


def test_a_version_that_was_told_is_never_told_with_other_rows(three_commits: delta.Table) -> None:
    path = three_commits.path
    told = delta_history.files_since(path, -1).version
    os.truncate(delta_log.commit_file(path, 3), 0)
    reopened(path).append(arrow(payload("c")), "app", 3)
    assert rows_since(path, told) == (4, ["c"])


def test_a_handle_forgotten_after_an_error_mends_the_log_too(three_commits: delta.Table) -> None:
    os.truncate(log_file(three_commits.path, f"{3:020}.json"), 0)
    three_commits.forget()
    assert three_commits.append(arrow(payload("c")), "app", 3) == 4
    assert ids(three_commits.path) == ["a", "b", "c"]


def test_a_commit_that_is_there_keeps_its_files_whatever_failed_after_it(
    table: delta.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "_delta_log":
            raise OSError(5, "Input/output error")

    assert not table.is_committed("app", 1)
    with monkeypatch.context() as disk, pytest.raises(OSError, match="Input"):
        disk.setattr(os, "fsync", fails)
        table.commit(arrow(payload("a")), {"app": 1})
    assert ids(table.path) == ["a"]
    assert table.append(arrow(payload("a")), "app", 1) is None


def test_a_commit_that_cannot_be_synced_is_not_made(
    table: delta.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int) -> None:
        if ".json." in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as disk, pytest.raises(OSError, match="Input"):
        disk.setattr(os, "fsync", fails)
        table.append(arrow(payload("a")), "app", 1)
    assert delta_log.commit_versions(table.path) == [0]
    assert list(table.path.glob("*/*.parquet")) == []
    assert [path.name for path in (table.path / "_delta_log").iterdir()] == [f"{0:020}.json"]
    assert table.append(arrow(payload("a")), "app", 1) == 1


def test_a_torn_checkpoint_costs_no_row(three_commits: delta.Table) -> None:
    path = three_commits.path
    deltalake.DeltaTable(path).create_checkpoint()
    os.truncate(delta_log.checkpoint_file(path, 3), 100)
    assert reopened(path).append(arrow(payload("d")), "app", 4) == 4
    assert ids(path) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("pointer", ['{"version": 77, "size": 5}', "", '{"vers'])
def test_a_pointer_to_no_checkpoint_costs_no_row(three_commits: delta.Table, pointer: str) -> None:
    path = three_commits.path
    log_file(path, "_last_checkpoint").write_text(pointer)
    assert reopened(path).append(arrow(payload("d")), "app", 4) == 4
    assert ids(path) == ["a", "b", "c", "d"]


def test_a_table_whose_creation_was_torn_is_made_anew(table: delta.Table) -> None:
    os.truncate(log_file(table.path, f"{0:020}.json"), 10)
    assert reopened(table.path).append(arrow(payload("a")), "app", 1) == 1


# What is new -------------------------------------------------------------------------------------


def rows_since(path: Path, version: int) -> tuple[int, list[str]]:
    since = delta_history.files_since(path, version)
    found = [pq.ParquetFile(file.path).read()["databricks_request_id"] for file in since.files]
    return since.version, [name for column in found for name in column.to_pylist()]


def test_new_files_are_told_by_commit_in_order(three_commits: delta.Table) -> None:
    path = three_commits.path
    assert rows_since(path, -1) == (3, ["a", "b", "c"])
    assert rows_since(path, 1) == (3, ["b", "c"])
    assert rows_since(path, 3) == (3, [])
    file = delta_history.files_since(path, 2).files[0]
    assert (file.commit_version, file.rows) == (3, 1)
    assert file.size_bytes == file.path.stat().st_size


def test_no_table_has_nothing_new(tmp_path: Path) -> None:
    assert delta_history.files_since(tmp_path / "none", -1) == (-1, [])


def test_a_damaged_commit_below_others_is_said_to_be_gone(three_commits: delta.Table) -> None:
    os.truncate(delta_log.commit_file(three_commits.path, 2), 100)
    assert delta_log.damaged_commits(three_commits.path) == [2]
    with pytest.raises(delta_history.HistoryGone):
        delta_history.files_since(three_commits.path, 0)
    assert rows_since(three_commits.path, 2) == (3, ["c"])


def test_a_torn_last_commit_is_not_told(three_commits: delta.Table) -> None:
    os.truncate(log_file(three_commits.path, f"{3:020}.json"), 100)
    assert rows_since(three_commits.path, 1) == (2, ["b"])


def checkpoint(path: Path) -> None:
    deltalake.DeltaTable(path).create_checkpoint()


def test_commits_moved_to_the_history_are_told_all_the_same(three_commits: delta.Table) -> None:
    path = three_commits.path
    checkpoint(path)
    assert delta_history.move_to_history(path, keep=1) == 0, "one checkpoint is not enough"
    three_commits.append(arrow(payload("d")), "app", 4)
    checkpoint(path)
    assert delta_history.move_to_history(path, keep=1) == 3
    assert delta_log.commit_versions(path) == [3, 4]
    assert rows_since(path, -1) == (4, ["a", "b", "c", "d"])
    assert rows_since(path, 1) == (4, ["b", "c", "d"])
    assert ids(path) == ["a", "b", "c", "d"]
    assert reopened(path).append(arrow(payload("e")), "app", 5) == 5


def test_a_history_line_torn_by_a_crash_is_written_again(three_commits: delta.Table) -> None:
    path = three_commits.path
    (path / delta_history.HISTORY).mkdir()
    today = f"{datetime.now(UTC):%Y-%m-%d}.jsonl"
    (path / delta_history.HISTORY / today).write_text(json.dumps([0, []]) + "\n[1, [{")
    checkpoint(path)
    three_commits.append(arrow(payload("d")), "app", 4)
    checkpoint(path)
    delta_history.move_to_history(path, keep=1)
    assert rows_since(path, -1) == (4, ["a", "b", "c", "d"])


def test_a_torn_checkpoint_keeps_all_commits_in_the_log(three_commits: delta.Table) -> None:
    path = three_commits.path
    checkpoint(path)
    three_commits.append(arrow(payload("d")), "app", 4)
    checkpoint(path)
    os.truncate(delta_log.checkpoint_file(path, 4), 100)
    assert delta_history.move_to_history(path, keep=1) == 0


def test_the_loss_of_the_newest_checkpoint_costs_no_row_after_a_clean_up(
    three_commits: delta.Table,
) -> None:
    path = three_commits.path
    checkpoint(path)
    three_commits.append(arrow(payload("d")), "app", 4)
    checkpoint(path)
    delta_history.move_to_history(path, keep=1)
    os.truncate(delta_log.checkpoint_file(path, 4), 100)
    assert reopened(path).append(arrow(payload("e")), "app", 5) == 5
    assert ids(path) == ["a", "b", "c", "d", "e"]


def test_commits_older_than_the_history_are_said_to_be_gone(three_commits: delta.Table) -> None:
    path = three_commits.path
    checkpoint(path)
    three_commits.append(arrow(payload("d")), "app", 4)
    checkpoint(path)
    delta_history.move_to_history(path, keep=1)
    for file in (path / delta_history.HISTORY).iterdir():
        file.unlink()
    with pytest.raises(delta_history.HistoryGone):
        delta_history.files_since(path, 0)
    assert rows_since(path, 3) == (4, ["d"])


def test_a_new_checkpoint_is_taken_up_by_a_living_handle(three_commits: delta.Table) -> None:
    checkpoint(three_commits.path)
    assert three_commits.append(arrow(payload("c")), "app", 3) is None
    assert three_commits.append(arrow(payload("d")), "app", 4) == 4
    assert three_commits.rows == 4


def many(count: int) -> pa.Table:
    """Rows of one day, a microsecond after one another."""
    (one,) = arrow(payload("a")).to_batches()
    rows_ = pa.Table.from_batches([one] * count)
    times = pa.array(range(20_000 * DAY_US, 20_000 * DAY_US + count), pa.int64())
    place = rows_.schema.get_field_index("request_time")
    return rows_.set_column(
        place, rows_.schema.field(place), times.cast(rows_.schema.field(place).type)
    )


def test_a_backlog_is_written_by_several_threads_in_order_of_time(table: delta.Table) -> None:
    count = delta.WRITERS * data_files.LEAST_PIECE_ROWS + 1
    table.append(many(count), "app", 1)
    files = sorted(
        (pq.read_table(path, columns=["request_time"])["request_time"].combine_chunks() for path
         in table.path.glob("*/*.parquet")), key=lambda times: times[0].as_py(),
    )  # fmt: skip
    assert len(files) == delta.WRITERS
    together = pa.chunked_array(files).cast(pa.int64()).to_pylist()
    assert together == list(range(20_000 * DAY_US, 20_000 * DAY_US + count))
    assert table.rows == count


def test_of_several_files_none_is_left_if_one_cannot_be_written(table: delta.Table) -> None:
    found = many(10).drop_columns(["request_date"])
    parts = [({"request_date": date}, found) for date in ("2024-10-04", "no/word", "2024-10-05")]
    with pytest.raises(errors.InvalidParameter, match="no/word"):
        data_files.write_files(table.path, table.layout, parts, 2)
    assert list(table.path.glob("*/*.parquet")) == []
