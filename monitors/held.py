"""The rows of a monitored table that a monitor may need again, with their labels, on disk.

A refresh adds its new rows and labels and finds what they belong to by index: it costs what is new,
and memory holds some pieces of files, whatever was held before. A label finds its row however late
it comes, also when a newer one replaces it; one that comes before its row waits here for it.
Nothing counts as held before `save`, whose result the manifest keeps; after a death the rest is
read from the tables again.
"""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import arms, intake, key_index, tallied, timeline, truth

Ints = NDArray[np.int64]

PORTION_ROWS = 2 * timeline.PIECE_ROWS
MATCHED = (
    *truth.KEYS,
    *("row_index", "__time", tallied.VERSION, "prediction", *truth.LABEL),
)
LATELY = timedelta(hours=1)
EVER = -arms.NEVER, arms.NEVER


class Held:
    """Rows and labels below a folder. recorded: rows have ids, and labels come for them; model: the
    column that tells versions apart; saved: what `save` gave.

    `read_until`: labels up to that moment are joined. Raises ReadAnew where files do not fit."""

    def __init__(
        self,
        folder: Path,
        recorded: bool,
        model: str | None = None,
        saved: Mapping[str, Any] | None = None,
        piece_rows: int = timeline.PIECE_ROWS,
    ) -> None:
        self.folder, self.recorded, self.model = folder, recorded, model
        known = saved or {}
        changing = {name: truth.SCHEMA[name] for name in truth.LABEL} if recorded else {}
        pieces, labels = known.get("rows", ()), known.get("labels", ())
        self.rows = timeline.Timeline(folder, "__time", changing, pieces, piece_rows)
        self.labels = timeline.Timeline(folder, "label_time", {}, labels, piece_rows)
        entries = 4 * piece_rows
        self.row_keys = key_index.KeyIndex(folder, known.get("row_keys", ()), entries)
        self.label_keys = key_index.KeyIndex(folder, known.get("label_keys", ()), entries)
        self.label_files: set[str] = set(known.get("label_files", ()))
        self.asked: set[str] = set(known.get("asked", ()))
        until = known.get("read_until")
        self.read_until = None if until is None else datetime.fromisoformat(until)
        self.tally, self.empty = tallied.Tallied(), pl.DataFrame()
        if saved is not None:
            self._load(saved)
        self.mark = 0
        self._marks: dict[int, int] = {}
        self._had_words = self.tally.words > 0

    def _load(self, saved: Mapping[str, Any]) -> None:
        if saved["probe"] != key_index.probe():
            raise intake.ReadAnew("ids are hashed otherwise than before")
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        if not self._named(saved) <= there:
            raise intake.ReadAnew("a file of the monitor's own is gone")
        try:
            self.tally = tallied.Tallied.load(self.folder, saved["tally"])
            self.empty = pl.read_ipc((self.folder / saved["empty"]).read_bytes())
        except (OSError, pl.exceptions.PolarsError):
            raise intake.ReadAnew("a file of the monitor's own is not whole") from None

    @property
    def columns(self) -> list[str]:
        """Names of what is held of a row."""
        return self.schema.columns

    @property
    def schema(self) -> pl.DataFrame:
        """No rows, with all columns of those that are held."""
        if not self.recorded or not self.empty.width:
            return self.empty
        return self.empty.with_columns(
            pl.lit(None, pl.String if self.tally.words else pl.Float64).alias("label"),
            pl.lit(None, truth.TIME).alias("label_time"),
        )

    # --- adding ------------------------------------------------------------------------------

    def add(self, frame: pl.DataFrame) -> None:
        """Rows whose time has come, with `__time`, without labels."""
        if frame.is_empty():
            return
        self._prepare()
        parts = [part for part in (self.empty, frame.head(0)) if part.width]
        self.empty = pl.concat(parts, how="diagonal_relaxed")
        if self.recorded:
            self.row_keys.add(key_index.entries_of(frame, "__time"))
            frame = self._with_early_labels(truth.unlabelled(frame))
        self.tally.add(frame, self.model, self.recorded)
        self._touch(frame["__time"])
        self.rows.add(frame)

    def _prepare(self) -> None:
        if not self.folder.is_dir():
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _with_early_labels(self, frame: pl.DataFrame) -> pl.DataFrame:
        """With the labels that were there before their rows."""
        if not self.labels.height or self.read_until is None:
            return frame
        moments = self.label_keys.moments(key_index.keys_of(frame))
        for found in self.labels.at(moments):
            known = found.rows.filter(pl.col("label_time") <= self.read_until)
            frame = truth.renewed(frame, truth.sides(known))
        return frame

    def unknown(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Of some ids with `__time` those whose rows are not held."""
        by = [*intake.IDS, "__time"]
        for found in self.rows.at(_moments(frame["__time"]), by):
            frame = frame.join(found.rows, on=by, how="anti", maintain_order="left")
        return frame

    # --- labels ------------------------------------------------------------------------------

    def take(self, labels: pl.DataFrame, until: datetime, maybe_known: bool) -> pl.Series:
        """New labels, columns as in truth.SCHEMA with a time each; gives the times of the rows that
        they change. maybe_known: some of them were taken before."""
        if maybe_known:
            for found in self.labels.at(_moments(labels["label_time"])):
                labels = labels.join(
                    found.rows, on=list(truth.SCHEMA), how="anti", nulls_equal=True
                )
        if labels.is_empty():
            return pl.Series(dtype=truth.TIME)
        self._prepare()
        self.label_keys.add(key_index.entries_of(labels, "label_time"))
        self.labels.add(labels)
        return self._judge(labels.filter(pl.col("label_time") <= until))

    def come_due(self, until: datetime) -> pl.Series:
        """Labels that waited for their time; gives the times of the rows that they change."""
        if self.read_until is None or until <= self.read_until:
            return pl.Series(dtype=truth.TIME)
        start, end = (arms.microseconds(one) + 1 for one in (self.read_until, until))
        changed = [self._judge(frame) for frame in self.labels.between(start, end)]
        return pl.concat([pl.Series(dtype=truth.TIME), *changed])

    def joined(self, until: datetime) -> bool:
        """All labels up to a moment are joined; True: what they say has become texts or numbers by
        that, and no row means what it did."""
        self.read_until = until
        turned = self._had_words != (self.tally.words > 0)
        self._had_words = self.tally.words > 0
        if turned:
            self._touch_all()
        return turned

    def _judge(self, labels: pl.DataFrame) -> pl.Series:
        changed = [pl.Series(dtype=truth.TIME)]
        sides = truth.sides(labels)
        for found in self.rows.at(self.row_keys.moments(key_index.keys_of(labels)), MATCHED):
            renewed = truth.renewed(found.rows, sides)
            other = renewed["label_time"].ne_missing(found.rows["label_time"])
            other |= renewed["label"].ne_missing(found.rows["label"])
            if not other.any():
                continue
            after = renewed.filter(other)
            self.tally.relabel(found.rows.filter(other), after)
            self.rows.change(found.piece, found.positions[other.to_numpy()], after)
            changed.append(after["__time"])
        times = pl.concat(changed)
        self._touch(times)
        return times

    # --- reading -----------------------------------------------------------------------------

    def portions(
        self,
        start: datetime | None = None,
        end: datetime | None = None,
        columns: Collection[str] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """The rows of [start, end) with their labels, in parts of about PORTION_ROWS; at least one,
        maybe empty. columns: None for all; those that are not held are not there."""
        low = EVER[0] if start is None else arms.microseconds(start)
        high = EVER[1] if end is None else arms.microseconds(end)
        parts: list[pl.DataFrame] = []
        height, given = 0, False
        for part in self.rows.between(low, high, columns):
            parts.append(part)
            height += part.height
            if height >= PORTION_ROWS:
                yield self._shown(parts, columns)
                parts, height, given = [], 0, True
        if parts or not given:
            yield self._shown(parts, columns)

    def frame(
        self,
        start: datetime | None = None,
        end: datetime | None = None,
        columns: Collection[str] | None = None,
    ) -> pl.DataFrame:
        """The rows of [start, end) as one."""
        return pl.concat(self.portions(start, end, columns), how="vertical_relaxed")

    def newest(self, column: str, until: datetime, count: int) -> pl.DataFrame:
        """The newest rows up to a moment in which a column holds a time: `__time` and the column,
        oldest first."""
        nothing = pl.DataFrame(schema={"__time": truth.TIME, column: truth.TIME})
        end = until + timedelta(microseconds=1)
        found = nothing
        for start in (until - LATELY, None):  # nearly always they are among the latest
            found = nothing
            for part in self.portions(start, end, ["__time", column]):
                if column in part.columns:
                    at = intake.as_times(part[column]).alias(column)
                    times = pl.concat([found, part.select("__time", at).drop_nulls()])
                    found = times.sort("__time", maintain_order=True).tail(count)
            if found.height == count:
                break
        return found

    def _shown(
        self, parts: Sequence[pl.DataFrame], columns: Collection[str] | None
    ) -> pl.DataFrame:
        schema = self.schema
        if columns is not None:
            schema = schema.select(name for name in schema.columns if name in columns)
        if self.recorded and "label" in schema.columns:
            words = self.tally.words > 0
            parts = [
                part.with_columns(truth.scalars(part["label"], words).alias("label"))
                for part in parts
            ]
        return pl.concat([schema, *parts], how="diagonal_relaxed")

    # --- what changed ------------------------------------------------------------------------

    def changed_since(self, mark: int) -> list[int]:
        """Hours since the epoch with new rows or other labels since `mark` was this."""
        return sorted(hour for hour, at in self._marks.items() if at > mark)

    def hours(self) -> list[int]:
        """All hours since the epoch that have rows."""
        return sorted(self.tally.hours["hour"].unique().to_list())

    def counted(self, length: int) -> dict[int, int]:
        """Rows per block of so many hours."""
        blocks = self.tally.hours.group_by(pl.col("hour") // length).agg(pl.col("rows").sum())
        return dict(blocks.iter_rows())

    def _touch(self, times: pl.Series) -> None:
        self.mark += 1
        hours = (times.dt.epoch("us") // arms.HOUR).unique().to_list()
        self._marks.update(dict.fromkeys(hours, self.mark))

    def _touch_all(self) -> None:
        self.mark += 1
        self._marks.update(dict.fromkeys(self.tally.hours["hour"].to_list(), self.mark))

    # --- keeping -----------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Put everything into files; gives what makes it again, JSON-able."""
        self._prepare()
        empty = f"empty-{uuid.uuid4().hex}.arrow"
        self.empty.write_ipc(self.folder / empty)
        self.row_keys.flush()
        self.label_keys.flush()
        return {
            "probe": key_index.probe(),
            "rows": self.rows.save(),
            "labels": self.labels.save(),
            "row_keys": list(self.row_keys.runs),
            "label_keys": list(self.label_keys.runs),
            "label_files": sorted(self.label_files),
            "asked": sorted(self.asked),
            "read_until": self.read_until.isoformat() if self.read_until else None,
            "tally": self.tally.save(self.folder),
            "empty": empty,
        }

    def clean(self, saved: Mapping[str, Any]) -> None:
        """The manifest holds what `save` gave: files that it does not name can go."""
        named = self._named(saved)
        for path in self.folder.iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)
        for part in (self.rows, self.labels, self.row_keys, self.label_keys):
            part.saved = set(named)

    def _named(self, saved: Mapping[str, Any]) -> set[str]:
        pieces = [*saved["rows"], *saved["labels"]]
        named = {name for piece in pieces for name in piece[3:] if name is not None}
        named |= {*saved["row_keys"], *saved["label_keys"], saved["empty"]}
        return named | {saved["tally"][name] for name in tallied.FRAMES}


def _moments(times: pl.Series) -> Ints:
    return times.drop_nulls().dt.epoch("us").unique().sort().to_numpy()
