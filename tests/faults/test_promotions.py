"""Two people promote at once; a gateway dies in the middle of a promotion: real processes, one data
directory. Whatever happens, configuration, audit and events tell one story."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from capture import audit, database, outbox
from capture.settings import Settings
from serving import contract, replica_state, state
from tests.faults.record import until

ENDPOINT, ENDPOINT_ID = "shop", "1" * 32
PROMOTE = f"/api/1.0/endpoints/{ENDPOINT}/promote"
TOKEN = "bootstrap-admin-token"
ROUNDS = 8


def entity(name: str) -> dict[str, Any]:
    return {"id": name * 32, "name": name, "entity_name": "main.f.m", "entity_version": "1"}


CONFIG = {
    "served_entities": [entity("a"), entity("b")],
    "traffic_config": {"routes": contract.routes_of({"a": 90, "b": 10}), "sticky": None},
    "auto_capture_config": None,
}


class Shop:
    """A data directory with one endpoint of two versions that are ready, 90/10."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder)
        database.migrate(self.settings)
        self.engine = database.open_engine(self.settings)
        nothing: dict[str, Any] = dict.fromkeys(state.Endpoint.__dataclass_fields__)
        given = {"id": ENDPOINT_ID, "name": ENDPOINT, "creator": "admin", "created_ms": 1}
        given |= {"updated_ms": 1, "config_update": "NOT_UPDATING", "stopped": False, "tags": []}
        seen = state.Endpoint(**{**nothing, **given, "route_optimized": False, "row_version": 1})
        with database.transaction(self.engine) as db:
            state.insert_endpoint(db, seen)
            state.accept_configuration(
                db, seen, CONFIG, created_by="admin", reason=None, origin="user", at_once=True,
                now_ms=1,
            )  # fmt: skip
            for name in "ab":
                replica_state.set_entity_state(
                    db, ENDPOINT_ID, name * 32, "DEPLOYMENT_READY", "Ready.", 1
                )

    @contextmanager
    def gateway(self) -> Iterator[tuple[httpx2.Client, subprocess.Popen[bytes]]]:
        """A gateway of its own on this data directory, and an administrator's client of it."""
        ready = self.settings.run_dir / "gateway.ready"
        ready.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "INFERLAKE_DATA_DIR": str(self.settings.data_dir),
            "INFERLAKE_ADMIN_TOKEN": TOKEN,
            "INFERLAKE_PORT": "0",
        }
        command = [sys.executable, "-m", "serving.gateway"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            told = json.loads(until(lambda: ready.exists() and ready.read_text()))
            assert told["pid"] == process.pid
            head = {"Authorization": f"Bearer {TOKEN}"}
            url = f"http://127.0.0.1:{told['port']}"
            with httpx2.Client(base_url=url, headers=head, timeout=60, trust_env=False) as client:
                yield client, process
        finally:
            process.terminate()
            process.wait()

    def story(self) -> list[dict[str, int]]:
        """The splits of all configurations, oldest first. Fails where configuration, audit and
        events tell different stories."""
        with database.reading(self.engine) as db:
            row = state.endpoint(db, ENDPOINT)
            found = state.history(db, ENDPOINT_ID, 1000)[::-1]
            entries = audit.read(db, 1000, endpoint=ENDPOINT)[::-1]
            events = outbox.waiting(db, 1000)
        versions = [one.config_version for one in found]
        splits = [contract.percentages(one.config) for one in found]
        assert versions == list(range(1, len(found) + 1))  # no gap, none twice
        assert (row.active_version, row.pending_version) == (versions[-1], None)
        assert all(one.activated_ms is not None for one in found)
        assert all(sum(split.values()) == 100 for split in splits)
        told = [(one.before, one.after) for one in entries if one.action == "endpoint.promoted"]
        assert len(told) == len(entries) == len(events) == len(found) - 1
        for number, (before, after) in enumerate(told):
            assert before is not None and after is not None
            assert before == {"config_version": number + 1, "split": splits[number]}
            assert after["config_version"] == number + 2 and after["split"] == splits[number + 1]
            event = events[number]
            assert (
                event.type == "endpoint.promoted" and event.data["audit_id"] == entries[number].id
            )
            assert event.data["config_version"] == number + 2
        return splits


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "data")
    yield made
    made.engine.dispose()


def order(entity: str, percentage: int, seen: int | None) -> dict[str, Any]:
    return {"served_entity": entity, "traffic_percentage": percentage, "if_config_version": seen}


def test_of_two_who_promote_at_the_same_moment_one_wins_and_the_other_is_told(shop: Shop) -> None:
    with shop.gateway() as (one, _), shop.gateway() as (other, _), ThreadPoolExecutor(2) as pool:
        for number in range(ROUNDS):
            at_once = threading.Barrier(2)

            def promote(client: httpx2.Client, entity: str, seen: int, wait: Any) -> Any:
                wait.wait()
                return client.post(PROMOTE, json=order(entity, 60 + seen, seen))

            seen = number + 1
            asked = [
                pool.submit(promote, client, name, seen, at_once)
                for client, name in ((one, "a"), (other, "b"))
            ]
            answers = [each.result() for each in asked]
            assert sorted(each.status_code for each in answers) == [200, 409]
            won = next(each.json() for each in answers if each.status_code == 200)
            lost = next(each.json() for each in answers if each.status_code == 409)
            assert lost["error_code"] == "RESOURCE_CONFLICT"
            assert won["config"]["config_version"] == seen + 1
            assert max(shop.story()[-1].values()) == 60 + seen
            # Both gateways go by the winner's.
            for client in (one, other):
                shown = client.get(f"/api/2.0/serving-endpoints/{ENDPOINT}").json()
                assert shown["config"]["config_version"] == seen + 1


def test_a_promotion_of_what_somebody_changed_meanwhile_changes_nothing(shop: Shop) -> None:
    with shop.gateway() as (client, _):
        assert client.post(PROMOTE, json=order("b", 50, 1)).status_code == 200
        before = shop.story()
        for stale in (1, 3):
            refused = client.post(PROMOTE, json=order("b", 100, stale))
            assert refused.status_code == 409, refused.text
            assert "configuration 2" in refused.json()["message"]
        assert shop.story() == before == [{"a": 90, "b": 10}, {"a": 50, "b": 50}]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_gateway_killed_in_a_promotion_leaves_all_of_it_or_nothing(
    shop: Shop, kills: int
) -> None:
    chance = random.Random(kills)
    for number in range(kills):
        before = shop.story()
        with shop.gateway() as (client, process):
            share = 11 + number
            assert client.post(PROMOTE, json=order("b", share, None)).status_code == 200
            answers: list[int] = []

            def promote_on(client: httpx2.Client, answers: list[int]) -> None:
                for percentage in range(40, 100):
                    try:
                        answer = client.post(PROMOTE, json=order("b", percentage, None))
                    except httpx2.TransportError:
                        return
                    answers.append(answer.status_code)

            promoting = threading.Thread(target=promote_on, args=(client, answers))
            promoting.start()
            until(lambda answers=answers: answers)
            time.sleep(chance.uniform(0, 0.05))  # anywhere in the promotions that follow
            process.kill()
            promoting.join()
        after = shop.story()
        new = [split["b"] for split in after[len(before) :]]
        # What was answered is there; of the one that was not, all or nothing.
        assert set(answers) == {200} and len(answers) < 60
        assert new in (
            [share, *range(40, 40 + len(answers))],
            [share, *range(40, 41 + len(answers))],
        )
    with shop.gateway() as (client, _):
        shown = client.get(f"/api/2.0/serving-endpoints/{ENDPOINT}").json()
        assert shown["config"]["config_version"] == len(shop.story())
        assert shown["state"]["config_update"] == "NOT_UPDATING"
