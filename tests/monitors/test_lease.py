import os
import subprocess
import sys
import threading
from datetime import UTC, datetime

import polars as pl
import pytest

from capture import database
from capture.settings import Settings
from monitors import lease, rounds, state

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
TABLE = "main.flights.p_unpacked"


@pytest.fixture
def engine(tmp_path):
    settings = Settings(data_dir=tmp_path)
    database.migrate(settings)
    engine = database.open_engine(settings)
    yield engine
    engine.dispose()


def test_only_one_holds_the_lease_and_a_clean_end_hands_it_on(engine):
    first, second = lease.Lease(engine), lease.Lease(engine)
    assert first.acquire(threading.Event()) and first.renew()
    stop = threading.Event()
    waiting = threading.Thread(target=second.acquire, args=(stop,))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive() and not second.renew()
    first.release()
    waiting.join(20)
    assert not waiting.is_alive() and second.renew() and not first.renew()


def test_who_waits_can_be_told_to_stop(engine):
    assert lease.Lease(engine).acquire(threading.Event())
    stop = threading.Event()
    stop.set()
    assert not lease.Lease(engine).acquire(stop)


def test_a_holder_that_died_on_this_machine_is_replaced_at_once(engine):
    code = "from monitors import lease; print(lease.holder())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with database.transaction(engine) as connection:
        fence = database.seize_lease(connection, lease.NAME, done.stdout.strip(), -1)
    heir = lease.Lease(engine)
    assert heir.acquire(threading.Event()) and heir.fence == fence + 1
    with database.transaction(engine) as connection:
        assert not database.renew_lease(connection, lease.NAME, fence)


def test_only_certain_death_counts():
    me = lease.holder()
    assert not lease.is_gone(me)
    world, pid, started = me.split("/")
    assert pid == str(os.getpid())
    assert lease.is_gone(f"{world}/{pid}/1.00")  # a younger process with the same id
    assert not lease.is_gone(f"elsewhere/{pid}/1.00")
    assert not lease.is_gone(f"elsewhere/999999999/{started}")
    assert not lease.is_gone("no such form")


@pytest.mark.parametrize("asleep_at", [1, 2, 3, 4])
def test_a_holder_that_slept_through_its_lease_writes_nothing_over_its_heirs_work(lake, asleep_at):
    """It falls asleep right after it was told for the `asleep_at`-th time that the lease is its
    own; its heir does the same refresh meanwhile, with rows that came later."""
    lake.monitor()
    lake.write(lake.rows(MONDAY, 300))
    heir = rounds.Rounds(lake.engine, lake.settings, lambda: True)
    asked = 0

    def holds_lease() -> bool:
        nonlocal asked
        asked += 1
        if asked == asleep_at:
            lake.write(lake.rows(MONDAY, 200))
            with database.transaction(lake.engine) as connection:
                state.queue_again(connection)
            assert heir.run_pending()
        return asked <= asleep_at

    sleeper = rounds.Rounds(lake.engine, lake.settings, holds_lease)
    with database.transaction(lake.engine) as connection:
        number = state.request_refresh(connection, TABLE, "MANUAL", None, 1)
    with pytest.raises(rounds.LeaseLost):
        sleeper.run_pending()
    with database.reading(lake.engine) as connection:
        assert state.get_refresh(connection, TABLE, number).state == "SUCCESS"
    assert counts(lake) == [500]
    lake.write(lake.rows(MONDAY, 100))
    lake.done()
    assert counts(lake) == [600]
    for made in (heir, sleeper):
        made.close()


def counts(lake) -> list[int]:
    """Rows of every window as the profile table tells them."""
    rows = lake.metrics("profile")
    whole = (pl.col("column_name") == "temp") & pl.col("served_entity_name").is_null()
    return rows.filter(whole)["count"].to_list()
