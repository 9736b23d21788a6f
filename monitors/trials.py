"""A rule tried on the past: when it would have opened an alert. Pure.

The facts come from rows of the metric tables and go through the same judgement as those of a
refresh, window by window, so that what would have fired is what does fire.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import polars as pl

from monitors import alert_contract, alert_state, alerts, comparisons, distances, facts

# Short names of distances whose values the drift table holds -> where.
_COLUMNS = {
    "ks": ("ks_test", "statistic"),
    "chi_squared": ("chi_squared_test", "statistic"),
    "wasserstein": ("wasserstein_distance", None),
    "psi": ("population_stability_index", None),
    **{
        name: (name, None)
        for name in (
            *("js_distance", "tv_distance", "l_infinity_distance", "avg_delta", "count_delta"),
            *("percent_null_delta", "percent_zeros_delta", "percent_distinct_delta"),
        )
    },
}
SHOWN = (
    *("metric", "column", "slice", "severity", "opened_time", "closed_time"),
    *("value", "threshold", "n", "window", "message"),
)
ON_DRIFT = frozenset({"drift", "null_share", *_COLUMNS})


def of_drift(
    rows: pl.DataFrame, metric: str, outputs: Sequence[str], by_version: bool
) -> Iterator[alerts.Fact]:
    """Facts of drift rows against the baseline, with `version`, `start` and `end`. Answers count
    per version where versions are told apart, other columns for all together."""
    for row in rows.iter_rows(named=True):
        of_answer = row["column_name"] in outputs and by_version
        if (row["version"] is not None) != of_answer:
            continue
        value = _value(row, metric)
        drifted = row["status"] == "drifted"
        whose = alerts.spoken(_slice(row)) + (f"{row['version']}: " if row["version"] else "")
        name = comparisons.NAMES.get(metric, metric)
        said = row["text"] if metric == "drift" else f"{row['column_name']}: {name} {value}"
        yield alerts.Fact(
            metric=metric,
            column=row["column_name"],
            served_entity=row["version"],
            value=value,
            n=row["n"],
            window=(row["start"].isoformat(), row["end"].isoformat()),
            text=f"{whose}{said}",
            granularity=row["granularity"],
            threshold=row["threshold"],
            severity=row["severity"] if metric == "drift" and drifted else None,
            slice=_slice(row),
        )


def _slice(row: Mapping[str, Any]) -> alerts.Slice | None:
    return None if row["slice_key"] is None else (row["slice_key"], row["slice_value"])


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    if metric == "null_share":
        if row["n"] < facts.FEWEST_ROWS or row["null_share"] is None:
            return None
        return float(row["null_share"] - (row["null_share_baseline"] or 0.0))
    if row["status"] not in ("ok", "drifted") or row["n"] < distances.MINIMUM_ROWS:
        return None
    if metric == "drift":
        return float(row["value"]) if row["value"] is not None else 0.0
    column, field = _COLUMNS[metric]
    found = row[column] if field is None or row[column] is None else row[column][field]
    return None if found is None else float(found)


def of_quality(rows: pl.DataFrame, metric: str) -> Iterator[alerts.Fact]:
    """Facts of whole-table rows: per version, of all together where there is one version alone."""
    several = rows["version"].drop_nulls().n_unique() > 0 if rows.height else False
    for row in rows.iter_rows(named=True):
        if row["version"] is None and several:
            continue
        found = orjson.loads(row["quality"])["realized"].get(metric) or {}
        n = int(found.get("n") or 0)
        enough = n >= facts.FEWEST_LABELS or metric.startswith("label_")
        whose = alerts.spoken(_slice(row)) + (f"{row['version']}: " if row["version"] else "")
        yield alerts.Fact(
            metric=metric,
            column=None,
            served_entity=row["version"],
            value=found.get("value") if enough else None,
            n=n,
            window=(row["start"].isoformat(), row["end"].isoformat()),
            text=f"{whose}{metric} is {found.get('value')} ({n:,} labels)",
            granularity=row["granularity"],
            slice=_slice(row),
        )


def fired(rule: alert_state.Rule, made: Sequence[alerts.Fact]) -> list[dict[str, Any]]:
    """The alerts that the rule would have opened, oldest first, each with what was last known of
    it: as if a refresh had run at the end of every window."""
    rule = rule._replace(enabled=True)
    ends = sorted({fact.window[1] for fact in made if fact.window is not None})
    opened: dict[str, alert_state.Alert] = {}  # by id, in the order of their opening
    newest: dict[str, str] = {}  # cause -> id
    for end in ends:
        known = [fact for fact in made if fact.window is not None and fact.window[1] <= end]
        now_ms = int(datetime.fromisoformat(end).timestamp() * 1000)
        before = {cause: opened[alert_id] for cause, alert_id in newest.items()}
        for step in alerts.changes(alerts.findings([rule], known), before, now_ms):
            if step.new is not None:
                opened[step.alert_id] = step.new
                newest[step.new.cause] = step.alert_id
            else:
                opened[step.alert_id] = opened[step.alert_id]._replace(**step.values)
    return [
        {name: alert_contract.alert_info(one)[name] for name in SHOWN} for one in opened.values()
    ]
