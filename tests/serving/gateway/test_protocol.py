"""What no client library sends, on bare connections."""

import json
import signal
import socket

import pytest

GOOD = b'{"dataframe_records": [{"c0": 4, "c1": 0}]}'
SLOW = b'{"dataframe_records": [{"c0": 5, "c1": 3}]}'
ANSWER = {"predictions": [8.0]}


def test_one_connection_answers_many_queries(shared, asking):
    with shared.connect() as bare:
        for _ in range(3):
            bare.send(asking("wild", GOOD))
            status, headers, body = bare.receive()
            assert (status, json.loads(body)) == (200, ANSWER)
            assert "connection" not in headers


def test_pipelined_queries_are_answered_in_their_order(shared, asking):
    other = b'{"dataframe_records": [{"c0": 5, "c1": 0}]}'
    health = b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n"
    with shared.connect() as bare:
        bare.send(asking("wild", SLOW) + health + asking("wild", GOOD) + asking("wild", other))
        bodies = [json.loads(bare.receive()[2]) for _ in range(4)]
    assert bodies == [
        {"predictions": [10.0]},
        {"status": "ok"},
        ANSWER,
        {"predictions": [10.0]},
    ]


def test_a_query_may_come_byte_by_byte(shared, asking):
    with shared.connect() as bare:
        for byte in asking("wild", GOOD):
            bare.send(bytes([byte]))
        assert json.loads(bare.receive()[2]) == ANSWER


def test_a_chunked_body_is_put_together(shared, asking):
    head = asking("wild", b"", ["transfer-encoding: chunked"]).replace(
        b"content-length: 0\r\n", b""
    )
    with shared.connect() as bare:
        bare.send(head + b"5\r\n" + GOOD[:5] + b"\r\n")
        bare.send(b"%x\r\n" % len(GOOD[5:]) + GOOD[5:] + b"\r\n0\r\n\r\n")
        assert json.loads(bare.receive()[2]) == ANSWER


def test_expect_100_continue_is_honoured(shared, asking):
    whole = asking("wild", GOOD, ["expect: 100-continue"])
    head, body = whole[: -len(GOOD)], whole[-len(GOOD) :]
    with shared.connect() as bare:
        bare.send(head)
        assert bare.receive()[0] == 100
        bare.send(body)
        assert json.loads(bare.receive()[2]) == ANSWER


def test_http_1_0_is_answered_and_closed(shared, asking):
    with shared.connect() as bare:
        bare.send(asking("wild", GOOD, version="1.0"))
        assert json.loads(bare.receive()[2]) == ANSWER
        assert bare.closed()


def test_connection_close_is_honoured(shared, asking):
    with shared.connect() as bare:
        bare.send(asking("wild", GOOD, ["connection: close"]))
        status, headers, body = bare.receive()
        assert (status, headers["connection"], json.loads(body)) == (200, "close", ANSWER)
        assert bare.closed()


def test_an_offer_to_upgrade_is_ignored(shared, asking):
    with shared.connect() as bare:
        bare.send(b"GET /health HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        assert bare.receive()[0] == 200


@pytest.mark.parametrize(
    "more",
    [
        ["transfer-encoding: chunked"],
        ["content-length: 7"],
        ["host: other"],
        ["x: a\rb"],
        ["content-length: +5"],
        ["no colon"],
    ],
)
def test_ambiguous_framing_is_refused_and_the_connection_closed(shared, asking, more):
    with shared.connect() as bare:
        bare.send(asking("wild", GOOD, more))
        status, headers, body = bare.receive()
        assert (status, headers["connection"]) == (400, "close")
        assert json.loads(body) == {
            "error_code": "BAD_REQUEST",
            "message": "Ambiguous message framing.",
        }
        assert bare.closed()


def test_noise_is_refused(shared):
    with shared.connect() as bare:
        bare.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert bare.receive()[0] == 400
        assert bare.closed()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["content-length: 16777217"], "Body over 16777216 bytes."),
        (["x: " + "y" * 70_000], "Headers over 65536 bytes"),
        ([f"x{n}: y" for n in range(210)], "Headers over 65536 bytes, or over 200 of them."),
    ],
)
def test_what_is_too_large_is_refused_while_it_comes_in(shared, asking, more, message):
    head = asking("wild", b"", more).replace(b"content-length: 0\r\n", b"", 1)
    with shared.connect() as bare:
        bare.send(head)
        status, _, body = bare.receive()
        assert status == 400
        assert json.loads(body)["message"].startswith(message)
        assert bare.closed()


def test_a_chunked_body_over_the_limit_is_cut_off(shared, asking):
    head = asking("wild", b"", ["transfer-encoding: chunked"]).replace(
        b"content-length: 0\r\n", b""
    )
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with shared.connect() as bare:
        bare.send(head)
        try:
            for _ in range(18):
                bare.send(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it closed before we had said everything
        else:
            status, _, body = bare.receive()
            assert (status, json.loads(body)["message"]) == (400, "Body over 16777216 bytes.")


def test_a_request_line_over_8_kib_is_refused(shared):
    with shared.connect() as bare:
        bare.send(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nhost: t\r\n\r\n")
        assert bare.receive()[0] == 400
        assert bare.closed()


def test_a_client_that_hangs_up_harms_nobody(shared, asking, eventually):
    for _ in range(20):
        with shared.connect() as bare:
            bare.send(asking("wild", SLOW)[: -len(SLOW) // 2])
    with shared.connect() as bare:
        bare.send(asking("wild", SLOW, ["x-leaves: yes"]))
    with shared.connect() as bare:
        bare.send(asking("wild", GOOD))
        assert json.loads(bare.receive()[2]) == ANSWER
    rows = shared.logged
    assert eventually(lambda: any(r["status_code"] == 499 for r in rows("wild").values()))


@pytest.fixture
def impatient(gateway):
    """A gateway whose deadlines are short."""
    one = gateway(
        INFERLAKE_HEADER_TIMEOUT_SECONDS="1",
        INFERLAKE_BODY_TIMEOUT_SECONDS="1",
        INFERLAKE_KEEP_ALIVE_SECONDS="2",
    )
    one.endpoint("wild", [("m", "wild", 100)])
    return one


def test_trickled_headers_and_bodies_and_idle_connections_are_closed(impatient, asking):
    with (
        impatient.connect() as headers,
        impatient.connect() as body,
        impatient.connect() as idle,
        impatient.connect() as used,
    ):
        headers.send(b"POST /serving-endpoints/wild/invocations HTTP/1.1\r\nhost:")
        body.send(asking("wild", GOOD)[:-3])
        used.send(asking("wild", GOOD))
        assert used.receive()[0] == 200
        assert all(bare.closed() for bare in (headers, body, idle, used))


def test_a_client_that_never_reads_is_cut_off(impatient, asking):
    much = b'{"dataframe_records": [' + b",".join([b'{"c0": 4, "c1": 0}'] * 20_000) + b"]}"
    with impatient.connect() as bare:
        bare.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            while True:
                bare.send(asking("wild", much))
        except (BrokenPipeError, ConnectionResetError):
            pass


def test_a_slow_model_is_not_a_slow_client(impatient, asking):
    with impatient.connect() as bare:
        bare.send(asking("wild", SLOW))
        assert bare.receive()[0] == 200


def test_at_sigterm_accepted_requests_are_answered_and_logged(gateway, asking):
    one = gateway()
    one.endpoint("wild", [("m", "wild", 100)])
    with one.connect() as slow, one.connect() as idle, one.connect() as half:
        slow.send(asking("wild", SLOW))
        half.send(asking("wild", GOOD)[:-5])
        idle.send(b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n")
        assert idle.receive()[0] == 200
        one.process.send_signal(signal.SIGTERM)
        status, headers, body = slow.receive()
        assert (status, headers["connection"]) == (200, "close")
        assert json.loads(body) == {"predictions": [10.0]}
        half.send(GOOD[-5:])
        status, headers, _ = half.receive()
        assert (status, headers["connection"]) == (200, "close")
        assert idle.closed()
    assert one.process.wait(60) == 0
    assert not (one.settings.run_dir / "gateway.ready").exists()
    assert [row["status_code"] for row in one.logged("wild").values()] == [200] * 2
    assert all(path.suffix == ".seg" for path in one.settings.wal_dir.glob("*/0*"))
