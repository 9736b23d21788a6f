"""Rows of the fault matrix: a worker's process is killed or frozen."""

import os
import signal
import time

from faults_ground import (
    SUM,
    WILD,
    Figure,
    House,
    clocked,
    entity,
    failed,
    p99,
    plus,
    unclean,
    until,
    wild,
)

RATE = 100.0


def worker_killed(house: House, kills: int = 5) -> list[Figure]:
    """The only replica is killed under load, and answers again."""
    house.create("only", entity(SUM))
    outages = []
    with house.load("only", RATE, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        for _ in range(kills):
            killed = house.kill(house.worker("only"))
            until(lambda killed=killed: load.first_good_after(killed))
            # A request that was sent at the same moment may be answered before it is dead.
            until(lambda killed=killed: _back(load, killed))
            outages.append(_back(load, killed))
            time.sleep(1)
    return [
        clocked("longest outage, s", max(outages), most=2),
        Figure("unclean", unclean(load.answers), most=0),
        Figure("refused cleanly", sum(one.clean for one in load.answers)),
        Figure("requests", len(load.answers)),
    ]


def _back(load, killed: float) -> float | None:
    """Seconds from the kill until a request that was sent a moment later was answered."""
    good = load.first_good_after(killed + 0.02)
    return None if good is None else good.sent + good.seconds - killed


def replica_of_two_killed(house: House, kills: int = 5) -> list[Figure]:
    """One of two replicas is killed under load, again and again: nobody notices."""
    both = {"min_provisioned_concurrency": 8, "max_provisioned_concurrency": 8}
    pair = {key: v for key, v in entity(SUM).items() if key != "workload_size"} | both
    house.create("pair", pair)
    until(lambda: len(house.replicas("pair")) == 2)
    with house.load("pair", RATE, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        for _ in range(kills):
            house.kill(house.replicas("pair")[0].pid)
            until(lambda: len(house.replicas("pair")) == 2)
            time.sleep(0.5)
    return [
        Figure("failed", failed(load.answers), most=0),
        clocked("slowest, s", max(one.seconds for one in load.answers)),
        Figure("requests", len(load.answers)),
    ]


def worker_frozen(house: House) -> list[Figure]:
    """A stopped worker is found, killed and replaced; another endpoint does not notice."""
    house.create("frozen", entity(WILD))
    house.create("beside", entity(SUM))
    with house.load("beside", 50, plus(1)) as beside, house.load("frozen", 5, wild()) as load:
        until(lambda: beside.first_good_after(0) and load.first_good_after(0))
        victim = house.worker("frozen")
        os.kill(victim, signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: load.first_good_after(stopped + 0.02))
        until(lambda: house.worker("frozen") != victim)
        back = _back(load, stopped)
    return [
        clocked("replaced after, s", back or float("inf"), most=15),
        Figure("unclean", unclean(load.answers), most=0),
        Figure("failed beside", failed(beside.answers), most=0),
        clocked("p99 beside, ms", p99(beside.answers) * 1000),
    ]


ROWS = {each.__name__: each for each in (worker_killed, replica_of_two_killed, worker_frozen)}
