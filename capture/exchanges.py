"""Requests and their answers as the gateway has them, on their way into the log. Pure.

A row of `<prefix>_payload` has thirty columns, but a gateway holds few pieces of it: two bodies,
some numbers, and what all requests of a route and caller have in common, the context. Those are
what the log takes; the committer makes the rows of them (exchange_columns.py), column by column,
away from the request. A block of them (blocks.py) follows its front with

    head of each exchange, 80 bytes | number of its context in the block, 4 bytes each
    contexts, each with its length
    all texts joined, column by column: TEXTS

each part from a multiple of 8 on, and each context, save the texts.
"""

import struct
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from capture import blocks

# time ns, id, whole time us, status, queue us, features us, predict us, length of each text
# (-1: null), source of the error, what was over the cap
HEAD = struct.Struct("<Q16sQIIII6iBB6x")
TEXTS = ("request", "response", "client_request_id", "unit_id", "usage_context", "looked_up")
ERROR_SOURCES = (None, "request", "model", "server")
REQUEST_OVER, RESPONSE_OVER = 1, 2

_SOURCE_NUMBERS = {source: number for number, source in enumerate(ERROR_SOURCES)}
_FIRST_CONTEXT = bytes(8)  # its number, padded
_CODE = blocks.LAYOUTS["payload"].code | blocks.EXCHANGES
_head, _new = HEAD.pack, tuple.__new__


class Exchange(NamedTuple):
    """One request and its answer, made by `exchange`: its parts in the order in which a block of it
    alone has them. number: of its context in that block; context: from `contexts.packed`; texts
    that are null are empty here, their head knows."""

    head: bytes
    number: bytes
    context: bytes
    request: bytes
    response: bytes
    client_request_id: bytes
    unit_id: bytes
    usage_context: bytes
    looked_up: bytes


def exchange(
    context: bytes,
    time_ns: int,
    number: int,
    status: int,
    request: bytes,
    response: bytes,
    cap_bytes: int,
    total_us: int = 0,
    queue_us: int = 0,
    features_us: int = 0,
    predict_us: int = 0,
    error_source: str | None = None,
    client_request_id: str | None = None,
    unit_id: str | None = None,
    usage_context: bytes | None = None,
    looked_up: bytes | None = None,
) -> Exchange:
    """A request that was received at time_ns (since the epoch) and its answer.

    number: of the request's id, a UUIDv7. total_us: from receipt to answer; what is not queue,
    features or model is the gateway's. Bodies over `cap_bytes` are left out, as null.
    usage_context: JSON of texts by text; looked_up: JSON text.
    """
    over = 0
    request_bytes, response_bytes = len(request), len(response) or -1
    if request_bytes > cap_bytes:
        request, request_bytes, over = b"", -1, REQUEST_OVER
    if response_bytes > cap_bytes:
        response, response_bytes, over = b"", -1, over | RESPONSE_OVER
    client_id = b"" if client_request_id is None else client_request_id.encode("utf-8", "replace")
    unit = b"" if unit_id is None else unit_id.encode()
    head = _head(
        time_ns,
        number.to_bytes(16, "big"),
        total_us,
        status,
        queue_us,
        features_us,
        predict_us,
        request_bytes,
        response_bytes,
        -1 if client_request_id is None else len(client_id),
        -1 if unit_id is None else len(unit),
        -1 if usage_context is None else len(usage_context),
        -1 if looked_up is None else len(looked_up),
        _SOURCE_NUMBERS[error_source],
        over,
    )
    texts = request, response, client_id, unit, usage_context or b"", looked_up or b""
    # Half of what Exchange(...) costs.
    return _new(Exchange, (head, _FIRST_CONTEXT, context, *texts))


# Blocks ------------------------------------------------------------------------------------------


def block(table: str, group: Sequence[Exchange]) -> bytes:
    """The block of a group of exchanges, at least one; still to be signed (blocks.py)."""
    count = len(group)
    if count == 1:
        known, packed = group[0].context, b"".join(group[0])
    else:
        heads, _, contexts, *columns = zip(*group, strict=True)
        numbers, known = _numbered(contexts)
        packed = b"".join(chain(heads, (numbers, known), *columns))
    # As `blocks.framed` does it: at 500 requests a second the call alone would be a twentieth of
    # what recording one costs.
    name, start, name_bytes = blocks.known_names.get(table) or blocks.named(table)
    size = start + len(packed)
    padding = blocks.PADDINGS[-size % 8]
    front = blocks.AFTER_CRC.pack(
        size + len(padding), count, start, 0, len(known), 0, 0, _CODE, name_bytes
    )
    return b"".join((front, name, packed, padding))


def _numbered(contexts: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """The number of each exchange's context, padded, and the contexts by number."""
    count = len(contexts)
    if contexts.count(contexts[0]) == count:
        return bytes(-(-count // 2) * 8), contexts[0]
    places = {one: number for number, one in enumerate(dict.fromkeys(contexts))}
    numbers = struct.pack(f"<{count}I", *map(places.__getitem__, contexts))
    return numbers + blocks.PADDINGS[-len(numbers) % 8], b"".join(places)
