"""One monitored table as this process knows it: what was read, merged and is still to be written.

`advance` reads what is new and merges it; which windows it touched stays in `dirty` until
`settle` says that their rows are written and makes everything permanent.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl
import sqlalchemy as sa

from capture import errors, logline, names
from capture.settings import Settings
from monitors import (
    baseline,
    custom_sums,
    intake,
    kept,
    profile,
    slices,
    state,
    watched,
    windows,
)

if TYPE_CHECKING:
    from monitors import custom_metrics

log = logline.logger(__name__)

SNAPSHOT_WINDOWS = 2
PROFILE_FAILURES = (ValueError, ArithmeticError, TypeError, pl.exceptions.PolarsError)


class Cancelled(Exception):
    """Somebody asked for the refresh to end."""


@dataclass(slots=True)
class Dirty:
    """Windows whose rows in the metric tables are out of date."""

    profiles: set[kept.WindowKey] = field(default_factory=set)  # rows came
    quality: set[kept.WindowKey] = field(default_factory=set)  # rows or labels came
    everything: bool = False  # and no other window is left


@dataclass(slots=True)
class Progress:
    """How far a refresh is; `report` writes it down and raises Cancelled when asked to stop."""

    report: Callable[[dict[str, int]], None]
    files: int = 0
    files_done: int = 0
    rows: int = 0

    def step(self) -> None:
        self.report({"files": self.files, "files_done": self.files_done, "rows": self.rows})


class Watch:
    """Everything in memory about one monitor. Used by one thread at a time."""

    def __init__(self, settings: Settings, monitor: state.Monitor, recorded: bool) -> None:
        self.settings = settings
        self.name = names.table_name(monitor.table_name)
        self.folder = kept.folder_of(settings, monitor.table_id)
        self.shape = watched.Shape.of(monitor.config, recorded)
        self.fingerprint = _fingerprint(self.shape)
        self.specs = monitor.config.get("custom_metrics") or []
        self.formulas = _digest(self.specs) if self.specs else ""
        self.metrics = _metrics(monitor.config, recorded)
        self.slices: tuple[str, ...] = ()
        self.baseline: baseline.Baseline | None = None
        self.kept = kept.Kept(self.folder, self.fingerprint)
        self.labels = intake.Labels(self.uri("labels"))
        self.dirty = Dirty(everything=self.kept.outdated)
        self.troubles: list[str] = []
        self._open()

    def uri(self, suffix: str) -> str:
        """A table beside the monitored one."""
        return names.table_path(self.settings.tables_root, self.name.sibling(suffix))

    @property
    def table_uri(self) -> str:
        return names.table_path(self.settings.tables_root, self.name)

    def fits(self, monitor: state.Monitor, recorded: bool) -> bool:
        """Does the monitor still mean what this was opened for?"""
        same = (monitor.config.get("custom_metrics") or []) == self.specs
        return same and _fingerprint(watched.Shape.of(monitor.config, recorded)) == self.fingerprint

    # --- opening -----------------------------------------------------------------------------

    def _open(self) -> None:
        self.columns = self.kept.columns()
        self.intake = self._new_intake()
        self.intake.taken = self.kept.taken()
        self.rows = pl.DataFrame()
        try:
            self.intake.ahead = self.kept.ahead()
            self.intake.look()
            self._read_again()
        except intake.ReadAnew as reason:
            self._begin_anew(str(reason))
        if self.kept.manifest.formulas != self.formulas:
            # Other formulas over the same sums: no row is read again, all are written again.
            self.dirty.profiles |= self.kept.known()
            self.dirty.quality |= self.kept.known()
            self.kept.manifest.baseline_rows = None

    def _new_intake(self) -> intake.Intake:
        return intake.Intake(self.table_uri, self.shape.time_column, self.shape.recorded)

    def _read_again(self) -> None:
        """The rows of before, as far as they stay in memory."""
        until = self.intake.taken.until
        if until is None or self.shape.time_column is None:
            return
        folded = {name.casefold() for name in self.slices}
        sliced = [name for name in self.columns if name.casefold() in folded]
        wanted = [
            *self.kept.manifest.kept_columns, self.shape.time_column, *self.slices, *sliced
        ]  # fmt: skip
        frames = [self._real(frame) for frame in self.intake.again(wanted, until)]
        self.rows = _joined(pl.DataFrame(), frames)

    def _begin_anew(self, reason: str) -> None:
        log.info("reading_anew", table=str(self.name), reason=reason)
        self.kept.forget()
        self.intake = self._new_intake()
        self.rows = pl.DataFrame()
        self.dirty = Dirty(everything=True)

    def keep_slices(self, slices: Sequence[str]) -> None:
        """Columns that an experiment is cut by or measured with, in any case, stay in memory, too;
        read again, once, if they did not."""
        missing = set(slices) - set(self.slices) - set(self.rows.columns)
        self.slices = tuple(dict.fromkeys([*self.slices, *slices]))
        if missing and self.rows.height:
            try:
                self.intake.ids = []
                self._read_again()
            except intake.ReadAnew as reason:
                self._begin_anew(str(reason))

    def use_baseline(self, found: state.Baseline | None) -> None:
        """Compare with this baseline from now on."""
        if found is None:
            self.baseline = None
            return
        if found.spec["kind"] in ("previous", "rolling"):
            windows_before = found.spec["windows"]
            self.baseline = baseline.Baseline(found.baseline_version, -1, before=windows_before)
            return
        self.baseline = baseline.current(
            self.folder,
            self.baseline,
            found.baseline_version,
            lambda: self._baseline_rows(found),
            self.shape,
            self.columns,
            self.metrics.parts.values() if self.metrics else (),
        )

    def _baseline_rows(self, found: state.Baseline) -> tuple[pl.DataFrame, int]:
        if found.spec["kind"] == "training":
            name = names.table_name(found.spec["table"])
            return baseline.read_rows(names.table_path(self.settings.tables_root, name))
        rows, version = baseline.read_rows(self.table_uri)
        rows = self._real(rows)
        if self.shape.time_column is None or self.shape.time_column not in rows.columns:
            raise errors.Unavailable("the table has no time column to take a window from")
        times = intake.as_times(rows[self.shape.time_column])
        start, end = (datetime.fromisoformat(found.spec[side]) for side in ("start", "end"))
        inside = (times >= start) & (times < end)
        return rows.filter(inside.fill_null(False)), version

    # --- reading -----------------------------------------------------------------------------

    def advance(self, until: datetime | None, progress: Progress) -> datetime:
        """Read and merge everything up to `until` (default: now, in the table's own time); gives
        that moment. An earlier `until` than the last one reads everything anew."""
        for _ in range(3):
            try:
                return self._advance(until, progress)
            except intake.ReadAnew as reason:
                self._begin_anew(str(reason))
        raise errors.Unavailable("The table's files change faster than they can be read.")

    def _advance(self, until: datetime | None, progress: Progress) -> datetime:
        new = self.intake.look()
        moment = until or self._now(new)
        before = self.intake.taken.until
        if before is not None and moment < before:
            if until is not None:
                raise intake.ReadAnew("the refresh ends before the one before")
            moment = before
        progress.files = len(new)
        come = self.intake.come_due(moment)
        if come is not None:
            self._absorb(come, moment)
        if self.intake.version >= 0:
            for frame in self.intake.read(new):
                self._absorb(self.intake.due(frame, moment), moment)
                progress.rows += frame.height
                progress.step()
        progress.files_done = len(new)
        progress.step()
        self.intake.taken.until = moment
        if self.shape.time_column is None:
            self._snapshot(moment)
        self._join_labels(moment)
        return moment

    def _now(self, new: Sequence[str]) -> datetime:
        wall = datetime.fromtimestamp(time.time(), UTC)
        if self.shape.time_column in (None, "request_time"):
            return wall
        return self.intake.newest_moment(new) or wall

    def _absorb(self, frame: pl.DataFrame, moment: datetime) -> None:
        """Merge rows whose time has come."""
        frame = self._real(frame)
        if frame.is_empty():
            return
        self.columns.update(watched.choose(frame, self.shape, self.columns))
        sliced = self._sliced(frame)
        truth = self.metrics.truth_columns if self.metrics else []
        by = [*self.slices, *slices.columns_of(sliced), *truth]
        keep = watched.kept_columns(frame, self.shape, self.columns, by)
        if self.shape.time_column is not None:
            self.rows = _joined(self.rows, [frame.select(keep)])
        ready = self._prepared(frame, late=False)
        for whole, rows in self._windows(ready.rows, moment):
            for key, part in [(whole, rows), *self._slices(whole, rows, sliced)]:
                sums = custom_sums.measured(ready, part, self.shape.model_id_col)
                self.kept.add(key, kept.Window(self._profiles(part), sums))
                self.dirty.profiles.add(key)
                self.dirty.quality.add(key)

    def _prepared(self, frame: pl.DataFrame, late: bool) -> custom_sums.Prepared:
        """Rows with the parts of custom metrics, of those alone that wait for labels or do not."""
        if self.metrics is None:
            return custom_sums.Prepared(frame, {}, {})
        parts = [p for key, p in self.metrics.parts.items() if (key in self.metrics.late) == late]
        ready = custom_sums.prepared(frame, parts)
        for key, reason in ready.broken.items():
            trouble = f"Custom metrics with '{key[:100]}' cannot be computed: {reason}"
            if trouble not in self.troubles:
                self.troubles.append(trouble)
        return ready

    def rows_in(self, key: kept.WindowKey) -> pl.DataFrame:
        """Rows in memory of a window."""
        if not self.rows.width:
            return self.rows
        start, end = key.span
        rows = self.rows.filter((pl.col("__time") >= start) & (pl.col("__time") < end))
        if key.slice is None:
            return rows
        text, value = key.slice
        return rows.filter(slices.labels(rows, slices.parse([text], rows.columns))[text] == value)

    def sums(self, key: kept.WindowKey) -> dict[custom_sums.Group, custom_sums.Sums]:
        """Sums of custom metrics over a window, with its labels as they are now."""
        found = dict((self.kept.whole(key) or kept.NOTHING).sums)
        if self.metrics is not None and self.metrics.late and key.granularity is not None:
            rows = self.rows_in(key)
            if "label" in rows.columns and rows["label"].null_count() == rows.height:
                rows = rows.with_columns(pl.lit(None).alias("label"))  # of any type
            ready = self._prepared(rows, late=True)
            found |= custom_sums.measured(ready, ready.rows, self.shape.model_id_col)
        return found

    def _sliced(self, frame: pl.DataFrame) -> dict[str, pl.Expr]:
        """The slicing expressions that can be told of these rows. The values that count are those
        of the baseline, then the most frequent ones of the first rows."""
        parsed: dict[str, pl.Expr] = {}
        for text in self.shape.slicing_exprs:
            try:
                parsed |= slices.parse([text], frame.columns)
                counts = slices.counted(slices.labels(frame, {text: parsed[text]})[text])
            except errors.InvalidParameter as error:
                parsed.pop(text, None)
                self.troubles.append(f"Rows are left out of slice '{text}': {error.message}")
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

    def _real(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Without copies that were scored in the shadow and never answered."""
        if self.shape.recorded and "shadow" in frame.columns:
            return frame.filter(~pl.col("shadow").fill_null(False))
        return frame

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
            self.troubles.append(f"Column '{name}' is left out; {reason}.")
            for group in [group for group in found if group[1] == name]:
                del found[group]

    def _snapshot(self, moment: datetime) -> None:
        """A snapshot monitor's window: all rows so far, at this moment; and those of each slice."""
        cuts = {key.slice for key in self.kept.slices_of(None)}
        for slice_ in (None, *sorted(cut for cut in cuts if cut)):
            self._snapshot_of(slice_, moment)

    def _snapshot_of(self, slice_: slices.Slice | None, moment: datetime) -> None:
        fresh = kept.WindowKey(None, datetime.max.replace(tzinfo=UTC), slice_)
        known = [key for key in self.kept.keys(None, slice_) if key != fresh]
        before = self.kept.whole(known[-1]) if known else None
        more = self.kept.whole(fresh)
        total = kept.merged(before or kept.NOTHING, more or kept.NOTHING)
        self.kept.drop(fresh)
        self.dirty.profiles.discard(fresh)
        self.dirty.quality.discard(fresh)
        if not total.profiles:
            return
        key = kept.WindowKey(None, moment, slice_)
        self.kept.replace(key, total)
        self.dirty.profiles.add(key)
        self.dirty.quality.add(key)
        for old in known[: -SNAPSHOT_WINDOWS + 1]:
            self.kept.drop(old)

    # --- labels ------------------------------------------------------------------------------

    def _join_labels(self, moment: datetime) -> None:
        """Labels whose time has come; the windows of their requests become dirty."""
        if not self.shape.recorded or not self.rows.height:
            return
        self.labels.look()
        self.rows, changed = self.labels.join(self.rows, moment)
        self._dirty_by_labels(changed)

    def _dirty_by_labels(self, times: pl.Series) -> None:
        for granularity in self.shape.granularities:
            for start in windows.assign(times, granularity).unique().drop_nulls().to_list():
                touched = {
                    kept.WindowKey(granularity, start),
                    *self.kept.slices_of(granularity, start),
                }
                self.dirty.quality |= touched
                if self.metrics is not None and self.metrics.follow_labels:
                    self.dirty.profiles |= touched

    # --- the end of a refresh ----------------------------------------------------------------

    def settle(self) -> None:
        """The dirty windows are written: keep what was merged, and begin with a clean sheet."""
        joined = {"label", "label_time"} if self.shape.recorded else set()
        kept_columns = [
            name for name in self.rows.columns if name not in joined and not name.startswith("__")
        ]
        self.kept.manifest.formulas = self.formulas
        self.kept.save(self.intake.taken, self.columns, kept_columns, self.intake.ahead)
        self.dirty = Dirty()

    def versions(self) -> list[str]:
        """Model versions among the rows in memory."""
        model = self.shape.model_id_col
        if model is None or model not in self.rows.columns:
            return []
        return sorted(str(name) for name in self.rows[model].drop_nulls().unique().to_list())


def _joined(rows: pl.DataFrame, frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    parts = [part for part in (rows, *frames) if part.width]
    if not parts:
        return rows
    joined = pl.concat(parts, how="diagonal_relaxed")
    return joined.rechunk() if joined.n_chunks() > 64 else joined


def _metrics(config: Mapping[str, Any], recorded: bool) -> "custom_metrics.Metrics | None":
    """The custom metrics of a configuration, None without any. Raises InvalidParameter."""
    if not config.get("custom_metrics"):
        return None
    # Half a second that others do not need.
    from monitors import custom_definitions, custom_metrics

    context = custom_metrics.Context.of(config, recorded)
    return custom_definitions.read(config["custom_metrics"], context)


def _fingerprint(shape: watched.Shape) -> str:
    """Changes when profiles made before cannot be used any more."""
    return _digest({**asdict(shape), "format": kept.FORMAT})


def _digest(parts: Any) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def recorded(connection: sa.Connection, table_name: str) -> bool:
    """Is this the unpacked table of an endpoint?"""
    name = names.table_name(table_name)
    return (
        name.table.endswith("_unpacked") and state.endpoint_of(connection, table_name) is not None
    )
