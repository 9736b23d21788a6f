"""The only way off the machine: resolve, check the address, connect to that address, bound size
and time.

1. Only http and https, no user information in the URL, no port 0.
2. The name is resolved once, every address it has is checked, and the connection goes to one of
   *those* addresses: a second look-up could answer something else (DNS rebinding).
3. Link-local, multicast, unspecified, reserved and metadata addresses are refused always, in
   whatever notation they come, also inside an IPv6 address that carries an IPv4 one. Loopback and
   private ones by `Settings.allow_private_upstreams`.
4. Redirects are not followed, proxies of the environment are not used.
5. One deadline for everything: look-up, connection, handshake, headers, body.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent import futures
from typing import NamedTuple
from urllib import parse

from capture import errors

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Services of cloud providers that hand credentials to whoever asks; not all are link-local.
METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
    )
)
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Unreachable(errors.InferlakeError):
    """The other side could not be reached, hung up or spoke no HTTP."""

    status, error_code = 502, "TEMPORARILY_UNAVAILABLE"


class TooSlow(errors.InferlakeError):
    """The other side did not finish within the time it was given."""

    status, error_code = 504, "DEADLINE_EXCEEDED"


class Target(NamedTuple):
    """A checked destination: the connection goes to the first of `addresses` that takes it; the
    name is for TLS and the `Host` header."""

    scheme: str
    host: str
    port: int
    path: str
    addresses: tuple[str, ...]


class Answer(NamedTuple):
    """What came back. `body` holds at most the bytes asked for; `cut`: there was more."""

    status: int
    body: bytes
    cut: bool


def parse_url(url: str) -> parse.SplitResult:
    """The parts of a URL that may be called at all. Raises InvalidParameter."""
    if any(ord(character) <= 32 or ord(character) >= 127 for character in url):
        raise errors.InvalidParameter("url: only printable ASCII without spaces is allowed.")
    try:
        parts = parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise errors.InvalidParameter("url: not a valid URL.") from None
    if parts.scheme not in ("http", "https"):
        raise errors.InvalidParameter(
            f"url: scheme '{parts.scheme[:20]}' is not allowed; use http or https."
        )
    if not parts.hostname or port == 0:
        raise errors.InvalidParameter("url: a host name and a port other than 0 are needed.")
    if parts.username is not None or parts.password is not None:
        raise errors.InvalidParameter("url: user and password do not belong into a URL.")
    return parts


def refusal(address: Address, private_policy: str) -> str | None:
    """Why this address is not called, or None. Policy: `none`, `loopback` or `private`."""
    inner = _carried(address)
    if inner is not None:
        return refusal(inner, private_policy)
    if address in METADATA or address.is_link_local:
        return "link-local and metadata addresses are never called"
    if address.is_multicast or address.is_unspecified:
        return "multicast and unspecified addresses are never called"
    if address.is_loopback:
        return None if private_policy != "none" else "loopback addresses are not allowed"
    if address.is_reserved:
        return "reserved addresses are never called"
    if not address.is_global:
        return None if private_policy == "private" else "private addresses are not allowed"
    return None


def _carried(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside an IPv6 one: mapped, compatible, 6to4, Teredo, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in NAT64 or 1 < int(address) < 1 << 32:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def resolve(url: str, private_policy: str, deadline: float) -> Target:
    """Where a URL leads, once every address of its host was found to be allowed.

    deadline: monotonic seconds. Raises InvalidParameter (the URL or an address is refused),
    Unreachable (no such name), TooSlow."""
    parts = parse_url(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = _look_up(host, port, deadline)
    for address in addresses:
        reason = refusal(address, private_policy)
        if reason:
            raise errors.InvalidParameter(f"url: host '{host}' is refused; {reason}.")
    path = parts.path or "/"
    if parts.query:
        path += f"?{parts.query}"
    return Target(parts.scheme, host, port, path, tuple(map(str, addresses)))


def _look_up(host: str, port: int, deadline: float) -> list[Address]:
    # getaddrinfo knows no time limit, so it runs in a thread of its own that may be left behind.
    found: futures.Future[list[Address]] = futures.Future()

    def ask() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result([ipaddress.ip_address(str(row[4][0]).split("%")[0]) for row in rows])
        except (OSError, ValueError, UnicodeError) as error:
            found.set_exception(error)

    threading.Thread(target=ask, daemon=True, name="look-up").start()
    try:
        addresses = found.result(max(0.0, deadline - time.monotonic()))
    except futures.TimeoutError:
        raise TooSlow(f"Host '{host}' was not resolved in time.") from None
    except (OSError, ValueError, UnicodeError):
        raise Unreachable(f"Host '{host}' has no address.") from None
    if not addresses:
        raise Unreachable(f"Host '{host}' has no address.")
    return addresses


class _Plain(http.client.HTTPConnection):
    """An HTTP connection to an address that was checked."""

    def __init__(self, target: Target, deadline: float) -> None:
        super().__init__(target.host, target.port)
        self.target = target
        self.deadline = deadline

    def connect(self) -> None:
        failure = OSError("no address")
        for address in self.target.addresses:
            remaining = max(0.001, self.deadline - time.monotonic())
            try:
                self.sock = socket.create_connection((address, self.target.port), remaining)
                return
            except OSError as error:
                failure = error
        raise failure


class _Encrypted(_Plain):
    """The same over TLS; the certificate must be the host's."""

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(self.sock, server_hostname=self.target.host)


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    private_policy: str,
    timeout_seconds: float = 15.0,
    max_answer_bytes: int = 65_536,
) -> Answer:
    """One POST; any status is an answer, redirects too. The answer is cut, never refused, at
    `max_answer_bytes`. Raises InvalidParameter, Unreachable, TooSlow."""
    deadline = time.monotonic() + timeout_seconds
    target = resolve(url, private_policy, deadline)
    kind = _Encrypted if target.scheme == "https" else _Plain
    connection = kind(target, deadline)
    expired = threading.Event()
    # A read that trickles restarts the socket's own timeout with every byte; the watchdog does not.
    watchdog = threading.Timer(timeout_seconds, _abort, (connection, expired))
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.request("POST", target.path, body=body, headers=dict(headers))
        response = connection.getresponse()
        content = response.read(max_answer_bytes + 1)
        if expired.is_set():
            raise TooSlow(f"'{target.host}' did not answer within {timeout_seconds:g} s.")
        return Answer(response.status, content[:max_answer_bytes], len(content) > max_answer_bytes)
    except (OSError, http.client.HTTPException) as error:
        if expired.is_set() or isinstance(error, TimeoutError):
            raise TooSlow(f"'{target.host}' did not answer within {timeout_seconds:g} s.") from None
        raise Unreachable(
            f"'{target.host}' could not be reached: {type(error).__name__}."
        ) from None
    finally:
        watchdog.cancel()
        connection.close()


def _abort(connection: http.client.HTTPConnection, expired: threading.Event) -> None:
    expired.set()
    if connection.sock is not None:
        try:
            connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it hung up by itself in this very moment
