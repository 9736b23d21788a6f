"""Where does a key lie? Sorted runs of (hash of a key, moment of its row) in files, mapped to look.

A hash may stand for several keys: what is found is where to look, and whoever asks compares the
keys themselves. New entries wait in memory and become a run; runs of about one size become one, so
that there are few of them, and none grows beyond `MOST_ENTRIES`. Files are never edited.

Most keys are in none of the runs but one. So each run also tells, by a bit for each of 8 to 16
times as many stretches of hashes as it has entries, in which of them it has any: a key is searched
for only where that bit is set, one time in ten without being there.
"""

import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import intake, truth

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]
Pair = tuple[Words, Ints]
Numbers = TypeVar("Numbers", Words, Ints)

FRESH_ENTRIES = 1 << 20
MOST_ENTRIES = 1 << 25
MERGED_AT_ONCE = 1 << 20
FAN = 8  # runs of one size that become one
ENTRY_BYTES, BITS_PER_ENTRY = 16, 8


def keys_of(rows: pl.DataFrame) -> Words:
    """The hashes of the ids of these rows, those of one column after those of the other."""
    parts = [_hashed(rows[name].drop_nulls(), seed) for seed, name in enumerate(truth.KEYS)]
    return np.concatenate(parts)


def entries_of(rows: pl.DataFrame, time: str) -> Pair:
    """Hash and moment (microseconds) of every id of these rows."""
    moments = rows[time].dt.epoch("us")
    keys, times = [], []
    for seed, name in enumerate(truth.KEYS):
        there = rows[name].is_not_null()
        keys.append(_hashed(rows[name].filter(there), seed))
        times.append(moments.filter(there).to_numpy())
    return np.concatenate(keys), np.concatenate(times)


def probe() -> int:
    """Changes when ids are hashed otherwise, with another polars for example."""
    return int(_hashed(pl.Series(["0190163d-8694-7390-a1a6-0123456789ab"]), 1)[0])


def _hashed(ids: pl.Series, seed: int) -> Words:
    return ids.cast(pl.String).hash(seed).to_numpy()


class KeyIndex:
    """Entries of one kind of row. runs: names of the files in the folder; fresh_entries: how many
    may wait in memory."""

    def __init__(
        self, folder: Path, runs: Sequence[str] = (), fresh_entries: int = FRESH_ENTRIES
    ) -> None:
        self.folder = folder
        self.fresh_entries = fresh_entries
        self.runs = list(runs)
        self.saved = set(runs)
        self.fresh: list[Pair] = []

    def add(self, entries: Pair) -> None:
        if len(entries[0]):
            self.fresh.append(entries)
        if sum(len(keys) for keys, _ in self.fresh) >= self.fresh_entries:
            self.flush()

    def moments(self, keys: Words) -> Ints:
        """The moments of rows that may have one of these keys, in order, each once."""
        wanted = distinct(keys)
        found = [times[_among(hashes, wanted)] for hashes, times in self.fresh]
        if len(wanted):
            found += [_looked_up(self.folder / name, wanted) for name in self.runs]
        return distinct(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)

    def flush(self) -> None:
        """Put what waits in memory into files."""
        if self.fresh:
            hashes, times = (np.concatenate(part) for part in zip(*self.fresh, strict=True))
            self.runs.append(_write(self.folder, [(hashes, times)]))
            self.fresh = []
        while (alike := self._alike()) is not None:
            merged = _write(self.folder, [_mapped(self.folder / name) for name in alike])
            for name in alike:
                self._drop(name)
            self.runs.append(merged)

    def _alike(self) -> list[str] | None:
        """Runs of about one size that are to become one."""
        by_size: dict[int, list[str]] = {}
        for name in self.runs:
            entries = _entries(name)
            if entries <= MOST_ENTRIES // FAN:
                by_size.setdefault((entries.bit_length() - 1) // 3, []).append(name)
        return next((names for names in by_size.values() if len(names) >= FAN), None)

    def _drop(self, name: str) -> None:
        self.runs.remove(name)
        if name not in self.saved:
            (self.folder / name).unlink(missing_ok=True)


def distinct(values: Numbers) -> Numbers:
    """In order, each once: a third of the time of np.unique."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def spread(starts: Ints, counts: Ints) -> Ints:
    """Positions start, start + 1, ... of each stretch, one stretch after another."""
    first = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return first + np.arange(len(first))


def _among(keys: Words, wanted: Words) -> NDArray[np.bool_]:
    """Which keys are wanted; wanted: sorted."""
    if not len(wanted):
        return np.zeros(len(keys), dtype=np.bool_)
    at = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    return np.asarray(wanted[at] == keys)


def _looked_up(path: Path, wanted: Words) -> Ints:
    """The moments of the wanted keys in one run. The map ends with the call: what was touched of it
    is no more memory of this process."""
    hashes, times = _mapped(path)
    if len(hashes) < len(wanted):
        return np.array(times[_among(hashes, wanted)])
    wanted = wanted[_maybe_there(path, wanted)]
    left = np.searchsorted(hashes, wanted)
    inside = np.minimum(left, len(hashes) - 1)
    hit = hashes[inside] == wanted
    left = left[hit]
    return np.array(times[spread(left, np.searchsorted(hashes, wanted[hit], "right") - left)])


def _maybe_there(path: Path, wanted: Words) -> NDArray[np.bool_]:
    """For which keys a run has an entry in the same stretch of hashes."""
    count = _entries(path.name)
    bits = _stretch_bits(count)
    there = np.memmap(path, np.uint8, "r", offset=ENTRY_BYTES * count, shape=(2**bits // 8,))
    stretch = wanted >> np.uint64(64 - bits)
    mask = np.uint8(128) >> (stretch & np.uint64(7)).astype(np.uint8)  # as np.packbits has them
    return np.asarray(there[stretch >> np.uint64(3)] & mask) != 0


def _stretch_bits(count: int) -> int:
    """How many stretches of hashes a run of so many entries tells apart, as a power of two."""
    return max(3, (BITS_PER_ENTRY * count - 1).bit_length())


def _entries(name: str) -> int:
    """How many entries a run has, as its name says."""
    return int(name.rsplit("-", 1)[1].removesuffix(".run"))


def _mapped(path: Path) -> Pair:
    count = _entries(path.name)
    try:
        if path.stat().st_size != count * ENTRY_BYTES + 2 ** _stretch_bits(count) // 8:
            raise intake.ReadAnew("a file of the monitor's own is not whole")
    except FileNotFoundError:
        raise intake.ReadAnew("a file of the monitor's own is gone") from None
    hashes = np.memmap(path, np.uint64, "r", shape=(count,))
    return hashes, np.memmap(path, np.int64, "r", offset=8 * count, shape=(count,))


def _write(folder: Path, parts: Iterable[Pair]) -> str:
    """One sorted run of all parts, range of hashes by range: few of them are in memory. A single
    part may be in any order."""
    parts = list(parts)
    if len(parts) == 1:
        order = np.argsort(parts[0][0])
        parts = [(parts[0][0][order], parts[0][1][order])]
    total = sum(len(hashes) for hashes, _ in parts)
    doublings = (-(-total // MERGED_AT_ONCE) - 1).bit_length()
    steps, bits = 2**doublings, _stretch_bits(total)
    cuts = np.array([k << (64 - doublings) for k in range(1, steps)], dtype=np.uint64)
    bounds = [[0, *np.searchsorted(hashes, cuts), len(hashes)] for hashes, _ in parts]
    name = f"keys-{uuid.uuid4().hex}-{total}.run"
    path = folder / name
    with path.open("wb") as keys, path.open("r+b") as moments, path.open("r+b") as filled:
        moments.seek(8 * total)
        filled.seek(ENTRY_BYTES * total)
        for step in range(steps):
            ranges = [slice(bound[step], bound[step + 1]) for bound in bounds]
            hashes = np.concatenate([part[0][r] for part, r in zip(parts, ranges, strict=True)])
            times = np.concatenate([part[1][r] for part, r in zip(parts, ranges, strict=True)])
            if len(parts) > 1:
                order = np.argsort(hashes, kind="stable")  # merges what is sorted part by part
                hashes, times = hashes[order], times[order]
            keys.write(hashes.data)
            moments.write(times.data)
            there = np.zeros(2 ** (bits - doublings), np.bool_)
            first = step << (bits - doublings)
            there[(hashes >> np.uint64(64 - bits)).astype(np.int64) - first] = True
            filled.write(np.packbits(there).data)
    return name
