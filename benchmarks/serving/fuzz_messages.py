"""HTTP messages that two readers could read in two ways. Each is followed by a second request: who
answers that one as well, or takes its bytes for a request of their own, was tricked."""

from collections.abc import Iterator

BODY = b'{"dataframe_records":[{"age":1,"visits":1,"smoker":true}]}'  # one that is answered
AFTER = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"


def good(target: str, token: str, body: bytes = BODY) -> bytes:
    """A message that is answered, and leaves the connection open."""
    start = f"POST {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
    head = f"{start}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def messages(target: str, token: str, body: bytes = BODY) -> Iterator[tuple[str, bytes]]:
    """(what is ambiguous, the bytes)."""
    start = f"POST {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n"
    head = f"{start}Content-Type: application/json\r\n".encode()
    count = len(body)
    length = b"Content-Length: %d\r\n" % count
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (count, body)
    chunked = b"Transfer-Encoding: chunked\r\n"
    end = b"\r\n"
    yield "length, then chunked", head + length + chunked + end + chunks
    yield "chunked, then length", head + chunked + length + end + chunks
    yield "two lengths that differ", head + length + b"Content-Length: 3\r\n" + end + body
    yield "two equal lengths", head + length + length + end + body
    yield "a list of lengths", head + b"Content-Length: %d, %d\r\n" % (count, count) + end + body
    yield "length with a plus", head + b"Content-Length: +%d\r\n" % count + end + body
    yield "negative length", head + b"Content-Length: -1\r\n" + end + body
    yield "hexadecimal length", head + b"Content-Length: 0x%x\r\n" % count + end + body
    yield (
        "length with a space inside",
        head + b"Content-Length: %d %d\r\n" % divmod(count, 10) + end + body,
    )
    yield (
        "length of 30 digits",
        head + b"Content-Length: %s%d\r\n" % (b"9" * 28, count) + end + body,
    )
    yield "length without a number", head + b"Content-Length:\r\n" + end + body
    yield (
        "length with an underscore",
        head + b"Content-Length: %d_%d\r\n" % divmod(count, 10) + end + body,
    )
    yield "space before the colon", head + b"Transfer-Encoding : chunked\r\n" + length + end + body
    yield "unknown coding", head + b"Transfer-Encoding: xchunked\r\n" + length + end + body
    yield "chunked twice", head + b"Transfer-Encoding: chunked, chunked\r\n" + end + chunks
    yield (
        "chunked, then identity",
        head + b"Transfer-Encoding: chunked, identity\r\n" + end + chunks,
    )
    yield (
        "coding after a vertical tab",
        head + b"Transfer-Encoding: \x0bchunked\r\n" + end + chunks,
    )
    yield "folded coding", head + b"Transfer-Encoding:\r\n chunked\r\n" + length + end + body
    yield "folded header", head + b"X-A: a\r\n b\r\n" + length + end + body
    yield "two hosts", head + b"Host: other\r\n" + length + end + body
    yield "two equal hosts", head + b"Host: h\r\n" + length + end + body
    yield "no host", head.replace(b"Host: h\r\n", b"") + length + end + body
    yield "bare CR in a value", head + b"X-A: a\rb\r\n" + length + end + body
    yield "bare CR ends a header", head + b"X-A: a\rX-B: b\r\n" + length + end + body
    yield "NUL in a value", head + b"X-A: a\0b\r\n" + length + end + body
    yield "no colon", head + b"X-A\r\n" + length + end + body
    yield "space in a name", head + b"X A: a\r\n" + length + end + body
    yield "empty name", head + b": a\r\n" + length + end + body
    yield "chunk size of letters", head + chunked + end + b"zz\r\n" + body + b"\r\n0\r\n\r\n"
    yield "negative chunk size", head + chunked + end + b"-1\r\n" + body + b"\r\n0\r\n\r\n"
    yield "hexadecimal prefix", head + chunked + end + b"0x" + chunks
    yield "chunk size over 64 bits", head + chunked + end + b"1" + b"0" * 17 + b"\r\n" + body
    yield "chunk longer than its size", head + chunked + end + b"3\r\n" + body + b"\r\n0\r\n\r\n"
    yield "chunk size ended by LF", head + chunked + end + chunks.replace(b"\r\n", b"\n", 1)
    yield (
        "bare CR in an extension",
        head + chunked + end + chunks.replace(b"\r\n", b";a\rb\r\n", 1),
    )
    yield "bare LF ends the headers", (head + length + end).replace(b"\r\n", b"\n") + body
    yield "headers before the request", b" " + head + length + end + body
    yield "space before the first header", head.replace(b"Host", b" Host", 1) + length + end + body
    yield "unknown version", head.replace(b"HTTP/1.1", b"HTTP/9.9") + length + end + body
    yield "word after the version", head.replace(b"HTTP/1.1", b"HTTP/1.1 x") + length + end + body
    yield "chunked in HTTP/1.0", head.replace(b"/1.1", b"/1.0") + chunked + length + end + chunks
