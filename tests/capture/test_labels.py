import io
import json
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import errors, labels, rows

NOW = 20_000 * 86_400_000_000 + 5


def body(*found: Any) -> bytes:
    return json.dumps({"labels": list(found)}).encode()


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def parsed(*found: Any) -> list[rows.Label]:
    return labels.parse_json(body(*found), NOW, "alice")


def test_a_label_needs_an_id_and_a_value_and_gets_the_rest() -> None:
    assert parsed({"client_request_id": "c", "label": True}) == [
        rows.Label(
            received_date=20_000,
            databricks_request_id=None,
            client_request_id="c",
            row_index=0,
            label="true",
            label_time=NOW,
            received_time=NOW,
            requester="alice",
        )
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (0.5, "0.5"), ("späte", '"späte"'), (False, "false"), (None, "null")],
)
def test_a_label_is_any_json_scalar(value: Any, text: str) -> None:
    assert parsed({"client_request_id": "c", "label": value})[0].label == text


def test_the_label_time_is_kept_to_the_microsecond_in_any_zone() -> None:
    item = {"client_request_id": "c", "label": 1, "label_time": "1970-01-02T01:00:00.000001+01:00"}
    assert parsed(item)[0].label_time == 86_400_000_001


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (7, "labels[1] is no object"),
        ({"label": 1}, "labels[1] needs"),
        ({"client_request_id": "c"}, "labels[1].label is missing"),
        ({"client_request_id": "c", "label": [1]}, "labels[1].label must be"),
        ({"client_request_id": "c", "label": {}}, "labels[1].label must be"),
        ({"client_request_id": 7, "label": 1}, "labels[1].client_request_id"),
        ({"client_request_id": "", "label": 1}, "labels[1].client_request_id"),
        ({"client_request_id": "c" * 1025, "label": 1}, "labels[1].client_request_id"),
        ({"client_request_id": "c", "label": 1, "row_index": -1}, "labels[1].row_index"),
        ({"client_request_id": "c", "label": 1, "row_index": True}, "labels[1].row_index"),
        ({"client_request_id": "c", "label": 1, "row_index": 1.5}, "labels[1].row_index"),
        ({"client_request_id": "c", "label": 1, "label_time": "soon"}, "labels[1].label_time"),
        ({"client_request_id": "c", "label": 1, "label_time": 17}, "labels[1].label_time"),
        (
            {"client_request_id": "c", "label": 1, "label_time": "2024-01-01T00:00:00"},
            "labels[1].label_time",
        ),
        ({"client_request_id": "c", "label": "x" * 5000}, "labels[1].label is longer"),
        ({"client_request_id": "c", "label": 1, "lable": 2}, "unknown field 'lable'"),
    ],
)
def test_one_bad_label_refuses_all_and_is_named(item: Any, message: str) -> None:
    with pytest.raises(errors.BadRequest) as caught:
        parsed({"client_request_id": "c", "label": 1}, item)
    assert message in caught.value.message


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"labels": 1}', b'{"labels": [], "x": 1}'])
def test_a_body_of_another_form_is_refused(text: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        labels.parse_json(text, NOW, None)


def test_more_labels_than_are_taken_at_once_are_refused() -> None:
    one = {"client_request_id": "c", "label": 1}
    with pytest.raises(errors.BadRequest, match="10001 labels; at most 10000"):
        parsed(*([one] * 10_001))


@given(text=st.binary(max_size=200))
def test_no_bytes_are_more_than_a_bad_request(text: bytes) -> None:
    for parse in (labels.parse_json, labels.parse_parquet):
        try:
            parse(text, NOW, None)
        except errors.BadRequest:
            continue


def test_a_parquet_body_gives_the_same_labels() -> None:
    moment = datetime(2024, 10, 4, 12, 0, 0, 7, tzinfo=UTC)
    data = parquet(
        databricks_request_id=["a", "b"],
        row_index=[0, 3],
        label=[0.5, 1.0],
        label_time=pa.array([moment, None], pa.timestamp("us", "UTC")),
    )
    first, second = labels.parse_parquet(data, NOW, "alice")
    as_json = {"databricks_request_id": "a", "label": 0.5, "label_time": moment.isoformat()}
    assert first == parsed(as_json)[0]
    assert (second.row_index, second.label, second.label_time) == (3, "1.0", NOW)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"client_request_id": ["a", None], "label": [1, 1]}, "labels[1] needs"),
        ({"client_request_id": ["a", "b"], "label": [1.0, float("nan")]}, "labels[1].label"),
        ({"client_request_id": ["a"], "label": [[1]]}, "labels[0].label"),
    ],
)
def test_a_bad_row_of_a_parquet_body_is_named(columns: Any, message: str) -> None:
    with pytest.raises(errors.BadRequest) as caught:
        labels.parse_parquet(parquet(**columns), NOW, None)
    assert message in caught.value.message


def frame(*found: tuple[str | None, str | None, int, str, int, int]) -> pl.DataFrame:
    names = ("databricks_request_id", "client_request_id", "row_index", "label")
    return pl.DataFrame(list(found), [*names, "label_time", "received_time"], orient="row")


def counting(known: pl.DataFrame) -> list[str]:
    assert (
        labels.newest(known.lazy())
        .collect()
        .sort("label")
        .equals(labels.newest(known).sort("label"))
    )
    return sorted(labels.newest(known)["label"])


def test_the_newest_label_time_counts_whatever_came_last() -> None:
    assert counting(frame(("a", None, 0, "new", 9, 1), ("a", None, 0, "old", 3, 2))) == ["new"]


def test_of_equal_label_times_the_one_received_last_counts() -> None:
    assert counting(frame(("a", None, 0, "late", 3, 8), ("a", None, 0, "soon", 3, 2))) == ["late"]


def test_rows_of_a_request_and_kinds_of_ids_are_told_apart() -> None:
    known = frame(
        ("a", None, 0, "by request", 1, 1),
        ("a", "c", 1, "second row", 1, 1),
        (None, "a", 0, "by client", 1, 1),
        ("a", "other", 1, "the same row", 2, 2),
    )
    assert counting(known) == ["by client", "by request", "the same row"]
