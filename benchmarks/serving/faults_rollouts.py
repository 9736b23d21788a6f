"""Rows of the fault matrix: configurations change under load, fail, race, and are cut off."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
from faults_ground import (
    DIES,
    GOOD,
    HANGS,
    MISSING,
    RAISES,
    SUM,
    TENFOLD,
    WILD,
    Figure,
    House,
    clocked,
    entity,
    failed,
    p99,
    plus,
    split,
    until,
    wild,
)

TOLD_SECONDS, DELETED_SECONDS = 30, 10


def rollouts(house: House, changes: int = 10, shifts: int = 12, rate: float = 500) -> list[Figure]:
    """New versions and new splits under load: nothing fails, and once an update is said to be done
    no old version answers."""
    house.create("rolled", entity(SUM, "1"))
    stale, late = 0, []
    with house.load("rolled", rate, plus(1)) as load:
        until(lambda: load.first_good_after(0))
        for number in range(changes):
            version = "21"[number % 2]
            done = house.update("rolled", entity(SUM, version))
            late.append((done, {f"v{version}"}))
            time.sleep(0.3)
        both = [entity(SUM, "1"), entity(SUM, "2")]
        house.update("rolled", *both, traffic_config=split(v1=50, v2=50))
        for number in range(shifts):
            chosen = f"v{number % 2 + 1}"
            other = f"v{2 - number % 2}"
            shares = split(**{chosen: 100, other: 0})
            done = house.update("rolled", *both, traffic_config=shares)
            late.append((done, {chosen}))
            time.sleep(0.2)
        ended = time.monotonic()
    for (done, allowed), (until_then, _) in zip(late, [*late[1:], (ended, set())], strict=True):
        # The next change begins after a pause: its answers may come from either.
        pause = done + 0.2
        stale += sum(
            done <= one.sent < min(pause, until_then) and one.status == 200
            and one.entity not in allowed
            for one in load.answers
        )  # fmt: skip
    return [
        Figure("failed", failed(load.answers), most=0),
        Figure("old answers after done", stale, most=0),
        clocked("p99, ms", p99(load.answers) * 1000),
        Figure("requests", len(load.answers)),
    ]


def bad_versions(house: House) -> list[Figure]:
    """A version that raises, dies, or is not there: told with its last words, the old one serves,
    and the next update works."""
    house.create("tried", entity(WILD, GOOD))
    figures = []
    words = {RAISES: "the weights of this version are missing", DIES: "the licence of this version"}
    with house.load("tried", 50, wild()) as load:
        until(lambda: load.first_good_after(0))
        for version in (RAISES, DIES):
            begun = time.monotonic()
            _put(house, "tried", entity(WILD, version))
            until(lambda: house.endpoint("tried")["state"]["config_update"] == "UPDATE_FAILED")
            told = house.endpoint("tried").get("update_message", "")
            figures += [
                clocked(f"version {version}: told after, s", time.monotonic() - begun,
                       most=TOLD_SECONDS),
                Figure(f"version {version}: its last words told", float(words[version] in told),
                       least=1),
            ]  # fmt: skip
        refused = _put(house, "tried", entity(WILD, MISSING))
        figures.append(Figure("missing version: status", refused.status_code, 404, 400))
        house.update("tried", entity(WILD, TENFOLD))
        moved = house.ask("tried", wild(x=1))[0].values == [10.0]
    return [
        *figures,
        Figure("next update works", float(moved), least=1),
        Figure("failed meanwhile", failed(load.answers), most=0),
    ]


def hanging_version(house: House, limit_seconds: float = 15) -> list[Figure]:
    """A version that hangs: told at the limit, deleted at any time. The house has a deployment
    time-out of `limit_seconds`."""
    house.create("hung", entity(WILD, GOOD))
    with house.load("hung", 50, wild()) as load:
        until(lambda: load.first_good_after(0))
        begun = time.monotonic()
        _put(house, "hung", entity(WILD, HANGS))
        until(lambda: house.endpoint("hung")["state"]["config_update"] == "UPDATE_FAILED")
        told = time.monotonic() - begun - limit_seconds
        house.update("hung", entity(WILD, TENFOLD))
    _put(house, "hung", entity(WILD, HANGS))
    until(lambda: len(house.worker_pids("hung")) >= 2)
    pids = house.worker_pids("hung")
    begun = time.monotonic()
    house.delete("hung")
    until(lambda: not pids & house.worker_pids())
    return [
        clocked("told, s after the limit", told, most=10),
        clocked("deleted with its processes, s", time.monotonic() - begun, most=DELETED_SECONDS),
        Figure("failed meanwhile", failed(load.answers), most=0),
    ]


def races(house: House, updates: int = 32, creates: int = 16) -> list[Figure]:
    """Conflicting updates and equal creates at one moment: one wins, the others are told so, and
    the numbers of configurations have no gap."""
    house.create("raced", entity(WILD, GOOD))
    body = {"name": "same", "config": {"served_entities": [entity(SUM)]}}

    def put(number: int) -> int:
        with _client(house) as api:
            version = (GOOD, TENFOLD)[number % 2]
            path = "/api/2.0/serving-endpoints/raced/config"
            made = {"served_entities": [entity(WILD, version, name=f"n{number}")]}
            start.wait()
            return int(api.put(path, json=made).status_code)

    def post(_: int) -> int:
        with _client(house) as api:
            start.wait()
            return int(api.post("/api/2.0/serving-endpoints", json=body).status_code)

    start = threading.Barrier(updates + creates)
    with ThreadPoolExecutor(updates + creates) as pool:
        put_asked = [pool.submit(put, number) for number in range(updates)]
        post_asked = [pool.submit(post, number) for number in range(creates)]
        updated = Counter(each.result() for each in put_asked)
        created = Counter(each.result() for each in post_asked)
    until(lambda: house.endpoint("raced")["state"]["config_update"] == "NOT_UPDATING")
    reply = house.api.get("/api/1.0/endpoints/raced/versions", params={"page_size": 100}).json()
    versions = sorted(each["config_version"] for each in reply["versions"])
    gaps = float(versions != list(range(1, len(versions) + 1)))
    return [
        Figure("updates accepted", updated[200], least=1),
        Figure("updates odd", updates - updated[200] - updated[409], most=0),
        Figure("updates accepted, not numbered", abs(len(versions) - 1 - updated[200]), most=0),
        Figure("creates accepted", created[200], most=1, least=1),
        Figure("creates odd", creates - created[200] - created[400], most=0),
        Figure("gaps in the numbers", gaps, most=0),
    ]


def update_killed(house: House, kills: int = 20, seed: int = 1) -> list[Figure]:
    """Everything, the gateway or the controller is killed at a random moment of an update of two
    versions at once: in the end both are old or both are new, and the endpoint says which."""
    chance = random.Random(seed)
    pair = {
        number: [entity(WILD, version, name=name) for name in ("left", "right")]
        for number, version in ((0, GOOD), (1, TENFOLD))
    }
    shares = split(left=50, right=50)
    house.create("whole", *pair[0], traffic_config=shares)
    mixtures = unsaid = new = 0
    for number in range(1, kills + 1):
        wanted = pair[number % 2]
        moment = chance.uniform(0, 1.5)
        victim = ("gateway", "controller", "everything")[number % 3]
        before = _active(house)
        asked = threading.Thread(target=_try_put, args=(house, wanted, shares))
        asked.start()
        time.sleep(moment)
        if victim == "everything":
            house.kill_everything()
            asked.join()
            house.start()
        else:
            pid = house.pid(victim)
            if pid is not None:
                house.kill(pid)
            asked.join()
        said = until(lambda: _calm(house))
        after = _active(house)
        new += after != before
        factors = {name: _factor(house, name) for name in ("left", "right")}
        mixtures += len(set(factors.values())) != 1
        told = {each["entity_version"] for each in said["config"]["served_entities"]}
        expected = {GOOD: 1.0, TENFOLD: 10.0}
        unsaid += len(told) != 1 or expected[told.pop()] not in factors.values()
    return [
        Figure("mixtures", mixtures, most=0),
        Figure("says another version than answers", unsaid, most=0),
        Figure("kills", kills),
        Figure("updates that went through", new),
    ]


def _calm(house: House) -> dict[str, Any] | None:
    try:
        found = house.endpoint("whole")
    except (httpx2.HTTPError, RuntimeError):
        return None
    settled = found["state"]["config_update"] != "IN_PROGRESS"
    return found if settled and found["state"]["ready"] == "READY" else None


def _active(house: House) -> int:
    return int(until(lambda: _calm(house))["config"]["config_version"])


def _factor(house: House, name: str) -> float:
    """What an entity answers to 1, once it does."""
    path = f"/serving-endpoints/whole/served-models/{name}/invocations"

    def answer() -> float | None:
        try:
            reply = house.api.post(path, content=wild(x=1))
        except httpx2.HTTPError:
            return None
        return float(reply.json()["predictions"][0]) if reply.status_code == 200 else None

    return float(until(answer))


def _try_put(house: House, entities: list[dict[str, Any]], shares: dict[str, Any]) -> None:
    path = "/api/2.0/serving-endpoints/whole/config"
    try:
        with _client(house) as api:
            api.put(path, json={"served_entities": entities, "traffic_config": shares})
    except httpx2.HTTPError:
        return  # killed in the middle: what became of it is what is looked at


def _put(house: House, name: str, *entities: dict[str, Any]) -> httpx2.Response:
    path = f"/api/2.0/serving-endpoints/{name}/config"
    return house.api.put(path, json={"served_entities": list(entities)})


def _client(house: House) -> httpx2.Client:
    head = {"Authorization": f"Bearer {house.token}"}
    return httpx2.Client(base_url=house.url, headers=head, timeout=60, trust_env=False)


ROWS = {
    each.__name__: each for each in (rollouts, bad_versions, hanging_version, races, update_killed)
}
