import json
import os
import signal
import stat

import pytest

from capture import names
from serving import wire


@pytest.fixture
def wild(worker):
    return worker("wild")


def answer_of(answer):
    return json.loads(answer.body)


def good(records, value=1.0):
    return records({"c0": value, "c1": 0.0})


def test_an_answered_probe_says_who_is_there(wild):
    report = wild.connect().report()
    assert report["served_entity_id"] == "s1"
    assert report["pid"] == wild.pid
    assert report["ways"]["frame"] == "proven"
    assert report["rss_bytes"] > 1 << 20
    assert stat.S_IMODE(wild.socket.stat().st_mode) & 0o077 == 0


def test_requests_are_answered_with_what_their_row_needs(wild, records):
    body = records({"c0": 4, "c1": 0}, client_request_id="r1", usage_context={"team": "a"})
    answer = wild.connect().ask(wire.pack_request(7, body))[0]
    assert (answer.id, answer.status, answer.rows) == (7, 200, 1)
    assert answer_of(answer) == {"predictions": [8.0]}
    assert answer.client_request_id == "r1"
    assert json.loads(answer.usage_context) == {"team": "a"}
    assert answer.predict_us > 0


def test_what_the_model_raises_is_answered_and_its_stack_only_logged(wild, records, eventually):
    answer = wild.connect().ask(wire.pack_request(0xABC, records({"c0": 1, "c1": 1})))[0]
    assert (answer.status, answer.error_source) == (400, "model")
    assert "wild.py" not in answer.body.decode()
    assert eventually(lambda: "wild.py" in wild.log.read_text())


def test_a_piece_of_the_id_that_the_client_has_finds_the_models_stack(wild, records, eventually):
    request_id = names.new_request_id()
    number = int(request_id.replace("-", "")[16:], 16)
    wild.connect().ask(wire.pack_request(number, records({"c0": 1, "c1": 1})))
    eventually(lambda: request_id[-17:] in wild.log.read_text())
    (line,) = [each for each in wild.log.read_text().splitlines() if request_id[-17:] in each]
    assert "c1 is one" in line


def test_a_busy_worker_still_answers_probes(wild, records):
    client = wild.connect()
    slow, probe = wire.pack_request(1, records({"c0": 1, "c1": 3})), wire.pack_probe(2)
    assert [answer.id for answer in client.ask(slow, probe)] == [2, 1]


def test_a_request_taken_back_in_line_never_reaches_the_model(wild, records):
    client = wild.connect()
    client.send(
        wire.pack_request(1, records({"c0": 1, "c1": 3})),
        wire.pack_request(2, records({"c0": 1, "c1": 2})),  # would end the process
        wire.pack_cancel(2),
    )
    assert {client.next().status for _ in range(2)} == {200, 499}
    assert client.ask(wire.pack_request(3, good(records)))[0].status == 200


def test_a_request_over_its_time_in_line_is_not_started(wild, records):
    client = wild.connect()
    client.send(
        wire.pack_request(1, records({"c0": 1, "c1": 3})),
        wire.pack_request(2, good(records), deadline_ms=100),
    )
    answers = {answer.id: answer for answer in (client.next(), client.next())}
    assert answers[1].status == 200
    assert (answers[2].status, answers[2].error_source) == (503, "server")
    assert "in line" in answer_of(answers[2])["message"]


def test_what_waits_shares_calls(worker, records):
    client = worker("linear").connect()
    row = {f"c{number}": 0.5 for number in range(8)}
    frames = [wire.pack_request(number, records(row)) for number in range(1, 201)]
    assert {answer.status for answer in client.ask(*frames)} == {200}
    report = client.report()
    assert report["requests"] == 200
    assert report["calls"] < 200


def test_at_sigterm_what_is_in_line_is_answered(fresh, records):
    process, popen = fresh("wild")
    client = process.connect()
    client.report()
    client.send(
        wire.pack_request(1, records({"c0": 1, "c1": 3})),
        *(wire.pack_request(number, good(records)) for number in range(2, 6)),
        wire.pack_probe(9),
    )
    assert client.next().id == 9  # everything before it is in line
    os.kill(process.pid, signal.SIGTERM)
    assert {client.next().id for _ in range(5)} == {1, 2, 3, 4, 5}
    assert client.next() is None
    assert popen.wait(60) == 0
    assert not process.socket.exists()


def test_a_broken_stream_ends_its_connection_and_no_other(wild, records):
    broken, whole = wild.connect(), wild.connect()
    broken.send(b"\xff" * 64)
    assert broken.next() is None
    assert whole.ask(wire.pack_request(1, good(records)))[0].status == 200


def test_a_client_that_leaves_with_a_request_in_the_model_harms_nobody(wild, records):
    leaving, staying = wild.connect(), wild.connect()
    leaving.send(wire.pack_request(1, records({"c0": 1, "c1": 3})))
    leaving.close()
    assert staying.ask(wire.pack_request(1, good(records)))[0].status == 200


def test_a_model_that_cannot_be_loaded_ends_the_worker_and_says_why(fresh, tmp_path):
    (tmp_path / "nothing").mkdir()
    process, popen = fresh(str(tmp_path / "nothing"))
    assert popen.wait(120) == 1
    assert "MLmodel" in process.log.read_text()


def test_a_models_own_modules_win_over_ours(worker, records):
    client = worker("own_modules").connect()
    answer = client.ask(wire.pack_request(1, records({"c0": 1})))[0]
    assert answer_of(answer) == {
        "predictions": ["my serving.here", "my capture", "my wire", "my features"]
    }
