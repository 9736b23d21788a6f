"""What no client library sends, on bare connections."""

import json
import signal
import socket
import time

import pytest

from capture import database
from serving import access, access_state

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


HEALTH = b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n"


def test_a_head_that_came_before_may_bring_its_body_in_pieces_and_more_behind_it(shared, asking):
    whole = asking("wild", GOOD)
    with shared.connect() as bare:
        bare.send(whole)
        assert json.loads(bare.receive()[2]) == ANSWER
        for cut in (len(whole) - len(GOOD), len(whole) - len(GOOD) + 1, len(whole) - 1):
            bare.send(whole[:cut])
            assert shared.get("/health").status == 200  # by now the first piece was read
            bare.send(whole[cut:] + HEALTH + whole)
            bodies = [json.loads(bare.receive()[2]) for _ in range(3)]
            assert bodies == [ANSWER, {"status": "ok"}, ANSWER]


def test_a_head_that_came_before_is_told_from_others(shared, asking):
    other = b'{"dataframe_records": [{"c0": 5, "c1": 0}]}'
    bad = b'{"dataframe_records": [{"c0": 5}]}'
    with shared.connect() as bare:
        for body, answer in ((GOOD, 8.0), (other, 10.0), (bad, None), (GOOD, 8.0)):
            bare.send(asking("wild", body))
            status, _, told = bare.receive()
            assert (status == 200, json.loads(told).get("predictions", [None])) == (
                answer is not None, [answer],
            )  # fmt: skip
        bare.send(asking("elsewhere", GOOD))
        assert bare.receive()[0] == 404


def test_a_token_ends_on_a_connection_that_used_it(shared, asking, eventually):
    expires_ms = time.time_ns() // 1_000_000 + 3_000
    lasting, brief = shared.token("u"), access.token_text("f" * 16, "y" * 43)
    row = access_state.Token("f" * 16, "u", None, access.token_hash(brief), 1, expires_ms, None)
    with database.transaction(shared.engine) as db:
        access_state.add_token(db, row)
    shared.taken_over()
    with shared.connect() as bare:

        def status(token):
            mine = b"Bearer " + token.encode()
            bare.send(asking("wild", GOOD).replace(b"Bearer bootstrap-admin-token", mine))
            return bare.receive()[0]

        assert [status(lasting), status(lasting)] == [200, 200]
        assert status(brief) == 200 or time.time_ns() // 1_000_000 >= expires_ms
        with database.transaction(shared.engine) as db:
            access_state.revoke_token(db, lasting[3:19], 1)
        shared.taken_over()
        assert status(lasting) == 403
        assert eventually(lambda: status(brief) == 403)


def test_pipelined_queries_are_answered_in_their_order(shared, asking):
    other = b'{"dataframe_records": [{"c0": 5, "c1": 0}]}'
    with shared.connect() as bare:
        bare.send(asking("wild", SLOW) + HEALTH + asking("wild", GOOD) + asking("wild", other))
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


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"1" + b"0" * 17 + b"\r\n", b"5\n"])
def test_a_chunk_that_cannot_be_read_is_refused_at_once(shared, asking, chunk):
    head = asking("wild", b"", ["transfer-encoding: chunked"])
    with shared.connect() as bare:
        bare.send(head.replace(b"content-length: 0\r\n", b"") + chunk)
        assert bare.receive()[0] == 400
        assert bare.closed()


def test_http_1_1_without_a_host_is_refused(shared, asking):
    with shared.connect() as bare:
        bare.send(asking("wild", GOOD).replace(b"host: test\r\n", b""))
        assert bare.receive()[0] == 400
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
        impatient.connect() as known,
    ):
        headers.send(b"POST /serving-endpoints/wild/invocations HTTP/1.1\r\nhost:")
        body.send(asking("wild", GOOD)[:-3])
        used.send(asking("wild", GOOD))
        assert used.receive()[0] == 200
        known.send(asking("wild", GOOD))
        assert known.receive()[0] == 200
        known.send(asking("wild", GOOD)[:-3])
        assert all(bare.closed() for bare in (headers, body, idle, used, known))


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
