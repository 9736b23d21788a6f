"""One monitored table as this process knows it: what was read, merged and is still to be written.

`advance` reads what is new and merges it; which windows it touched stays in `dirty` until
`settle` says that their rows are written and makes everything permanent.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
    held,
    intake,
    kept,
    slices,
    state,
    watched,
    windowed,
    windows,
)

if TYPE_CHECKING:
    from monitors import custom_metrics

log = logline.logger(__name__)

SNAPSHOT_WINDOWS = 2


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
        self.baseline: baseline.Baseline | None = None
        self.kept = kept.Kept(self.folder, self.fingerprint)
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
        self.windowed = windowed.Windowed(
            self.shape, self.columns, self.kept, self.metrics, self._tell
        )
        self.intake = self._new_intake()
        self.intake.taken = self.kept.taken()
        self.held = self._new_held()
        try:
            self.intake.ahead = self.kept.ahead()
            self.intake.look()
            if self.kept.manifest.held is not None:
                self.held = self._new_held(self.kept.manifest.held)
        except intake.ReadAnew as reason:
            self.begin_anew(str(reason))
        self.labels = intake.Labels(self.uri("labels"), self.held.label_files)
        if self.kept.manifest.formulas != self.formulas:
            # Other formulas over the same sums: no row is read again, all are written again.
            self.dirty.profiles |= self.kept.known()
            self.dirty.quality |= self.kept.known()
            self.kept.manifest.baseline_rows = None

    def _new_intake(self) -> intake.Intake:
        return intake.Intake(self.table_uri, self.shape.time_column, self.shape.recorded)

    def _new_held(self, saved: Mapping[str, Any] | None = None) -> held.Held:
        shape = self.shape
        return held.Held(self.folder / kept.HELD, shape.recorded, shape.model_id_col, saved)

    def begin_anew(self, reason: str) -> None:
        """Forget everything that was kept; the next `advance` reads the whole table."""
        log.info("reading_anew", table=str(self.name), reason=reason)
        self.kept.forget()
        self.intake = self._new_intake()
        self.labels = intake.Labels(self.uri("labels"))
        self.held = self._new_held()
        self.dirty = Dirty(everything=True)

    def keep_slices(self, slices: Sequence[str]) -> None:
        """Columns that an experiment is cut by or measured with, in any case, are held, too; read
        again, once, if they were not."""
        there = {name.casefold() for name in (*self.held.asked, *self.held.columns)}
        missing = {name for name in slices if name.casefold() not in there}
        self.held.asked.update(slices)
        if missing and self.held.columns:
            try:
                self._hold_again()
            except intake.ReadAnew as reason:
                self.begin_anew(str(reason))
                self.held.asked.update(slices)

    def _hold_again(self) -> None:
        """The rows of before, with all columns that are wanted by now, and the labels again."""
        until, asked = self.intake.taken.until, self.held.asked
        if until is None:
            raise intake.ReadAnew("columns are wanted that were not held")
        folded = {name.casefold() for name in asked}
        sliced = [name for name in self.columns if name.casefold() in folded]
        wanted = {*self.held.columns, *asked, *sliced, str(self.shape.time_column)}
        self.held = self._new_held()
        self.held.asked = asked
        self.labels = intake.Labels(self.uri("labels"))
        for frame in self.intake.again([*wanted], until):
            held_columns = [name for name in frame.columns if name in {*wanted, "__time"}]
            self.held.add(self._real(frame.select(held_columns)))
        self._join_labels(until)

    def _tell(self, trouble: str) -> None:
        """Something that goes with the message of the next refresh, once."""
        if trouble not in self.troubles:
            self.troubles.append(trouble)

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
                self.begin_anew(str(reason))
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
            for frame in self.intake.read(new, self.held.unknown):
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
        sliced = self.windowed.sliced(frame)
        truth = self.metrics.truth_columns if self.metrics else []
        by = [*self.held.asked, *slices.columns_of(sliced), *truth]
        keep = watched.kept_columns(frame, self.shape, self.columns, by)
        if self.shape.time_column is not None:
            self.held.add(frame.select(keep))
        for key, window in self.windowed.measured(frame, sliced, moment):
            self.kept.add(key, window)
            self.dirty.profiles.add(key)
            self.dirty.quality.add(key)

    def rows_of(
        self, key: kept.WindowKey, columns: Collection[str] | None = None
    ) -> Iterator[pl.DataFrame]:
        """The held rows of a window with their labels, in portions; at least one, maybe empty.
        columns: those that are wanted, all without."""
        start, end = key.span
        if key.slice is None or not self.held.columns:
            yield from self.held.portions(start, end, columns)
            return
        text, value = key.slice
        parsed = slices.parse([text], self.held.columns)
        if columns is not None:
            columns = {*columns, *slices.columns_of(parsed)}
        for rows in self.held.portions(start, end, columns):
            yield rows.filter(slices.labels(rows, parsed)[text] == value)

    def sums(self, key: kept.WindowKey) -> dict[custom_sums.Group, custom_sums.Sums]:
        """Sums of custom metrics over a window, with its labels as they are now."""
        found = dict((self.kept.whole(key) or kept.NOTHING).sums)
        if self.metrics is not None and self.metrics.late and key.granularity is not None:
            late = (self.windowed.late_sums(rows) for rows in self.rows_of(key))
            found |= custom_sums.together(late)
        return found

    def _real(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Without copies that were scored in the shadow and never answered."""
        if self.shape.recorded and "shadow" in frame.columns:
            return frame.filter(~pl.col("shadow").fill_null(False))
        return frame

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
        if not self.shape.recorded:
            return
        new = self.labels.look()
        changed = [self.held.come_due(moment)]
        changed += (
            self.held.take(labels, moment, self.labels.replaced) for labels in self.labels.read(new)
        )
        self.held.label_files = self.labels.files
        self._dirty_by_labels(pl.concat(changed))
        if self.held.joined(moment):
            self.dirty.quality |= self.kept.known()

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
        self.kept.manifest.formulas = self.formulas
        self.kept.manifest.held = self.held.save()
        self.kept.save(self.intake.taken, self.columns, self.intake.ahead)
        self.held.clean(self.kept.manifest.held)
        self.dirty = Dirty()

    def versions(self) -> list[str]:
        """Model versions among the rows."""
        return sorted(self.held.tally.versions)


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
