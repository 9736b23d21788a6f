"""One pass over the rows of a file: every window and slice measured while it streams by.

What is measured merges by addition (profiles, quality counts). Columns are measured in parallel:
numpy, pyarrow and polars let go of the interpreter while they count. The next batch is decoded
meanwhile; nothing else is held but what was measured.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pyarrow as pa

from monitors import portions, slices

Measured = TypeVar("Measured")
Job = tuple[Hashable, Callable[[], Measured]]


@dataclass(slots=True)
class Window(Generic[Measured]):
    """The rows of one window, and of its slices, as they were measured."""

    key: portions.Key
    rows: int = 0
    sliced: dict[slices.Slice, int] = field(default_factory=dict)
    measured: dict[tuple[slices.Slice | None, Hashable], Measured] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pass(Generic[Measured]):
    """How a file is read. jobs: what there is to measure of some rows, by name; merge: of two
    parts; seen: is told how many rows went by."""

    windowing: portions.Windowing
    slicing: portions.Slicing
    jobs: Callable[[pa.RecordBatch], Sequence[Job[Measured]]]
    merge: Callable[[Measured, Measured], Measured]
    pool: Executor
    seen: Callable[[int], None]

    def windows(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Window[Measured]]:
        """The windows in ascending order. Those by position are given as they are complete."""
        held: dict[portions.Key, Window[Measured]] = {}
        first_row = 0
        for batch in _ahead(batches, self.pool):
            for key, part in self.windowing.parts(batch, first_row):
                if self.windowing.by_position:
                    yield from (held.pop(other) for other in list(held) if other != key)
                if key not in held:
                    held[key] = Window(key)
                self._measure(held[key], part)
            first_row += batch.num_rows
            self.seen(batch.num_rows)
        yield from (held[key] for key in sorted(held))

    def _measure(self, window: Window[Measured], part: pa.RecordBatch) -> None:
        work: list[tuple[slices.Slice | None, Job[Measured]]] = [
            (None, job) for job in self.jobs(part)
        ]
        window.rows += part.num_rows
        for cut, rows in self.slicing.parts(part):
            window.sliced[cut] = window.sliced.get(cut, 0) + rows.num_rows
            work += [(cut, job) for job in self.jobs(rows)]
        found = self.pool.map(lambda one: one[1][1](), work)
        for (slice_, (name, _)), measured in zip(work, found, strict=True):
            before = window.measured.get((slice_, name))
            merged = measured if before is None else self.merge(before, measured)
            window.measured[slice_, name] = merged


def _ahead(batches: Iterator[pa.RecordBatch], pool: Executor) -> Iterator[pa.RecordBatch]:
    """The batches, the next one on its way while one is looked at."""
    end: Any = object()
    coming = pool.submit(next, batches, end)
    while (batch := coming.result()) is not end:
        coming = pool.submit(next, batches, end)
        yield batch
