"""What a monitor keeps between refreshes: how far it read, its columns, a profile per window.

One folder per monitored table. A window's profiles are one compressed file; the manifest, replaced
in one step after the files it names were written, says which files count. A refresh that dies
leaves files that no manifest names; the next one reads from where the manifest says. Lost or
unreadable, the folder costs a full read, no more.
"""

import contextlib
import functools
import os
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson
import polars as pl
import pyarrow as pa

from capture.settings import Settings
from monitors import custom_sums, intake, profile, slices, watched, windows

FORMAT = 2
WINDOWS_IN_MEMORY = 24  # changed ones, and others: 1 to 2 MB each with 20 columns
MANIFEST = "manifest.json"
HELD = "held"  # folder of the rows
BASELINE_PROFILES, BASELINE_FACTS = "baseline.zst", "baseline.json"
BASELINE, CONSECUTIVE = "BASELINE", "CONSECUTIVE"  # what a window is compared with
TICK = timedelta(microseconds=1)

Profile = watched.Profile
Group = tuple[str | None, str]  # (model version or None for all, column)


class WindowKey(NamedTuple):
    """A window of one granularity; a snapshot monitor has one, of no granularity. slice: only those
    of its rows for which an expression has a value."""

    granularity: str | None
    start: datetime
    slice: slices.Slice | None = None

    @property
    def text(self) -> str:
        cut = f"|{orjson.dumps(self.slice).decode()}" if self.slice else ""
        return f"{self.granularity or ''}|{self.start.isoformat()}{cut}"

    @classmethod
    def read(cls, text: str) -> "WindowKey":
        granularity, start, *cut = text.split("|", 2)
        slice_ = tuple(orjson.loads(cut[0])) if cut else None
        return cls(granularity or None, datetime.fromisoformat(start), slice_)

    @property
    def span(self) -> tuple[datetime, datetime]:
        """Start and end; the moment itself for a snapshot."""
        if self.granularity is None:
            return self.start, self.start
        return self.start, windows.end_of(self.start, self.granularity)

    @property
    def previous(self) -> "WindowKey":
        """The window right before this one; a snapshot has none."""
        assert self.granularity is not None
        just_before = self.start - TICK
        start = windows.align(just_before, self.granularity)[0]
        return WindowKey(self.granularity, start, self.slice)

    @property
    def spoken(self) -> str:
        """In words: `the week of 7 October 2013`."""
        day = f"{self.start.day} {self.start:%B %Y}"
        match self.granularity:
            case None:
                return f"the table at {day} {self.start:%H:%M}"
            case "1 day":
                return day
            case "1 week":
                return f"the week of {day}"
            case "1 month":
                return f"{self.start:%B %Y}"
            case "1 year":
                return str(self.start.year)
            case other:
                return f"the {other} from {day} {self.start:%H:%M}"


@dataclass(frozen=True, slots=True)
class Window:
    """What is kept of the rows of a window: a profile per column, sums of custom metrics."""

    profiles: dict[Group, Profile] = field(default_factory=dict)
    sums: dict[custom_sums.Group, custom_sums.Sums] = field(default_factory=dict)


NOTHING = Window()


def merged(a: Window, b: Window) -> Window:
    """What is kept of the rows of both."""
    profiles = dict(a.profiles)
    for group, more in b.profiles.items():
        profiles[group] = profile.merge(profiles[group], more) if group in profiles else more
    return Window(profiles, custom_sums.added(a.sums, b.sums))


@dataclass(slots=True)
class Manifest:
    """What a monitor knows. `fingerprint`: of the configuration that its profiles were made with;
    `slices`: the values of each slicing expression that count; `formulas`: fingerprint of the
    custom metrics that the rows were written with, empty without any; `ahead`: file of the rows
    that were read before their time came; `baseline_rows`: key of the baseline rows that the
    profile table holds; `held`: the rows, as held.py has saved them; `filled`: version and column
    wherever a version ever had a value in it."""

    fingerprint: str
    files: list[str] = field(default_factory=list)
    until: str | None = None
    clock: str | None = None
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    windows: dict[str, str] = field(default_factory=dict)
    ahead: str | None = None
    baseline_rows: str | None = None
    filled: list[list[str]] = field(default_factory=list)
    slices: dict[str, list[str]] = field(default_factory=dict)
    formulas: str = ""
    held: dict[str, Any] | None = None
    format: int = FORMAT


class Kept:
    """The folder of one monitor."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        found = read_manifest(folder)
        fits = found is not None and found.fingerprint == fingerprint
        self.manifest = found if found is not None and fits else Manifest(fingerprint)
        self.outdated = found is not None and not fits  # of a configuration that is no more
        self.memory: OrderedDict[WindowKey, Window] = OrderedDict()
        self.changed: OrderedDict[WindowKey, Window] = OrderedDict()
        self.drafts: dict[WindowKey, str] = {}  # files of windows that changed, not yet saved
        self.filled = {(version, column) for version, column in self.manifest.filled}

    def forget(self) -> None:
        """Begin anew; the folder is cleaned by the next `save`."""
        self.manifest = Manifest(self.manifest.fingerprint)
        self.memory.clear()
        self.changed.clear()
        self.drafts.clear()
        self.filled.clear()

    def keys(self, granularity: str | None, slice_: slices.Slice | None = None) -> list[WindowKey]:
        """Known windows of a granularity and a slice, None: of all rows; oldest first."""
        return sorted(
            key for key in self.known() if (key.granularity, key.slice) == (granularity, slice_)
        )

    def slices_of(self, granularity: str | None, start: datetime | None = None) -> list[WindowKey]:
        """Known windows of slices, of one start or of any."""
        return [
            key
            for key in self.known()
            if key.slice and key.granularity == granularity and start in (None, key.start)
        ]

    def known(self) -> set[WindowKey]:
        """All windows, of slices as well."""
        saved = {WindowKey.read(text) for text in self.manifest.windows}
        return saved | set(self.changed) | set(self.drafts)

    def window(self, key: WindowKey) -> dict[Group, Profile] | None:
        """Profiles of a window, to be read only. Raises ReadAnew when its file is gone."""
        found = self.whole(key)
        return None if found is None else found.profiles

    def whole(self, key: WindowKey) -> Window | None:
        """All that is kept of a window, to be read only. Raises ReadAnew when its file is gone."""
        if key in self.changed:
            self.changed.move_to_end(key)
            return self.changed[key]
        if key in self.memory:
            self.memory.move_to_end(key)
            return self.memory[key]
        name = self.drafts.get(key) or self.manifest.windows.get(key.text)
        if name is None:
            return None
        try:
            self._remember(key, read_window(self.folder / name))
        except (OSError, ValueError, KeyError):
            raise intake.ReadAnew("a file of the monitor's own is gone or not whole") from None
        return self.memory[key]

    def _remember(self, key: WindowKey, window: Window) -> None:
        self.memory[key] = window
        self.memory.move_to_end(key)
        while len(self.memory) > WINDOWS_IN_MEMORY:
            self.memory.popitem(last=False)

    def judged(self, key: WindowKey) -> dict[Group, Profile] | None:
        """Profiles of a window as they are judged: of all versions together, a column holds the
        rows of those versions that have it. A version that never had a value in a column does not
        use it; its rows are no missing values."""
        window = self.window(key)
        if window is None:
            return None
        users: dict[str, list[Profile]] = {}
        for (version, column), one in window.items():
            if version is not None and (version, column) in self.filled:
                users.setdefault(column, []).append(one)
        shown = {
            (version, column): one
            for (version, column), one in window.items()
            if version is None or (version, column) in self.filled or column not in users
        }
        for column, ones in users.items():
            shown[None, column] = functools.reduce(profile.merge, ones)
        return shown

    def add(self, key: WindowKey, more: Window) -> None:
        """Merge what there is of more rows into a window."""
        self.replace(key, merged(self.whole(key) or NOTHING, more))

    def replace(self, key: WindowKey, window: Window) -> None:
        """A window, whatever it was."""
        self._drop_draft(key)
        self.memory.pop(key, None)
        self.changed[key] = window
        self.changed.move_to_end(key)
        while len(self.changed) > WINDOWS_IN_MEMORY:
            self._draft(*self.changed.popitem(last=False))

    def _draft(self, key: WindowKey, window: Window) -> None:
        """Put a window that changed into a file, which counts when it is saved."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        profiles = {group: profile.compact(one) for group, one in window.profiles.items()}
        compacted = Window(profiles, window.sums)
        self.drafts[key] = f"window-{uuid.uuid4().hex}.zst"
        write_window(self.folder / self.drafts[key], compacted)
        self._remember(key, compacted)

    def _drop_draft(self, key: WindowKey) -> None:
        name = self.drafts.pop(key, None)
        if name is not None:
            (self.folder / name).unlink(missing_ok=True)

    def drop(self, key: WindowKey) -> None:
        """A window that is no more."""
        self.changed.pop(key, None)
        self.memory.pop(key, None)
        self._drop_draft(key)
        self.manifest.windows.pop(key.text, None)

    def save(
        self,
        taken: intake.Taken,
        columns: Mapping[str, watched.Column],
        ahead: pl.DataFrame | None,
    ) -> None:
        """Make what was merged since the last save permanent."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for key, window in self.changed.items():
            self._draft(key, window)
        self.manifest.windows |= {key.text: name for key, name in self.drafts.items()}
        self.changed.clear()
        self.drafts.clear()
        self.manifest.ahead = None
        if ahead is not None:
            self.manifest.ahead = f"ahead-{uuid.uuid4().hex}.parquet"
            ahead.write_parquet(self.folder / self.manifest.ahead, compression_level=1)
        self.manifest.files = sorted(taken.files)
        self.manifest.until = taken.until.isoformat() if taken.until else None
        self.manifest.clock = taken.clock.isoformat() if taken.clock else None
        self.manifest.columns = {name: asdict(column) for name, column in columns.items()}
        self.manifest.filled = sorted(list(group) for group in self.filled)
        replace_file(self.folder / MANIFEST, orjson.dumps(self.manifest))
        self._clean()

    def ahead(self) -> pl.DataFrame | None:
        """Rows that had been read before their time came. Raises ReadAnew."""
        if self.manifest.ahead is None:
            return None
        try:
            return pl.read_parquet(self.folder / self.manifest.ahead)
        except FileNotFoundError:
            raise intake.ReadAnew("a file of the monitor's own is gone") from None

    def _clean(self) -> None:
        named = {*self.manifest.windows.values(), self.manifest.ahead, MANIFEST, HELD}
        for path in self.folder.iterdir():
            if path.name not in named and not path.name.startswith("baseline"):
                path.unlink(missing_ok=True)

    def taken(self) -> intake.Taken:
        """How far the table was read when this was saved."""
        return intake.Taken(
            set(self.manifest.files), _time(self.manifest.until), _time(self.manifest.clock)
        )

    def columns(self) -> dict[str, watched.Column]:
        return {name: watched.Column(**one) for name, one in self.manifest.columns.items()}


def folder_of(settings: Settings, table_id: str) -> Path:
    """Where a monitor keeps its profiles."""
    return settings.data_dir.absolute() / "monitors" / table_id


def baseline_group(
    versions: Sequence[str], version: str | None, column: str, outputs: Sequence[str]
) -> Group:
    """Which profile of the baseline a group of a window is compared with: an answer with the same
    version's, if the baseline (of these `versions`) tells them apart."""
    split = column in outputs and version is not None and bool(versions)
    return (version if split else None, column)


def read_manifest(folder: Path) -> Manifest | None:
    """What a monitor's folder says, if it can be read."""
    try:
        found = Manifest(**orjson.loads((folder / MANIFEST).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if found.format == FORMAT else None


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def write_window(path: Path, window: Window) -> None:
    """One file of profiles and sums, compressed; complete or not there."""
    rows = [
        *([*group, profile.to_dict(one)] for group, one in window.profiles.items()),
        *([*group, custom_sums.to_dict(one)] for group, one in window.sums.items()),
    ]
    plain = orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)
    packed = pa.Codec("zstd", 1).compress(plain, asbytes=True)
    replace_file(path, len(plain).to_bytes(8, "little") + packed)


def read_window(path: Path) -> Window:
    """What `write_window` wrote."""
    found = Window()
    for version, name, one in orjson.loads(_unpacked(path)):
        if one["kind"] == custom_sums.KIND:
            found.sums[version, name] = custom_sums.from_dict(one)
        else:
            found.profiles[version, name] = profile.from_dict(one)
    return found


def read_profile(path: Path, group: Group) -> Profile | None:
    """One profile of what `write_window` wrote; the others are passed over unread."""
    for version, name, text in _each(_unpacked(path)):
        if (version, name) == group and (one := orjson.loads(memoryview(text)))[
            "kind"
        ] != custom_sums.KIND:
            return profile.from_dict(one)
    return None


_each = msgspec.json.Decoder(list[tuple[str | None, str, msgspec.Raw]]).decode


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return bytes(pa.Codec("zstd").decompress(data[8:], size, asbytes=True))


def replace_file(path: Path, data: bytes) -> None:
    """Write a small file so that readers see the old or the new one, never half of it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
