import gzip
import json
import random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import errors, names
from serving import wire
from serving.gateway import bodies


@given(time_ns=st.integers(0, 2**48 * 10**6 - 1), seed=st.integers())
def test_a_request_number_is_a_uuid_of_version_7_with_its_time(time_ns, seed):
    found = UUID(int=bodies.request_number(time_ns, random.Random(seed)))
    assert (found.version, found.variant) == (7, "specified in RFC 4122")
    assert names.request_time_ms(str(found)) == time_ns // 1_000_000


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("", wire.JSON),
        ("application/json", wire.JSON),
        ("Application/JSON; charset=UTF-8", wire.JSON),
        ("text/csv", wire.CSV),
        ("application/x-parquet", wire.PARQUET),
        ("application/vnd.apache.parquet", wire.PARQUET),
    ],
)
def test_content_types_that_are_offered(header, kind):
    assert bodies.content_type(header) == kind


@given(body=st.binary(), most=st.integers(1, 300))
def test_gzip_gives_the_body_back_or_says_that_it_is_too_large(body, most):
    packed = gzip.compress(body)
    if len(body) > most:
        with pytest.raises(errors.BadRequest, match=f"Body over {most} bytes"):
            bodies.decoded(packed, b"gzip", most)
    else:
        assert bodies.decoded(packed, b"gzip", most) == body


@given(noise=st.binary())
def test_no_bytes_raise_anything_but_a_bad_request(noise):
    bodies.sides(noise)
    try:
        bodies.decoded(noise, b"gzip", 100)
    except errors.BadRequest as refused:
        assert refused.message


def test_side_fields_are_found_in_bodies_that_a_model_refuses():
    body = {"dataframe_records": 3, "client_request_id": "r", "usage_context": {"a": "b"}}
    found = bodies.sides(json.dumps(body).encode())
    assert (found.client_request_id, found.usage_context) == ("r", {"a": "b"})
    broken = json.dumps({**body, "usage_context": 7}).encode()
    assert bodies.sides(broken).client_request_id == "r"
    assert bodies.sides(b'{"client_request_id": "r"').client_request_id is None


def test_targets_are_taken_apart():
    assert bodies.named(b"/serving-endpoints/e/invocations") == ("e", None)
    assert bodies.named(b"/serving-endpoints/e/served-models/m/invocations") == ("e", "m")
    with pytest.raises(errors.RouteNotFound, match="No route POST /serving-endpoints/e"):
        bodies.named(b"/serving-endpoints/e")
