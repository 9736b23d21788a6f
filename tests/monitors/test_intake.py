from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors import intake

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)


def times(*hours: float) -> pl.Series:
    return pl.Series("t", [MONDAY + timedelta(hours=h) for h in hours], dtype=intake.TIME)


@pytest.mark.parametrize(
    "series",
    [
        pl.Series([datetime(2024, 1, 1)]),
        pl.Series([datetime(2024, 1, 1)], dtype=pl.Datetime("ms")),
        pl.Series([MONDAY]),
        pl.Series([MONDAY]).dt.convert_time_zone("America/New_York"),
        pl.Series(["2024-01-01T00:00:00Z"]),
        pl.Series(["2024-01-01T01:00:00+01:00"]),
        pl.Series([MONDAY.date()]),
    ],
)
def test_times_of_every_kind_are_utc(series):
    assert intake.as_times(series).to_list() == [MONDAY]


def test_what_is_no_time_is_null():
    assert intake.as_times(pl.Series(["soon", None])).to_list() == [None, None]
    assert intake.as_times(pl.Series([1.5])).to_list() == [None]


def test_a_wrong_date_far_ahead_is_set_aside():
    assert intake.story_clock(times(*range(200), 24 * 365), None) == MONDAY + timedelta(hours=199)
    assert intake.story_clock(times(), None) is None
    assert intake.story_clock(times(), MONDAY) == MONDAY


def test_the_clock_goes_on_after_a_long_pause_and_never_back():
    later = times(*range(24 * 60, 24 * 60 + 50))
    assert intake.story_clock(later, MONDAY) == MONDAY + timedelta(hours=24 * 60 + 49)
    assert intake.story_clock(times(-5), MONDAY) == MONDAY


@given(st.lists(st.integers(0, 160), min_size=1, max_size=50))
def test_ordinary_rows_set_the_clock_to_the_newest(hours):
    assert intake.story_clock(times(*hours), None) == MONDAY + timedelta(hours=max(hours))


def labels(*rows: tuple) -> pl.DataFrame:
    """(databricks_request_id, client_request_id, row_index, label, hours)"""
    frame = pl.DataFrame(
        list(rows),
        schema={
            "databricks_request_id": pl.String, "client_request_id": pl.String,
            "row_index": pl.Int32, "label": pl.String, "hours": pl.Float64,
        },
        orient="row",
    )  # fmt: skip
    at = pl.lit(MONDAY).cast(intake.TIME) + pl.duration(minutes=pl.col("hours") * 60)
    return frame.with_columns(label_time=at).drop("hours").sort("label_time")


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
    found = intake.with_labels(ROWS, known)
    assert found["label"].to_list() == [0.0, None, 1.0, None]
    assert found["label_time"].to_list()[0] == MONDAY + timedelta(hours=2)
    assert found.drop("label", "label_time").equals(ROWS)
    again = intake.with_labels(found, known)
    assert again.equals(found)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", "0", None], [1.0, 0.0, None]),
        (["true", "false"], [1.0, 0.0]),
        (["1.5", "true"], [1.5, 1.0]),
        (['"late"', '"on time"'], ["late", "on time"]),
        (['"late"', "3"], ["late", "3"]),
        ([None, None], [None, None]),
    ],
)
def test_labels_become_numbers_or_texts(texts, expected):
    assert intake.scalars(pl.Series(texts, dtype=pl.String)).to_list() == expected


SOME_IDS = st.sampled_from(["a", "b", "c", "d", None])
SOME_LABELS = st.lists(
    st.tuples(
        SOME_IDS, SOME_IDS, st.integers(0, 1), st.sampled_from(["1", "0", '"late"']),
        st.integers(0, 30),
    ),
    max_size=4,
)  # fmt: skip


@given(
    steps=st.lists(st.tuples(st.integers(0, 3), SOME_LABELS, st.booleans()), min_size=1, max_size=6)
)
def test_labels_that_come_bit_by_bit_end_as_if_all_had_come_at_once(steps):
    """What changed is told, too: the times of the rows whose label is another than before."""
    kept, rows, sent = intake.Labels(""), pl.DataFrame(), 0
    for step, (count, come, together) in enumerate(steps):
        names = ["abcd"[(sent + k) % 4] for k in range(count)]
        new = pl.DataFrame(
            {
                "databricks_request_id": names,
                "client_request_id": [name.upper() for name in names],
                "row_index": pl.Series([(sent + k) // 4 for k in range(count)], dtype=pl.Int32),
                "__time": pl.Series([MONDAY] * count, dtype=intake.TIME),
            },
            schema_overrides={"databricks_request_id": pl.String, "client_request_id": pl.String},
        )
        sent += count
        upper = [(one, other and other.upper(), *rest) for one, other, *rest in come]
        kept.rows = pl.concat([kept.rows, labels(*upper)])
        kept.news = pl.concat([kept.news, labels(*upper)])
        rows = pl.concat([rows, new], how="diagonal_relaxed") if rows.width else new
        if together and step < len(steps) - 1:
            continue
        until = MONDAY + timedelta(hours=5 * step)
        before = rows["label_time"] if "label_time" in rows.columns else None
        rows, changed = kept.join(rows, until)
        known = kept.rows.filter(pl.col("label_time") <= until)
        wanted = intake.with_labels(rows, known.sort("label_time", maintain_order=True))
        assert rows.drop("label").equals(wanted.drop("label"))
        assert texts(rows["label"]) == texts(wanted["label"])
        if before is None:
            before = pl.Series([None] * rows.height, dtype=intake.TIME)
        assert len(changed) == rows["label_time"].ne_missing(before).sum()


def texts(column: pl.Series) -> list[str | None]:
    """Labels without regard to how a number is written."""
    return [None if value is None else str(value).removesuffix(".0") for value in column]
