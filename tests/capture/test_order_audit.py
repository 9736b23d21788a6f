"""The checker of benchmarks/capture/order_audit.py on made-up traces, and its short form."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

LONG_FORM = Path(__file__).parents[2] / "benchmarks" / "capture"
APP = "5491a170-0d17-4a78-8b63-cb7e4ded1246"
ID = "01a2108b-5c05-73cb-9013-51e2b959c651"
IN_LOG = "".join(rf"\{byte:03o}" for byte in UUID(ID).bytes)
WAL = f"/d/wal/{APP}"
SEGMENT = f"{WAL}/{1:020}"
TABLE = "/d/tables/main/d/e_payload"
FILE = f"{TABLE}/request_date=2026-11-25/part-1.zstd.parquet"
COMMIT = f"{TABLE}/_delta_log/{1:020}.json"
REPLY = f"HTTP/1.1 404 Not Found\\r\\ndatabricks-request-id: {ID}\\r\\n\\r\\n"
TEXT = (
    r"{\"commitInfo\":{}}\n{\"add\":{\"path\":\"request_date=2026-11-25/part-1.zstd.parquet\"}}\n"
    rf"{{\"txn\":{{\"appId\":\"{APP}\",\"version\":1}}}}"
)
GATEWAY = [
    f'1 rename("/d/wal/.new-{APP}", "{WAL}") = 0',
    "1 fsync(12</d/wal>) = 0",
    f'1 openat(AT_FDCWD</d>, "{SEGMENT}.open", O_WRONLY|O_CREAT, 0600) = 9<{SEGMENT}.open>',
    rf'1 write(9<{SEGMENT}.open>, "ILB1\0\1main.d.e_payload{IN_LOG}", 90) = 90',
    f"1 fdatasync(9<{SEGMENT}.open> <unfinished ...>",
    '2 write(2</dev/null>, "{}", 2) = 2',
    "1 <... fdatasync resumed>) = 0",
    f"1 fsync(10<{WAL}>) = 0",
    f'1 write(20<socket:[1]>, "{REPLY}", 90) = 90',
]
COMMITTER = [
    f'3 mkdir("{TABLE}/request_date=2026-11-25", 0777) = 0',
    f"3 fsync(8<{TABLE}>) = 0",
    f'3 openat(AT_FDCWD</d>, "{FILE}", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 9<{FILE}>',
    f'3 write(9<{FILE}>, "PAR1", 4) = 4',
    f"3 fsync(9<{FILE}>) = 0",
    f"3 fsync(9<{TABLE}/request_date=2026-11-25>) = 0",
    f'4 openat(AT_FDCWD</d>, "{COMMIT}#1", O_RDWR|O_CREAT|O_EXCL, 0666) = 9<{COMMIT}#1>',
    f'4 write(9<{COMMIT}#1>, "{TEXT}", 300) = 300',
    f'4 linkat(AT_FDCWD</d>, "{COMMIT}#1", AT_FDCWD</d>, "{COMMIT}", 0) = 0',
    f'4 unlink("{COMMIT}#1") = 0',
    f"3 fsync(9<{COMMIT}>) = 0",
    f"3 fsync(9<{TABLE}/_delta_log>) = 0",
    f'3 unlink("{SEGMENT}.seg") = 0',
]


@pytest.fixture(scope="module")
def order_audit() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(LONG_FORM)
        yield importlib.import_module("order_audit")


def audited(order_audit: Any, gateway: list[str], committer: list[str]) -> Any:
    return order_audit.audit(order_audit.parse(gateway), order_audit.parse(committer))


def test_an_order_that_keeps_the_rules_has_no_violation(order_audit: Any) -> None:
    assert audited(order_audit, GATEWAY, COMMITTER) == order_audit.Audit(1, 1, ())


def moved(lines: list[str], part: str, place: int) -> list[str]:
    """Lines in which those that hold `part` came later, or earlier."""
    found = [line for line in lines if part in line]
    assert found, part
    rest = [line for line in lines if part not in line]
    return [*rest[:place], *found, *rest[place:]]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("write(9", "block was not written"),
        ("fdatasync", "segment was not synced"),
        ("fsync(10", "entry of the segment"),
        ("fsync(12", "entry of the incarnation"),
    ],
)
def test_a_reply_that_leaves_before_its_bytes_are_on_disk_is_found(
    order_audit: Any, part: str, told: str
) -> None:
    late = moved(GATEWAY, part, len(GATEWAY))
    (violation,) = audited(order_audit, late, COMMITTER).violations
    assert told in violation and ID in violation


@pytest.mark.parametrize("is_spare", [False, True])
def test_a_segment_that_is_made_a_spare_file_is_taken_away(
    order_audit: Any, is_spare: bool
) -> None:
    last = f'3 rename("{SEGMENT}-90.seg", "/d/wal/spare/{APP}-{1:020}-90") = 0'
    opened = GATEWAY[2]
    if is_spare:  # and the segment was written over one
        opened = f'1 rename("/d/wal/spare/x", "{SEGMENT}.open") = 0'
    gateway = [GATEWAY[0], GATEWAY[1], opened, *GATEWAY[3:]]
    committer = [*COMMITTER[:-1], last]
    assert audited(order_audit, gateway, committer) == order_audit.Audit(1, 1, ())
    late = [last, *COMMITTER[:-1]]
    assert any("before a commit" in told for told in audited(order_audit, gateway, late).violations)
    (violation,) = audited(order_audit, moved(gateway, "fsync(10", 9), committer).violations
    assert "entry of the segment" in violation


def test_a_sync_that_began_before_the_block_was_written_does_not_count(order_audit: Any) -> None:
    early = moved(GATEWAY, "fdatasync(9", 2)
    (violation,) = audited(order_audit, early, COMMITTER).violations
    assert "segment was not synced" in violation


def test_a_sync_that_failed_does_not_count(order_audit: Any) -> None:
    failed = [
        line.replace("= 0", "= -1 EIO (Input/output error)") if "resumed" in line else line
        for line in GATEWAY
    ]
    (violation,) = audited(order_audit, failed, COMMITTER).violations
    assert "segment was not synced" in violation


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("linkat", "before a commit of"),
        (f"fsync(9<{COMMIT}>", ".json was not synced"),
        ("fsync(9</d/tables/main/d/e_payload/_delta_log>", "_delta_log was not synced"),
        (f"fsync(8<{TABLE}>", "entry of folder"),
        (f"fsync(9<{FILE}>", "data file"),
        ("fsync(9</d/tables/main/d/e_payload/request_date", "entry of data file"),
    ],
)
def test_what_is_not_on_disk_before_the_segment_goes_is_found(
    order_audit: Any, part: str, told: str
) -> None:
    late = moved(COMMITTER, part, len(COMMITTER))
    violations = audited(order_audit, GATEWAY, late).violations
    assert any(told in violation for violation in violations), violations


@pytest.mark.parametrize(("place", "is_in_time"), [(8, True), (7, False), (10, False)])
def test_a_commit_may_be_synced_before_it_has_its_name(
    order_audit: Any, place: int, is_in_time: bool
) -> None:
    synced = f"3 fsync(9<{COMMIT}#1>) = 0"
    ours = [line for line in COMMITTER if f"fsync(9<{COMMIT}>" not in line]
    violations = audited(order_audit, GATEWAY, [*ours[:place], synced, *ours[place:]]).violations
    assert is_in_time == (violations == ())
    assert all(".json was not synced" in told for told in violations)


def test_rows_unpacked_before_their_commit_was_synced_are_found(order_audit: Any) -> None:
    unpacked = COMMIT.replace("e_payload", "e_unpacked")
    text = r"{\"txn\":{\"appId\":\"unpack:main.d.e_payload\",\"version\":1}}"
    lines = [
        f'5 write(9<{unpacked}#1>, "{text}", 90) = 90',
        f'5 link("{unpacked}#1", "{unpacked}") = 0',
    ]
    early = [*COMMITTER[:9], *lines, *COMMITTER[9:]]
    (violation,) = audited(order_audit, GATEWAY, early).violations
    assert violation.endswith("was unpacked before it was synced")
    assert audited(order_audit, GATEWAY, [*COMMITTER, *lines]).violations == ()


def test_a_block_written_in_pieces_is_read_as_one(order_audit: Any) -> None:
    pieces = rf'[{{iov_base="ILB1\0", iov_len=5}}, {{iov_base="{IN_LOG}", iov_len=16}}], 2) = 21'
    block = f"1 writev(9<{SEGMENT}.open>, {pieces}"
    lines = [block if line.startswith("1 write(9") else line for line in GATEWAY]
    violations = audited(order_audit, lines, COMMITTER).violations
    assert not any("was not written" in violation for violation in violations)


def test_a_commit_that_strace_cut_short_is_refused(order_audit: Any) -> None:
    cut = COMMITTER[7].replace('", 300', '"..., 300')
    with pytest.raises(ValueError, match="not shown whole"):
        order_audit.parse([cut])


def test_under_power_replies_and_segments_wait_for_the_disk(
    order_audit: Any, tmp_path: Path
) -> None:
    if not order_audit.can_trace() and "INFERLAKE_REQUIRE_TOOLS" not in os.environ:
        pytest.skip("The order of system calls is seen with strace.")
    found = order_audit.run(tmp_path, requests=80)
    assert found.violations == ()
    assert found.replies == 80
    assert found.segments > 0
