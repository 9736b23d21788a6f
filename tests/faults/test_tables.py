"""Damage to a table's files: set aside or mended, and told; the record goes on."""

import os
import shutil
from pathlib import Path

import deltalake
import pytest

from capture import delta, delta_history, delta_log
from serving import doctor
from tests.faults.record import OTHER, UNPACKED, Record, until


def cut(file: Path, share: float = 0.5) -> None:
    """Tear a file; share: of its bytes that are left."""
    os.truncate(file, int(file.stat().st_size * share))


def check_that_recording_goes_on(record: Record, *names: str) -> None:
    """A new row comes in, is unpacked, and all that were there are there, once."""
    record.commit("new")
    assert record.ids() == sorted([*names, "new"])
    assert record.ids(UNPACKED) == sorted([*names, "new"])
    assert record.problems() == ""


def test_a_dangling_pointer_to_a_checkpoint_costs_nothing(record: Record) -> None:
    (record.path / "_delta_log" / "_last_checkpoint").write_text('{"version": 77, "size": 5}')
    assert "_last_checkpoint" in record.problems()
    check_that_recording_goes_on(record, "a", "b", "c")


def test_a_torn_checkpoint_costs_nothing(record: Record) -> None:
    deltalake.DeltaTable(record.path).create_checkpoint()
    cut(delta_log.checkpoint_file(record.path, 3))
    assert "checkpoint, " in record.problems()
    check_that_recording_goes_on(record, "a", "b", "c")


@pytest.mark.parametrize("share", [0, 0.5], ids=["empty", "torn"])
def test_a_damaged_last_commit_whose_rows_are_in_the_log_is_made_again(
    record: Record, tmp_path: Path, share: float
) -> None:
    record.append("d")
    shutil.copytree(record.settings.wal_dir, tmp_path / "kept")
    with record.running():
        wait_for(record, 4)
    shutil.copytree(tmp_path / "kept", record.settings.wal_dir, dirs_exist_ok=True)
    cut(delta_log.commit_file(record.path, 4), share)
    assert "last commit" in record.problems()
    check_that_recording_goes_on(record, "a", "b", "c", "d")


def wait_for(record: Record, version: int) -> None:
    until(lambda: not record.segments() and delta_log.commit_versions(record.path)[-1] == version)


@pytest.mark.parametrize("share", [0, 0.5], ids=["empty", "torn"])
def test_a_last_commit_damaged_at_rest_gives_its_rows_back_when_a_person_says_so(
    record: Record, share: float
) -> None:
    cut(delta_log.commit_file(record.path, 3), share)
    record.commit("d")  # capture goes on
    assert record.ids() == ["a", "b", "d"]
    assert "1 rows of a damaged commit" in record.problems()
    assert "are back" in record.mended()
    check_that_recording_goes_on(record, "a", "b", "c", "d")


@pytest.mark.parametrize("share", [None, 0, 0.5], ids=["missing", "empty", "torn"])
def test_a_damaged_commit_in_the_middle_is_mended_when_a_person_says_so(
    record: Record, share: float | None
) -> None:
    file = delta_log.commit_file(record.path, 2)
    if share is None:
        file.unlink()
    else:
        cut(file, share)
    record.append("d")
    assert f"its commit, {file.name}" in record.problems()
    record.mended()
    check_that_recording_goes_on(record, "a", "b", "c", "d")


def test_a_torn_data_file_leaves_the_table_and_all_other_rows_can_be_read(record: Record) -> None:
    torn = delta_history.files_since(record.path, 1).files[0].path
    cut(torn)
    record.append("d")
    assert f"data file request_date=2024-10-04/{torn.name} with 1 rows" in record.problems()
    record.mended()
    assert record.ids() == ["a", "c", "d"]
    record.commit("new")
    assert record.ids() == ["a", "c", "d", "new"]
    assert record.ids(UNPACKED) == ["a", "b", "c", "d", "new"], "b was unpacked before"


def test_a_damaged_commit_of_the_unpacked_rows_is_unpacked_anew(record: Record) -> None:
    unpacked = delta.path_of(record.settings, UNPACKED)
    version = delta_log.commit_versions(unpacked)[-2]
    cut(delta_log.commit_file(unpacked, version), 0)
    assert "its commit" in record.problems()
    record.mended()
    check_that_recording_goes_on(record, "a", "b", "c")


def test_a_table_that_cannot_be_read_holds_back_no_other(record: Record) -> None:
    cut(delta_log.commit_file(record.path, 2))
    with record.running():
        record.append("d")
        record.append("e", table=OTHER)
        until(lambda: record.ids(OTHER) == ["e"])
        assert "its commit" in record.problems()
        (refused,) = doctor.mend(record.settings)
        assert (refused.found, refused.ok) == ("the server runs", False)
    assert len(record.segments()) == 1
    record.mended()
    assert record.ids() == ["a", "b", "c", "d"]
