"""Workers that end, sleep, hang and come back; the requests that meet them."""

import os
import signal
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from capture import database
from serving import changes_state, replica_state

GOOD = [{"c0": 4, "c1": 0}]
SLOW = [{"c0": 4, "c1": 3}]  # 1.5 s
A_LITTLE_SLOW = [{"c0": 4, "c1": 7}]  # 0.3 s
KILLER = [{"c0": 4, "c1": 2}]


class Crowd:
    """Requests sent at the same time; `answers` when all are there."""

    def __init__(self, gateway, name, rows):
        self.pool = ThreadPoolExecutor(len(rows))
        self.futures = [self.pool.submit(gateway.ask, name, one) for one in rows]

    def answers(self):
        found = [future.result(120) for future in self.futures]
        self.pool.shutdown()
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory, start):
    """One gateway; each test has an endpoint of its own."""
    return start(tmp_path_factory.mktemp("house") / "data")


@pytest.fixture(scope="module")
def tight(tmp_path_factory, start):
    """A gateway with short times and short lines."""
    return start(
        tmp_path_factory.mktemp("tight") / "data",
        INFERLAKE_QUEUE_TIMEOUT_SECONDS="0.5",
        INFERLAKE_MODEL_TIMEOUT_SECONDS="1.2",
        INFERLAKE_QUEUE_LENGTH="20",
    )


def load(gateway, name):
    """Requests of an endpoint that the controller knows of."""
    with database.reading(gateway.engine) as db:
        found = replica_state.demand_by_entity(db).get(f"{name}-m")
    return found.in_flight + found.waiting if found else 0


def statuses(answers):
    return [answer.status for answer in answers]


def test_a_killed_replica_of_two_costs_no_request(house, eventually):
    house.endpoint("two", [("m", "wild", 100)])
    first = house.replicas[-1]
    house.replica("two", "m", "wild")
    house.taken_over()
    crowd = Crowd(house, "two", [SLOW] * 4)
    assert eventually(lambda: load(house, "two") >= 3)
    os.kill(first.pid, signal.SIGKILL)
    assert statuses(crowd.answers()) == [200] * 4


def test_a_killed_only_replica_is_waited_for(house, eventually):
    house.endpoint("one", [("m", "wild", 100)])
    only = house.replicas[-1]
    crowd = Crowd(house, "one", [SLOW] * 3)
    assert eventually(lambda: load(house, "one") >= 3)
    os.kill(only.pid, signal.SIGKILL)
    house.withdraw(only)
    house.replica("one", "m", "wild")
    assert statuses(crowd.answers()) == [200] * 3


def test_a_request_that_kills_workers_costs_two_and_no_neighbour(house):
    house.endpoint("killed", [("m", None, 100)])
    replicas = [house.replica("killed", "m", "wild", batch=True) for _ in range(3)]
    house.taken_over()
    answers = Crowd(house, "killed", [GOOD] * 10 + [KILLER] + [GOOD] * 10).answers()
    killed = answers.pop(10)
    assert statuses(answers) == [200] * 20
    assert killed.status == 500
    assert killed.json["message"] == (
        "The model's process ended twice while answering this request."
    )
    assert sum(replica.alive() for replica in replicas) == 1
    assert house.logged("killed")[killed.headers["x-request-id"]]["error_source"] == "server"


def test_requests_for_a_sleeping_entity_wait_and_wake_the_controller(house, eventually):
    house.endpoint("asleep", [("m", None, 100)])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as controller:
        controller.settimeout(60)
        controller.bind(str(house.settings.run_dir / "controller.sock"))
        crowd = Crowd(house, "asleep", [GOOD] * 20)
        assert controller.recv(100)
    assert eventually(lambda: load(house, "asleep") == 20)
    with database.reading(house.engine) as db:
        assert replica_state.demand_by_entity(db)["asleep-m"].last_request_ms > 0
    house.replica("asleep", "m", "wild")
    assert statuses(crowd.answers()) == [200] * 20
    assert eventually(lambda: load(house, "asleep") == 0)


def test_who_waits_for_an_entity_that_goes_is_drawn_again(house, eventually):
    house.endpoint("gone", [("m", None, 100)])
    crowd = Crowd(house, "gone", [GOOD] * 3)
    assert eventually(lambda: load(house, "gone") == 3)
    house.endpoint("gone", [("other", "wild", 100)])
    answers = crowd.answers()
    assert statuses(answers) == [200] * 3
    assert {answer.headers["served-model-name"] for answer in answers} == {"other"}


def test_a_replica_that_leaves_answers_what_it_has(house, eventually):
    house.endpoint("leaving", [("m", "wild", 100)])
    leaving = house.replicas[-1]
    crowd = Crowd(house, "leaving", [SLOW, SLOW])
    assert eventually(lambda: load(house, "leaving") == 2)
    house.replica("leaving", "m", "wild")
    house.withdraw(leaving)
    house.taken_over()
    os.kill(leaving.pid, signal.SIGTERM)
    assert house.ask("leaving", GOOD).status == 200
    assert statuses(crowd.answers()) == [200, 200]


def test_load_is_spread_over_replicas(house):
    house.endpoint("spread", [("m", "wild", 100)])
    house.replica("spread", "m", "wild")
    house.taken_over()
    crowd = Crowd(house, "spread", [A_LITTLE_SLOW] * 8)
    assert statuses(crowd.answers()) == [200] * 8
    reports = [replica.connect().report() for replica in house.replicas[-2:]]
    assert all(report["requests"] > 0 for report in reports)


def test_scoring_goes_on_from_memory_while_the_state_database_is_locked(house):
    house.endpoint("memory", [("m", "wild", 100)])
    with closing(sqlite3.connect(house.settings.data_dir / "inferlake.db")) as db:
        db.execute("BEGIN EXCLUSIVE")
        assert statuses([house.ask("memory", GOOD) for _ in range(5)]) == [200] * 5
        db.rollback()


def test_a_full_line_is_told_at_once(tight, eventually):
    tight.endpoint("full", [("m", None, 100)])
    answers = Crowd(tight, "full", [GOOD] * 40).answers()
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert refused[0].json == {
        "error_code": "RESOURCE_EXHAUSTED",
        "message": "20 requests are waiting for 'm'.",
    }
    assert refused[0].headers["retry-after"] == "1"
    assert {answer.status for answer in answers} == {429, 503}


def test_a_model_over_its_time_is_a_504(tight, eventually):
    tight.endpoint("hangs", [("m", "wild", 100)])
    assert eventually(lambda: tight.ask("hangs", GOOD).status == 200)
    answer = tight.ask("hangs", SLOW)
    assert (answer.status, answer.json["error_code"]) == (504, "DEADLINE_EXCEEDED")
    assert answer.json["message"] == "'m' did not answer within 1.2 s."


def test_only_the_request_that_the_model_has_is_over_its_time(tight, eventually):
    tight.endpoint("behind", [("m", "wild", 100)])
    assert eventually(lambda: tight.ask("behind", GOOD).status == 200)
    slow, *others = Crowd(tight, "behind", [SLOW, GOOD, GOOD, GOOD]).answers()
    assert slow.status == 504
    assert {answer.status for answer in others} <= {200, 503}  # before it, or in line behind it


def test_who_waits_too_long_in_line_gets_a_503(tight, eventually):
    tight.endpoint("line", [("m", "wild", 100)])
    assert eventually(lambda: tight.ask("line", GOOD).status == 200)
    answers = Crowd(tight, "line", [A_LITTLE_SLOW] * 12).answers()
    busy = [answer for answer in answers if answer.status != 200]
    assert 0 < len(busy) < 12
    assert {answer.status for answer in busy} == {503}
    assert {answer.json["error_code"] for answer in busy} == {"TEMPORARILY_UNAVAILABLE"}
    assert all("in line" in answer.json["message"] for answer in busy)
    assert all(answer.headers["retry-after"] == "1" for answer in busy)


def test_after_a_crash_a_line_without_replicas_is_not_kept_for_long(tight, eventually):
    tight.endpoint("crashed", [("m", "wild", 100)])
    assert eventually(lambda: tight.ask("crashed", GOOD).status == 200)
    os.kill(tight.replicas[-1].pid, signal.SIGKILL)
    answer = tight.ask("crashed", GOOD)
    assert (answer.status, answer.json["message"]) == (503, "'m' is restarting.")


def test_a_stranger_on_a_replicas_socket_gets_no_request(tight, eventually):
    tight.endpoint("strange", [("m", None, 100)])
    tight.replica("strange", "m", "wild", served_entity_id="another")
    with database.transaction(tight.engine) as db:
        there = replica_state.replicas.c.served_entity_id == "another"
        db.execute(
            replica_state.replicas.update().where(there).values(served_entity_id="strange-m")
        )
        changes_state.bump(db)
    tight.taken_over()
    assert tight.ask("strange", GOOD).status == 503
    assert eventually(lambda: "stranger_answers" in tight.output.read_text())
