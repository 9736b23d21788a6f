"""Frames between a gateway (or the controller) and a worker, both directions. Pure.

One stream socket carries many requests at once, told apart by a 64-bit id that the asking side
chooses; answers come in any order. All integers are little-endian. A frame is a header and what
follows it; the header's first field is the length of what follows, so that a reader which knows
nothing else can find the next frame.

    request  length u32 | id u64 | kind u8 | flags u8 | content type u16 | deadline ms u32 | 0 u32
             then the payload: the client's bytes after decompression
    answer   length u32 | id u64 | status u16 | content type u16 | rows u32 | queue us u32
             | features us u32 | predict us u32 | error source u8 | flags u8 | 0 u16
             | length of client_request_id u32 | of usage_context u32 | of looked_up u32
             then body | client_request_id | usage_context (JSON) | looked_up (JSON)

`deadline` is how long the request may wait in line, in milliseconds from its arrival, 0 = for ever:
two clocks need not agree. After it the answer is a 503, and the model never saw the request. The
flag ALONE keeps a request out of joint calls to the model: it may be the one that ends the process.
A CANCEL names the id it takes back: if it is still in line its answer is a 499, else its own.
"""

import struct
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

PREDICT, PROBE, CANCEL = 1, 2, 3
KINDS = (PREDICT, PROBE, CANCEL)
ALONE = 1
JSON, CSV, PARQUET = 1, 2, 3
CONTENT_TYPES = (JSON, CSV, PARQUET)
ERROR_SOURCES = (None, "request", "model", "server")

# Beyond what any limit of ours lets through: such a length means that the stream is out of step.
MAX_FRAME_BYTES = 256 << 20

_REQUEST = struct.Struct("<IQBBHII")
_ANSWER = struct.Struct("<IQHHIIIIBBHIII")
_LENGTH = struct.Struct("<I")
_U32 = 0xFFFFFFFF
_HAS_CLIENT_ID, _HAS_USAGE, _HAS_LOOKED_UP = 1, 2, 4

T = TypeVar("T")


class BrokenStream(Exception):
    """The bytes are no frames of this protocol; the connection is of no more use."""


class Request(NamedTuple):
    """What is asked of a worker."""

    id: int
    kind: int
    flags: int
    content_type: int
    deadline_ms: int
    payload: bytes


class Answer(NamedTuple):
    """What a worker answers. Times in microseconds; `error_source`: None | request | model |
    server; `usage_context` and `looked_up` are JSON text, ready for the recorded row."""

    id: int
    status: int
    content_type: int
    rows: int
    queue_us: int
    features_us: int
    predict_us: int
    error_source: str | None
    body: bytes
    client_request_id: str | None = None
    usage_context: bytes | None = None
    looked_up: bytes | None = None


def pack_request(
    request_id: int,
    payload: bytes,
    kind: int = PREDICT,
    content_type: int = JSON,
    deadline_ms: int = 0,
    flags: int = 0,
) -> bytes:
    """A request frame; `deadline_ms` 0..2^32-1 from now, 0 = none."""
    header = _REQUEST.pack(
        len(payload), request_id, kind, flags, content_type, min(deadline_ms, _U32), 0
    )
    return header + payload


def pack_probe(request_id: int) -> bytes:
    """Ask a worker who it is and whether its model answers (the body is JSON)."""
    return pack_request(request_id, b"", PROBE)


def pack_cancel(request_id: int) -> bytes:
    """Take a request back: if it is still in line, nobody will wait for its answer."""
    return pack_request(request_id, b"", CANCEL)


def pack_answer(answer: Answer) -> bytes:
    """An answer frame."""
    flags = 0
    client_id = usage = looked_up = b""
    if answer.client_request_id is not None:
        flags, client_id = _HAS_CLIENT_ID, answer.client_request_id.encode()
    if answer.usage_context is not None:
        flags, usage = flags | _HAS_USAGE, answer.usage_context
    if answer.looked_up is not None:
        flags, looked_up = flags | _HAS_LOOKED_UP, answer.looked_up
    header = _ANSWER.pack(
        len(answer.body) + len(client_id) + len(usage) + len(looked_up),
        answer.id,
        answer.status,
        answer.content_type,
        min(answer.rows, _U32),
        min(answer.queue_us, _U32),
        min(answer.features_us, _U32),
        min(answer.predict_us, _U32),
        ERROR_SOURCES.index(answer.error_source),
        flags,
        0,
        len(client_id),
        len(usage),
        len(looked_up),
    )
    return b"".join((header, answer.body, client_id, usage, looked_up))


def unpack_request(frame: bytes) -> Request:
    """The request in one whole frame. Raises BrokenStream."""
    _, request_id, kind, flags, content_type, deadline_ms, _ = _REQUEST.unpack_from(frame)
    if kind not in KINDS:
        raise BrokenStream(f"Frame of unknown kind {kind}.")
    return Request(request_id, kind, flags, content_type, deadline_ms, frame[_REQUEST.size :])


def unpack_answer(frame: bytes) -> Answer:
    """The answer in one whole frame. Raises BrokenStream."""
    (
        length,
        request_id,
        status,
        content_type,
        rows,
        queue_us,
        features_us,
        predict_us,
        source,
        flags,
        _,
        client_length,
        usage_length,
        looked_length,
    ) = _ANSWER.unpack_from(frame)
    start = _ANSWER.size
    client_at = start + length - client_length - usage_length - looked_length
    if client_at < start or source >= len(ERROR_SOURCES):
        raise BrokenStream("Answer frame with parts longer than itself, or of unknown source.")
    client_id = usage = looked_up = None
    if flags:
        usage_at = client_at + client_length
        looked_at = usage_at + usage_length
        if flags & _HAS_CLIENT_ID:
            client_id = _text(frame[client_at:usage_at])
        if flags & _HAS_USAGE:
            usage = frame[usage_at:looked_at]
        if flags & _HAS_LOOKED_UP:
            looked_up = frame[looked_at:]
    return Answer(
        request_id,
        status,
        content_type,
        rows,
        queue_us,
        features_us,
        predict_us,
        ERROR_SOURCES[source],
        frame[start:client_at],
        client_id,
        usage,
        looked_up,
    )


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BrokenStream("Answer frame with a client_request_id that is not UTF-8.") from None


class Reader(Generic[T]):
    """Cuts a byte stream into frames, however the stream was torn. One per connection."""

    def __init__(self, header_bytes: int, unpack: Callable[[bytes], T]) -> None:
        self._header_bytes = header_bytes
        self._unpack = unpack
        self._rest = bytearray()
        self._wanted = header_bytes

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._rest)

    @property
    def missing_bytes(self) -> int:
        """Bytes until the next frame can be whole (at least this many): how much to read."""
        return self._wanted - len(self._rest)

    def feed(self, data: bytes) -> list[T]:
        """The frames that these bytes complete, in order. Raises BrokenStream.

        A frame is joined once, when its last byte is there: a body in a thousand pieces costs
        one copy, not a thousand."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return []
            data = bytes(self._rest)
            self._rest = bytearray()
        frames: list[T] = []
        position, total, header = 0, len(data), self._header_bytes
        wanted = header
        while total - position >= header:
            length = _LENGTH.unpack_from(data, position)[0]
            if length > MAX_FRAME_BYTES:
                raise BrokenStream(f"Frame of {length} bytes; {MAX_FRAME_BYTES} are allowed.")
            wanted = header + length
            if total - position < wanted:
                break
            end = position + wanted
            frames.append(self._unpack(data[position:end]))
            position, wanted = end, header
        self._wanted = wanted
        if position < total:
            self._rest += memoryview(data)[position:]
        return frames


def request_reader() -> Reader[Request]:
    """A worker's side of a connection."""
    return Reader(_REQUEST.size, unpack_request)


def answer_reader() -> Reader[Answer]:
    """The asking side of a connection."""
    return Reader(_ANSWER.size, unpack_answer)
