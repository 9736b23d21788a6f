import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from monitors import roles

MONDAY = datetime(2024, 1, 1, tzinfo=UTC)


def rows(*splits: dict[str, int] | None) -> pl.DataFrame:
    """A row an hour, drawn by these splits in turn."""
    times = [MONDAY + timedelta(hours=k) for k in range(len(splits))]
    texts = [None if split is None else json.dumps(split) for split in splits]
    columns = {"request_time": times, "__time": times}
    return pl.DataFrame({**columns, "route_split": pl.Series(texts, dtype=pl.String)})


def pairs(body: dict[str, str], frame: pl.DataFrame, hour: int | None = None) -> list[list[str]]:
    start = None if hour is None else MONDAY + timedelta(hours=hour)
    found = roles.assign(body, roles.splits(frame), start)
    return [[one.champion, one.challenger] for one in found.pairs]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"champion": "a", "challenger": "b"}, ["a", "b"]),
        ({}, ["v1", "v2"]),
        ({"champion": "v2"}, ["v2", "v1"]),
        ({"challenger": "v1"}, ["v2", "v1"]),
    ],
)
def test_roles_that_nobody_named_follow_the_newest_split(body, expected):
    assert pairs(body, rows({"v1": 90, "v2": 10})) == [expected]


def test_one_version_alone_has_no_challenger():
    assert pairs({}, rows({"v1": 100})) == []
    assert pairs({}, rows(None)) == [] and pairs({}, pl.DataFrame()) == []
    assert pairs({}, rows({"v1": 100, "v2": 0})) == [["v1", "v2"]]


def test_every_version_that_had_traffic_and_has_a_route_is_a_challenger():
    frame = rows(
        {"v1": 80, "v2": 0, "v9": 10, "old": 10},
        {"v1": 80, "v2": 0, "v9": 20, "v10": 0},
        {"v1": 80, "v2": 0, "v9": 0, "v10": 20},
        None,
    )
    assert pairs({}, frame) == [["v1", "v9"], ["v1", "v10"]]  # v2 never had a share
    # old as well: it had its chance
    assert roles.assign({}, roles.splits(frame), None).started == 3
    assert pairs({}, frame, hour=2) == [["v1", "v10"]]
    assert roles.assign({}, roles.splits(frame), MONDAY + timedelta(hours=2)).started == 1
    assert pairs({"challenger": "v9"}, frame) == [["v1", "v9"]]
    assert pairs({"champion": "v10"}, frame) == [["v10", "v1"], ["v10", "v9"]]
