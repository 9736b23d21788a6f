import pytest

from serving.gateway import heads

HEADERS = [(b"host", b"t"), (b"content-length", b"3")]
RAW = b"POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 3\r\n\r\n"


def test_a_usual_head_may_be_kept():
    assert heads.is_plain(RAW, HEADERS)


@pytest.mark.parametrize(
    ("raw", "headers"),
    [
        (b"", []),
        (b"\r\n\r\n", HEADERS),
        (b"\r\n" + RAW, HEADERS),
        (RAW.replace(b"POST", b"GET"), HEADERS),
        (RAW.replace(b": t\r\n", b": t\n"), HEADERS),
        (RAW.replace(b": t\r\n", b": t\r"), HEADERS),
        (RAW.replace(b": t\r\n", b": t\r\n more\r\n"), HEADERS),
        (RAW.replace(b"content-length: 3\r\n", b""), HEADERS[:1]),
        (RAW[:-2] + b"content-length: 3\r\n\r\n", [*HEADERS, HEADERS[1]]),
        (
            RAW[:-2] + b"transfer-encoding: chunked\r\n\r\n",
            [*HEADERS, (b"transfer-encoding", b"chunked")],
        ),
    ],
)
def test_a_head_whose_end_or_body_may_be_read_in_two_ways_is_not_kept(raw, headers):
    assert not heads.is_plain(raw, headers)


def test_a_head_is_found_by_all_its_bytes():
    kept = heads.Heads()
    head = heads.Head(b"/x", HEADERS, RAW)
    kept.keep(head)
    assert kept.start(RAW + b"abc") is head
    assert (head.body_bytes, head.headers[b"host"]) == (3, b"t")
    for other in (RAW[:-1], RAW.replace(b"/x", b"/y"), b" " + RAW, b"abc"):
        assert kept.start(other) is None
    kept.forget()
    assert kept.start(RAW) is None


def test_heads_take_no_more_room_than_a_thousand_of_2_kib():
    kept = heads.Heads()
    raws = [RAW.replace(b"/x", b"/%d" % n) for n in range(heads.MOST_HEADS + 5)]
    for raw in raws:
        kept.keep(heads.Head(b"/x", HEADERS, raw))
    assert sum(kept.start(raw) is not None for raw in raws) <= heads.MOST_HEADS
    assert kept.start(raws[-1]) is not None
    long = RAW.replace(b"host: t", b"host: " + b"t" * heads.MOST_HEAD_BYTES)
    assert kept.start(long) is None
