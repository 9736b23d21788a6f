"""Recorded rows read back: by time, version, id, text and feature value; with their labels.

For monitors and for the child that answers reads; never loaded by a gateway. An operation is
`operation(settings, arguments) -> JSON values`; OPERATIONS lists them with those of `series`, and
`python -m capture.query` serves them alone (see `capture.reading`).
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
    rows,
    series,
    unpack,
)
from capture import labels as label_rows
from capture.settings import Settings

NEWEST_FIRST = ["request_time", "databricks_request_id", "row_index"]
NEAR = timedelta(seconds=10)  # between the time in a request's id and its `request_time`
FORMULA = r"^[=+\-@\t\r]"  # what spreadsheets would run
PARTS = ("gateway", "queue", "features", "predict")
_EMPTY = pl.from_arrow(rows.PAYLOAD_SCHEMA.empty_table())
assert isinstance(_EMPTY, pl.DataFrame)
PAYLOAD_TYPES = _EMPTY.schema
UNPACKED_TYPES = pl.Schema(
    {
        **{name: PAYLOAD_TYPES.get(name, pl.Int32) for name in unpack.FIXED},
        "prediction": pl.Float64,
        "score": pl.Float64,
        "unpack_errors": pl.List(pl.String),
    }
)


# Tables ------------------------------------------------------------------------------------------


def scan(settings: Settings, full_name: str) -> pl.LazyFrame | None:
    """A table's newest version; None if there is no such table."""
    path = str(delta.path_of(settings, full_name))
    if not deltalake.DeltaTable.is_deltatable(path):
        return None
    return pl.scan_delta(deltalake.DeltaTable(path))


def sibling(full_name: str, suffix: str) -> str:
    """The table beside a recorded one, whichever of them was named."""
    return str(names.table_name(full_name).sibling(suffix))


def unpacked(
    settings: Settings,
    full_name: str,
    start: datetime | None = None,
    end: datetime | None = None,
    columns: Sequence[str] | None = None,
    time_column: str = "request_time",
) -> pl.LazyFrame:
    """Typed rows with `start <= time < end`, times aware; no table yet: no rows.

    `prediction`, `score` and `unpack_errors` are always there. full_name: of the payload table or
    one beside it. Rows are pruned by day where the time is `request_time`.
    """
    found = scan(settings, sibling(full_name, "unpacked"))
    frame = pl.LazyFrame(schema=UNPACKED_TYPES) if found is None else found
    missing = [name for name in UNPACKED_TYPES if name not in frame.collect_schema()]
    frame = frame.with_columns(pl.lit(None, UNPACKED_TYPES[name]).alias(name) for name in missing)
    time = pl.col(time_column)
    if start is not None:
        frame = frame.filter(time >= start)
    if end is not None:
        frame = frame.filter(time < end)
    if time_column == "request_time":
        frame = frame.filter(_days(start, end))
    return frame if columns is None else frame.select(columns)


def _days(start: datetime | None, end: datetime | None) -> pl.Expr:
    day = pl.col("request_date")
    wanted = [pl.lit(True)]
    if start is not None:
        wanted.append(day >= start.astimezone(UTC).date())
    if end is not None:
        wanted.append(day <= end.astimezone(UTC).date())
    return pl.all_horizontal(wanted)


def labels(
    settings: Settings,
    full_name: str,
    until: datetime | None = None,
    of: pl.DataFrame | None = None,
) -> pl.LazyFrame:
    """The newest label of each request row, among those with `label_time <= until`.

    of: only labels that may be of these few rows are looked at."""
    found = scan(settings, sibling(full_name, "labels"))
    if found is None:
        empty = pl.from_arrow(rows.LABEL_SCHEMA.empty_table())
        assert isinstance(empty, pl.DataFrame)
        found = empty.lazy()
    if until is not None:
        found = found.filter(pl.col("label_time") <= until)
    if of is not None:
        ids = ("databricks_request_id", "client_request_id")
        found = found.filter(
            pl.any_horizontal(pl.col(name).is_in(of[name].drop_nulls().to_list()) for name in ids)
        )
    return label_rows.newest(found)


def joined(
    settings: Settings,
    full_name: str,
    until: datetime | None = None,
    time_column: str = "request_time",
) -> pl.DataFrame:
    """Unpacked rows up to a time with what was known of their truth by then.

    Adds `label` (double, or text; booleans are 1 and 0) and `label_time`; null where none has come.
    A label goes by databricks_request_id, else by client_request_id, and row_index.
    """
    frame = unpacked(settings, full_name, time_column=time_column)
    if until is not None:
        frame = frame.filter(pl.col(time_column) <= until)
    return with_labels(frame.collect(), labels(settings, full_name, until).collect())


def with_labels(frame: pl.DataFrame, newest: pl.DataFrame) -> pl.DataFrame:
    """Rows with the columns `label` and `label_time`, in their order. newest: as `labels` gives."""
    parsed = newest.with_columns(label_values(newest["label"]))
    found = frame
    for id_column in ("databricks_request_id", "client_request_id"):
        by = [id_column, "row_index"]
        known = parsed.drop_nulls(id_column)
        if id_column == "client_request_id":
            known = known.filter(pl.col("databricks_request_id").is_null())
        known = known.select(
            *by,
            pl.col("label").alias(f"label_by_{id_column}"),
            pl.col("label_time").alias(f"label_time_by_{id_column}"),
        )
        found = found.join(known, on=by, how="left", maintain_order="left")
    return found.with_columns(
        pl.coalesce(f"{name}_by_databricks_request_id", f"{name}_by_client_request_id").alias(name)
        for name in ("label", "label_time")
    ).drop(
        f"{name}_by_{id_column}"
        for name in ("label", "label_time")
        for id_column in ("databricks_request_id", "client_request_id")
    )


def label_values(texts: pl.Series) -> pl.Series:
    """JSON texts of labels as one column: double if all are numbers or booleans, else text.

    `null` is no label: it takes back the one before."""
    values = {text: orjson.loads(text) for text in texts.unique().drop_nulls()}
    known = {text: value for text, value in values.items() if value is not None}
    if all(isinstance(value, int | float) for value in known.values()):
        numbers = {text: float(value) for text, value in known.items()}
        return texts.replace_strict(numbers, default=None, return_dtype=pl.Float64)
    words = {text: value if isinstance(value, str) else text for text, value in known.items()}
    return texts.replace_strict(words, default=None, return_dtype=pl.String)


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
        (row, recorded.endpoint_name)
        for recorded in tables
        for row in _newest_rows(settings, recorded.full_name, wanted, after, size + 1)
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
            recorded = catalog.everything(connection)
    finally:
        engine.dispose()
    if table:
        payload = sibling(table, "payload")
        return [_one([one for one in recorded if one.full_name == payload], "Table", table)]
    if endpoint is None or endpoint == "":
        return recorded
    wanted = [endpoint] if isinstance(endpoint, str) else endpoint
    return [
        _one([one for one in recorded if one.endpoint_name == name], "Endpoint", name)
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
    frame = unpacked(settings, full_name, wanted.start, wanted.end)
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
    page = pl.concat(parts)
    return with_labels(page, labels(settings, full_name, of=page).collect()).to_dicts()


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
    path = str(delta.path_of(settings, sibling(full_name, "unpacked")))
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
    payload = scan(settings, sibling(full_name, "payload"))
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
        for recorded in _tables(settings, given):
            row = _payload_row(settings, recorded.full_name, request_id, at)
            if row is not None:
                return _detail(settings, recorded, row)
    raise errors.DoesNotExist(f"Request '{request_id[:100]}' is not recorded.")


def _payload_row(
    settings: Settings, full_name: str, request_id: str, at: datetime
) -> dict[str, Any] | None:
    payload = scan(settings, full_name)
    if payload is None:
        return None
    near = pl.col("request_time").is_between(at - NEAR, at + NEAR)
    found = payload.filter(
        _days(at - NEAR, at + NEAR), near, pl.col("databricks_request_id") == request_id
    ).collect()
    return found.row(0, named=True) if len(found) else None


def _detail(
    settings: Settings, recorded: catalog.RecordedTable, row: dict[str, Any]
) -> dict[str, Any]:
    at: datetime = row["request_time"]
    frame = unpacked(settings, recorded.full_name, at, at + timedelta(microseconds=1))
    typed = frame.filter(pl.col("databricks_request_id") == row["databricks_request_id"])
    found = typed.sort("row_index").collect()
    labelled = with_labels(found, labels(settings, recorded.full_name, of=found).collect())
    parts = {f"{part}_ms": (row.pop(f"{part}_us") or 0) / 1000 for part in PARTS}
    known = labelled.filter(pl.col("label").is_not_null())
    return {
        **row,
        "endpoint": recorded.endpoint_name,
        "table": recorded.full_name,
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
    frame = unpacked(settings, full_name, wanted.start, wanted.end)
    found = frame.filter(_passes(frame, wanted))
    if wanted.text is not None:
        ids = _with_text(settings, full_name, wanted.text, date.min, date.max)
        found = found.join(ids, on="databricks_request_id", how="semi")
    labelled = with_labels(
        found.sort(NEWEST_FIRST).collect(), labels(settings, full_name).collect()
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
    """How far the record is: {"table", "committed_rows", "lag_seconds", "wal_bytes",
    "last_commit_time", "commit_version"}.

    arguments: `table`, and `now_ms` (Unix milliseconds) that the lag is measured at. The lag is 0
    while nothing waits in the log, else the time since the table's last commit.
    """
    full_name = sibling(str(arguments["table"]), "payload")
    known = _committed(settings)
    told = known.get("tables", {}).get(full_name, {})
    backlog = known.get("backlog_bytes", 0)
    last_ms = told.get("last_commit_ms")
    lag = 0.0
    if backlog and last_ms is not None:
        lag = max(0.0, (int(arguments["now_ms"]) - last_ms) / 1000)
    return {
        "table": full_name,
        "committed_rows": told["rows"] if "rows" in told else _count(settings, full_name),
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
    frame = scan(settings, full_name)
    return 0 if frame is None else frame.select(pl.len()).collect().item()


def unmatched(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, int]:
    """How many labels name a request that is not in the table (yet): {"unmatched": n}.

    arguments: `table`, `ids`: [{"databricks_request_id"} or {"client_request_id"}, ...].
    """
    payload = scan(settings, sibling(str(arguments["table"]), "payload"))
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
    return _days(ends[0] - NEAR, ends[1] + NEAR)


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
