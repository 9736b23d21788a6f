"""Wishes about tables in SQL, and the maintenance process that fulfils them."""

import time
from datetime import UTC, datetime, timedelta

import deltalake
import pyarrow as pa
import sqlalchemy as sa

from capture import database, delta, maintenance, upkeep
from capture.settings import Settings
from tests.capture import shop

NAME, UNPACKED = "main.default.model_payload", "model_unpacked"


def known(engine: sa.Engine) -> upkeep.Upkeep:
    with database.reading(engine) as connection:
        return upkeep.of_table(connection, NAME)


def test_a_table_that_nobody_asked_about_has_nothing_to_wait_for(state: sa.Engine) -> None:
    assert known(state) == upkeep.Upkeep(NAME, None, None, None, None, None, None)
    assert not known(state).is_waiting


def test_wishes_at_the_same_moment_are_told_apart(state: sa.Engine) -> None:
    with database.transaction(state) as connection:
        first = upkeep.ask(connection, NAME, {}, 5)
        second = upkeep.ask(connection, NAME, {"retention_hours": 2}, 5)
        upkeep.note(connection, NAME, {"merged_files": 1}, 6, answers_ms=first)
    assert second > first
    assert known(state).is_waiting
    with database.transaction(state) as connection:
        upkeep.note(connection, NAME, {"merged_files": 0}, 7, answers_ms=second)
    assert not known(state).is_waiting
    assert (known(state).done, known(state).done_ms) == ({"merged_files": 0}, 7)


def test_the_retention_stays_when_an_upkeep_is_noted(state: sa.Engine) -> None:
    with database.transaction(state) as connection:
        upkeep.keep_days(connection, NAME, 30)
        upkeep.note(connection, NAME, {}, 1)
    assert known(state).retention_days == 30
    with database.transaction(state) as connection:
        upkeep.keep_days(connection, NAME, None)
        assert upkeep.everything(connection)[NAME].retention_days is None


def test_the_child_does_what_was_asked_and_says_so(
    settings: Settings, state: sa.Engine, table: delta.Table
) -> None:
    today = datetime.now(UTC)
    for number, days in enumerate((3, 0)):
        at = today - timedelta(days=days)
        row = shop.payload(0, request_date=at.date(), request_time=at)
        table.append(pa.Table.from_pylist([row], schema=table.schema), "app", number + 1)
    with database.transaction(state) as connection:
        upkeep.keep_days(connection, NAME, 2)
        upkeep.ask(connection, NAME, {}, 1)
    keeper = maintenance.Keeper(settings)
    keeper.turn({})
    done = known(state).done
    assert not known(state).is_waiting
    assert done is not None and done["dropped_files"] == 1
    assert len(deltalake.DeltaTable(table.path).file_uris()) == 1


def test_unpacking_rests_after_it_worked_and_goes_on_then(
    settings: Settings, state: sa.Engine, table: delta.Table
) -> None:
    def append(number: int, count: int = 1) -> None:
        at = datetime.now(UTC)
        row = shop.payload(number, request_date=at.date(), request_time=at)
        table.append(pa.Table.from_pylist([row] * count, schema=table.schema), "app", number + 1)
        keeper.turn({NAME: "payload"})

    def unpacked() -> int:
        return len(deltalake.DeltaTable(table.path.with_name(UNPACKED)).to_pyarrow_table())

    keeper = maintenance.Keeper(settings)
    append(0, 20_000)
    append(1)  # which takes less than the rest after so many
    assert unpacked() == 20_000
    assert 0 < keeper.pause_seconds() <= maintenance.PUBLISH_SECONDS
    deadline = time.monotonic() + maintenance.LONGEST_REST_SECONDS + 1
    while unpacked() == 20_000 and time.monotonic() < deadline:
        time.sleep(keeper.pause_seconds())
        keeper.turn({})
    assert unpacked() == 20_001


def test_an_upkeep_that_fails_is_told_to_who_asked(
    settings: Settings, state: sa.Engine, table: delta.Table
) -> None:
    (table.path / "_delta_log" / f"{0:020}.json").write_text("no commit")
    with database.transaction(state) as connection:
        upkeep.ask(connection, NAME, {}, 1)
    maintenance.Keeper(settings).turn({})
    assert not known(state).is_waiting
    assert "error" in (known(state).done or {})


def test_a_lasting_wish_is_kept_without_being_asked_again(
    settings: Settings, state: sa.Engine, table: delta.Table
) -> None:
    at = datetime.now(UTC) - timedelta(days=5)
    for number in range(maintenance.CHECKPOINT_COMMITS):
        row = shop.payload(number, request_date=at.date(), request_time=at)
        table.append(pa.Table.from_pylist([row], schema=table.schema), "app", number + 1)
    with database.transaction(state) as connection:
        upkeep.keep_days(connection, NAME, 1)
    maintenance.Keeper(settings).turn({})
    assert deltalake.DeltaTable(table.path).file_uris() == []
    done_ms = known(state).done_ms
    assert done_ms is not None and abs(done_ms / 1000 - time.time()) < 60
