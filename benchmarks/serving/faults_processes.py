"""Rows of the fault matrix: the server's own processes are killed, or asked to end."""

import threading
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
    plus,
    split,
    until,
    wild,
)

OUTAGE_SECONDS, START_SECONDS = 2.0, 5.0


def gateway_killed(house: House) -> list[Figure]:
    """The gateway is killed under load: it answers again, by the same workers."""
    house.create("kept", entity(SUM))
    workers = house.worker_pids()
    with house.load("kept", 50, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        killed = house.kill(house.pid("gateway"))
        until(lambda: load.first_good_after(killed + 0.05))
        good = load.first_good_after(killed + 0.05)
    assert good is not None
    refused = [one for one in load.answers if one.status]
    return [
        clocked("outage, s", good.sent + good.seconds - killed, most=OUTAGE_SECONDS),
        Figure("answered wrongly", sum(one.status != 200 and not one.clean for one in refused), 0),
        Figure("workers lost", len(workers - house.worker_pids()), most=0),
    ]


def controller_killed(house: House) -> list[Figure]:
    """The controller is killed under load: nobody notices, and it works again, workers adopted."""
    house.create("kept", entity(SUM))
    workers = house.worker_pids()
    with house.load("kept", 50, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        before = house.pid("controller")
        killed = house.kill(before)
        until(lambda: house.pid("controller") not in (None, before))
        back = time.monotonic() - killed
        kept = workers <= house.worker_pids()
        house.update("kept", entity(SUM, "2"))
    return [
        clocked("outage of control, s", back, most=OUTAGE_SECONDS),
        Figure("failed", failed(load.answers), most=0),
        Figure("workers lost", float(not kept), most=0),
    ]


def everything_killed(house: House) -> list[Figure]:
    """All processes but the workers at once: it starts again with the state that was accepted."""
    shares = split(v1=30, v2=70)
    house.create("kept", entity(SUM, "1"), entity(SUM, "2"), traffic_config=shares)
    before, workers = house.endpoint("kept"), house.worker_pids()
    house.kill_everything()
    seconds = house.start()
    answer = house.ask("kept", plus(1))[0]
    served = time.monotonic()
    until(lambda: house.ask("kept", plus(1))[0].status == 200)
    served = time.monotonic() - served
    after = house.endpoint("kept")
    changed = sum(before["config"][key] != after["config"][key]
                  for key in ("config_version", "traffic_config"))  # fmt: skip
    return [
        clocked("start, s", seconds, most=START_SECONDS),
        Figure("first answer good", float(answer.status == 200), least=1),
        clocked("until it serves, s", served),
        Figure("state changed", changed, most=0),
        Figure("workers not adopted", len(workers - house.worker_pids()), most=0),
    ]


def ended_politely(house: House, requests: int = 20, work_seconds: float = 2.0) -> list[Figure]:
    """SIGTERM with slow requests inside: all are answered, and nothing is left."""
    house.create("slow", entity(WILD))
    answers: list[Answer] = []
    bodies = [wild(f"sleep:{work_seconds / 10:g}", float(n)) for n in range(requests)]
    asking = threading.Thread(target=lambda: answers.extend(house.ask("slow", *bodies)))
    asking.start()
    until(lambda: house.busy() >= requests)
    code = house.end()
    asking.join()
    wrong = sum(one.status != 200 or one.values != [float(n)] for n, one in enumerate(answers))
    return [
        Figure("lost", wrong, most=0),
        Figure("exit code", code, most=0),
        Figure("processes left", len(house.left()), most=0),
    ]


ROWS = {
    each.__name__: each
    for each in (gateway_killed, controller_killed, everything_killed, ended_politely)
}
