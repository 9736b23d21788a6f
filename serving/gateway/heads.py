"""Heads of queries that came before: a client sends the same one with each of its queries, and to
read it anew costs as much as everything else that the gateway does for a query.

A head is a request line and headers, up to and with the empty line. Kept are only usual ones that
the parser has read whole (`is_plain`), and only after their token and grant were found good; they
are found again by all their bytes, and forgotten with the route table that they were held against.
"""

from collections.abc import Sequence
from typing import NamedTuple

from serving import access
from serving.gateway import admission, routing

MOST_HEADS, MOST_HEAD_BYTES = 1_024, 2_048
START, END = b"POST ", b"\r\n\r\n"


class Permit(NamedTuple):
    """Who sent a head and where it leads, by one route table, until `until_ms` (unix ms); which
    rate limits count it; the contexts of its requests in the log, by entity id; whether they are
    drawn by chance, whatever they are."""

    table: routing.RouteTable
    until_ms: float
    limits: tuple[admission.Counted, ...]
    caller: access.Caller
    route: routing.Route
    entity_name: str | None
    contexts: dict[str | None, bytes]
    by_chance: bool


class Head:
    """`target`: path as sent, without query; header names in lower case. `raw`: its bytes if it may
    be kept, else empty; `body_bytes`: the length of its body, if it may be kept; `content_type`:
    the wire's number, once it is known; `encoding`: Content-Encoding."""

    __slots__ = (
        "body_bytes", "content_type", "encoding", "headers", "permit", "raw", "target",
    )  # fmt: skip

    def __init__(
        self,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        raw: bytes = b"",
    ) -> None:
        self.target = target
        self.headers = dict(headers)
        self.raw = raw
        self.body_bytes = int(self.headers[b"content-length"]) if raw else 0
        self.encoding = self.headers.get(b"content-encoding")
        self.content_type: int | None = None
        self.permit: Permit | None = None


def is_plain(raw: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether bytes up to the first empty line are just the head with these headers, and its body
    is as long as content-length says: each line ends with CRLF and holds neither of both inside, so
    that no parser sees another end."""
    lines = raw.count(b"\r\n")
    names = [name for name, _ in headers]
    return (
        raw.startswith(START)
        and lines == raw.count(b"\n") == raw.count(b"\r") == len(headers) + 2
        and names.count(b"content-length") == 1
        and b"transfer-encoding" not in names
    )


class Heads:
    """The heads of one route table, the last thousand or so."""

    def __init__(self) -> None:
        self._by_bytes: dict[bytes, Head] = {}

    # Among the bytes is the token. That they are looked up, not compared in constant time, tells
    # nothing: Python compares them only after a keyed hash of all of them was equal.
    def start(self, data: bytes) -> Head | None:
        """The kept head that these bytes start with."""
        end = data.find(END, 0, MOST_HEAD_BYTES)
        return self._by_bytes.get(data[: end + len(END)]) if end > 0 else None

    def keep(self, head: Head) -> None:
        """Keep a head that has `raw`."""
        if len(self._by_bytes) >= MOST_HEADS:
            self._by_bytes.clear()
        self._by_bytes[head.raw] = head

    def forget(self) -> None:
        """A new route table: all of them are read once more."""
        self._by_bytes.clear()
