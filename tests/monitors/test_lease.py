import os
import subprocess
import sys
import threading

import pytest

from capture import database
from capture.settings import Settings
from monitors import lease


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
