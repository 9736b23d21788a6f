from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from monitors import truth

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)


def labels(*rows: tuple) -> pl.DataFrame:
    """(databricks_request_id, client_request_id, row_index, label, hours)"""
    timed = [(*row[:4], MONDAY + timedelta(hours=row[4])) for row in rows]
    return pl.DataFrame(timed, schema=truth.SCHEMA, orient="row")


ROWS = pl.DataFrame(
    {
        "databricks_request_id": ["a", "b", "b", "c"],
        "client_request_id": ["x", "y", "y", None],
        "row_index": pl.Series([0, 0, 1, 0], dtype=pl.Int32),
    }
)


def test_the_newest_label_wins_by_either_id():
    known = labels(
        ("a", None, 0, "1", 1), (None, "x", 0, "0", 2), (None, "y", 1, "1", 1),
        ("b", None, 1, "0", 0.5), ("z", None, 0, "1", 9),
    )  # fmt: skip
    found = truth.renewed(truth.unlabelled(ROWS), truth.sides(known))
    assert found["label"].to_list() == ["0", None, "1", None]
    assert found["label_time"].to_list()[0] == MONDAY + timedelta(hours=2)
    assert found.drop("label", "label_time").equals(ROWS)
    assert truth.renewed(found, truth.sides(known)).equals(found)


def test_no_order_in_which_labels_of_one_moment_come_decides():
    one, other = labels(("a", None, 0, "1", 1)), labels((None, "x", 0, "0", 1))
    for first, second in ((one, other), (other, one)):
        rows = truth.renewed(truth.unlabelled(ROWS), truth.sides(first))
        assert truth.renewed(rows, truth.sides(second))["label"][0] == "1"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", "0", None], [1.0, 0.0, None]),
        (["true", "false"], [1.0, 0.0]),
        (["1.5", "true"], [1.5, 1.0]),
        (['"late"', '"on time"'], ["late", "on time"]),
        (['"late"', "3"], ["late", "3"]),
        (["1", "null"], [1.0, None]),
        (['"late"', "null"], ["late", None]),
        ([None, None], [None, None]),
    ],
)
def test_labels_become_numbers_or_texts(texts, expected):
    series = pl.Series(texts, dtype=pl.String)
    assert truth.scalars(series).to_list() == expected
    assert truth.is_told(series).to_list() == [value is not None for value in expected]
    words = any(isinstance(value, str) for value in expected)
    assert truth.are_words(series).any() == words
    if words:
        numbers = pl.Series(["1"], dtype=pl.String)
        assert truth.scalars(numbers, as_texts=True).to_list() == ["1"]
