"""A batch against the snapshots: what a worker adds to the columns that a client sent.

The newest row of a key is served: online, now is the only time there is. `timestamp_key` serves the
lookback window alone: a newest row older than the request's time less the window counts as missing,
as it does in training. Loaded by workers, so no polars and no Delta here.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from capture import errors, snapshots
from serving.features import spec as specs

CHECK_SECONDS = 0.1  # longest time that a swapped snapshot stays unnoticed


@dataclass(frozen=True, slots=True)
class _Bound:
    """A lookup bound to one snapshot."""

    snapshot: snapshots.Snapshot
    places: tuple[tuple[str, int, Any], ...]  # output column, position in a row, default
    time_place: int | None


class Lookup:
    """The features of one model. For one thread; cheap to make, opens tables when first asked."""

    def __init__(self, definition: Mapping[str, Any], snapshots_dir: Path) -> None:
        """definition: content of `feature_spec.json`. Raises InvalidParameter."""
        self.spec = specs.parse(definition)
        self.misses = {lookup.table: 0 for lookup in self.spec.lookups}
        self._directory = snapshots_dir
        self._bound: list[_Bound | None] = [None] * len(self.spec.lookups)
        self._check_at = 0.0

    def add(self, columns: Mapping[str, list[Any]], rows: int) -> dict[str, list[Any]]:
        """Looked-up columns, one value per row; None where there is neither row nor default.

        columns: what the client sent, lists of length `rows`; a column that is there already
        overrides its lookup and is not in the answer. `misses` counts keys without a row, per
        table. Raises Unavailable, naming the table, when its snapshot is missing or lacks a
        feature; BadRequest when a column of a lookup key was not sent.
        """
        self._refresh()
        added: dict[str, list[Any]] = {}
        for place, lookup in enumerate(self.spec.lookups):
            if all(output in columns for output in lookup.outputs):
                continue
            bound = self._bound[place]
            if bound is None:
                bound = self._bound[place] = _bind(lookup, self._directory)
            found = _rows(lookup, bound, columns, rows)
            missing = found.count(None)
            if missing:
                self.misses[lookup.table] += missing
            for output, position, default in bound.places:
                if output not in columns:
                    added[output] = [default if row is None else row[position] for row in found]
        return added

    def facts(self) -> dict[str, snapshots.Facts]:
        """What is served just now, per table: versions and ages for metrics."""
        return {item.snapshot.facts.table: item.snapshot.facts for item in self._bound if item}

    def _refresh(self) -> None:
        """Let go of snapshots that were swapped; looks at the files every CHECK_SECONDS only."""
        now = time.monotonic()
        if now < self._check_at:
            return
        self._check_at = now + CHECK_SECONDS
        for place, item in enumerate(self._bound):
            if item is None:
                continue
            path = snapshots.snapshot_path(self._directory, item.snapshot.facts.table)
            # A snapshot that vanished goes on being served from its map until the next one.
            if snapshots.identify(path) not in (None, item.snapshot.identity):
                self._bound[place] = None


def _bind(lookup: specs.TableLookup, directory: Path) -> _Bound:
    snapshot = snapshots.Snapshot.open(directory, lookup.table)
    positions = {name: place for place, name in enumerate(snapshot.columns)}
    if len(snapshot.facts.primary_keys) != len(lookup.lookup_key):
        raise errors.Unavailable(
            f"Feature table '{lookup.table}' has the keys {list(snapshot.facts.primary_keys)}, "
            f"the model looks up by {list(lookup.lookup_key)}."
        )
    places = []
    for feature, output in zip(lookup.features, lookup.outputs, strict=True):
        if feature not in positions:
            raise errors.Unavailable(f"Feature table '{lookup.table}' has no column '{feature}'.")
        places.append((output, positions[feature], lookup.defaults.get(feature)))
    time_column = snapshot.facts.time_column
    time_place = None if time_column is None else positions.get(time_column)
    return _Bound(snapshot, tuple(places), time_place)


def _rows(
    lookup: specs.TableLookup, bound: _Bound, columns: Mapping[str, list[Any]], rows: int
) -> list[tuple[Any, ...] | None]:
    """The table's row for each row of the batch; None where there is none that counts."""
    try:
        keys = [columns[name] for name in lookup.lookup_key]
    except KeyError as error:
        raise errors.BadRequest(
            f"Column {error} is missing; the features of '{lookup.table}' are looked up by it."
        ) from None
    get = bound.snapshot.get
    found = [get(key) for key in zip(*keys, strict=True)]
    if lookup.lookback_seconds is None or bound.time_place is None:
        return found
    lookback_us = round(lookup.lookback_seconds * 1e6)
    asked = columns.get(lookup.timestamp_key or "", [None] * rows)
    now_us = time.time_ns() // 1000
    return [
        row
        if row is not None and _is_young(row[bound.time_place], asked_at, now_us, lookback_us)
        else None
        for row, asked_at in zip(found, asked, strict=True)
    ]


def _is_young(row_time: Any, asked_at: Any, now_us: int, lookback_us: int) -> bool:
    """Whether a row counts at the request's own time, or now if the request names none."""
    row_us, at_us = _microseconds(row_time), _microseconds(asked_at)
    return row_us is not None and row_us >= (now_us if at_us is None else at_us) - lookback_us


def _microseconds(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    return snapshots.microseconds(value) if isinstance(value, datetime) else None
