"""Questions on recorded requests: one request, how far the record is, whose labels are early.

An operation is `operation(settings, arguments) -> JSON values`; OPERATIONS lists them with those of
`pages`, `exports`, `series` and `usage`, and `python -m capture.query` serves them alone (see
`capture.reading`).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import polars as pl

from capture import (
    catalog,
    contents,
    delta,
    errors,
    exports,
    names,
    pages,
    reading,
    recorded,
    selection,
    series,
    usage,
)
from capture.settings import Settings

NEAR = timedelta(seconds=10)  # between the time in a request's id and its `request_time`
PARTS = ("gateway", "queue", "features", "predict")


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
        for table in selection.tables(settings, given):
            row = _payload_row(settings, table.full_name, request_id, at)
            if row is not None:
                return _detail(settings, table, row)
    raise errors.DoesNotExist(f"Request '{request_id[:100]}' is not recorded.")


def _payload_row(
    settings: Settings, full_name: str, request_id: str, at: datetime
) -> dict[str, Any] | None:
    near = (at - NEAR, at + NEAR)
    payload = recorded.scan(settings, full_name, *near)
    if payload is None:
        return None
    found = payload.filter(
        *recorded.within(*near), pl.col("databricks_request_id") == request_id
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


# Facts -------------------------------------------------------------------------------------------


def capture_status(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How far the record is: {"table", "committed_rows", "committed_labels", "lag_seconds",
    "wal_bytes", "last_commit_time", "commit_version", "location", "failing"}.

    arguments: `table`, and `now_ms` (Unix milliseconds) that the lag is measured at. The lag is 0
    while nothing waits in the log, else the time since the table's last commit. `location`: the
    table's folder; `failing`: why its commits fail, or null.
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
        "location": str(delta.path_of(settings, full_name)),
        "failing": known.get("failing", {}).get(full_name),
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
        near = _times_of(asked) if name == "databricks_request_id" else []
        known = payload.filter(*near).select(name)
        missing -= wanted.join(known, on=name, how="semi").select(pl.len()).collect().item()
    return {"unmatched": missing}


def _goes_by(label: Mapping[str, Any], name: str) -> bool:
    return name == "databricks_request_id" or label.get("databricks_request_id") is None


def _times_of(request_ids: Sequence[str]) -> list[pl.Expr]:
    """Conditions for rows from the first to the last request, by the times in their ids."""
    times = [ms for one in request_ids if (ms := names.request_time_ms(one)) is not None]
    if not times:
        return [pl.lit(False)]
    first, last = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (min(times), max(times)))
    return recorded.within(first - NEAR, last + NEAR)


OPERATIONS: dict[str, reading.Operation] = {
    "requests_page": pages.requests_page,
    "request_detail": request_detail,
    "export": exports.export,
    "capture_status": capture_status,
    "unmatched": unmatched,
    "timeseries": series.timeseries,
    "usage": usage.usage,
    "table_contents": contents.table_contents,
}

if __name__ == "__main__":
    reading.serve(OPERATIONS)
