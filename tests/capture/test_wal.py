import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from capture import blocks, decoding, errors, rows, wal, wal_files
from capture.settings import Settings

TABLE = "main.default.model_payload"
DEADLINE_SECONDS = 20


def label(name: str, text: str = '"yes"') -> rows.Label:
    return rows.Label(20_000, name, None, 0, text, 1, 1, None)


def payload(name: str, request: str = "{}") -> rows.Payload:
    return rows.Payload(
        request_date=20_000,
        databricks_request_id=name,
        client_request_id=None,
        request_time=1,
        status_code=200,
        sampling_fraction=1.0,
        execution_duration_ms=1,
        request=request,
        response=None,
        served_entity_id=None,
        logging_error_codes=None,
        requester=None,
        endpoint_id="e",
        served_entity_name=None,
        model_name=None,
        model_version=None,
        config_version=None,
        route_share=None,
        route_split=None,
        unit_id=None,
        shadow=False,
        looked_up=None,
        usage_context=None,
        error_source=None,
        request_encoding="utf-8",
        content_type=None,
        gateway_us=0,
        queue_us=0,
        features_us=0,
        predict_us=0,
    )


def ids_in(path: Path) -> list[str]:
    data = path.read_bytes()
    found = blocks.read_segment(data)[1].blocks
    return decoding.decode(data, found)["databricks_request_id"].to_pylist() if found else []


def recorded(directory: Path) -> list[str]:
    """Ids in all sealed segments, in the order of the committer."""
    return [name for segment in wal_files.sealed(directory) for name in ids_in(segment.path)]


def open_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*.open"))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < end, "The condition did not come true in time."


def tick_until(log: wal.Log, condition: Callable[[], bool]) -> None:
    def ticked() -> bool:
        log.tick()
        return condition()

    until(ticked)


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The kernel takes no byte beyond `size` in any file: writes fall short, then fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def log(settings: Settings) -> Iterator[wal.Log]:
    log = wal.Log(settings.wal_dir, settings)
    yield log
    log.close()


def test_rows_lie_in_the_file_when_append_returns(settings: Settings, log: wal.Log) -> None:
    log.append(TABLE, "payload", [payload("a"), payload("b")])
    (path,) = open_files(settings.wal_dir)
    assert ids_in(path) == ["a", "b"]
    assert path.parent.name == str(log.app_id)


def test_a_segment_says_whose_it_is(settings: Settings, log: wal.Log) -> None:
    log.append(TABLE, "payload", [payload("a")])
    log.close()
    (segment,) = wal_files.sealed(settings.wal_dir)
    assert blocks.read_header(segment.path.read_bytes())[:2] == (segment.app_id, segment.sequence)


def test_a_segment_is_sealed_by_age(settings: Settings, log: wal.Log) -> None:
    log.append(TABLE, "payload", [payload("a")])
    tick_until(log, lambda: recorded(settings.wal_dir) == ["a"])
    assert open_files(settings.wal_dir) == []


def test_a_segment_is_sealed_by_size(settings: Settings) -> None:
    log = wal.Log(settings.wal_dir, settings.model_copy(update={"wal_seal_bytes": 1000}))
    log.append(TABLE, "payload", [payload("a", "x" * 1000)])
    assert recorded(settings.wal_dir) == ["a"]
    log.close()


def test_segments_follow_each_other_in_the_order_of_the_rows(settings: Settings) -> None:
    log = wal.Log(settings.wal_dir, settings.model_copy(update={"wal_seal_bytes": 500}))
    names = [f"{n:03}" for n in range(50)]
    for name in names:
        log.append(TABLE, "payload", [payload(name)])
    log.close()
    assert recorded(settings.wal_dir) == names


def test_a_clean_end_seals_everything_and_leaves_no_empty_segment(settings: Settings) -> None:
    log = wal.Log(settings.wal_dir, settings)
    log.append(TABLE, "payload", [payload("a")])
    log.close()
    assert recorded(settings.wal_dir) == ["a"]
    assert open_files(settings.wal_dir) == []
    idle = wal.Log(settings.wal_dir, settings)
    idle.close()
    assert recorded(settings.wal_dir) == ["a"]


def test_each_start_has_its_own_app_id(settings: Settings, log: wal.Log) -> None:
    other = wal.Log(settings.wal_dir, settings)
    assert other.app_id != log.app_id
    other.close()


def test_several_tables_and_kinds_share_a_segment(settings: Settings, log: wal.Log) -> None:
    log.append(TABLE, "payload", [payload("a")])
    log.append("main.default.model_labels", "labels", [label("b")])
    log.close()
    (segment,) = wal_files.sealed(settings.wal_dir)
    found = blocks.read_segment(segment.path.read_bytes())[1].blocks
    assert [(block.table, block.kind) for block in found] == [
        (TABLE, "payload"),
        ("main.default.model_labels", "labels"),
    ]


def test_no_rows_write_nothing(settings: Settings, log: wal.Log) -> None:
    log.append(TABLE, "payload", [])
    assert open_files(settings.wal_dir) == []


class Disk:
    """fdatasync as a disk does it that fails on demand; remembers the files that it synced."""

    def __init__(self) -> None:
        self.failing = False
        self.asked: list[str] = []

    def sync(self, descriptor: int) -> None:
        self.asked.append(Path(f"/proc/self/fd/{descriptor}").readlink().stem.partition("-")[0])
        if self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(descriptor)


def test_power_syncs_before_it_returns(settings: Settings) -> None:
    disk = Disk()
    log = wal.Log(settings.wal_dir, settings, sync=disk.sync)
    log.append(TABLE, "payload", [payload("a")], power=True)
    assert disk.asked == [f"{1:020}"]
    log.close()


def test_what_process_wrote_is_synced_by_the_timer(settings: Settings) -> None:
    disk = Disk()
    slow_seal = settings.model_copy(update={"wal_seal_seconds": 3600.0})
    log = wal.Log(settings.wal_dir, slow_seal, sync=disk.sync)
    log.append(TABLE, "payload", [payload("a")])
    assert disk.asked == []
    tick_until(log, lambda: disk.asked == [f"{1:020}"])
    log.close()


def test_a_file_whose_sync_failed_is_sealed_and_never_synced_again(settings: Settings) -> None:
    disk = Disk()
    log = wal.Log(settings.wal_dir, settings, sync=disk.sync)
    log.append(TABLE, "payload", [payload("a")], power=True)
    disk.failing = True
    with pytest.raises(errors.LogFull):
        log.append(TABLE, "payload", [payload("b")], power=True)
    disk.failing = False
    log.append(TABLE, "payload", [payload("c")], power=True)
    log.close()
    assert recorded(settings.wal_dir) == ["a", "c"]
    assert disk.asked == [f"{n:020}" for n in (1, 1, 2, 3)]


def test_after_a_failed_sync_the_block_moves_to_another_file_once(settings: Settings) -> None:
    disk = Disk()

    def fails_once(descriptor: int) -> None:
        disk.failing = len(disk.asked) == 1
        disk.sync(descriptor)

    log = wal.Log(settings.wal_dir, settings, sync=fails_once)
    log.append(TABLE, "payload", [payload("a")], power=True)
    log.append(TABLE, "payload", [payload("b")], power=True)
    log.close()
    assert recorded(settings.wal_dir) == ["a", "b"]
    assert [ids_in(segment.path) for segment in wal_files.sealed(settings.wal_dir)] == [
        ["a"],
        ["b"],
    ]


def test_a_timer_sync_that_failed_ends_the_segment(settings: Settings) -> None:
    disk = Disk()
    disk.failing = True
    slow_seal = settings.model_copy(update={"wal_seal_seconds": 3600.0})
    log = wal.Log(settings.wal_dir, slow_seal, sync=disk.sync)
    log.append(TABLE, "payload", [payload("a")])
    tick_until(log, lambda: recorded(settings.wal_dir) == ["a"])
    disk.failing = False
    log.append(TABLE, "payload", [payload("b")], power=True)
    log.close()
    assert disk.asked.count(f"{1:020}") == 1
    assert recorded(settings.wal_dir) == ["a", "b"]


def test_a_write_that_fell_short_is_cut_back_and_refused(settings: Settings, log: wal.Log) -> None:
    log.append(TABLE, "payload", [payload("a")])
    (path,) = open_files(settings.wal_dir)
    with files_end_at(path.stat().st_size + 100), pytest.raises(errors.LogFull):
        log.append(TABLE, "payload", [payload("b")])
    assert recorded(settings.wal_dir) == ["a"]
    (segment,) = wal_files.sealed(settings.wal_dir)
    assert blocks.read_segment(segment.path.read_bytes())[1].end == segment.path.stat().st_size
    log.append(TABLE, "payload", [payload("c")])
    log.close()
    assert recorded(settings.wal_dir) == ["a", "c"]


def test_a_disk_full_from_the_start_uses_up_no_segments(settings: Settings, log: wal.Log) -> None:
    for _ in range(5):
        with files_end_at(100), pytest.raises(errors.LogFull):
            log.append(TABLE, "payload", [payload("a")])
    assert len(open_files(settings.wal_dir)) == 1
    log.append(TABLE, "payload", [payload("b")])
    log.close()
    assert recorded(settings.wal_dir) == ["b"]


def test_a_segment_whose_header_does_not_fit_leaves_no_file(
    settings: Settings, log: wal.Log
) -> None:
    with files_end_at(10), pytest.raises(errors.LogFull):
        log.append(TABLE, "payload", [payload("a")])
    assert open_files(settings.wal_dir) == []


def test_it_starts_where_no_folder_can_be_made_and_goes_on_when_it_can(settings: Settings) -> None:
    settings.wal_dir.write_text("a file in the way")
    log = wal.Log(settings.wal_dir, settings)
    with pytest.raises(errors.LogFull):
        log.append(TABLE, "payload", [payload("a")])
    settings.wal_dir.unlink()
    log.append(TABLE, "payload", [payload("b")])
    log.close()
    assert recorded(settings.wal_dir) == ["b"]


def test_a_backlog_at_its_limit_refuses_until_it_is_committed(settings: Settings) -> None:
    tight = settings.model_copy(update={"wal_backlog_bytes": 2000})
    log = wal.Log(settings.wal_dir, tight)
    log.append(TABLE, "payload", [payload("a", "x" * 1000)])
    with pytest.raises(errors.LogFull, match="the limit is 2000"):
        log.append(TABLE, "payload", [payload("b", "x" * 1000)])
    tick_until(log, lambda: recorded(settings.wal_dir) == ["a"])
    (segment,) = wal_files.sealed(settings.wal_dir)
    segment.path.unlink()  # as the committer does at last
    tick_until(log, lambda: log.backlog_bytes == 0)
    log.append(TABLE, "payload", [payload("c", "x" * 1000)])
    log.close()
    assert recorded(settings.wal_dir) == ["c"]


def test_what_an_earlier_start_left_counts_as_backlog(settings: Settings, log: wal.Log) -> None:
    log.append(TABLE, "payload", [payload("a")])
    later = wal.Log(settings.wal_dir, settings)
    assert later.backlog_bytes == log.backlog_bytes > 0
    later.close()


def test_by_policy_requests_are_served_unlogged_and_counted(settings: Settings) -> None:
    serving = settings.model_copy(update={"wal_backlog_bytes": 10, "wal_full_policy": "serve"})
    log = wal.Log(settings.wal_dir, serving)
    log.append(TABLE, "payload", [payload("a"), payload("b")])
    assert log.dropped == {TABLE: 2}
    with pytest.raises(errors.LogFull):
        log.append("main.default.model_labels", "labels", [label("c")])
    log.close()


def recycled(settings: Settings) -> list[int]:
    """Inodes of the sealed segments, whose rows are taken and whose files are spare now."""
    found = []
    for segment in wal_files.sealed(settings.wal_dir):
        found.append(segment.path.stat().st_ino)
        wal_files.recycle(settings.wal_dir, segment.path)
    return found


def test_a_file_is_written_again_and_holds_only_what_was_written_last(settings: Settings) -> None:
    for names in ("abc", "d", "ef"):
        log = wal.Log(settings.wal_dir, settings)
        for name in names:
            log.append(TABLE, "payload", [payload(name, request="x" * 5000)])
        log.close()
        assert recorded(settings.wal_dir) == list(names)
        (segment,) = wal_files.sealed(settings.wal_dir)
        file, content = segment.path.stat(), wal_files.segment_bytes(segment.path)
        if names == "abc":
            first, size = file.st_ino, content
        else:
            assert (file.st_ino, file.st_size) == (first, size)
            assert content < size
        assert wal_files.waiting_bytes(settings) == content
        recycled(settings)
        assert wal_files.waiting_bytes(settings) == 0


def test_what_a_killed_writer_wrote_over_a_spare_file_is_all_there_is(settings: Settings) -> None:
    log = wal.Log(settings.wal_dir, settings)
    log.append(TABLE, "payload", [payload(name, request="x" * 5000) for name in "xyz"])
    log.close()
    (inode,) = recycled(settings)
    wal_files.adopt_dead(settings.wal_dir)
    killed_writer(settings, seal_bytes=1 << 20)
    (path,) = open_files(settings.wal_dir)
    assert path.stat().st_ino == inode
    wal_files.adopt_dead(settings.wal_dir)
    assert recorded(settings.wal_dir) == ["a", "b", "c"]


def test_a_spare_file_whose_new_life_had_not_begun_is_no_segment(settings: Settings) -> None:
    log = wal.Log(settings.wal_dir, settings)
    log.append(TABLE, "payload", [payload("x")])
    log.close()
    recycled(settings)
    (folder,) = wal_files.incarnations(settings.wal_dir)
    assert wal_files.take_spare(settings.wal_dir, folder / wal_files.open_name(2))
    wal_files.adopt_dead(settings.wal_dir)
    assert wal_files.incarnations(settings.wal_dir) == []


def test_so_many_files_are_kept_to_be_written_again(settings: Settings) -> None:
    log = wal.Log(settings.wal_dir, settings.model_copy(update={"wal_seal_bytes": 100}))
    for _ in range(wal_files.MOST_SPARES + 3):
        log.append(TABLE, "payload", [payload("a")])
    assert len(recycled(settings)) == wal_files.MOST_SPARES + 3
    spares = list((settings.wal_dir / wal_files.SPARES).iterdir())
    assert len(spares) == wal_files.MOST_SPARES
    assert wal_files.drop_spares(settings.wal_dir)
    assert not wal_files.drop_spares(settings.wal_dir)
    assert not wal_files.take_spare(settings.wal_dir, settings.wal_dir / "x")
    log.append(TABLE, "payload", [payload("b")])
    log.close()
    assert recorded(settings.wal_dir) == ["b"]


def test_a_write_over_a_spare_file_that_fell_short_is_cut_back(settings: Settings) -> None:
    log = wal.Log(settings.wal_dir, settings)
    log.append(TABLE, "payload", [payload("x", request="x" * 5000)])
    log.close()
    recycled(settings)
    log = wal.Log(settings.wal_dir, settings)
    log.append(TABLE, "payload", [payload("a")])
    with files_end_at(3000), pytest.raises(errors.LogFull):
        log.append(TABLE, "payload", [payload("b", request="x" * 5000)])
    log.append(TABLE, "payload", [payload("c")])
    log.close()
    assert recorded(settings.wal_dir) == ["a", "c"]


def test_segments_of_a_living_writer_are_left_alone(settings: Settings, log: wal.Log) -> None:
    log.append(TABLE, "payload", [payload("a")])
    wal_files.adopt_dead(settings.wal_dir)
    assert recorded(settings.wal_dir) == []
    assert len(open_files(settings.wal_dir)) == 1


WRITER = """
import sys
from pathlib import Path
from capture import rows, wal, wal_files
from capture.settings import Settings
settings = Settings(data_dir=Path(sys.argv[1]), wal_seal_bytes=int(sys.argv[2]))
log = wal.Log(settings.wal_dir, settings)
for name in "abc":
    log.append("main.default.model_labels", "labels",
               [rows.Label(1, name, None, 0, "1", 1, 1, None)])
print("written", flush=True)
sys.stdin.read()
"""


def killed_writer(settings: Settings, seal_bytes: int) -> UUID:
    """A writer of three rows that was killed; its app id."""
    command = [sys.executable, "-c", WRITER, str(settings.data_dir), str(seal_bytes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    with process, process.stdin, process.stdout:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    (folder,) = wal_files.incarnations(settings.wal_dir)
    return UUID(folder.name)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 4096, b"ILB1garbage" * 9])
def test_what_a_killed_writer_left_open_is_sealed_without_its_torn_tail(
    settings: Settings, garbage: bytes
) -> None:
    app_id = killed_writer(settings, seal_bytes=1 << 20)
    (path,) = open_files(settings.wal_dir)
    with path.open("ab") as file:
        file.write(garbage)
    wal_files.adopt_dead(settings.wal_dir)
    assert recorded(settings.wal_dir) == ["a", "b", "c"]
    assert wal_files.sealed(settings.wal_dir)[0].app_id == app_id


def test_a_dead_writers_folder_goes_when_its_rows_are_taken(settings: Settings) -> None:
    killed_writer(settings, seal_bytes=100)
    wal_files.adopt_dead(settings.wal_dir)
    assert recorded(settings.wal_dir) == ["a", "b", "c"]
    for segment in wal_files.sealed(settings.wal_dir):
        segment.path.unlink()
    wal_files.adopt_dead(settings.wal_dir)
    assert wal_files.incarnations(settings.wal_dir) == []


def test_a_dead_writers_segment_without_a_whole_header_is_no_segment(settings: Settings) -> None:
    killed_writer(settings, seal_bytes=1 << 20)
    (path,) = open_files(settings.wal_dir)
    os.truncate(path, 20)
    wal_files.adopt_dead(settings.wal_dir)
    assert wal_files.incarnations(settings.wal_dir) == []


def test_no_segment_is_offered_above_one_that_is_still_open(settings: Settings) -> None:
    killed_writer(settings, seal_bytes=100)
    second = sorted(settings.wal_dir.glob("*/*.seg"))[1]
    second.rename(second.with_name(wal_files.open_name(2)))
    assert recorded(settings.wal_dir) == ["a"]


def test_the_reserve_is_kept_and_given_up_once(settings: Settings) -> None:
    settings.wal_dir.mkdir()
    assert wal_files.keep_reserve(settings.wal_dir, 1 << 20)
    assert (settings.wal_dir / wal_files.RESERVE).stat().st_size == 1 << 20
    assert wal_files.give_reserve(settings.wal_dir)
    assert not wal_files.give_reserve(settings.wal_dir)


def test_without_space_no_reserve_is_kept(settings: Settings) -> None:
    settings.wal_dir.mkdir()
    with files_end_at(1000):
        assert not wal_files.keep_reserve(settings.wal_dir, 1 << 20)
    assert not (settings.wal_dir / wal_files.RESERVE).exists()
