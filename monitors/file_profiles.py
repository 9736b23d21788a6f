"""Profiles of the columns of files: which columns, of the reference and of every window.

Loads no scipy: profiling begins while the comparison is still being imported.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa

from capture import errors
from monitors import files, passes, portions, profile, slices

Group = tuple[slices.Slice | None, str]  # slice or None for all rows, column
Window = passes.Window[profile.Profile]


@dataclass(frozen=True, slots=True)
class Column:
    """A column that is compared. centre: where the bins of a numeric one are finest."""

    name: str
    kind: profile.Kind
    centre: float = 0.0

    def profiled(self, batch: pa.RecordBatch) -> profile.Profile:
        """The profile of its values in some rows."""
        values = batch.column(self.name)
        if self.kind == "categorical" and pa.types.is_dictionary(values.type):
            return _of_dictionary(values)
        return profile.profile_column(portions.series(batch, self.name), self.kind, self.centre)

    def nothing(self) -> profile.Profile:
        """The profile of no rows."""
        return profile.empty(self.kind, self.centre)


@dataclass(slots=True)
class Reference:
    """What windows are compared with. own: its own windows, where it has the time column."""

    rows: int = 0
    profiles: dict[Group, profile.Profile] = field(default_factory=dict)
    own: dict[Group, list[profile.Profile]] = field(default_factory=dict)


def choose(
    reference: files.Source,
    current: files.Source,
    numeric: Sequence[str],
    categorical: Sequence[str],
    apart: Sequence[str],
) -> list[Column]:
    """The columns to compare: those named, else all that both sides have, save those in `apart`.

    Raises InvalidParameter for a column that is not on both sides, is named twice or cannot be
    compared, and where there is none."""
    kinds: dict[str, profile.Kind] = {}
    theirs, ours = reference.schema, current.schema
    shared = {name: dtype for name, dtype in theirs.items() if name in ours}
    for names, kind in ((numeric, "numeric"), (categorical, "categorical")):
        for name in names:
            if name not in shared:
                raise errors.InvalidParameter(
                    f"Column '{name}' is not in both files; shared are {', '.join(shared)[:500]}."
                )
            if kinds.setdefault(name, kind) != kind:  # type: ignore[arg-type]
                raise errors.InvalidParameter(f"Column '{name}' is named numeric and categorical.")
            if not _comparable(shared[name]):
                raise errors.InvalidParameter(
                    f"Column '{name}' of type {shared[name]} cannot be compared."
                )
    if not kinds:
        for name, dtype in shared.items():
            if _comparable(dtype) and name not in apart:
                known = dtype if dtype != pl.Null else ours[name]
                kinds[name] = profile.kind_of(known)
    if not kinds:
        raise errors.InvalidParameter("The files have no column in common that can be compared.")
    sample = reference.sample([name for name, kind in kinds.items() if kind == "numeric"])
    return [
        Column(name, kind, profile.choose_centre(sample[name]) if kind == "numeric" else 0.0)
        for name, kind in kinds.items()
    ]


def _comparable(dtype: pl.DataType) -> bool:
    return not isinstance(dtype, pl.Struct | pl.Binary | pl.Object)


@dataclass(frozen=True, slots=True)
class Plan:
    """Two sides, the columns compared, and how the current side is cut."""

    reference: files.Source
    current: files.Source
    columns: Sequence[Column]
    windowing: portions.Windowing
    slicing: portions.Slicing
    pool: Executor
    seen: Callable[[int], None]

    def of_reference(self) -> Reference:
        """The reference as a whole; in its own windows too, where it has the time column."""
        by_time = self.windowing.time_column
        timed = by_time is not None and files.has_times(self.reference, by_time)
        made = Reference()
        parts: dict[Group, list[profile.Profile]] = {}
        for window in self._pass(self.reference, self.windowing if timed else portions.Windowing()):
            made.rows += window.rows
            for (slice_, name), found in window.measured.items():
                parts.setdefault((slice_, str(name)), []).append(found)
        made.profiles = {group: profile.compact(_merged(found)) for group, found in parts.items()}
        made.own = parts if timed else {}
        return made

    def of_windows(self) -> Iterator[Window]:
        """Every window of the current side; an empty file is one empty window."""
        any_window = False
        for window in self._pass(self.current, self.windowing):
            any_window = True
            yield window
        if not any_window and self.windowing.by_position:
            yield passes.Window(0)

    def _pass(
        self, source: files.Source, windowing: portions.Windowing
    ) -> Iterator[passes.Window[profile.Profile]]:
        wanted = {*(c.name for c in self.columns), *windowing.columns, *self.slicing.columns}
        plan = passes.Pass(windowing, self.slicing, self._jobs, profile.merge, self.pool, self.seen)
        return plan.windows(source.batches([name for name in source.schema if name in wanted]))

    def _jobs(self, batch: pa.RecordBatch) -> list[passes.Job[profile.Profile]]:
        return [(c.name, functools.partial(c.profiled, batch)) for c in self.columns]


def _merged(profiles: Sequence[profile.Profile]) -> profile.Profile:
    total = profiles[0]
    for one in profiles[1:]:
        total = profile.merge(total, one)
    return total


def _of_dictionary(values: pa.DictionaryArray) -> profile.Profile:
    codes = pl.Series(values.indices.drop_null()).to_numpy()  # pyarrow's own would load pandas
    texts = pl.Series(values.dictionary.cast(pa.large_string()))
    counts = np.bincount(codes, minlength=len(texts))
    return profile.of_counts(texts, counts, len(values))
