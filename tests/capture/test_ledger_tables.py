"""Facts from SQL to Delta, each once, whatever is killed in between."""

import os
import random
import subprocess
import sys
import time
from typing import Any

import deltalake
import polars as pl
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from capture import database, delta, ledger, ledger_tables, upkeep
from capture.settings import Settings


def fact(number: int) -> dict[str, Any]:
    return {
        "event_date": 19_800,
        "event_time": 1_710_720_000_000_000 + number,
        "event_id": str(number),
        "user_identity": {"email": "ann"},
        "action_name": "endpoint.create",
        "after": {"n": number},
    }


def write(engine: sa.Engine, *numbers: int) -> None:
    with database.transaction(engine) as connection:
        ledger.write(connection, ledger.AUDIT, [fact(n) for n in numbers])


def waiting(engine: sa.Engine) -> int:
    with database.reading(engine) as connection:
        return connection.execute(sa.select(sa.func.count(ledger.ledger.c.id))).scalar_one()


def written(settings: Settings) -> pl.DataFrame:
    return pl.read_delta(str(delta.path_of(settings, ledger.AUDIT))).sort("event_time")


def test_facts_come_to_their_table_in_order_and_leave_sql(
    settings: Settings, state: sa.Engine
) -> None:
    book = ledger_tables.Follower(settings, state)
    write(state, 1, 2)
    assert book.follow() == 2
    write(state, 3)
    assert (book.follow(), book.follow()) == (1, 0)
    found = written(settings)
    assert found["event_id"].to_list() == ["1", "2", "3"]
    assert found["after"].to_list() == ['{"n": 1}', '{"n": 2}', '{"n": 3}']
    assert found["user_identity"].to_list() == [{"email": "ann"}] * 3
    assert waiting(state) == 0


def test_a_fact_of_a_transaction_that_failed_comes_nowhere(
    settings: Settings, state: sa.Engine
) -> None:
    with pytest.raises(RuntimeError), database.transaction(state) as connection:
        ledger.write(connection, ledger.AUDIT, [fact(1)])
        raise RuntimeError("it was not to be")
    assert ledger_tables.Follower(settings, state).follow() == 0


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("statement", ["UPDATE ledger", "DELETE FROM ledger"])
def test_killed_before_or_after_the_commit_each_fact_is_there_once(
    settings: Settings, state: sa.Engine, statement: str
) -> None:
    ledger_tables.Follower(settings, state).follow()
    write(state, 1)
    seen = 0

    def kill(*arguments: Any) -> None:
        nonlocal seen
        if arguments[2].startswith(statement):
            seen += 1
            # The first removal looks for what an earlier one left; the second is after the commit.
            if seen == (2 if statement.startswith("DELETE") else 1):
                raise Killed

    sa.event.listen(state, "after_cursor_execute", kill)
    with pytest.raises(Killed):
        ledger_tables.Follower(settings, state).follow()
    sa.event.remove(state, "after_cursor_execute", kill)
    write(state, 2)
    book = ledger_tables.Follower(settings, state)
    while book.follow():
        pass
    assert written(settings)["event_id"].to_list() == ["1", "2"]
    assert waiting(state) == 0


def test_facts_wait_while_their_table_cannot_be_made(settings: Settings, state: sa.Engine) -> None:
    write(state, 1)
    path = delta.path_of(settings, ledger.AUDIT)
    path.parent.mkdir(parents=True)
    path.write_text("in the way")
    with pytest.raises(OSError):
        ledger_tables.Follower(settings, state).follow()
    path.unlink()
    write(state, 2)
    assert ledger_tables.Follower(settings, state).follow() == 2
    assert written(settings)["event_id"].to_list() == ["1", "2"]


def test_a_table_made_anew_takes_up_where_the_lost_one_was(
    settings: Settings, state: sa.Engine
) -> None:
    """A batch that was begun keeps its number, also where the table knows none of it."""
    write(state, 1)
    with database.transaction(state) as connection:
        connection.execute(sa.update(ledger.ledger).values(batch=7))
    assert ledger_tables.Follower(settings, state).follow() == 1
    handle = deltalake.DeltaTable(delta.path_of(settings, ledger.AUDIT))
    assert handle.transaction_version(f"ledger:{ledger.AUDIT}") == 7
    write(state, 2)
    assert ledger_tables.Follower(settings, state).follow() == 1
    assert written(settings)["event_id"].to_list() == ["1", "2"]


FOLLOW = """
from capture import database, ledger_tables
from capture.settings import Settings
settings = Settings()
book = ledger_tables.Follower(settings, database.open_engine(settings))
print("ready", flush=True)
while True:
    book.follow()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_loses_and_doubles_nothing(
    settings: Settings, state: sa.Engine
) -> None:
    chance = random.Random(7)
    numbers = iter(range(10_000))
    environment = {**os.environ, "INFERLAKE_DATA_DIR": str(settings.data_dir)}
    wanted: list[int] = []
    for _ in range(4):
        command = [sys.executable, "-c", FOLLOW]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            ends = time.monotonic() + chance.uniform(0.05, 0.6)
            while time.monotonic() < ends:
                wanted.append(next(numbers))
                write(state, wanted[-1])
            child.kill()
    book = ledger_tables.Follower(settings, state)
    while book.follow():
        pass
    assert [int(number) for number in written(settings)["event_id"]] == wanted
    assert waiting(state) == 0


def test_the_schema_is_what_the_migrations_make(state: sa.Engine) -> None:
    ours = {ledger.ledger.name, upkeep.table_upkeep.name}

    def included(thing: Any, name: str | None, kind: str, *_: Any) -> bool:
        return kind != "table" or name in ours

    with state.connect() as connection:
        options = {"compare_type": True, "include_object": included}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, database.metadata) == []
