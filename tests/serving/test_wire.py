import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import wire

U32 = st.integers(0, 2**32 - 1)
requests = st.builds(
    wire.Request,
    id=st.integers(0, 2**64 - 1),
    kind=st.sampled_from(wire.KINDS),
    flags=st.integers(0, 255),
    content_type=st.sampled_from(wire.CONTENT_TYPES),
    deadline_ms=U32,
    payload=st.binary(max_size=300),
)
answers = st.builds(
    wire.Answer,
    id=st.integers(0, 2**64 - 1),
    status=st.integers(100, 599),
    content_type=st.sampled_from(wire.CONTENT_TYPES),
    rows=U32,
    queue_us=U32,
    features_us=U32,
    predict_us=U32,
    error_source=st.sampled_from(wire.ERROR_SOURCES),
    body=st.binary(max_size=300),
    client_request_id=st.none() | st.text(max_size=20),
    usage_context=st.none() | st.binary(max_size=30),
    looked_up=st.none() | st.binary(max_size=30),
)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def packed(request: wire.Request) -> bytes:
    return wire.pack_request(
        request.id,
        request.payload,
        request.kind,
        request.content_type,
        request.deadline_ms,
        request.flags,
    )


@given(sent=st.lists(requests, max_size=6), cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_requests_arrive_whole_however_the_stream_is_torn(sent, cuts):
    reader = wire.request_reader()
    stream = b"".join(packed(request) for request in sent)
    got = [frame for piece in pieces(stream, cuts) for frame in reader.feed(piece)]
    assert got == sent
    assert reader.pending_bytes == 0


@given(sent=st.lists(answers, max_size=6), cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_answers_arrive_whole_however_the_stream_is_torn(sent, cuts):
    reader = wire.answer_reader()
    stream = b"".join(wire.pack_answer(answer) for answer in sent)
    got = [frame for piece in pieces(stream, cuts) for frame in reader.feed(piece)]
    assert got == sent


@given(request=requests, cut=st.floats(0, 1))
def test_a_reader_tells_how_many_bytes_it_waits_for(request, cut):
    reader = wire.request_reader()
    frame = packed(request)
    first = frame[: int(cut * len(frame))]
    if reader.feed(first):
        assert first == frame
    else:
        assert 0 < reader.missing_bytes <= len(frame) - len(first)
        assert reader.feed(frame[len(first) :]) == [request]


@given(noise=st.binary(max_size=200))
def test_noise_is_refused_or_waits_and_never_fails_otherwise(noise):
    for reader in (wire.request_reader(), wire.answer_reader()):
        try:
            reader.feed(noise)
        except wire.BrokenStream:
            continue


def test_a_length_beyond_every_limit_breaks_the_stream():
    header = struct.pack("<IQBBHII", wire.MAX_FRAME_BYTES + 1, 1, wire.PREDICT, 0, 1, 0, 0)
    with pytest.raises(wire.BrokenStream, match="bytes"):
        wire.request_reader().feed(header)


def test_a_header_is_24_bytes_and_an_answer_header_48():
    assert len(wire.pack_probe(7)) == 24
    assert len(wire.pack_answer(wire.Answer(7, 200, 1, 0, 0, 0, 0, None, b""))) == 48
