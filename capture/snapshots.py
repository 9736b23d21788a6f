"""Reader of feature snapshots: memory-mapped LMDB files, one per feature table.

A worker loads this file, so it needs lmdb, msgspec and the standard library only. A snapshot is
never edited: the publisher writes a new file and renames it over `<table>/current.mdb`, and whoever
still maps the old one goes on reading it whole. Key = MessagePack array of the primary key, in the
types of the table; value = MessagePack array of all other columns. Times are ISO 8601 text in the
value, as they are in a request's JSON, and microseconds since the epoch in the key.
"""

import hashlib
import weakref
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from capture import errors, names

FILE_NAME = "current.mdb"
FACTS_KEY = b"facts"  # no MessagePack array begins with this byte
MAX_KEY_BYTES = 511  # LMDB's own limit
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_encode = msgspec.msgpack.Encoder().encode
_decode_row = msgspec.msgpack.Decoder(tuple).decode


class Facts(msgspec.Struct, frozen=True):
    """What a snapshot says about itself.

    `key_kinds`: string, int64, double, bool, timestamp or date, one per primary key."""

    table: str
    table_version: int
    primary_keys: tuple[str, ...]
    key_kinds: tuple[str, ...]
    columns: tuple[str, ...]
    time_column: str | None
    newest_us: int | None  # newest value of the time column, microseconds since the epoch
    rows: int
    published_ms: int


class Snapshot:
    """One published version of a feature table. For one thread."""

    __slots__ = ("__weakref__", "_environment", "_find", "_packers", "columns", "facts", "identity")

    def __init__(self, environment: lmdb.Environment, identity: tuple[int, ...]) -> None:
        self._environment = environment
        # One read transaction for life: the file under it never changes.
        self._find = environment.begin().get
        self.facts = msgspec.json.decode(self._find(FACTS_KEY) or b"", type=Facts)
        self._packers = key_packers(self.facts.key_kinds)
        self.columns = self.facts.columns
        self.identity = identity

    @staticmethod
    def open(directory: Path, table: str) -> "Snapshot":
        """The table's present snapshot. Raises Unavailable, naming the table, if there is none."""
        path = snapshot_path(directory, table)
        while True:
            identity = identify(path)
            if identity is None:
                raise errors.Unavailable(f"Feature table '{table}' has no snapshot yet.")
            # LMDB refuses to map one file twice in a process; whoever asks next gets this object.
            known = _opened.get(identity)
            if known is not None:
                return known
            try:
                environment = lmdb.open(
                    str(path),
                    subdir=False,
                    readonly=True,
                    lock=False,
                    readahead=False,
                    create=False,
                )
            except (lmdb.Error, OSError) as error:
                if identify(path) == identity:
                    raise errors.Unavailable(
                        f"The snapshot of feature table '{table}' cannot be read: {error}."
                    ) from error
                continue
            if identify(path) == identity:
                snapshot = Snapshot(environment, identity)
                _opened[identity] = snapshot
                return snapshot
            environment.close()  # swapped between the look and the opening

    def get(self, key: Sequence[Any]) -> tuple[Any, ...] | None:
        """Values of `columns` for a primary key, in the order of the table's primary keys.

        None: no such row, or a part of the key that is null or has not the column's type.
        """
        packed = pack_key(self._packers, key)
        if packed is None:
            return None
        found = self._find(packed)
        return None if found is None else _decode_row(found)


# By device, inode and time of change; an inode in use cannot be given to another file.
_opened: "weakref.WeakValueDictionary[tuple[int, ...], Snapshot]" = weakref.WeakValueDictionary()


def snapshot_path(directory: Path, table: str) -> Path:
    """The file of a table's present snapshot. Raises InvalidParameter for no table's name."""
    return directory / str(names.table_name(table)) / FILE_NAME


def identify(path: Path) -> tuple[int, ...] | None:
    """Which file lies there just now; None if none does."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns)


def aware(value: datetime) -> datetime:
    """The same time in UTC; a time without zone is taken as UTC."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def microseconds(value: datetime) -> int:
    """Microseconds since the epoch, exactly."""
    return (aware(value) - EPOCH) // timedelta(microseconds=1)


def pack_key(packers: Sequence[Callable[[Any], Any]], key: Sequence[Any]) -> bytes | None:
    """Bytes of a primary key; None if a part is null or does not fit its column."""
    parts = []
    for pack, value in zip(packers, key, strict=True):
        part = pack(value)
        if part is None:
            return None
        parts.append(part)
    packed = _encode(parts)
    if len(packed) > MAX_KEY_BYTES:
        return b"digest" + hashlib.blake2b(packed, digest_size=32).digest()
    return packed


def key_packers(kinds: Sequence[str]) -> list[Callable[[Any], Any]]:
    """A function per key column that turns a request's value into the key's own type, or None."""
    return [_PACKERS[kind] for kind in kinds]


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python value it stands for."""
    return value.item() if hasattr(value, "item") else value


def _string(value: Any) -> str | None:
    if type(value) is str:
        return value
    value = _plain(value)
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else None


def _integer(value: Any) -> int | None:
    if type(value) is int:
        return value if -(1 << 63) <= value < 1 << 64 else None
    value = _plain(value)
    if isinstance(value, str):
        digits = value[1:] if value[:1] in ("-", "+") else value
        return _integer(int(value)) if digits.isascii() and digits.isdigit() else None
    if isinstance(value, float) and value.is_integer():
        return _integer(int(value))
    return _integer(value) if type(value) is int else None


def _double(value: Any) -> float | None:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number else None


def _boolean(value: Any) -> bool | None:
    value = _plain(value)
    return value if isinstance(value, bool) else None


def _timestamp(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return microseconds(value)
    return None


def _date(value: Any) -> str | None:
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value[:10])
        except ValueError:
            return None
    if isinstance(value, datetime):
        value = value.date()
    return value.isoformat() if isinstance(value, date) else None


_PACKERS: dict[str, Callable[[Any], Any]] = {
    "string": _string,
    "int64": _integer,
    "double": _double,
    "bool": _boolean,
    "timestamp": _timestamp,
    "date": _date,
}
