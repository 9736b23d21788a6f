"""Rows and labels on disk: whatever comes in whatever order, also after a death, the rows have the
labels that a reader of everything would give them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import held, intake, truth

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
IDS = "abcdefgh"
Label = tuple[str | None, str | None, int, str, int]


def requests(first: int, count: int) -> pl.DataFrame:
    """Rows of which some share their request's id, and some their client's."""
    numbers = range(first, first + count)
    return pl.DataFrame(
        {
            "databricks_request_id": [f"{IDS[k % 8]}{k // 16}" for k in numbers],
            "client_request_id": [None if k % 5 == 0 else f"{IDS[k % 8]}" for k in numbers],
            "row_index": pl.Series([k // 8 % 2 for k in numbers], dtype=pl.Int32),
            "served_entity_name": [f"v{1 + k % 2}" for k in numbers],
            "prediction": [None if k % 7 == 0 else float(k % 2) for k in numbers],
            "route_split": ['{"v1": 50, "v2": 50}'] * count,
            "request_time": [MONDAY] * count,
            "config_version": [1 + k // 20 for k in numbers],
            "__time": pl.Series(
                [MONDAY + timedelta(minutes=7 * (k * 37 % 100)) for k in numbers],
                dtype=truth.TIME,
            ),
        },
        schema_overrides={"databricks_request_id": pl.String, "client_request_id": pl.String},
    )


def labels(come: list[Label]) -> pl.DataFrame:
    rows = [(*one[:4], MONDAY + timedelta(hours=one[4])) for one in come]
    return pl.DataFrame(rows, schema=truth.SCHEMA, orient="row")


def expected(rows: pl.DataFrame, come: list[Label], until: datetime) -> list[tuple]:
    """(id, row index, time, newest label and when it was told) of every row, one by one."""
    found = []
    for row in rows.iter_rows(named=True):
        told = [
            (MONDAY + timedelta(hours=hours), text)
            for own, client, index, text, hours in come
            if index == row["row_index"]
            and (
                (own is not None and own == row["databricks_request_id"])
                or (client is not None and client == row["client_request_id"])
            )
            and MONDAY + timedelta(hours=hours) <= until
        ]
        time, text = max(told, default=(None, None))
        found.append((row["databricks_request_id"], row["row_index"], row["__time"], text, time))
    return sorted(found, key=str)


def as_read(rows: held.Held) -> list[tuple]:
    parts = list(rows.rows.between(*held.EVER))
    if not parts:
        return []
    every = pl.concat(parts, how="diagonal_relaxed")
    wanted = ["databricks_request_id", "row_index", "__time", "label", "label_time"]
    return sorted(every.select(wanted).iter_rows(), key=str)


SOME_LABELS = st.lists(
    st.tuples(
        st.none() | st.sampled_from([f"{letter}{n}" for letter in IDS for n in range(4)]),
        st.none() | st.sampled_from(IDS), st.integers(0, 1),
        st.sampled_from(["1", "0", "0", '"late"', "null"]), st.integers(0, 30),
    ),
    max_size=6,
)  # fmt: skip
STEPS = st.lists(
    st.tuples(
        st.integers(0, 15),  # rows
        SOME_LABELS,
        st.integers(0, 8),  # hours that pass
        st.sampled_from(["goes on", "saves", "saves and begins again", "dies"]),
        st.booleans(),  # labels that were there come once more, as after a compaction
    ),
    min_size=1,
    max_size=7,
)


@settings(deadline=None, max_examples=60)
@given(steps=STEPS)
def test_labels_late_early_repeated_or_of_nobody_are_those_of_a_full_read(
    tmp_path_factory: pytest.TempPathFactory, steps: list
) -> None:
    folder = tmp_path_factory.mktemp("monitor") / "held"
    kept = held.Held(folder, True, "served_entity_name", piece_rows=16)
    saved, at_save = None, (0, 0, 0)
    sent, come, hours = 0, [], 0
    every, told = requests(0, 200), []
    for count, more, passed, then, again in steps:
        kept.add(every[sent : sent + count])
        sent, hours = sent + count, hours + passed
        come = come + more
        until = MONDAY + timedelta(hours=hours)
        before, mark = as_read(kept), kept.mark
        changed = [kept.come_due(until), kept.take(labels(come if again else more), until, again)]
        turned = kept.joined(until)
        wanted = expected(every[:sent], come, until)
        assert as_read(kept) == wanted
        moved = {one[2] for one in set(wanted) - set(before)}
        assert {time for times in changed for time in times.to_list()} == moved
        hours_moved = {held.arms.microseconds(time) // held.arms.HOUR for time in moved}
        assert hours_moved == set(kept.changed_since(mark)) or turned
        _counts_are_right(kept, every[:sent], wanted)
        if then.startswith("saves"):
            saved, at_save = kept.save(), (sent, len(come), hours)
            kept.clean(saved)
            told = list(come)
        if then == "saves and begins again":
            kept = held.Held(folder, True, "served_entity_name", saved, piece_rows=16)
            assert as_read(kept) == wanted
        if then == "dies":  # what was not saved comes again
            kept = held.Held(folder, True, "served_entity_name", saved, piece_rows=16)
            sent, _, hours = at_save
            come = list(told)


def _turned(rows: list[tuple]) -> bool:
    return any(text == '"late"' for *_, text, _ in rows)


def _counts_are_right(kept: held.Held, rows: pl.DataFrame, wanted: list[tuple]) -> None:
    tally = kept.tally
    assert tally.hours["rows"].sum() == rows.height
    assert tally.labelled == sum(text not in (None, "null") for *_, text, _ in wanted)
    assert (tally.words > 0) == _turned(wanted)
    frame = kept.frame()
    if not rows.height:
        assert frame.is_empty()
        return
    assert tally.labelled == frame.height - frame["label"].null_count()
    answered = frame.filter(pl.col("prediction").is_not_null())
    share = 1 - answered["label"].null_count() / answered.height if answered.height else None
    assert tally.coverage(MONDAY) == pytest.approx(share)
    newest = rows["config_version"].max()
    under = (rows["config_version"] == newest) & (rows["row_index"] == 0)
    of_v1 = (under & (rows["served_entity_name"] == "v1")).sum()
    assert tally.newest_configuration("v1") == (newest, of_v1)
    assert tally.versions == set(rows["served_entity_name"])


def test_only_rows_that_are_not_held_are_unknown(tmp_path: Path) -> None:
    kept = held.Held(tmp_path / "held", True, piece_rows=16)
    every = requests(0, 60).select("databricks_request_id", "row_index", "__time")
    kept.add(requests(0, 40))
    assert kept.unknown(every).equals(every[40:])
    kept = held.Held(tmp_path / "held", True, saved=kept.save())
    assert kept.unknown(every).equals(every[40:])


def test_a_lost_file_or_another_way_of_hashing_ids_is_said_at_once(tmp_path: Path) -> None:
    kept = held.Held(tmp_path / "held", True)
    kept.add(requests(0, 40))
    saved = kept.save()
    with pytest.raises(intake.ReadAnew, match="hashed"):
        held.Held(tmp_path / "held", True, saved={**saved, "probe": 1})
    (tmp_path / "held" / saved["row_keys"][0]).unlink()
    with pytest.raises(intake.ReadAnew, match="gone"):
        held.Held(tmp_path / "held", True, saved=saved)


def test_the_newest_times_are_found_among_the_latest_rows_or_before(tmp_path: Path) -> None:
    kept = held.Held(tmp_path / "held", False)
    times = [MONDAY + timedelta(minutes=m) for m in (0, 1, 2, 3, 600)]
    rows = {"__time": pl.Series(times, dtype=truth.TIME), "as_of": [MONDAY, None, *times[:3]]}
    kept.add(pl.DataFrame(rows))
    assert kept.newest("as_of", times[-1], 2)["__time"].to_list() == times[-2:]
    assert kept.newest("as_of", times[3], 9)["__time"].to_list() == [times[0], *times[2:4]]
    assert kept.newest("absent", times[-1], 2).is_empty()
