"""New rows, window by window and slice by slice: the profiles and sums that are kept of them."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import polars as pl

from capture import errors
from monitors import custom_sums, kept, profile, slices, watched, windows

if TYPE_CHECKING:
    from monitors import custom_metrics

PROFILE_FAILURES = (ValueError, ArithmeticError, TypeError, pl.exceptions.PolarsError)


class Windowed:
    """Of one monitor: what a row means, which columns are watched (a column that cannot be profiled
    becomes one that is left out), and what is kept of the windows so far. tell: takes what went
    wrong, in words."""

    def __init__(
        self,
        shape: watched.Shape,
        columns: dict[str, watched.Column],
        before: kept.Kept,
        metrics: "custom_metrics.Metrics | None",
        tell: Callable[[str], None],
    ) -> None:
        self.shape = shape
        self.columns = columns
        self.kept = before
        self.metrics = metrics
        self.tell = tell

    def measured(
        self, frame: pl.DataFrame, sliced: Mapping[str, pl.Expr], moment: datetime
    ) -> Iterator[tuple[kept.WindowKey, kept.Window]]:
        """What is to be added to each window and slice that these rows lie in."""
        ready = self._prepared(frame, late=False)
        for whole, rows in self._windows(ready.rows, moment):
            for key, part in [(whole, rows), *self._slices(whole, rows, sliced)]:
                sums = custom_sums.measured(ready, part, self.shape.model_id_col)
                yield key, kept.Window(self._profiles(part), sums)

    def late_sums(self, rows: pl.DataFrame) -> dict[custom_sums.Group, custom_sums.Sums]:
        """Sums of the custom metrics that wait for labels."""
        if "label" in rows.columns and rows["label"].null_count() == rows.height:
            rows = rows.with_columns(pl.lit(None).alias("label"))  # of any type
        ready = self._prepared(rows, late=True)
        return custom_sums.measured(ready, ready.rows, self.shape.model_id_col)

    def _prepared(self, frame: pl.DataFrame, late: bool) -> custom_sums.Prepared:
        """Rows with the parts of custom metrics, of those alone that wait for labels or do not."""
        if self.metrics is None:
            return custom_sums.Prepared(frame, {}, {})
        parts = [p for key, p in self.metrics.parts.items() if (key in self.metrics.late) == late]
        ready = custom_sums.prepared(frame, parts)
        for key, reason in ready.broken.items():
            self.tell(f"Custom metrics with '{key[:100]}' cannot be computed: {reason}")
        return ready

    def sliced(self, frame: pl.DataFrame) -> dict[str, pl.Expr]:
        """The slicing expressions that can be told of these rows. The values that count are those
        of the baseline, then the most frequent ones of the first rows."""
        parsed: dict[str, pl.Expr] = {}
        for text in self.shape.slicing_exprs:
            try:
                parsed |= slices.parse([text], frame.columns)
                counts = slices.counted(slices.labels(frame, {text: parsed[text]})[text])
            except errors.InvalidParameter as error:
                parsed.pop(text, None)
                self.tell(f"Rows are left out of slice '{text}': {error.message}")
                continue
            values = self.kept.manifest.slices
            values[text] = slices.heaviest(counts, values.get(text, ()))
        return parsed

    def _slices(
        self, whole: kept.WindowKey, rows: pl.DataFrame, parsed: Mapping[str, pl.Expr]
    ) -> Iterator[tuple[kept.WindowKey, pl.DataFrame]]:
        for text, labels in slices.labels(rows, parsed).items():
            known = self.kept.manifest.slices[text]
            parts = rows.with_columns(labels.alias("__slice")).partition_by("__slice", as_dict=True)
            for (value,), part in parts.items():
                if value in known:
                    yield whole._replace(slice=(text, str(value))), part

    def _windows(
        self, frame: pl.DataFrame, moment: datetime
    ) -> Iterator[tuple[kept.WindowKey, pl.DataFrame]]:
        if self.shape.time_column is None:
            yield kept.WindowKey(None, datetime.max.replace(tzinfo=UTC)), frame
            return
        for granularity in self.shape.granularities:
            starts = windows.assign(frame["__time"], granularity).alias("__start")
            parts = frame.with_columns(starts).partition_by("__start", as_dict=True)
            for (start,), part in parts.items():
                assert isinstance(start, datetime)
                yield kept.WindowKey(granularity, start), part

    def _profiles(self, frame: pl.DataFrame) -> dict[kept.Group, kept.Profile]:
        """Profiles per version and column; those of all versions are the sums."""
        parts: dict[str | None, pl.DataFrame] = {None: frame}
        model = self.shape.model_id_col
        if model is not None and model in frame.columns:
            split = frame.with_columns(pl.col(model).cast(pl.String))
            parts = {key[0]: part for key, part in split.partition_by(model, as_dict=True).items()}
        found: dict[kept.Group, kept.Profile] = {}
        for name in frame.columns:
            column = self.columns.get(name)
            if column is not None and column.watched:
                self._profile_column(found, name, column, parts)
        return found

    def _profile_column(
        self,
        found: dict[kept.Group, kept.Profile],
        name: str,
        column: watched.Column,
        parts: dict[str | None, pl.DataFrame],
    ) -> None:
        try:
            for version, part in parts.items():
                one = watched.profiled(part[name], column)
                whole = found.get((None, name))
                found[None, name] = one if whole is None else profile.merge(whole, one)
                if version is not None:
                    found[version, name] = one
                    if one.values_count:
                        self.kept.filled.add((version, name))
        except PROFILE_FAILURES as error:
            # A column that cannot be profiled is left out, and the others go on.
            reason = f"it could not be profiled: {type(error).__name__}"
            self.columns[name] = watched.Column("left out", reason=reason)
            self.tell(f"Column '{name}' is left out; {reason}.")
            for group in [group for group in found if group[1] == name]:
                del found[group]
