from typing import Any

import pytest

from capture import blocks, decoding, encoding, rows

MANY = encoding.COLUMNWISE_ROWS


def payload(request_id: str, **other: Any) -> rows.Payload:
    values: dict[str, Any] = dict.fromkeys(rows.Payload._fields)
    values |= dict.fromkeys(
        ("request_date", "status_code", "execution_duration_ms", "gateway_us", "queue_us"), 0
    )
    values |= {"features_us": 0, "predict_us": 0, "sampling_fraction": 1.0, "shadow": False}
    values |= {"endpoint_id": "e", "request_encoding": "utf-8", "request_time": 0}
    return rows.Payload(**(values | {"databricks_request_id": request_id} | other))


def column(name: str, group: list[rows.Payload]) -> list[Any]:
    """A column of a group that was encoded and read back."""
    data = blocks.signed(encoding.encode("t", "payload", group))
    return decoding.decode(data, blocks.recover(data).blocks)[name].to_pylist()


@pytest.mark.parametrize("count", [1, 2, MANY])
def test_a_lone_surrogate_becomes_a_question_mark_and_the_row_is_kept(count: int) -> None:
    assert column("request", [payload("a", request="x\ud800é")] * count) == ["x?é"] * count


@pytest.mark.parametrize("count", [1, 2, MANY])
def test_a_number_beyond_its_column_is_brought_to_the_columns_end(count: int) -> None:
    group = [payload("a", predict_us=2**40)] * count
    assert column("predict_us", group) == [2**31 - 1] * count


@pytest.mark.parametrize("count", [1, 2, MANY])
def test_a_null_number_is_null_and_its_neighbours_are_not(count: int) -> None:
    group = [payload(str(n), route_share=0.5 if n else None) for n in range(count)]
    assert column("route_share", group) == [None, *[0.5] * (count - 1)]


def test_a_text_that_some_rows_have_in_common_is_only_theirs() -> None:
    common = "v1"
    group = [payload("a", model_version=common if n % 3 else "ü") for n in range(MANY)]
    assert column("model_version", group) == [common if n % 3 else "ü" for n in range(MANY)]


@pytest.mark.parametrize("count", [1, 3, MANY])
def test_a_block_ends_where_it_says(count: int) -> None:
    group = [payload(str(n), usage_context={"team": str(n)}) for n in range(count)]
    whole = blocks.signed(encoding.encode("c.s.t", "payload", group))
    assert blocks.recover(whole).end == len(whole)
