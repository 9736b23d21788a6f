"""Questions on recorded requests: pages, one request, exports, how far the record is.

An operation is `operation(settings, arguments) -> JSON values`; OPERATIONS lists them with those of
`series`, and `python -m capture.query` serves them alone (see `capture.reading`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import orjson
import polars as pl

from capture import (
    catalog,
    database,
    delta,
    errors,
    filters,
    names,
    reading,
    recorded,
    series,
    unpack,
)
from capture.settings import Settings

NEWEST_FIRST = ["request_time", "databricks_request_id", "row_index"]
NEAR = timedelta(seconds=10)  # between the time in a request's id and its `request_time`
FORMULA = r"^[=+\-@\t\r]"  # what spreadsheets would run
PARTS = ("gateway", "queue", "features", "predict")


# Pages -------------------------------------------------------------------------------------------


def requests_page(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A page of unpacked rows, newest first: {"requests": [...], "next_page_token"?}.

    arguments: `table` or `endpoint` (one name or a list; none: every recorded table), the filters
    of `filters.parse`, `page_size` (100), `page_token`. A row has its columns, `endpoint`, `label`,
    `label_time`. Raises InvalidParameter, DoesNotExist (an endpoint that never recorded).
    """
    given = dict(arguments)
    tables = _tables(settings, given)
    size = filters.page_rows(given.pop("page_size", None))
    token = given.pop("page_token", None)
    after = filters.place(token) if token else None
    wanted = filters.parse(given)
    found = [
        (row, table.endpoint_name)
        for table in tables
        for row in _newest_rows(settings, table.full_name, wanted, after, size + 1)
    ]
    found.sort(key=lambda one: tuple(one[0][name] for name in NEWEST_FIRST), reverse=True)
    page = [{"endpoint": endpoint, **row} for row, endpoint in found[:size]]
    reply: dict[str, Any] = {"requests": page}
    if len(found) > size:
        last = page[-1]
        time_us = round(last["request_time"].timestamp() * 1_000_000)
        ended = filters.Place(time_us, last["databricks_request_id"], last["row_index"])
        reply["next_page_token"] = filters.token(ended)
    return reply


def _tables(settings: Settings, given: dict[str, Any]) -> list[catalog.RecordedTable]:
    """The recorded tables that arguments name; takes `table` and `endpoint` out of them."""
    table, endpoint = given.pop("table", None), given.pop("endpoint", None)
    engine = database.open_engine(settings)
    try:
        with database.reading(engine) as connection:
            known = catalog.everything(connection)
    finally:
        engine.dispose()
    if table:
        payload = recorded.sibling(table, "payload")
        return [_one([one for one in known if one.full_name == payload], "Table", table)]
    if endpoint is None or endpoint == "":
        return known
    wanted = [endpoint] if isinstance(endpoint, str) else endpoint
    return [
        _one([one for one in known if one.endpoint_name == name], "Endpoint", name)
        for name in wanted
    ]


def _one(found: list[catalog.RecordedTable], kind: str, name: str) -> catalog.RecordedTable:
    if not found:
        raise errors.DoesNotExist(f"{kind} '{name[:200]}' has no recorded requests.")
    return max(found, key=lambda one: (one.enabled, one.created_ms))


def _newest_rows(
    settings: Settings,
    full_name: str,
    wanted: filters.Filters,
    after: filters.Place | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Up to `limit` rows, newest first, with their labels; days are read from the newest back."""
    frame = recorded.unpacked(settings, full_name, wanted.start, wanted.end)
    passing = frame.filter(_passes(frame, wanted))
    if after is not None:
        passing = passing.filter(filters.after(after))
    parts: list[pl.DataFrame] = []
    missing = limit
    for days in _days_back(settings, full_name, wanted, after):
        day = passing.filter(pl.col("request_date").is_between(days[-1], days[0]))
        if wanted.text is not None:
            ids = _with_text(settings, full_name, wanted.text, days[-1], days[0])
            day = day.join(ids, on="databricks_request_id", how="semi")
        part = _top(day, missing)
        parts.append(part)
        missing -= len(part)
        if missing <= 0:
            break
    if not parts:
        return []
    return recorded.labelled(settings, full_name, pl.concat(parts)).to_dicts()


def _passes(frame: pl.LazyFrame, wanted: filters.Filters) -> pl.Expr:
    schema = frame.collect_schema()
    return filters.condition(wanted, schema, features_of(schema))


def features_of(schema: pl.Schema) -> dict[str, str]:
    """Feature -> column, for what a client or a lookup brought and what the model answered."""
    own = set(unpack.FIXED) | {"unpack_errors"}
    found = {name: name for name in schema if name not in own}
    suffixed = {name.removesuffix("_"): name for name in schema if name not in own}
    return {**found, **{bare: name for bare, name in suffixed.items() if bare in unpack.RESERVED}}


def _top(frame: pl.LazyFrame, limit: int) -> pl.DataFrame:
    """The newest rows. First their keys alone: all columns of a day may be a lot to sort."""
    keys = frame.select(NEWEST_FIRST).top_k(limit, by=NEWEST_FIRST).collect()
    if keys.is_empty():
        return frame.head(0).collect()
    ends = keys["request_time"].min(), keys["request_time"].max()
    return (
        frame.filter(pl.col("request_time").is_between(*ends))
        .join(keys.lazy(), on=NEWEST_FIRST, how="semi")
        .sort(NEWEST_FIRST, descending=True)
        .collect()
    )


def _days_back(
    settings: Settings,
    full_name: str,
    wanted: filters.Filters,
    after: filters.Place | None,
) -> Iterator[list[date]]:
    """Days that the table has, newest first, in ever larger groups: rare rows may lie far back."""
    path = str(delta.path_of(settings, recorded.sibling(full_name, "unpacked")))
    if not deltalake.DeltaTable.is_deltatable(path):
        return
    texts = {one["request_date"] for one in deltalake.DeltaTable(path).partitions()}
    days = sorted((date.fromisoformat(text) for text in texts), reverse=True)
    newest = datetime.fromtimestamp(after.time_us / 1e6, UTC).date() if after else date.max
    oldest = wanted.start.date() if wanted.start else date.min
    days = [day for day in days if oldest <= day <= newest]
    size = 1
    while days:
        yield days[:size]
        days, size = days[size:], size * 2


def _with_text(
    settings: Settings, full_name: str, text: str, first: date, last: date
) -> pl.LazyFrame:
    """Ids of requests in whose body or answer a text stands, as it stands."""
    payload = recorded.scan(settings, recorded.sibling(full_name, "payload"))
    if payload is None:
        return pl.LazyFrame(schema={"databricks_request_id": pl.String})
    holds = [pl.col(name).str.contains(text, literal=True) for name in ("request", "response")]
    within = pl.col("request_date").is_between(first, last)
    return payload.filter(within, pl.any_horizontal(holds)).select("databricks_request_id")


# One request -------------------------------------------------------------------------------------


def request_detail(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """One request: all that was recorded, its rows, and its labels.

    arguments: `id` (databricks_request_id), and `table` or `endpoint` to look in one place only.
    Gives the payload's columns, with `request` and `response` as received, `looked_up` as
    {"feature": [value per row]}, `parts` {"gateway_ms", "queue_ms", "features_ms", "predict_ms"},
    `duration_ms`, `endpoint`, `table`, `rows` (unpacked), `labels`
    [{"row_index", "label", "label_time"}] and `label`, the first row's. Raises DoesNotExist.
    """
    given = dict(arguments)
    request_id = str(given.pop("id", ""))
    sent_ms = names.request_time_ms(request_id)
    if sent_ms is not None:
        at = datetime.fromtimestamp(sent_ms / 1000, UTC)
        for table in _tables(settings, given):
            row = _payload_row(settings, table.full_name, request_id, at)
            if row is not None:
                return _detail(settings, table, row)
    raise errors.DoesNotExist(f"Request '{request_id[:100]}' is not recorded.")


def _payload_row(
    settings: Settings, full_name: str, request_id: str, at: datetime
) -> dict[str, Any] | None:
    payload = recorded.scan(settings, full_name)
    if payload is None:
        return None
    near = pl.col("request_time").is_between(at - NEAR, at + NEAR)
    found = payload.filter(
        recorded.days(at - NEAR, at + NEAR), near, pl.col("databricks_request_id") == request_id
    ).collect()
    return found.row(0, named=True) if len(found) else None


def _detail(
    settings: Settings, table: catalog.RecordedTable, row: dict[str, Any]
) -> dict[str, Any]:
    at: datetime = row["request_time"]
    frame = recorded.unpacked(settings, table.full_name, at, at + timedelta(microseconds=1))
    typed = frame.filter(pl.col("databricks_request_id") == row["databricks_request_id"])
    found = typed.sort("row_index").collect()
    labelled = recorded.labelled(settings, table.full_name, found)
    parts = {f"{part}_ms": (row.pop(f"{part}_us") or 0) / 1000 for part in PARTS}
    known = labelled.filter(pl.col("label").is_not_null())
    return {
        **row,
        "endpoint": table.endpoint_name,
        "table": table.full_name,
        "looked_up": None if row["looked_up"] is None else orjson.loads(row["looked_up"]),
        "usage_context": _pairs(row["usage_context"]),
        "parts": parts,
        "duration_ms": sum(parts.values()),
        "rows": labelled.to_dicts(),
        "labels": known.select("row_index", "label", "label_time").to_dicts(),
        "label": labelled["label"].first() if len(labelled) else None,
    }


def _pairs(found: Any) -> dict[str, str] | None:
    """A map column's value: a dictionary, or before polars 2 a list of key and value."""
    if found is None or isinstance(found, dict):
        return found
    return {one["key"]: one["value"] for one in found}


# Export ------------------------------------------------------------------------------------------


def export(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Write unpacked rows with their labels into a file, oldest day first: {"path", "rows"}.

    arguments: `format` (parquet | csv), `path` of a file that is not there yet, `table` or
    `endpoint`, and the filters of `filters.parse`. In CSV, times are RFC 3339, and a text that a
    spreadsheet would run as a formula begins with an apostrophe.
    """
    given = dict(arguments)
    form, path = given.pop("format", None), Path(given.pop("path"))
    if form not in _WRITERS:
        raise errors.InvalidParameter(
            f"format: '{str(form)[:100]}' is not allowed; use {' or '.join(_WRITERS)}."
        )
    tables = _tables(settings, given)
    if len(tables) != 1:
        raise errors.InvalidParameter("An export is of one endpoint; name it with endpoint=.")
    full_name = tables[0].full_name
    wanted = filters.parse(given)
    frame = recorded.unpacked(settings, full_name, wanted.start, wanted.end)
    found = frame.filter(_passes(frame, wanted))
    if wanted.text is not None:
        ids = _with_text(settings, full_name, wanted.text, date.min, date.max)
        found = found.join(ids, on="databricks_request_id", how="semi")
    labelled = recorded.with_labels(
        found.sort(NEWEST_FIRST).collect(), recorded.labels(settings, full_name).collect()
    )
    _WRITERS[form](labelled, path)
    return {"path": str(path), "rows": len(labelled)}


def _write_parquet(frame: pl.DataFrame, path: Path) -> None:
    frame.write_parquet(path, compression_level=1)


def _write_csv(frame: pl.DataFrame, path: Path) -> None:
    columns = []
    for name, kind in frame.schema.items():
        column = pl.col(name)
        if isinstance(kind, pl.List):
            column = column.cast(pl.List(pl.String)).list.join("; ")
        if isinstance(kind, pl.Datetime):
            column = column.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
        if isinstance(kind, pl.List | pl.String):
            column = pl.when(column.str.contains(FORMULA)).then("'" + column).otherwise(column)
        columns.append(column.alias(name))
    safe = frame.select(columns)
    runs = [name for name in safe.columns if name[:1] in tuple("=+-@\t\r")]
    safe.rename({name: f"'{name}" for name in runs}).write_csv(path)


_WRITERS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    "parquet": _write_parquet,
    "csv": _write_csv,
}


# Facts -------------------------------------------------------------------------------------------


def capture_status(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How far the record is: {"table", "committed_rows", "committed_labels", "lag_seconds",
    "wal_bytes", "last_commit_time", "commit_version"}.

    arguments: `table`, and `now_ms` (Unix milliseconds) that the lag is measured at. The lag is 0
    while nothing waits in the log, else the time since the table's last commit.
    """
    full_name = recorded.sibling(str(arguments["table"]), "payload")
    known = _committed(settings)
    told = known.get("tables", {}).get(full_name, {})
    labels_name = recorded.sibling(full_name, "labels")
    labels = known.get("tables", {}).get(labels_name, {})
    backlog = known.get("backlog_bytes", 0)
    last_ms = told.get("last_commit_ms")
    lag = 0.0
    if backlog and last_ms is not None:
        lag = max(0.0, (int(arguments["now_ms"]) - last_ms) / 1000)
    return {
        "table": full_name,
        "committed_rows": told["rows"] if "rows" in told else _count(settings, full_name),
        "committed_labels": labels["rows"] if "rows" in labels else _count(settings, labels_name),
        "lag_seconds": lag,
        "wal_bytes": backlog,
        "last_commit_time": None if last_ms is None else datetime.fromtimestamp(last_ms / 1e3, UTC),
        "commit_version": told.get("commit_version"),
    }


def _committed(settings: Settings) -> dict[str, Any]:
    try:
        return orjson.loads((settings.run_dir / "committed.json").read_bytes())
    except FileNotFoundError:
        return {}


def _count(settings: Settings, full_name: str) -> int:
    frame = recorded.scan(settings, full_name)
    return 0 if frame is None else frame.select(pl.len()).collect().item()


def unmatched(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, int]:
    """How many labels name a request that is not in the table (yet): {"unmatched": n}.

    arguments: `table`, `ids`: [{"databricks_request_id"} or {"client_request_id"}, ...].
    """
    payload = recorded.scan(settings, recorded.sibling(str(arguments["table"]), "payload"))
    ids: list[Mapping[str, Any]] = arguments["ids"]
    missing = 0
    for name in ("databricks_request_id", "client_request_id"):
        asked = [one[name] for one in ids if one.get(name) is not None and _goes_by(one, name)]
        missing += len(asked)
        if payload is None or not asked:
            continue
        wanted = pl.LazyFrame({name: asked}, schema={name: pl.String})
        near = _days_of(asked) if name == "databricks_request_id" else pl.lit(True)
        known = payload.filter(near).select(name)
        missing -= wanted.join(known, on=name, how="semi").select(pl.len()).collect().item()
    return {"unmatched": missing}


def _goes_by(label: Mapping[str, Any], name: str) -> bool:
    return name == "databricks_request_id" or label.get("databricks_request_id") is None


def _days_of(request_ids: Sequence[str]) -> pl.Expr:
    """The days between the first and the last request, by the times in their ids."""
    times = [ms for one in request_ids if (ms := names.request_time_ms(one)) is not None]
    if not times:
        return pl.lit(False)
    ends = [datetime.fromtimestamp(ms / 1000, UTC) for ms in (min(times), max(times))]
    return recorded.days(ends[0] - NEAR, ends[1] + NEAR)


OPERATIONS: dict[str, reading.Operation] = {
    "requests_page": requests_page,
    "request_detail": request_detail,
    "export": export,
    "capture_status": capture_status,
    "unmatched": unmatched,
    "timeseries": series.timeseries,
    "usage": series.usage,
}

if __name__ == "__main__":
    reading.serve(OPERATIONS)
