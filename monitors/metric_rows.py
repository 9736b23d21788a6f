"""Rows of the profile and drift metrics tables, under the documented names. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from monitors import comparisons, fairness, kept, profile, quality, slices, tables, watched

QUANTILES = 1000
QUALITY_NAMES = {
    "accuracy_score": "accuracy",
    "log_loss": "log_loss",
    "mean_squared_error": "mse",
    "root_mean_squared_error": "rmse",
    "mean_average_error": "mae",
    "mean_absolute_percentage_error": "mape",
    "r2_score": "r2",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """What made the rows; goes into each of them."""

    refresh_id: int
    monitor_version: int
    baseline_version: int
    commit_version: int
    model_id_col: str | None


def columns_key(key: kept.WindowKey) -> str:
    return tables.window_key(key.granularity, key.start, "columns", key.slice)


def table_key(key: kept.WindowKey) -> str:
    return tables.window_key(key.granularity, key.start, "table", key.slice)


def drift_key(key: kept.WindowKey) -> str:
    return tables.window_key(key.granularity, key.start, "drift", key.slice)


def of_group(
    key: kept.WindowKey | None,
    version: str | None,
    origin: Origin,
    row_key: str,
    slice_: slices.Slice | None,
) -> dict[str, Any]:
    """What every row says of its window and group. `key` None: of the baseline."""
    start, end = key.span if key else (None, None)
    expression, value = slice_ or (None, None)
    row: dict[str, Any] = {
        "window": {"start": start, "end": end} if key else None,
        "log_type": "INPUT" if key else "BASELINE",
        "logging_table_commit_version": origin.commit_version,
        "monitor_version": origin.monitor_version,
        "granularity": key.granularity if key else None,
        "slice_key": expression,
        "slice_value": value,
        tables.KEY: row_key,
        "refresh_id": origin.refresh_id,
    }
    if origin.model_id_col:
        row[origin.model_id_col] = version
    return row


def of_columns(
    key: kept.WindowKey | None,
    window: Mapping[kept.Group, kept.Profile],
    columns: Mapping[str, watched.Column],
    origin: Origin,
    row_key: str,
    slice_: slices.Slice | None,
) -> list[dict[str, Any]]:
    """A row per column and group. `key` None: the rows describe the baseline."""
    return [
        {
            **of_group(key, version, origin, row_key, slice_),
            "column_name": name,
            "data_type": columns[name].data_type,
            **_profiled(one),
        }
        for (version, name), one in window.items()
    ]


def _profiled(one: kept.Profile) -> dict[str, Any]:
    row: dict[str, Any] = {
        "count": one.rows,
        "num_nulls": one.nulls,
        "distinct_count": profile.distinct(one),
        "percent_null": profile.percent_null(one),
        "percent_distinct": profile.percent_distinct(one),
    }
    if isinstance(one, profile.NumericProfile):
        filled = one.values_count > 0
        return row | {
            "avg": one.mean if filled else None,
            "min": one.minimum,
            "max": one.maximum,
            "stddev": profile.standard_deviation(one),
            "quantiles": profile.quantiles(one, QUANTILES),
            "median": profile.quantile(one, 0.5),
            "num_zeros": one.zeros,
            "num_nan": one.nans,
            "percent_nan": profile.percent_nan(one),
            "percent_zeros": profile.percent_zeros(one),
        }
    return row | {
        "frequent_items": profile.frequent_items(one),
        "min_length": one.min_length,
        "max_length": one.max_length,
        "avg_length": _mean_length(one),
    }


def _mean_length(one: profile.CategoricalProfile) -> float | None:
    if one.total_length is None or not one.values_count:
        return None
    return one.total_length / one.values_count


def of_table(
    key: kept.WindowKey | None,
    window: Mapping[kept.Group, kept.Profile],
    groups: Mapping[str | None, "TableGroup"],
    origin: Origin,
    row_key: str,
    slice_: slices.Slice | None,
) -> list[dict[str, Any]]:
    """The whole-table row of each group: rows, filled columns, quality. `key` None: of the
    baseline."""
    return [
        {
            **of_group(key, version, origin, row_key, slice_),
            "column_name": ":table",
            "count": group.rows,
            "non_null_columns": sorted(
                name for (owner, name), one in window.items()
                if owner == version and one.nulls < one.rows
            ),
            **_quality(group),
        }
        for version, group in groups.items()
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class TableGroup:
    """One group of a window as a whole. `counts` None: the monitor judges no quality."""

    rows: int
    counts: quality.QualityCounts | None
    measured: Mapping[str, Mapping[str, Any]]
    estimated: Mapping[str, Mapping[str, Any]]
    rates: Mapping[str, fairness.Rates] = field(default_factory=dict)


def _quality(group: TableGroup) -> dict[str, Any]:
    if group.counts is None:
        return {}
    both = {"realized": group.measured, "estimated": group.estimated}
    row: dict[str, Any] = {
        documented: (group.measured.get(name) or {}).get("value")
        for documented, name in QUALITY_NAMES.items()
    }
    row["quality"] = orjson.dumps(both, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    if "accuracy" in group.measured:
        row["confusion_matrix"] = quality.confusion(group.counts)
        by_class = quality.by_class(group.counts)
        row["precision"] = _struct(by_class.get("precision"))
        row["recall"] = _struct(by_class.get("recall"))
        row["f1_score"] = _struct(by_class.get("f1"))
        area = (group.measured.get("roc_auc") or {}).get("value")
        row["roc_auc_score"] = {"one_vs_all": None, "macro": area, "weighted": area}
    return row | {name: list(rates.items()) for name, rates in group.rates.items()}


def _struct(one: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {
        "one_vs_all": list((one.get("one_vs_all") or {}).items()),
        "macro": one.get("macro"),
        "weighted": one.get("weighted"),
    }


def of_drift(
    found: Iterable[comparisons.Comparison],
    columns: Mapping[str, watched.Column],
    origin: Origin,
) -> list[dict[str, Any]]:
    """A row per comparison."""
    return [
        {
            **of_group(one.key, one.version, origin, drift_key(one.key), one.key.slice),
            "data_type": columns[one.column].data_type,
            **compared(origin, one.drift_type, one.compared_with),
            **one.columns(),
        }
        for one in found
    ]


def compared(origin: Origin, drift_type: str, span: Sequence[Any] | None) -> dict[str, Any]:
    """What a row of the drift table says of the other side; span: None of a baseline."""
    return {
        "drift_type": drift_type,
        "window_cmp": None if span is None else {"start": span[0], "end": span[1]},
        "baseline_version": origin.baseline_version if drift_type == kept.BASELINE else None,
    }
