import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import deltalake
import polars as pl
import pytest
import sqlalchemy as sa

from capture import blocks, committer, delta, delta_log, rows, wal, wal_files
from capture.settings import Settings

TABLE = "main.default.model_payload"
OTHER = "main.default.other_payload"
LABELS = "main.default.model_labels"
DAY_US = 86_400_000_000


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def payload(name: str, time_us: int = 20_000 * DAY_US, **other: Any) -> rows.Payload:
    values: dict[str, Any] = dict.fromkeys(rows.Payload._fields)
    values |= {"request_date": time_us // DAY_US, "databricks_request_id": name}
    values |= {"request_time": time_us, "status_code": 200, "sampling_fraction": 1.0}
    values |= dict.fromkeys(("gateway_us", "queue_us", "features_us", "predict_us"), 0)
    values |= {"execution_duration_ms": 0, "endpoint_id": "e", "shadow": False}
    return rows.Payload(**(values | {"request_encoding": "utf-8"} | other))


def label(name: str) -> rows.Label:
    return rows.Label(20_000, name, None, 0, "1", 20_000 * DAY_US, 20_000 * DAY_US, None)


def write(settings: Settings, *groups: tuple[str, str, list[Any]]) -> None:
    """One incarnation of the log, with these rows in one sealed segment."""
    log = wal.Log(settings.wal_dir, settings)
    for table, kind, group in groups:
        log.append(table, kind, group)
    log.close()


def ids(settings: Settings, table: str) -> list[str]:
    frame = pl.read_delta(str(delta.path_of(settings, table)))
    return sorted(frame["databricks_request_id"])


def segments(settings: Settings) -> list[Path]:
    return sorted(settings.wal_dir.glob("*/*.seg"))


def status(settings: Settings) -> Any:
    return json.loads((settings.run_dir / "committed.json").read_text())


def test_sealed_rows_become_visible_and_their_segment_goes(settings: Settings) -> None:
    write(settings, (TABLE, "payload", [payload("a"), payload("b")]))
    (done,) = committer.Committer(settings).turn()
    assert done == (TABLE, "payload", 1, 2)
    assert ids(settings, TABLE) == ["a", "b"]
    assert segments(settings) == []


def test_the_file_of_a_committed_segment_is_spare_for_a_while(settings: Settings) -> None:
    clock = Clock()
    one = committer.Committer(settings, monotonic=clock)
    write(settings, (TABLE, "payload", [payload("a")]))
    one.turn()
    (spare,) = (settings.wal_dir / wal_files.SPARES).iterdir()
    clock.now += committer.SPARE_SECONDS - 1
    one.turn()
    assert spare.exists()
    clock.now += 2
    one.turn()
    assert not spare.exists()


def test_nothing_sealed_is_nothing_done(settings: Settings) -> None:
    assert committer.Committer(settings).turn() == []


def test_tables_that_share_a_segment_get_their_own_rows(settings: Settings) -> None:
    groups = [(TABLE, "payload", [payload("a")]), (OTHER, "payload", [payload("b")])]
    write(settings, *groups, (LABELS, "labels", [label("c")]), *groups)
    committer.Committer(settings).turn()
    assert ids(settings, TABLE) == ["a", "a"]
    assert ids(settings, OTHER) == ["b", "b"]
    assert ids(settings, LABELS) == ["c"]


def test_all_sealed_segments_of_all_incarnations_are_one_commit(settings: Settings) -> None:
    small = settings.model_copy(update={"wal_seal_bytes": 1})
    for name in "abc":
        write(small, *((TABLE, "payload", [payload(f"{name}{n}")]) for n in range(3)))
    assert len(segments(settings)) == 9
    (done,) = committer.Committer(settings).turn()
    assert (done.commit_version, done.rows) == (1, 9)
    assert len(set(ids(settings, TABLE))) == 9


def test_rows_of_two_dates_are_one_commit(settings: Settings) -> None:
    before_midnight = payload("a", 20_001 * DAY_US - 1)
    write(settings, (TABLE, "payload", [payload("b", 20_001 * DAY_US), before_midnight]))
    (done,) = committer.Committer(settings).turn()
    assert done.commit_version == 1
    assert ids(settings, TABLE) == ["a", "b"]


def test_later_batches_follow_with_the_same_committer(settings: Settings) -> None:
    one = committer.Committer(settings)
    for version, name in enumerate("abc", start=1):
        write(settings, (TABLE, "payload", [payload(name)]))
        assert [done.commit_version for done in one.turn()] == [version]
    assert ids(settings, TABLE) == ["a", "b", "c"]


def test_segments_that_a_crash_kept_from_being_unlinked_are_not_taken_twice(
    settings: Settings, tmp_path: Path
) -> None:
    write(settings, (TABLE, "payload", [payload("a")]), (LABELS, "labels", [label("b")]))
    shutil.copytree(settings.wal_dir, tmp_path / "kept")
    committer.Committer(settings).turn()
    shutil.copytree(tmp_path / "kept", settings.wal_dir, dirs_exist_ok=True)
    assert committer.Committer(settings).finish() == []
    assert ids(settings, TABLE) == ["a"]
    assert ids(settings, LABELS) == ["b"]
    assert segments(settings) == []


def test_a_crash_between_two_tables_doubles_neither(settings: Settings, tmp_path: Path) -> None:
    write(settings, (TABLE, "payload", [payload("a")]), (OTHER, "payload", [payload("b")]))
    shutil.copytree(settings.wal_dir, tmp_path / "kept")
    committer.Committer(settings).turn()
    shutil.copytree(tmp_path / "kept", settings.wal_dir, dirs_exist_ok=True)
    shutil.rmtree(delta.path_of(settings, OTHER))
    (done,) = committer.Committer(settings).finish()
    assert done.table == OTHER
    assert (ids(settings, TABLE), ids(settings, OTHER)) == (["a"], ["b"])


def test_a_commit_that_power_loss_emptied_is_made_again(settings: Settings, tmp_path: Path) -> None:
    write(settings, (TABLE, "payload", [payload("a")]))
    committer.Committer(settings).turn()
    write(settings, (TABLE, "payload", [payload("b")]))
    shutil.copytree(settings.wal_dir, tmp_path / "kept")
    committer.Committer(settings).turn()
    shutil.copytree(tmp_path / "kept", settings.wal_dir, dirs_exist_ok=True)
    os.truncate(delta_log.commit_file(delta.path_of(settings, TABLE), 2), 0)
    committer.Committer(settings).finish()
    assert ids(settings, TABLE) == ["a", "b"]


def test_what_a_dead_writer_left_open_is_committed(settings: Settings) -> None:
    write(settings, (TABLE, "payload", [payload("a")]))
    (path,) = segments(settings)
    opened = path.rename(path.with_name(wal_files.open_name(1)))  # as a kill leaves it
    with opened.open("ab") as file:
        file.write(b"ILB1torn")
    committer.Committer(settings).turn()
    assert ids(settings, TABLE) == ["a"]
    committer.Committer(settings).turn()
    assert wal_files.incarnations(settings.wal_dir) == []


def test_a_torn_tail_in_a_sealed_segment_costs_no_whole_block(settings: Settings) -> None:
    write(settings, (TABLE, "payload", [payload("a")]), (TABLE, "payload", [payload("b")]))
    (path,) = segments(settings)
    os.truncate(path, path.stat().st_size - 20)
    committer.Committer(settings).turn()
    assert ids(settings, TABLE) == ["a"]


def test_a_foreign_segment_is_set_aside_and_the_others_go_on(settings: Settings) -> None:
    write(settings, (TABLE, "payload", [payload("a")]))
    write(settings, (TABLE, "payload", [payload("b")]))
    first, second = segments(settings)
    (kept,) = blocks.read_segment(second.read_bytes())[1].blocks
    first.write_bytes(blocks.segment_header(uuid4(), 1)[0] + first.read_bytes()[kept.offset :])
    committer.Committer(settings).turn()
    assert len(ids(settings, TABLE)) == 1
    assert first.with_suffix(".refused").exists()


def test_a_table_that_fails_holds_back_only_itself_and_recovers(settings: Settings) -> None:
    clock = Clock()
    one = committer.Committer(settings, monotonic=clock)
    in_the_way = delta.path_of(settings, OTHER)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the table should be")
    for name in "abc":
        write(settings, (TABLE, "payload", [payload(name)]), (OTHER, "payload", [payload(name)]))
        clock.now += 0.1
        one.turn()
    assert ids(settings, TABLE) == ["a", "b", "c"]
    assert len(segments(settings)) == 3
    clock.now += 1
    assert OTHER in status_after(one, settings, clock)["failing"]
    in_the_way.unlink()
    clock.now += committer.LAST_RETRY_SECONDS
    one.turn()
    assert ids(settings, OTHER) == ["a", "b", "c"]
    assert ids(settings, TABLE) == ["a", "b", "c"]
    assert segments(settings) == []
    assert status_after(one, settings, clock)["failing"] == {}


def test_what_was_read_ahead_is_held_back_with_its_table(settings: Settings) -> None:
    clock = Clock()
    one = committer.Committer(settings, monotonic=clock, limits=committer.Limits(batch_rows=4))
    in_the_way = delta.path_of(settings, OTHER)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the table should be")
    small = settings.model_copy(update={"wal_seal_bytes": 1})
    names = [f"{n}" for n in range(9)]
    groups = [(table, "payload", [payload(n)]) for n in names for table in (TABLE, OTHER)]
    write(small, *groups)
    one.finish()
    assert ids(settings, TABLE) == names
    assert len(segments(settings)) == len(names)
    in_the_way.unlink()
    for _ in names:
        clock.now += committer.LAST_RETRY_SECONDS
        one.turn()
    assert ids(settings, OTHER) == ids(settings, TABLE) == names
    assert segments(settings) == []


def status_after(one: committer.Committer, settings: Settings, clock: Clock) -> Any:
    clock.now += 1
    one.turn()
    return status(settings)


def test_a_failing_table_is_not_tried_at_every_turn(settings: Settings) -> None:
    clock = Clock()
    one = committer.Committer(settings, monotonic=clock)
    in_the_way = delta.path_of(settings, TABLE)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the table should be")
    write(settings, (TABLE, "payload", [payload("a")]))
    one.turn()
    in_the_way.unlink()
    assert one.turn() == []
    clock.now += committer.FIRST_RETRY_SECONDS
    assert [done.rows for done in one.turn()] == [1]


def test_what_was_committed_and_what_waits_is_told(settings: Settings) -> None:
    write(settings, (TABLE, "payload", [payload("a")]))
    clock = Clock()
    one = committer.Committer(settings, monotonic=clock)
    one.turn()
    write(settings, (TABLE, "payload", [payload("b")]))
    told = status_after(one, settings, clock)
    assert told["tables"][TABLE]["rows"] == 2
    assert told["tables"][TABLE]["commit_version"] == 2
    assert told["tables"][TABLE]["last_commit_ms"] > 0
    assert told["backlog_bytes"] == 0


def test_after_a_restart_earlier_tables_are_still_told(settings: Settings) -> None:
    write(settings, (TABLE, "payload", [payload("a")]))
    committer.Committer(settings).finish()
    write(settings, (OTHER, "payload", [payload("b")]))
    committer.Committer(settings).finish()
    assert {name: told["rows"] for name, told in status(settings)["tables"].items()} == {
        TABLE: 1,
        OTHER: 1,
    }


def test_a_large_backlog_is_taken_in_batches(settings: Settings) -> None:
    limits = committer.Limits(batch_rows=4)
    small = settings.model_copy(update={"wal_seal_bytes": 1})
    write(small, *((TABLE, "payload", [payload(f"{n}")]) for n in range(10)))
    assert [done.rows for done in committer.Committer(settings, limits=limits).finish()] == [
        4,
        4,
        2,
    ]
    assert len(ids(settings, TABLE)) == 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a data directory on a disk of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("Only root can mount a small disk.")
    yield Settings(data_dir=place)
    subprocess.run(["umount", str(place)], check=True)


def test_on_a_full_disk_the_reserve_lets_the_backlog_drain(small_disk: Settings) -> None:
    clock = Clock()
    limits = committer.Limits(reserve_bytes=4 << 20)
    one = committer.Committer(small_disk, monotonic=clock, limits=limits)
    small_disk.wal_dir.mkdir()
    one.turn()
    assert (small_disk.wal_dir / wal_files.RESERVE).exists()
    names = [f"{n:03}" for n in range(10)]
    for name in names:
        noise = os.urandom(100_000).hex()  # shrinks to half at best
        write(small_disk, (TABLE, "payload", [payload(name, request=noise)]))
    filler = small_disk.data_dir / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(bytes(4096))
    for _ in range(40):
        clock.now += committer.LAST_RETRY_SECONDS
        one.turn()
    assert ids(small_disk, TABLE) == names
    assert segments(small_disk) == []
    assert not (small_disk.wal_dir / wal_files.RESERVE).exists()
    filler.unlink()
    clock.now += committer.LAST_RETRY_SECONDS
    one.turn()
    assert (small_disk.wal_dir / wal_files.RESERVE).exists()


# The process -------------------------------------------------------------------------------------

DEADLINE_SECONDS = 60


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "The condition did not come true in time."


@contextmanager
def running(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "INFERLAKE_DATA_DIR": str(settings.data_dir)}
    process = subprocess.Popen([sys.executable, "-m", "capture"], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ready(settings: Settings) -> int | None:
    path = settings.run_dir / "committer.ready"
    return json.loads(path.read_text())["pid"] if path.exists() else None


def ticked(log: wal.Log) -> bool:
    log.tick()
    return True


def rows_in(settings: Settings, table: str) -> int:
    path = delta.path_of(settings, table)
    if not deltalake.DeltaTable.is_deltatable(str(path)):
        return 0
    return pl.scan_delta(str(path)).select(pl.len()).collect().item()


def test_the_process_makes_rows_visible_and_unpacks_them(
    settings: Settings, state: sa.Engine
) -> None:
    with running(settings) as process:
        until(lambda: ready(settings) == process.pid)
        log = wal.Log(settings.wal_dir, settings)
        row = payload("a", request='{"dataframe_records": [{"x": 1}]}', response="{}")
        log.append(TABLE, "payload", [row])
        until(lambda: ticked(log) and rows_in(settings, TABLE) == 1)
        until(lambda: rows_in(settings, "main.default.model_unpacked") == 1)
        log.close()


def test_at_sigterm_the_process_commits_what_is_sealed_and_exits_0(settings: Settings) -> None:
    with running(settings) as process:
        until(lambda: ready(settings) == process.pid)
        process.send_signal(signal.SIGSTOP)
        write(settings, (TABLE, "payload", [payload("a")]))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        assert process.wait(DEADLINE_SECONDS) == 0
    assert ids(settings, TABLE) == ["a"]
    assert ready(settings) is None


def test_a_second_committer_waits_until_the_first_is_gone(settings: Settings) -> None:
    with running(settings) as first:
        until(lambda: ready(settings) == first.pid)
        with running(settings) as second:
            write(settings, (TABLE, "payload", [payload("a")]))
            until(lambda: rows_in(settings, TABLE) == 1)
            assert ready(settings) == first.pid
            first.kill()
            until(lambda: ready(settings) == second.pid)
            second.send_signal(signal.SIGTERM)
            assert second.wait(DEADLINE_SECONDS) == 0


COMMIT_ONCE = """
import sys
from pathlib import Path
from capture import committer
from capture.settings import Settings
committer.Committer(Settings(data_dir=Path(sys.argv[1]))).finish()
heavy = {"pandas", "polars", "scipy", "mlflow"}
sys.exit(len(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture
def traced(settings: Settings) -> list[str]:
    """System calls of a committer that takes one segment, in order; files by their names."""
    if shutil.which("strace") is None and "INFERLAKE_REQUIRE_TOOLS" not in os.environ:
        pytest.skip("The order of system calls is seen with strace.")
    write(settings, (TABLE, "payload", [payload("a")]))
    trace = settings.data_dir / "trace"
    calls = "trace=fsync,link,linkat,rename,renameat"
    command = ["strace", "-f", "-y", "-e", calls, "-o", str(trace), sys.executable, "-c"]
    done = subprocess.run([*command, COMMIT_ONCE, str(settings.data_dir)], check=False)
    if not trace.read_text() and "INFERLAKE_REQUIRE_TOOLS" not in os.environ:
        pytest.skip("Processes cannot be traced here.")
    assert done.returncode == 0, "The committer has loaded what it does not need."
    return trace.read_text().splitlines()


def test_rows_and_commit_are_on_disk_before_the_segment_goes(traced: list[str]) -> None:
    def first(*words: str) -> int:
        return next(n for n, line in enumerate(traced) if all(word in line for word in words))

    commit = f"{1:020}.json"
    order = [
        first("fsync", ".zstd.parquet>"),
        first("fsync", "request_date=2024-10-04>"),
        first("fsync", f"_delta_log/.{commit}."),
        first("link", f'_delta_log/{commit}"'),
        first("rename", ".seg", "/spare/"),
    ]
    log_synced = [n for n, line in enumerate(traced) if "fsync" in line and "_delta_log>" in line]
    assert order == sorted(order)
    assert any(order[3] < n < order[4] for n in log_synced)
