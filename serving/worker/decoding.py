"""A client's bytes -> typed rows, for one model's signature. Pure.

The fast way to read a request: straight into tuples of the types that the signature declares. It is
taken only if that succeeds whole; everything else (nulls where none may be, parameters, tensors, a
missing column) is read by scoring.py and left to MLflow, which is the truth.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from serving.worker import scoring

# Kinds of column that a frame can be built of, by MLflow's names of types; `any`: a column that
# only a look-up reads.
FAST_TYPES: dict[str, Any] = {
    "double": float | None,
    "float": float | None,
    "long": int,
    "integer": int,
    "boolean": bool,
    "string": str | None,
    "any": Any,
}
MOST_LAYOUTS = 16  # column orders of dataframe_split whose decoder is kept
MOST_EXTRA_COLUMNS = 1_000  # more of them are not for the fast way

UNSET = msgspec.UNSET


class Typed(NamedTuple):
    """A request on the fast way: one tuple per row, in the order of the decoder's columns; UNSET
    where an optional column is absent."""

    rows: list[tuple[Any, ...]]
    sides: scoring.Sides


class Decoder:
    """Typed decoding of `dataframe_records` and `dataframe_split` for one signature.

    `fill`: optional columns may be absent and come out as UNSET (models with look-ups). Without it
    a request lacking an optional column is not for the fast way: MLflow leaves that column out.
    Raises ValueError, with the reason, for a signature that has no fast way."""

    def __init__(self, columns: Sequence[scoring.Column], fill: bool) -> None:
        unfit = [column for column in columns if column.kind not in FAST_TYPES]
        if unfit:
            raise ValueError(f"column '{unfit[0].name}' is of type {unfit[0].kind}")
        if not columns:
            raise ValueError("the signature names no columns")
        self.names = tuple(column.name for column in columns)
        self._columns = tuple(columns)
        self._fill = fill
        self._layouts: dict[tuple[str, ...], _Layout | None] = {}
        row = _row_struct(columns, fill)
        body = msgspec.defstruct(
            "Body",
            [
                ("dataframe_records", list[row] | msgspec.UnsetType, UNSET),  # type: ignore[valid-type]
                ("dataframe_split", _Split | msgspec.UnsetType, UNSET),
                ("client_request_id", str | None, None),
                ("usage_context", msgspec.Raw | msgspec.UnsetType, UNSET),
                ("params", msgspec.Raw | msgspec.UnsetType, UNSET),
                ("instances", msgspec.Raw | msgspec.UnsetType, UNSET),
                ("inputs", msgspec.Raw | msgspec.UnsetType, UNSET),
            ],
        )
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(body).decode

    def decode(self, payload: bytes) -> Typed | None:
        """The request, or None if it is not one for the fast way."""
        try:
            body = self._decode(payload)
            if body.params is not UNSET or body.instances is not UNSET or body.inputs is not UNSET:
                return None
            if not payload.isascii():
                payload.decode()  # msgspec looks only at the texts that it keeps
            records, split = body.dataframe_records, body.dataframe_split
            if (records is UNSET) == (split is UNSET):
                return None
            if split is UNSET:
                rows = [msgspec.structs.astuple(record) for record in records]
            else:
                rows = self._split_rows(split)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if not rows:
            return None
        usage = None if body.usage_context is UNSET else bytes(body.usage_context)
        return Typed(rows, scoring.sides(body.client_request_id, usage))

    def _split_rows(self, split: "_Split") -> list[tuple[Any, ...]]:
        layout = self._layout(tuple(split.columns))
        if layout is None:
            return []
        rows = layout.decode(split.data)
        if split.index is not UNSET and split.index != list(range(len(rows))):
            return []
        if layout.pick is None:
            return rows
        absent = (UNSET,)
        pick = layout.pick
        return [pick(row + absent) for row in rows]

    def _layout(self, given: tuple[str, ...]) -> "_Layout | None":
        if given not in self._layouts:
            if len(self._layouts) >= MOST_LAYOUTS:
                self._layouts.clear()
            self._layouts[given] = _split_layout(self._columns, given, self._fill)
        return self._layouts[given]


class _Split(msgspec.Struct, forbid_unknown_fields=True):
    columns: list[str]
    data: msgspec.Raw
    index: list[int] | msgspec.UnsetType = UNSET


class _Layout:
    """How `dataframe_split.data` is read for one order of columns. `pick`: the signature's order
    out of (row, UNSET); None if they are the same already."""

    def __init__(self, row: Any, pick: Any) -> None:
        self.decode = msgspec.json.Decoder(list[row]).decode
        self.pick = pick


def _row_struct(columns: Sequence[scoring.Column], fill: bool) -> type[msgspec.Struct]:
    """A type with a field per column. Fields are numbered: a column may have any name."""
    fields: list[Any] = []
    for number, column in enumerate(columns):
        kind = FAST_TYPES[column.kind]
        if fill and not column.required:
            fields.append((f"c{number}", kind | msgspec.UnsetType, UNSET))
        else:
            fields.append((f"c{number}", kind))
    renames = {f"c{number}": column.name for number, column in enumerate(columns)}
    return msgspec.defstruct("Row", fields, rename=renames, gc=False, kw_only=True)


def _split_layout(
    columns: Sequence[scoring.Column], given: tuple[str, ...], fill: bool
) -> _Layout | None:
    if len(set(given)) != len(given) or len(given) > len(columns) + MOST_EXTRA_COLUMNS:
        return None
    known = {column.name: column for column in columns}
    absent = [column for column in columns if column.name not in given]
    if any(column.required or not fill for column in absent):
        return None
    kinds = [FAST_TYPES[known[name].kind] if name in known else Any for name in given]
    row = tuple.__class_getitem__(tuple(kinds))
    if given == tuple(known):
        return _Layout(row, None)
    places = [given.index(name) if name in given else len(given) for name in known]
    if len(places) == 1:
        only = places[0]
        return _Layout(row, lambda values: (values[only],))
    return _Layout(row, itemgetter(*places))
