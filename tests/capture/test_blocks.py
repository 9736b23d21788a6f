import string
import zlib
from typing import Any
from uuid import UUID, uuid4

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import blocks, decoding, encoding, rows

INT32 = st.integers(-(2**31) + 1, 2**31 - 1)
INT64 = st.integers(-(2**63) + 1, 2**63 - 1)
DAY_US = 86_400_000_000
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MAYBE = st.none() | TEXT
FLOAT = st.floats(allow_nan=False)
TIME = st.integers(0, 30_000 * DAY_US)
DATE = st.integers(0, 30_000)

PAYLOADS = st.builds(
    rows.Payload,
    request_date=DATE,
    databricks_request_id=TEXT,
    client_request_id=MAYBE,
    request_time=TIME,
    status_code=INT32,
    sampling_fraction=FLOAT,
    execution_duration_ms=INT64,
    request=MAYBE,
    response=MAYBE,
    served_entity_id=MAYBE,
    logging_error_codes=st.none() | st.lists(TEXT, max_size=3),
    requester=MAYBE,
    endpoint_id=TEXT,
    served_entity_name=MAYBE,
    model_name=MAYBE,
    model_version=MAYBE,
    config_version=st.none() | INT32,
    route_share=st.none() | FLOAT,
    route_split=MAYBE,
    unit_id=MAYBE,
    shadow=st.booleans(),
    looked_up=MAYBE,
    usage_context=st.none() | st.dictionaries(TEXT, TEXT, max_size=3),
    error_source=MAYBE,
    request_encoding=TEXT,
    content_type=MAYBE,
    gateway_us=INT32,
    queue_us=INT32,
    features_us=INT32,
    predict_us=INT32,
)
LABELS = st.builds(
    rows.Label,
    received_date=DATE,
    databricks_request_id=MAYBE,
    client_request_id=MAYBE,
    row_index=INT32,
    label=TEXT,
    label_time=TIME,
    received_time=TIME,
    requester=MAYBE,
)
TABLES = st.text(string.ascii_letters + "._-", min_size=1, max_size=12)


def some(one_row: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """A few rows, or a few again and again: many are packed in another way."""
    few = st.lists(one_row, min_size=1, max_size=5)
    return st.builds(lambda group, times: group * times, few, st.sampled_from((1, 1, 1, 30)))


PAYLOAD_GROUPS = st.tuples(TABLES, st.just("payload"), some(PAYLOADS))
TABLE, LABEL = "c.s.t_labels", rows.Label(1, "a", None, 0, "1", 1, 1, None)
LABEL_GROUPS = st.tuples(TABLES, st.just("labels"), some(LABELS))
GROUPS = st.lists(PAYLOAD_GROUPS | LABEL_GROUPS, min_size=1, max_size=6)


def encoded(groups: list[tuple[str, str, list[Any]]]) -> list[bytes]:
    return [block(table, kind, group) for table, kind, group in groups]


def block(table: str, kind: str, group: list[Any], seed: int = 0) -> bytes:
    return blocks.signed(encoding.encode(table, kind, group), seed)


def plain_type(field: pa.DataType) -> pa.DataType:
    """Type of the plain values of a column: times and dates are integers."""
    if pa.types.is_timestamp(field):
        return pa.int64()
    return pa.int32() if pa.types.is_date32(field) else field


def arrow(kind: str, group: list[Any]) -> pa.Table:
    """The rows as pyarrow itself makes them of plain values."""
    schema, _ = rows.KINDS[kind]
    arrays = []
    for field, column in zip(schema, zip(*group, strict=True), strict=True):
        if pa.types.is_map(field.type):
            column = [None if value is None else list(value.items()) for value in column]
        arrays.append(pa.array(column, plain_type(field.type)).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


@given(groups=st.lists(PAYLOAD_GROUPS, min_size=1, max_size=4))
def test_payload_rows_come_back_as_they_went_in(groups: list[Any]) -> None:
    data = b"".join(encoded(groups))
    table = decoding.decode(data, blocks.recover(data).blocks)
    table.validate(full=True)
    assert table == arrow("payload", [row for _, _, group in groups for row in group])


@given(groups=st.lists(LABEL_GROUPS, min_size=1, max_size=4))
def test_labels_come_back_as_they_went_in(groups: list[Any]) -> None:
    data = b"".join(encoded(groups))
    table = decoding.decode(data, blocks.recover(data).blocks)
    table.validate(full=True)
    assert table == arrow("labels", [row for _, _, group in groups for row in group])


@given(groups=GROUPS)
def test_each_block_says_which_table_and_kind_its_rows_are_of(groups: list[Any]) -> None:
    found = blocks.recover(b"".join(encoded(groups))).blocks
    assert [(b.table, b.kind, b.rows) for b in found] == [(t, k, len(g)) for t, k, g in groups]


@given(groups=GROUPS, data=st.data())
def test_a_torn_tail_costs_no_whole_block(groups: list[Any], data: st.DataObject) -> None:
    parts = encoded(groups)
    segment = b"".join(parts)
    cut = data.draw(st.integers(0, len(segment)))
    ends = [sum(map(len, parts[: n + 1])) for n in range(len(parts))]
    whole = [end for end in ends if end <= cut]
    recovered = blocks.recover(segment[:cut])
    assert len(recovered.blocks) == len(whole)
    assert recovered.end == (whole[-1] if whole else 0)


@given(groups=GROUPS, garbage=st.binary(max_size=200))
def test_garbage_behind_whole_blocks_is_no_block(groups: list[Any], garbage: bytes) -> None:
    segment = b"".join(encoded(groups))
    recovered = blocks.recover(segment + garbage)
    assert (len(recovered.blocks), recovered.end) == (len(groups), len(segment))


@given(groups=GROUPS, data=st.data())
def test_a_changed_byte_is_found_and_ends_the_segment_before_its_block(
    groups: list[Any], data: st.DataObject
) -> None:
    parts = encoded(groups)
    segment = bytearray(b"".join(parts))
    place = data.draw(st.integers(0, len(segment) - 1))
    segment[place] ^= data.draw(st.integers(1, 255))
    ends = [sum(map(len, parts[: n + 1])) for n in range(len(parts))]
    assert len(blocks.recover(bytes(segment)).blocks) == sum(end <= place for end in ends)


@given(sequence=st.integers(0, 2**63), app_id=st.uuids())
def test_a_segment_header_says_whose_it_is(sequence: int, app_id: UUID) -> None:
    text, seed = blocks.segment_header(app_id, sequence)
    assert len(text) == blocks.HEADER_BYTES
    assert blocks.read_header(text) == (app_id, sequence, seed)


@given(cut=st.integers(0, blocks.HEADER_BYTES - 1))
def test_a_cut_segment_header_is_refused(cut: int) -> None:
    with pytest.raises(blocks.NotASegment):
        blocks.read_header(blocks.segment_header(uuid4(), 1)[0][:cut])


def test_a_segment_of_other_columns_is_refused_as_foreign() -> None:
    head = bytearray(blocks.segment_header(uuid4(), 1)[0][:-4])
    head[36] ^= 1  # first byte of the schema hash
    with pytest.raises(blocks.ForeignSegment):
        blocks.read_header(bytes(head) + zlib.crc32(head).to_bytes(4, "little"))


@pytest.mark.parametrize("version", blocks.READABLE_VERSIONS)
def test_segments_that_the_version_before_left_are_read(version: int) -> None:
    app_id = uuid4()
    header = of_version(version, app_id)
    seed = blocks.read_header(header).seed
    assert bool(seed) == (version == blocks.FORMAT_VERSION)
    known, found = blocks.read_segment(header + block(TABLE, "labels", [LABEL], seed))
    assert known == (app_id, 1, seed)
    assert [one.rows for one in found.blocks] == [1]


def test_a_block_of_another_segment_is_none() -> None:
    """What a file held before lies behind what was written over it."""
    app_id = uuid4()
    segments = []
    for sequence in (1, 2):
        header, seed = blocks.segment_header(app_id, sequence)
        label = LABEL._replace(databricks_request_id=str(sequence))
        segments.append(header + block(TABLE, "labels", [label], seed) * 3)
    before, after = segments
    for kept in (
        after[: -len(after) // 3],
        after[: blocks.HEADER_BYTES],
        after[: blocks.HEADER_BYTES + 4],
    ):
        data = kept + before[len(kept) :]
        whole = blocks.read_segment(kept)[1]
        assert blocks.read_segment(data)[1] == whole


@pytest.mark.parametrize("version", [1, blocks.FORMAT_VERSION + 1])
def test_a_segment_of_an_unknown_format_is_refused_as_foreign(version: int) -> None:
    with pytest.raises(blocks.ForeignSegment, match=f"format {version}"):
        blocks.read_header(of_version(version, uuid4()))


def of_version(version: int, app_id: UUID) -> bytes:
    """A segment header that is whole, and says that it is of this format."""
    head = bytearray(blocks.segment_header(app_id, 1)[0][:-4])
    head[8:12] = version.to_bytes(4, "little")
    return bytes(head) + zlib.crc32(head).to_bytes(4, "little")
