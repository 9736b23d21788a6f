"""Questions on Delta tables that the gateway's reading child answers: `python -m monitors.reads`.

Its operations are those of `capture.query` and these: what monitors and experiments have found,
read from the metric tables and from what the monitors keep.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from capture import errors, names, query, reading
from capture.settings import Settings
from monitors import (
    alert_state,
    alerts,
    baseline,
    contract,
    custom_checks,
    formulas,
    intake,
    kept,
    mirrored,
    policies,
    profile,
    slices,
    tables,
    trials,
)

MOST_DECISIONS = 1000
BINS = 50
CELL_FIELDS = (
    "status",
    "severity",
    "metric",
    "value",
    "threshold",
    "bound",
    "n",
    "n_baseline",
    "pvalue",
    "effect",
    "null_share",
    "null_share_baseline",
    "text",
)
PLACES = {"served_entity": "version", "compared_with": "window_cmp"}  # field -> column
PLACE_FIELDS = tuple(PLACES)


def _uri(settings: Settings, full_name: str) -> str:
    return names.table_path(settings.tables_root, names.table_name(full_name))


def _rfc3339(time: datetime) -> str:
    return intake.utc(time).isoformat().replace("+00:00", "Z")


# --- tables --------------------------------------------------------------------------------------


def table_info(settings: Settings, arguments: dict[str, Any]) -> dict[str, Any]:
    """Columns and version of a Delta table; `exists` false where there is none."""
    table = tables.open_table(_uri(settings, arguments["table"]))
    if table is None:
        return {"exists": False, "columns": [], "commit_version": None}
    columns = [
        {
            "name": field.name,
            "type": getattr(field.type, "type", None) or str(field.type),
            "nullable": field.nullable,
        }
        for field in table.schema().fields
    ]
    return {"exists": True, "columns": columns, "commit_version": table.version()}


def check_expressions(settings: Settings, arguments: dict[str, Any]) -> dict[str, Any]:
    """Nothing, or InvalidParameter for a slicing expression or custom metric that names a node that
    is not allowed, or a column that the table lacks; a table that comes later may have any."""
    name, config = arguments["table"], arguments["config"]
    table = tables.open_table(_uri(settings, name))
    for text in config.get("slicing_exprs") or ():
        if table is None:
            columns = slices.names_in(text)
        else:
            columns = [field.name for field in table.schema().fields]
        slices.parse([text], columns)
    if config.get("custom_metrics"):
        custom_checks.check(
            config,
            None if table is None else pl.scan_delta(table).collect_schema(),
            [
                tables.open_table(_uri(settings, one))
                for one in contract.metric_tables(name, config)
            ],
            names.table_name(name).table.endswith("_unpacked"),
        )
    return {}


def check_metrics(settings: Settings, arguments: dict[str, Any]) -> dict[str, Any]:
    """Nothing, or InvalidParameter for a metric whose `value` cannot be computed from the table; a
    table that comes later may have any column, and then the language alone is checked."""
    metrics, name = policies.Policy.parse(arguments["policy"]).placed_metrics, arguments["table"]
    table = tables.open_table(_uri(settings, name)) if name is not None else None
    columns = None if table is None else dict(pl.scan_delta(table).collect_schema())
    formulas.check(metrics, columns)
    return {}


# --- drift ---------------------------------------------------------------------------------------


def drift(settings: Settings, arguments: dict[str, Any]) -> dict[str, Any]:
    """Columns x windows of one granularity, the column that is farthest over its limit first.

    Answers (prediction, score) are compared per version; without `served_entity` a cell shows the
    version that answered most in its window. `fields`: those of a cell that are wanted, comma
    between; a map of many cells needs few. Raises BadRequest for one that cells do not have."""
    filters = arguments["filters"]
    fields = _wanted_fields(filters)
    wanted = pl.col("status").is_not_null()  # rows that hold custom metrics alone have none
    wanted &= pl.col("drift_type") == filters.get("type", kept.BASELINE)
    if "column" in filters:
        wanted &= pl.col("column_name") == filters["column"]
    needed = {"column_name", "kind", "start", "end", "version", "n", "effect"}
    needed |= {PLACES.get(field, field) for field in fields}
    rows = _metric_rows(settings, arguments["drift_table"], arguments, wanted, sorted(needed))
    rows = _of_version(rows, arguments)
    if rows.height == 0:
        return {"table": arguments["table"], "windows": [], "columns": [], **_shown(arguments)}
    rows = rows.sort("column_name", "start")
    windows = rows.select("start", "end").unique().sort("start").rows()
    spans = {both: [_rfc3339(side) for side in both] for both in windows}
    found = zip(rows["column_name"], _cells(rows, fields, spans), strict=True)
    cells = {name: [cell for _, cell in group] for name, group in groupby(found, itemgetter(0))}
    heads = rows.group_by("column_name").agg(pl.col("kind").first(), pl.col("effect").max())
    columns = [
        {"name": name, "kind": kind, "rank": 0, "effect": effect or 0.0, "cells": cells[name]}
        for name, kind, effect in heads.iter_rows()
    ]
    columns.sort(key=lambda column: (-column["effect"], column["name"]))
    for rank, column in enumerate(columns, 1):
        column["rank"] = rank
    return {
        "table": arguments["table"],
        "windows": list(spans.values()),
        "columns": columns,
        **_shown(arguments),
    }


def _wanted_fields(filters: Mapping[str, str]) -> tuple[str, ...]:
    if "fields" not in filters:
        return PLACE_FIELDS + CELL_FIELDS
    fields = tuple(name.strip() for name in filters["fields"].split(","))
    for name in fields:
        if name not in PLACE_FIELDS + CELL_FIELDS:
            raise errors.BadRequest(
                f"fields: a cell has no '{name[:100]}'; it has "
                f"{', '.join(PLACE_FIELDS + CELL_FIELDS)}."
            )
    return fields


def _judged(rows: pl.DataFrame) -> pl.DataFrame:
    """Without rows that hold custom metrics alone."""
    return rows.filter(pl.col("status").is_not_null()) if "status" in rows.columns else rows


def _shown(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"granularity": _granularity(arguments)}


def _granularity(arguments: Mapping[str, Any]) -> str | None:
    given = arguments["filters"].get("granularity")
    return given if given is not None else arguments.get("granularity")


def _metric_rows(
    settings: Settings,
    full_name: str,
    arguments: Mapping[str, Any],
    wanted: pl.Expr | None = None,
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Rows of a metric table in the asked time, of one granularity, with `start`, `end` and
    `version`. wanted: a further condition; columns: those that are needed, by default all."""
    table = tables.open_table(_uri(settings, full_name))
    if table is None:
        return pl.DataFrame(schema={"drift_type": pl.String, "column_name": pl.String})
    filters, model = arguments["filters"], arguments.get("model_id_col")
    rows = (
        pl.scan_delta(table)
        .with_columns(
            start=pl.col("window").struct.field("start"),
            end=pl.col("window").struct.field("end"),
            version=pl.col(model) if model else pl.lit(None, pl.String),
        )
        .filter(pl.col("log_type") == "INPUT")
    )
    granularity = _granularity(arguments)
    if granularity is not None:
        rows = rows.filter(pl.col("granularity") == granularity)
    if wanted is not None:
        rows = rows.filter(wanted)
    if "from" in filters:
        rows = rows.filter(pl.col("end") > datetime.fromisoformat(filters["from"]))
    if "to" in filters:
        rows = rows.filter(pl.col("start") < datetime.fromisoformat(filters["to"]))
    rows = rows.filter(_in_slice(arguments))
    return (rows if columns is None else rows.select(columns)).collect()


def _in_slice(arguments: Mapping[str, Any]) -> pl.Expr:
    """Rows of the slice that is asked for, else of no slice; of a rule's slices, where it has any:
    one, or every value of an expression."""
    key, value = pl.col("slice_key"), pl.col("slice_value")
    wanted = arguments.get("rule_slice")
    if wanted is not None:
        return (key == wanted) | (pl.concat_str(key, pl.lit("="), value) == wanted)
    text, cut = _wanted_slice(arguments["filters"]) or (None, None)
    ours = key.eq_missing(pl.lit(text, pl.String))
    return ours & value.eq_missing(pl.lit(cut, pl.String))


def _wanted_slice(filters: Mapping[str, str]) -> slices.Slice | None:
    """`expression=value`; the expression itself may hold an equals sign. Raises BadRequest."""
    if "slice" not in filters:
        return None
    text, equals, value = filters["slice"].rpartition("=")
    if not equals:
        raise errors.BadRequest("slice: write the slicing expression, '=' and its value.")
    return text, value


def _of_version(rows: pl.DataFrame, arguments: Mapping[str, Any]) -> pl.DataFrame:
    if rows.height == 0:
        return rows
    asked = arguments["filters"].get("served_entity")
    if asked is not None:
        return rows.filter(pl.col("version") == asked)
    is_output = pl.col("column_name").is_in(list(arguments.get("outputs") or ()))
    if arguments.get("model_id_col") is None:
        return rows
    features = rows.filter(~is_output & pl.col("version").is_null())
    answers = (
        rows.filter(is_output & pl.col("version").is_not_null())
        .sort("n", descending=True, nulls_last=True)
        .unique(["column_name", "start"], keep="first", maintain_order=True)
    )
    return pl.concat([features, answers])


def _cells(
    rows: pl.DataFrame,
    fields: Sequence[str],
    spans: Mapping[tuple[datetime, datetime], list[str]],
) -> list[dict[str, Any]]:
    named = rows.select(pl.col(PLACES.get(field, field)).alias(field) for field in fields)
    places = rows.select("start", "end").iter_rows()
    cells = [
        {"window": spans[place], **cell}
        for place, cell in zip(places, named.iter_rows(named=True), strict=True)
    ]
    if "compared_with" in fields:
        for cell in cells:
            cell["compared_with"] = _span(cell["compared_with"])
    return cells


def _span(window: Mapping[str, Any] | None) -> list[str] | None:
    if window is None or window["start"] is None:
        return None
    return [_rfc3339(window["start"]), _rfc3339(window["end"])]


# --- histograms ----------------------------------------------------------------------------------


def profiles(settings: Settings, arguments: dict[str, Any]) -> dict[str, Any]:
    """Histograms of one column, over the same bins: a window, the window before, the baseline."""
    filters = arguments["filters"]
    column = filters.get("column")
    if column is None:
        raise errors.BadRequest("column: name the column whose histograms are wanted.")
    folder = kept.folder_of(settings, arguments["table_id"])
    manifest = kept.read_manifest(folder)
    if manifest is None or column not in manifest.columns:
        raise errors.DoesNotExist(f"Column '{column[:100]}' is not watched by this monitor.")
    key = _wanted_window(manifest, filters, _granularity(arguments))
    version = filters.get("served_entity")
    current = _profile(folder, manifest, key, (version, column)) if key else None
    before = None
    if key is not None and key.granularity is not None:
        earlier = key.previous
        before = _profile(folder, manifest, earlier, (version, column))
    outputs = arguments.get("outputs") or ()
    base = baseline.load_profile(folder, _wanted_slice(filters), version, column, outputs)
    sides = {"current": current, "baseline": base, "previous": before}
    edges = _edges([one for one in sides.values() if one is not None])
    return {
        "column": column,
        "kind": manifest.columns[column]["kind"],
        "window": _span_of(key),
        "served_entity": version,
        **{name: _side(one, edges) for name, one in sides.items()},
    }


def _wanted_window(
    manifest: kept.Manifest, filters: Mapping[str, str], granularity: str | None
) -> kept.WindowKey | None:
    """The window that begins and ends as asked; without a time the newest."""
    wanted = _wanted_slice(filters)
    every = (kept.WindowKey.read(text) for text in manifest.windows)
    known = sorted((key for key in every if key.slice == wanted), key=lambda key: key.start)
    if "window_start" in filters:
        start = datetime.fromisoformat(filters["window_start"])
        known = [key for key in known if key.start == start]
    if "window_end" in filters:
        end = datetime.fromisoformat(filters["window_end"])
        known = [key for key in known if key.span[1] == end]
    else:
        known = [key for key in known if key.granularity == granularity] or known
    return known[-1] if known else None


def _span_of(key: kept.WindowKey | None) -> list[str] | None:
    return None if key is None else [_rfc3339(side) for side in key.span]


def _profile(
    folder: Path, manifest: kept.Manifest, key: kept.WindowKey, group: kept.Group
) -> kept.Profile | None:
    name = manifest.windows.get(key.text)
    if name is None:
        return None
    try:
        return kept.read_profile(folder / name, group)
    except FileNotFoundError:
        raise errors.Unavailable("The window is being computed anew; ask again.") from None


def _edges(sides: Sequence[kept.Profile]) -> list[float] | None:
    numeric = [one for one in sides if isinstance(one, profile.NumericProfile)]
    return profile.edges(numeric, BINS) if numeric else None


def _side(one: kept.Profile | None, edges: list[float] | None) -> dict[str, Any] | None:
    if one is None:
        return None
    if isinstance(one, profile.NumericProfile):
        bins = profile.histogram(one, BINS, edges)
    else:
        bins = profile.histogram(one, BINS)
    return {"rows": one.rows, "nulls": one.nulls, "histogram": bins}


# --- quality -------------------------------------------------------------------------------------


def quality(settings: Settings, arguments: dict[str, Any]) -> dict[str, Any]:
    """Metrics per version and window with their intervals, label coverage and delay."""
    rows = _metric_rows(settings, arguments["profile_table"], arguments)
    empty: dict[str, Any] = {"windows": [], "series": [], "coverage": [], **_shown(arguments)}
    if rows.height == 0 or "quality" not in rows.columns:
        return {**empty, "label_delay_hours": {"p50": None, "p95": None}}
    filters = arguments["filters"]
    rows = rows.filter((pl.col("column_name") == ":table") & pl.col("quality").is_not_null())
    if "served_entity" in filters:
        rows = rows.filter(pl.col("version") == filters["served_entity"])
    points: dict[tuple[str | None, str], list[dict[str, Any]]] = {}
    coverage: list[dict[str, Any]] = []
    delays: dict[str, float | None] = {"p50": None, "p95": None}
    for row in rows.sort("start", "version", nulls_last=False).iter_rows(named=True):
        both = orjson.loads(row["quality"])
        _add_points(points, row, both, filters.get("metric"))
        share = both["realized"].get("label_coverage") or {}
        window = [_rfc3339(row["start"]), _rfc3339(row["end"])]
        coverage.append(
            {"window": window, "served_entity": row["version"], "value": share.get("value")}
        )
        for name in delays:
            delay = (both["realized"].get(f"label_delay_{name}_seconds") or {}).get("value")
            if delay is not None and row["version"] is None:
                delays[name] = delay / 3600
    windows = rows.select("start", "end").unique().sort("start").rows()
    return {
        "windows": [[_rfc3339(start), _rfc3339(end)] for start, end in windows],
        "series": [
            {"served_entity": version, "metric": metric, "points": series}
            for (version, metric), series in points.items()
        ],
        "coverage": coverage,
        "label_delay_hours": delays,
        **_shown(arguments),
    }


def _add_points(
    points: dict[tuple[str | None, str], list[dict[str, Any]]],
    row: Mapping[str, Any],
    both: Mapping[str, Mapping[str, Any]],
    wanted: str | None,
) -> None:
    coverage = both["realized"].get("label_coverage") or {}
    rows = coverage.get("n") or row["count"]
    for metric, found in both["realized"].items():
        if metric.startswith("label_") or wanted not in (None, metric):
            continue
        estimated = both["estimated"].get(metric) or {}
        points.setdefault((row["version"], metric), []).append(
            {
                "window": [_rfc3339(row["start"]), _rfc3339(row["end"])],
                "value": found.get("value"),
                "low": found.get("low"),
                "high": found.get("high"),
                "n": found.get("n"),
                "labelled": found.get("n"),
                "rows": rows,
                "reason": found.get("reason"),
                "estimated": estimated.get("value"),
            }
        )


# --- rules on the past ---------------------------------------------------------------------------


def try_rule(settings: Settings, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """When a rule would have opened an alert between two times, over all granularities."""
    rule = alert_state.Rule(**arguments["rule"])
    by_version = arguments.get("model_id_col") is not None
    made: list[alerts.Fact] = []
    for granularity in arguments["granularities"] or [None]:
        asked = {**arguments, "granularity": granularity, "rule_slice": rule.slice}
        if rule.metric in trials.ON_DRIFT:
            rows = _metric_rows(settings, arguments["drift_table"], asked)
            rows = _judged(rows).filter(pl.col("drift_type") == kept.BASELINE)
            made += trials.of_drift(rows, rule.metric, arguments["outputs"], by_version)
        else:
            rows = _metric_rows(settings, arguments["profile_table"], asked)
            if "quality" in rows.columns:
                rows = rows.filter(pl.col("quality").is_not_null())
                made += trials.of_quality(rows, rule.metric)
    return trials.fired(rule, made)


# --- decisions -----------------------------------------------------------------------------------


def decisions(settings: Settings, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Decisions of an experiment, newest first: the newest per challenger of the present champion,
    or with `history` all of this endpoint."""
    name = names.table_name(arguments["table"]).sibling("decisions")
    table = tables.open_table(names.table_path(settings.tables_root, name))
    if table is None:
        return []
    rows = pl.scan_delta(table)
    if not arguments["history"]:
        rows = rows.filter(pl.col("experiment") == arguments["experiment"])
    newest = rows.sort("written_time", "challenger", descending=[True, False])
    found = newest.head(MOST_DECISIONS).collect()
    if not arguments["history"] and found.height:
        found = found.filter(pl.col("champion").eq_missing(found["champion"][0]))
        found = found.unique("challenger", keep="first", maintain_order=True)
    return [_decision(row) for row in found.iter_rows(named=True)]


def _decision(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **orjson.loads(row["decision"]),
        "decided_time": _rfc3339(row["decided_time"]),
        "experiment": row["experiment"],
        "kind": row["kind"],
        "config_version": row["config_version"],
        "requests": row["requests"],
    }


OPERATIONS: dict[str, Callable[[Settings, dict[str, Any]], Any]] = {
    **query.OPERATIONS,
    "table_info": table_info,
    "check_expressions": check_expressions,
    "check_metrics": check_metrics,
    "drift": drift,
    "profiles": profiles,
    "quality": quality,
    "decisions": decisions,
    "shadow_comparison": mirrored.comparison,
    "try_rule": try_rule,
}


if __name__ == "__main__":
    reading.serve(OPERATIONS)
