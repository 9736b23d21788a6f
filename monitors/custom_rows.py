"""Custom metrics in rows of the metric tables. Pure.

Aggregate metrics come from sums, derived ones from the row itself, drift metrics from the rows of
two windows.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import pyarrow as pa

from monitors import custom_metrics, custom_sums

Row = dict[str, Any]


def fill(
    rows: Sequence[Row],
    metrics: custom_metrics.Metrics,
    sums: Mapping[custom_sums.Group, custom_sums.Sums],
    model_id_col: str | None,
) -> None:
    """Set the aggregate metrics of profile rows, then the derived ones, in the order given."""
    for column in metrics.columns("aggregates", "derived"):
        mine = [row for row in rows if row["column_name"] == column]
        versions = [row[model_id_col] if model_id_col else None for row in mine]
        for one in metrics.of("aggregates", column):
            given = [_statistics(one, sums, version) for version in versions]
            _set(mine, one, metrics, given)
        for one in metrics.of("derived", column):
            _set(mine, one, metrics, [_numbers(one, {"current": row}) for row in mine])


def fill_drift(
    rows: Sequence[tuple[Row, Row | None, Row | None]],
    column: str,
    metrics: custom_metrics.Metrics,
) -> None:
    """Set the drift metrics of rows of a column: (drift row, current row, base row)."""
    drift = [row for row, _, _ in rows]
    for one in metrics.of("drift", column):
        given = [_numbers(one, {"current": now, "base": base}) for _, now, base in rows]
        _set(drift, one, metrics, given)


def _set(
    rows: Sequence[Row],
    formula: custom_metrics.Formula,
    metrics: custom_metrics.Metrics,
    given: Sequence[Mapping[str, float | None]],
) -> None:
    if not rows:
        return
    kind: pa.DataType = metrics.types[formula.metric]
    for row, value in zip(rows, formula.values(given), strict=True):
        row[formula.metric] = custom_metrics.typed(value, kind)


def _statistics(
    formula: custom_metrics.Formula,
    sums: Mapping[custom_sums.Group, custom_sums.Sums],
    version: str | None,
) -> dict[str, float | None]:
    found = {}
    for name, (statistic, key) in formula.inputs.items():
        one = sums.get((version, key))
        found[name] = None if one is None else custom_sums.statistic(one, statistic)
    return found


def _numbers(
    formula: custom_metrics.Formula, sides: Mapping[str, Row | None]
) -> dict[str, float | None]:
    return {name: number(sides[side], metric) for name, (side, metric) in formula.inputs.items()}


def number(row: Row | None, metric: str) -> float | None:
    """A metric of a row, `precision.macro` of a struct; None where the row has none."""
    value: Any = row
    for name in metric.split("."):
        value = None if value is None else value.get(name)
    if value is None or not isfinite(value):
        return None
    return float(value)


def by_group(rows: Iterable[Row], model_id_col: str | None) -> dict[tuple[str | None, str], Row]:
    """Rows by version and column."""
    return {(row[model_id_col] if model_id_col else None, row["column_name"]): row for row in rows}
