"""What the gateway logs of requests becomes the rows of the payload table."""

import json
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import blocks, contexts, decoding, encoding, exchanges, rows

CAP_BYTES = 40
DAY_US = 86_400_000_000
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MAYBE = st.none() | TEXT
SHARE = st.none() | st.floats(0, 1)
MICROS = st.integers(0, 2**32 - 1)
CONTEXTS = st.builds(
    contexts.Context,
    sampling_fraction=st.floats(0, 1),
    served_entity_id=MAYBE,
    requester=MAYBE,
    endpoint_id=TEXT,
    served_entity_name=MAYBE,
    model_name=MAYBE,
    model_version=MAYBE,
    config_version=st.none() | st.integers(0, 2**31 - 1),
    route_share=SHARE,
    route_split=MAYBE,
    shadow=st.booleans(),
    content_type=MAYBE,
)
BODIES = st.binary(max_size=CAP_BYTES + 10) | TEXT.map(str.encode)
ANSWERED = st.fixed_dictionaries(
    {
        "time_ns": st.integers(0, 30_000 * DAY_US * 1000),
        "number": st.integers(0, 2**128 - 1),
        "status": st.integers(100, 599),
        "request": BODIES,
        "response": BODIES,
        "total_us": st.integers(0, 2**34),
        "queue_us": MICROS,
        "features_us": MICROS,
        "predict_us": MICROS,
        "error_source": st.sampled_from((None, "request", "model", "server")),
        "client_request_id": MAYBE,
        "unit_id": MAYBE,
        "usage_context": st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
        "looked_up": MAYBE,
    }
)
EXCHANGES = st.lists(st.tuples(CONTEXTS, ANSWERED), min_size=1, max_size=4)


def logged(context: contexts.Context, answered: dict[str, Any]) -> exchanges.Exchange:
    usage, looked_up = answered["usage_context"], answered["looked_up"]
    return exchanges.exchange(
        contexts.packed(context),
        cap_bytes=CAP_BYTES,
        **answered
        | {
            "usage_context": None if usage is None else json.dumps(usage).encode(),
            "looked_up": None if looked_up is None else looked_up.encode(),
        },
    )


def int32(value: int) -> int:
    return min(value, 2**31 - 1)


def row(context: contexts.Context, answered: dict[str, Any]) -> rows.Payload:
    """The row that a reader expects of an exchange."""
    request, encoding_, request_over = rows.loggable(answered["request"], CAP_BYTES)
    response, _, response_over = rows.loggable(answered["response"], CAP_BYTES)
    inside = [answered[name] for name in ("queue_us", "features_us", "predict_us")]
    time_us = answered["time_ns"] // 1000
    kept = ("error_source", "client_request_id", "unit_id", "usage_context", "looked_up")
    return rows.Payload(
        **context._asdict(),
        **{name: answered[name] for name in kept},
        request_date=time_us // DAY_US,
        request_time=time_us,
        databricks_request_id=str(UUID(int=answered["number"])),
        status_code=answered["status"],
        execution_duration_ms=(answered["predict_us"] + 500) // 1000,
        request=request,
        response=response or None,
        request_encoding=encoding_,
        logging_error_codes=rows.error_codes(request_over, response_over),
        gateway_us=int32(max(0, answered["total_us"] - sum(inside))),
        queue_us=int32(inside[0]),
        features_us=int32(inside[1]),
        predict_us=int32(inside[2]),
    )


def as_arrow(group: list[rows.Payload]) -> pa.Table:
    """The rows as pyarrow itself makes them of plain values."""
    arrays = []
    for field, column in zip(rows.PAYLOAD_SCHEMA, zip(*group, strict=True), strict=True):
        if pa.types.is_map(field.type):
            column = [None if value is None else list(value.items()) for value in column]
        arrays.append(pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=rows.PAYLOAD_SCHEMA)


def encode(group: list[Any]) -> bytes:
    """A whole block of exchanges, or of rows."""
    if type(group[0]) is exchanges.Exchange:
        return blocks.signed(exchanges.block("c.s.t", group))
    return blocks.signed(encoding.encode("c.s.t", "payload", group))


def decoded(data: bytes) -> pa.Table:
    found = decoding.decode(data, blocks.recover(data).blocks)
    found.validate(full=True)
    return found.cast(rows.PAYLOAD_SCHEMA)


@given(groups=st.lists(EXCHANGES, min_size=1, max_size=3))
def test_each_exchange_becomes_its_row(groups: list[Any]) -> None:
    data = b"".join(encode([logged(*one) for one in group]) for group in groups)
    assert decoded(data) == as_arrow([row(*one) for group in groups for one in group])


@given(before=EXCHANGES, after=EXCHANGES)
def test_exchanges_and_rows_may_lie_in_one_segment(before: list[Any], after: list[Any]) -> None:
    expected = [row(*one) for one in before + after]
    first = encode([logged(*one) for one in before])
    data = first + encode(expected[len(before) :])
    assert decoded(data) == as_arrow(expected)


@given(group=EXCHANGES, data=st.data())
def test_a_torn_block_of_exchanges_is_none(group: list[Any], data: st.DataObject) -> None:
    whole = encode([logged(*one) for one in group])
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert blocks.recover(whole[:cut]).blocks == []
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    assert blocks.recover(bytes(changed)).blocks == []


@pytest.mark.parametrize("count", [1, 2])
def test_what_no_text_can_hold_costs_a_character_not_the_row(count: int) -> None:
    context = contexts.Context(*[None] * 12)._replace(
        sampling_fraction=1.0, endpoint_id="e", requester="\udc80", shadow=False
    )
    one = exchanges.exchange(
        contexts.packed(context),
        time_ns=1,
        number=1,
        status=200,
        request=b"{}",
        response=b"{}",
        cap_bytes=CAP_BYTES,
        client_request_id="a\ud800",
        looked_up=b"\xff",
    )
    found = decoded(encode([one] * count))
    assert found["requester"].to_pylist() == ["?"] * count
    assert found["client_request_id"].to_pylist() == ["a?"] * count
    assert found["looked_up"].to_pylist() == ["\ufffd"] * count


@given(group=EXCHANGES)
def test_rows_keep_nothing_of_the_bytes_that_they_came_from(group: list[Any]) -> None:
    """The committer reads the next segment into the same memory."""
    room = bytearray(encode([logged(*one) for one in group]))
    found = decoding.decode(pa.py_buffer(room), blocks.recover(room).blocks)
    before = found.to_pylist()
    memoryview(room)[:] = bytes(len(room))
    assert found.to_pylist() == before
