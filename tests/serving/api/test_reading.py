import pytest

from capture import errors
from serving.api import reading


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{" + b",".join(b'"%d":1' % n for n in range(100_001)) + b"}", "Over 100000 keys"),
        (b"[" + b"1," * 1_000_001 + b"1]", "Over 1000000 values"),
        (b"[" * 300 + b"]" * 300, "Nesting over 200."),
        (b'{"name": "x",}', "Body is not valid JSON: trailing comma is not allowed at byte 12."),
    ],
)
def test_what_is_too_much_or_no_json_is_told(body: bytes, message: str) -> None:
    with pytest.raises(errors.BadRequest) as refused:
        reading.parse(body)
    assert message in refused.value.message


def test_an_empty_body_is_an_empty_object() -> None:
    assert reading.parse(b" ") == {}
