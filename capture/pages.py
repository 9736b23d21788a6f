"""Recorded requests page by page, newest first: what was looked for last is found first."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import polars as pl

from capture import filters, recorded, selection, stretches
from capture.settings import Settings


def requests_page(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A page of unpacked rows, newest first: {"requests": [...], "next_page_token"?}.

    arguments: `table` or `endpoint` (one name or a list; none: every recorded table), the filters
    of `filters.parse`, `page_size` (100), `page_token`. A row has its columns, `endpoint`, `label`,
    `label_time`. Raises InvalidParameter, DoesNotExist (an endpoint that never recorded).
    """
    given = dict(arguments)
    tables = selection.tables(settings, given)
    size = filters.page_rows(given.pop("page_size", None))
    token = given.pop("page_token", None)
    after = filters.place(token) if token else None
    wanted = filters.parse(given)
    found = [
        (row, table.endpoint_name)
        for table in tables
        for row in _newest_rows(settings, table.full_name, wanted, after, size + 1)
    ]
    found.sort(key=lambda one: tuple(one[0][name] for name in selection.NEWEST_FIRST), reverse=True)
    page = [{"endpoint": endpoint, **row} for row, endpoint in found[:size]]
    reply: dict[str, Any] = {"requests": page}
    if len(found) > size:
        last = page[-1]
        time_us = (last["request_time"] - stretches.EPOCH) // stretches.INSTANT
        ended = filters.Place(time_us, last["databricks_request_id"], last["row_index"])
        reply["next_page_token"] = filters.token(ended)
    return reply


def _newest_rows(
    settings: Settings,
    full_name: str,
    wanted: filters.Filters,
    after: filters.Place | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Up to `limit` rows, newest first, with their labels; older ones are read where the newest do
    not suffice."""
    passing = selection.Selection(settings, full_name, wanted)
    parts: list[pl.DataFrame] = []
    missing = limit
    end = None if after is None else stretches.EPOCH + timedelta(microseconds=after.time_us + 1)
    for within in passing.back(end):
        rows = passing.rows(within)
        if after is not None:
            rows = rows.filter(filters.after(after))
        part = _top(rows, missing)
        parts.append(part)
        missing -= len(part)
        if missing <= 0:
            break
    if not parts:
        return []
    return recorded.labelled(settings, full_name, pl.concat(parts)).to_dicts()


def _top(frame: pl.LazyFrame, limit: int) -> pl.DataFrame:
    """The newest rows. First their keys alone: all columns of a stretch may be a lot to sort."""
    by = selection.NEWEST_FIRST
    keys = frame.select(by).top_k(limit, by=by).collect()
    if keys.is_empty():
        return frame.collect_schema().to_frame()
    ends = keys["request_time"].min(), keys["request_time"].max()
    return (
        frame.filter(pl.col("request_time").is_between(*ends))
        .join(keys.lazy(), on=by, how="semi")
        .sort(by, descending=True)
        .collect()
    )
