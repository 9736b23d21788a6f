import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from capture import errors, outbound


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A real TCP server on the loopback whose connections `serve` answers."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                try:
                    serve(connection)
                except OSError:
                    pass

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hook?x=1"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.1.1",
        "fe80::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "240.0.0.1",
        "255.255.255.255",
    ],
)
@pytest.mark.parametrize("policy", ["none", "loopback", "private"])
def test_some_addresses_are_refused_under_every_policy(address, policy):
    assert outbound.refusal(ipaddress.ip_address(address), policy)


@pytest.mark.parametrize(
    ("address", "allowed_by"),
    [
        ("127.0.0.1", {"loopback", "private"}),
        ("127.9.9.9", {"loopback", "private"}),
        ("::1", {"loopback", "private"}),
        ("::ffff:127.0.0.1", {"loopback", "private"}),
        ("10.0.0.1", {"private"}),
        ("192.168.1.1", {"private"}),
        ("172.16.0.1", {"private"}),
        ("100.64.0.1", {"private"}),
        ("fd12::1", {"private"}),
        ("::ffff:10.0.0.1", {"private"}),
        ("93.184.216.34", {"none", "loopback", "private"}),
        ("2606:2800:220:1::1", {"none", "loopback", "private"}),
    ],
)
def test_private_addresses_are_called_by_policy_only(address, allowed_by):
    found = {
        policy
        for policy in ("none", "loopback", "private")
        if outbound.refusal(ipaddress.ip_address(address), policy) is None
    }
    assert found == allowed_by


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "http://2852039166/latest",
        "http://0xa9fea9fe/",
        "http://[::ffff:169.254.169.254]/",
        "http://0251.0376.0251.0376/",
        "http://10.1.2.3/",
        "http://0.0.0.0/",
    ],
)
def test_a_refused_address_is_refused_in_every_notation(url):
    with pytest.raises(errors.InvalidParameter, match="refused"):
        outbound.post(url, b"", {}, "loopback", timeout_seconds=10)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://localhost/",
        "gopher://localhost/",
        "http://",
        "http://user:word@localhost/",
        "http://localhost:0/",
        "http://localhost:99999/",
        "http://local host/",
        "http://localhost/\r\nX-Evil: 1",
        "localhost/hook",
    ],
)
def test_only_plain_http_urls_are_taken(url):
    with pytest.raises(errors.InvalidParameter, match="url"):
        outbound.parse_url(url)


def test_a_post_arrives_with_its_body_headers_and_host():
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 202 OK\r\nContent-Length: 2\r\n\r\nok")

    with listener(serve) as url:
        answer = outbound.post(url, b'{"a": 1}', {"webhook-id": "m1"}, "loopback")
    assert answer == outbound.Answer(202, b"ok", False)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook?x=1 HTTP/1.1")
    assert b"webhook-id: m1" in head and b"Host: 127.0.0.1" in head
    assert body == b'{"a": 1}'


def test_a_redirect_is_an_answer_and_is_not_followed():
    calls: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        calls.append(read_request(connection))
        connection.sendall(
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
        )

    with listener(serve) as url:
        assert outbound.post(url, b"{}", {}, "loopback").status == 302
    assert len(calls) == 1


def test_an_endless_answer_is_cut():
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with listener(serve) as url:
        answer = outbound.post(url, b"{}", {}, "loopback", max_answer_bytes=1000)
    assert answer.status == 200 and answer.cut and len(answer.body) == 1000


def test_an_answer_that_trickles_ends_at_the_deadline():
    stop = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not stop.wait(0.05):
            connection.sendall(b"X-More: 1\r\n")

    with listener(serve) as url:
        started = time.monotonic()
        with pytest.raises(outbound.TooSlow):
            outbound.post(url, b"{}", {}, "loopback", timeout_seconds=0.5)
        assert time.monotonic() - started < 30
        stop.set()


def test_a_side_that_hangs_up_or_speaks_no_http_is_unreachable():
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"hello\r\n")

    with listener(serve) as url, pytest.raises(outbound.Unreachable):
        outbound.post(url, b"{}", {}, "loopback", timeout_seconds=20)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(outbound.Unreachable):
        outbound.post(f"http://127.0.0.1:{port}/", b"{}", {}, "loopback", timeout_seconds=20)


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1/")

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with listener(serve) as url:
        assert outbound.post(url, b"{}", {}, "loopback").status == 204
