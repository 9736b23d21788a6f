"""Wishes about tables in SQL, and the maintenance process that fulfils them."""

import time
from datetime import UTC, datetime, timedelta

import deltalake
import pyarrow as pa
import sqlalchemy as sa

from capture import database, delta, maintenance, upkeep
from capture.settings import Settings
from tests.capture import shop

NAME = "main.default.model_payload"


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
