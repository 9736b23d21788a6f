"""Rows of the fault matrix: more requests than replicas, or no replica at all."""

import asyncio
import statistics
import time

from faults_ground import (
    SUM,
    WILD,
    Answer,
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

WORK = wild("sleep:0.02")


def from_zero(house: House, requests: int = 200, repeats: int = 3) -> list[Figure]:
    """Requests that find no replica: all answered, one start, the slowest hardly later than one
    alone. The house lets models sleep after a second or two."""
    house.create("asleep", entity(SUM, scale_to_zero_enabled=True))
    alone = []
    for _ in range(repeats):
        _sleeps(house, "asleep")
        alone.append(house.ask("asleep", plus(1))[0])
    _sleeps(house, "asleep")
    before = set(house.settings.logs_dir.glob("asleep/*/*.log"))
    many = house.ask("asleep", *[plus(float(number)) for number in range(requests)])
    started = len(set(house.settings.logs_dir.glob("asleep/*/*.log")) - before)
    wrong = sum(
        one.status != 200 or abs(one.values[0] - number) > 1e-6 for number, one in enumerate(many)
    )
    # A client that leaves while the model starts: the start goes on.
    _sleeps(house, "asleep")
    asyncio.run(_leave(house, "asleep"))
    until(lambda: house.replicas("asleep"), 10)
    single = statistics.median(one.seconds for one in alone)
    slowest = max(one.seconds for one in many)
    return [
        Figure("failed", wrong + failed(alone), most=0),
        Figure("starts", started, most=1, least=1),
        clocked("one alone, ms", single * 1000),
        clocked("slowest / one alone", slowest / single, most=1.5),
    ]


async def _leave(house: House, endpoint: str) -> None:
    clients = house.clients(endpoint)
    asked = asyncio.create_task(clients.ask(plus(1)))
    await asyncio.sleep(0.1)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await clients.close()


def _sleeps(house: House, endpoint: str) -> None:
    until(lambda: not house.worker_pids(endpoint))


def scaling_down(house: House, requests: int = 40, idle_seconds: float = 1.0) -> list[Figure]:
    """Requests at the moment when the replica goes to sleep: none falls into the gap. The house
    lets models sleep after `idle_seconds`."""
    house.create("dozing", entity(WILD, scale_to_zero_enabled=True))
    answers: list[Answer] = []
    for number in range(requests):
        answers += house.ask("dozing", wild())
        # The drain begins `idle_seconds` after the request, is settled a second later.
        time.sleep(idle_seconds + 2.2 * number / requests)
    return [
        Figure("failed", failed(answers), most=0),
        clocked("slowest, s", max(one.seconds for one in answers)),
        Figure("requests", len(answers)),
    ]


def overload(
    house: House, clients: int = 400, seconds: float = 8.0, calm_clients: int = 4
) -> list[Figure]:
    """A hundred times the clients that a model can serve: as much work is done as in calm, and who
    is refused is told at once."""
    house.create("crowded", entity(WILD))
    asyncio.run(_crowd(house, calm_clients, 1.0))
    calm = asyncio.run(_crowd(house, calm_clients, seconds / 2))
    full = asyncio.run(_crowd(house, clients, seconds))
    goodput = _goodput(full, seconds) / _goodput(calm, seconds / 2)
    refused = [one for one in full if one.status != 200]
    return [
        clocked("goodput / calm", goodput, least=0.8),
        clocked("p99 of a refusal, s", p99(refused) if refused else 0.0, most=1),
        Figure("unclean", unclean(full), most=0),
        Figure("refused", len(refused)),
        Figure("answered", len(full) - len(refused)),
        clocked("p99 of the answered, s", p99([one for one in full if one.status == 200])),
    ]


def _goodput(answers: list[Answer], seconds: float) -> float:
    begun = min(one.sent for one in answers)
    return sum(one.status == 200 and one.sent + one.seconds <= begun + seconds for one in answers)


async def _crowd(house: House, count: int, seconds: float) -> list[Answer]:
    """So many clients, each of which asks again as soon as it may."""
    clients = house.clients("crowded")
    answers: list[Answer] = []
    ends = time.monotonic() + seconds

    async def one() -> None:
        while time.monotonic() < ends:
            found = await clients.ask(WORK)
            answers.append(found)
            if found.status != 200:
                await asyncio.sleep(float(found.retry_after or 0))

    await asyncio.gather(*(one() for _ in range(count)))
    await clients.close()
    return answers


ROWS = {each.__name__: each for each in (from_zero, scaling_down, overload)}
