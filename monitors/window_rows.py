"""The rows of both metric tables for the windows of one refresh, custom metrics included."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from monitors import (
    baseline,
    comparisons,
    custom_sums,
    groups,
    kept,
    metric_rows,
    references,
    slices,
    tables,
    watch,
)

Row = dict[str, Any]
ByGroup = dict[kept.Group, Row]
Maker = Callable[[], list[Row]]
TABLE = ":table"


class Made(Mapping[str, list[Row]]):
    """The rows of each window key, made when they are asked for: few windows are in memory."""

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        self.makers = makers

    def __getitem__(self, key: str) -> list[Row]:
        return self.makers[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


class WindowRows:
    """Makes rows of a monitored table. groups_of: windows as a whole, computed already or now."""

    def __init__(
        self,
        known: watch.Watch,
        origin: metric_rows.Origin,
        groups_of: Callable[[kept.WindowKey], groups.Groups],
    ) -> None:
        self.known = known
        self.origin = origin
        self.groups_of = groups_of
        self.metrics = known.metrics
        self.sums_of = functools.cache(known.sums)
        self.fixed: dict[slices.Slice | None, ByGroup] = {}  # rows of a baseline with its own

    # --- profiles ----------------------------------------------------------------------------

    def columns(self, key: kept.WindowKey) -> list[Row]:
        """A row per column and version of a window."""
        window = self.known.kept.window(key) or {}
        row_key = metric_rows.columns_key(key)
        rows = metric_rows.of_columns(
            key, window, self.known.columns, self.origin, row_key, key.slice
        )
        return self._with_custom(rows, key, row_key, key.slice, lambda: self.sums_of(key))

    def table(self, key: kept.WindowKey) -> list[Row]:
        """A row per version of a window."""
        window = self.known.kept.window(key) or {}
        row_key = metric_rows.table_key(key)
        rows = metric_rows.of_table(
            key, window, self.groups_of(key), self.origin, row_key, key.slice
        )
        self._fill(rows, lambda: self.sums_of(key))
        return rows

    def of_baseline(
        self, reference: baseline.Baseline, row_key: str, slice_: slices.Slice | None
    ) -> list[Row]:
        """A row per column and version of a baseline; of the whole only for custom metrics."""
        part = reference.of(slice_)
        rows = self._baseline_columns(part, row_key, slice_)
        if self.metrics and TABLE in self.metrics.columns("aggregates", "derived", "drift"):
            whole = groups.of_baseline(part)
            rows += self._baseline_table(part, whole, row_key, slice_)
        return rows

    def _baseline_columns(
        self, part: baseline.Baseline, row_key: str, slice_: slices.Slice | None
    ) -> list[Row]:
        rows = metric_rows.of_columns(
            None, part.profiles, self.known.columns, self.origin, row_key, slice_
        )
        return self._with_custom(rows, None, row_key, slice_, lambda: part.sums)

    def _baseline_table(
        self,
        part: baseline.Baseline,
        whole: groups.Groups,
        row_key: str,
        slice_: slices.Slice | None,
    ) -> list[Row]:
        rows = metric_rows.of_table(None, part.profiles, whole, self.origin, row_key, slice_)
        self._fill(rows, lambda: part.sums)
        return rows

    def _with_custom(
        self,
        rows: list[Row],
        key: kept.WindowKey | None,
        row_key: str,
        slice_: slices.Slice | None,
        sums: Callable[[], dict[custom_sums.Group, custom_sums.Sums]],
    ) -> list[Row]:
        """With custom metrics, also of columns that are not watched."""
        if self.metrics is None:
            return rows
        there = {row["column_name"] for row in rows} | {TABLE}
        versions = sorted({version for version, _ in sums()}, key=str)
        for column in self.metrics.columns("aggregates"):
            if column not in there:
                for version in versions:
                    group = metric_rows.of_group(key, version, self.origin, row_key, slice_)
                    rows.append({**group, "column_name": column})
        self._fill(rows, sums)
        return rows

    def _fill(
        self, rows: list[Row], sums: Callable[[], dict[custom_sums.Group, custom_sums.Sums]]
    ) -> None:
        if self.metrics is not None:
            from monitors import custom_rows

            custom_rows.fill(rows, self.metrics, sums(), self.origin.model_id_col)

    # --- drift -------------------------------------------------------------------------------

    def drift(self, key: kept.WindowKey, cells: Iterable[comparisons.Comparison]) -> list[Row]:
        """A row per comparison; the drift metrics of a column or of the whole have one, too."""
        rows = metric_rows.of_drift(cells, self.known.columns, self.origin)
        if self.metrics is None or not self.metrics.drift:
            return rows
        model = self.origin.model_id_col
        made = {
            (row["drift_type"], row[model] if model else None, row["column_name"]): row
            for row in rows
        }
        current = self._by_group(key)
        reference = references.of_baseline(self.known, key)
        if reference is not None and reference.problem is None:
            base = self._base(reference, key)
            outputs = (*self.known.shape.outputs, TABLE)
            pairs = {
                group: base.get(kept.baseline_group(reference.versions, *group, outputs))
                for group in current
            }
            self._compare(made, key, kept.BASELINE, None, current, pairs)
        before = references.previous(self.known, key)
        if before is not None and self.known.kept.whole(before) is not None:
            earlier = self._by_group(before)
            interesting = (*self.known.shape.outputs, TABLE)
            pairs = {
                (version, column): earlier.get((version, column))
                for version, column in current
                if version is None or column in interesting
            }
            self._compare(made, key, kept.CONSECUTIVE, before, current, pairs)
        return list(made.values())

    def _compare(
        self,
        made: dict[tuple[str, str | None, str], Row],
        key: kept.WindowKey,
        drift_type: str,
        before: kept.WindowKey | None,
        current: ByGroup,
        pairs: dict[kept.Group, Row | None],
    ) -> None:
        from monitors import custom_rows

        assert self.metrics is not None
        row_key = metric_rows.drift_key(key)
        for column in self.metrics.columns("drift"):
            triples = []
            for (version, name), base in pairs.items():
                if name != column or base is None:
                    continue
                at = (drift_type, version, column)
                if at not in made:
                    made[at] = {
                        **metric_rows.of_group(key, version, self.origin, row_key, key.slice),
                        **metric_rows.compared(self.origin, drift_type, before and before.span),
                        "column_name": column,
                    }
                triples.append((made[at], current[version, name], base))
            custom_rows.fill_drift(triples, column, self.metrics)

    def _by_group(self, key: kept.WindowKey) -> ByGroup:
        from monitors import custom_rows

        rows = self.columns(key) + self.table(key)
        return custom_rows.by_group(rows, self.origin.model_id_col)

    def _base(self, reference: baseline.Baseline, key: kept.WindowKey) -> ByGroup:
        """Rows of the baseline as this window meets it."""
        from monitors import custom_rows

        model = self.origin.model_id_col
        if self.known.baseline is None or not self.known.baseline.before:
            if key.slice not in self.fixed:
                rows = self.of_baseline(reference, "", key.slice)
                self.fixed[key.slice] = custom_rows.by_group(rows, model)
            return self.fixed[key.slice]
        before = [k for k in references.before(self.known, key) if self.known.kept.whole(k)]
        part = reference.of(key.slice)
        part.sums = custom_sums.together(self.sums_of(k) for k in before)
        whole: groups.Groups = {}
        for k in before:
            whole = groups.merged(whole, self.groups_of(k))
        rows = self._baseline_columns(part, "", key.slice)
        rows += self._baseline_table(part, whole, "", key.slice)
        return custom_rows.by_group(rows, model)


def schemas(known: watch.Watch) -> tuple[Any, Any]:
    """Of the profile and the drift table."""
    model, metrics = known.shape.model_id_col, known.metrics
    if metrics is None:
        return tables.profile_schema(model), tables.drift_schema(model)
    return (
        tables.profile_schema(model, metrics.fields("aggregates", "derived")),
        tables.drift_schema(model, metrics.fields("drift")),
    )
