"""Rows of the fault matrix: a model does harm. Each row has a bystander, who must not notice."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from faults_ground import (
    SUM,
    WILD,
    Answer,
    Figure,
    House,
    Load,
    Watched,
    clocked,
    entity,
    failed,
    p99,
    plus,
    unclean,
    until,
    wild,
)

from serving import processes

GIB = 1 << 30
MIB = 1 << 20


@contextmanager
def bystander(house: House) -> Iterator[Load]:
    """Another endpoint with a load of its own."""
    house.create("bystander", entity(SUM))
    with house.load("bystander", 50, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        yield load


def _beside(load: Load) -> list[Figure]:
    return [
        Figure("failed beside", failed(load.answers), most=0),
        clocked("p99 beside, ms", p99(load.answers) * 1000),
    ]


def request_that_kills(house: House, neighbours: int = 32) -> list[Figure]:
    """A request that ends its worker costs two of them, is answered 500, and harms no neighbour:
    once by exit, once by a segmentation fault."""
    house.create("deadly", entity(WILD))
    figures = []
    for act in ("exit", "segv"):
        before = house.worker("deadly")
        good = [wild("sleep:0.01", float(number)) for number in range(neighbours)]
        answers = house.ask("deadly", *good[: neighbours // 2], wild(act), *good[neighbours // 2 :])
        deadly = answers.pop(neighbours // 2)
        wrong = sum(
            one.status != 200 or one.values != [float(number)] for number, one in enumerate(answers)
        )
        assert house.worker("deadly") != before
        figures += [
            Figure(f"{act}: status of the request", deadly.status, most=500, least=500),
            Figure(f"{act}: neighbours wrong or failed", wrong, most=0),
        ]
    return figures


def bad_row(house: House) -> list[Figure]:
    """One bad request among 63 good ones of the same instant: each has its own answer."""
    house.create("batched", entity(SUM))
    good = [plus(float(number)) for number in range(63)]
    answers = house.ask("batched", *good[:31], plus("none"), *good[31:])  # type: ignore[arg-type]
    bad = answers.pop(31)
    wrong = sum(
        one.status != 200 or abs(one.values[0] - number) > 1e-6
        for number, one in enumerate(answers)
    )
    return [
        Figure("status of the bad one", bad.status, most=400, least=400),
        Figure("good ones without their own value", wrong, most=0),
    ]


def _tree_bytes(house: House, endpoint: str) -> float:
    """Resident bytes of the largest process group of an endpoint's replicas."""
    used = processes.usage(house.worker_pids(endpoint))
    return max((each.rss_bytes for each in used.values()), default=0)


def leaks(
    house: House, piece_mib: int = 100, limit_bytes: int = 4 * GIB, rate: float = 5
) -> list[Figure]:
    """A model that leaks with each call is replaced before its limit, the new replica first: its
    own callers notice as little as others."""
    house.create("leaking", entity(WILD))
    first = house.worker("leaking")
    enough = int(1.2 * limit_bytes / (piece_mib * MIB))
    with (
        bystander(house) as beside,
        Watched(lambda: _tree_bytes(house, "leaking")) as memory,
        house.load("leaking", rate, wild(f"leak:{piece_mib}")) as load,
    ):
        until(lambda: len(load.answers) >= enough)
    return [
        Figure("failed", failed(load.answers), most=0),
        clocked("tree, share of the limit", memory.most / limit_bytes, most=4.5 / 4),
        Figure("replaced", float(house.worker("leaking") != first), least=1),
        *_beside(beside),
    ]


def takes(house: House, mib: int = 5 * 1024, limit_bytes: int = 4 * GIB) -> list[Figure]:
    """A model that takes more than it may in one go is stopped in time."""
    house.create("greedy", entity(WILD))
    with bystander(house) as beside, Watched(lambda: _tree_bytes(house, "greedy")) as memory:
        (answer,) = house.ask("greedy", wild(f"take:{mib}"))
        until(lambda: house.ask("greedy", wild())[0].status == 200)
    return [
        Figure("status of the request", answer.status, most=504, least=500),
        clocked("tree, share of the limit", memory.most / limit_bytes, most=4.5 / 4),
        *_beside(beside),
    ]


def loops(house: House, limit_seconds: float = 3.0) -> list[Figure]:
    """A model that never returns: 504 at the limit, and the worker is replaced. The house has a
    time limit of `limit_seconds`."""
    house.create("looping", entity(WILD))
    before = house.worker("looping")
    with bystander(house) as beside:
        begun = time.monotonic()
        (answer,) = house.ask("looping", wild("loop"))
        told = time.monotonic() - begun
        with house.load("looping", 2, wild()) as load:
            until(lambda: house.replicas("looping") and house.worker("looping") != before)
            replaced = time.monotonic() - begun
            until(lambda: load.first_good_after(begun))
    return [
        Figure("status", answer.status, most=504, least=504),
        clocked("told, s after the limit", told - limit_seconds, most=1),
        clocked("replaced, s after the limit", replaced - limit_seconds, most=6),
        Figure("unclean meanwhile", unclean(load.answers), most=0),
        *_beside(beside),
    ]


def forks(house: House, children: int = 20) -> list[Figure]:
    """A model that forks: its children end with it, and one that goes on answering as if it were
    the worker changes no answer."""
    house.create("forking", entity(WILD))
    worker = house.worker("forking")
    with bystander(house) as beside:
        split = [house.ask("forking", wild("split", float(x)))[0] for x in range(5)]
        wrong = sum(one.status != 200 or one.values != [float(x)] for x, one in enumerate(split))
        (many,) = house.ask("forking", wild(f"fork:{children}"))
        group = processes.members(worker)
        house.delete("forking")
        gone = until(lambda: not processes.members(worker), 30)
    return [
        Figure("answers wrong after a fork", wrong, most=0),
        Figure("status of the one that forks", many.status, most=200, least=200),
        Figure("processes before its end", len(group), least=children + 1),
        Figure("left of its group", float(not gone), most=0),
        *_beside(beside),
    ]


def prints(house: House, mib: int = 1024, most_mib: int = 100) -> list[Figure]:
    """A model that prints: its log is kept by size, and the server goes on."""
    calls = max(1, mib // 64)
    return _printed(house, "talking", calls, mib // calls, most_mib)


def prints_at_once(house: House, mib: int = 1024, most_mib: int = 100) -> list[Figure]:
    """All of it in one call."""
    return _printed(house, "shouting", 1, mib, most_mib)


def _printed(house: House, name: str, calls: int, mib: int, most_mib: int) -> list[Figure]:
    """Logs of a model that prints so much in each call."""
    house.create(name, entity(WILD))
    logs = house.settings.logs_dir

    def size() -> float:
        return sum(path.stat().st_blocks * 512 for path in logs.rglob("*") if path.is_file())

    with bystander(house) as beside, Watched(size) as written:
        answers: list[Answer] = []
        for _ in range(calls):
            answers += house.ask(name, wild(f"print:{mib}"))
        time.sleep(1.5)  # the last look at the size
        kept = size()
    return [
        Figure("failed", failed(answers), most=0),
        clocked("logs at most, MiB", written.most / MIB, most=most_mib),
        Figure("logs in the end, MiB", kept / MIB, most=16),
        *_beside(beside),
    ]


ROWS = {
    each.__name__: each
    for each in (
        request_that_kills, bad_row, leaks, takes, loops, forks, prints, prints_at_once,
    )
}  # fmt: skip
