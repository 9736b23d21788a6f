"""Ids, three-part table names, patterns; the only join of a path with a name from outside. Pure,
save that `table_path` resolves symbolic links to see that it stays below its root."""

import re
import secrets
import time
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from capture import errors

ENTITY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)
PART_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
RESERVED_ENDPOINTS = frozenset({"chat", "completions", "embeddings", "responses", "pt"})


class TableName(NamedTuple):
    """A table in the three-part name space."""

    catalog: str
    schema: str
    table: str

    def __str__(self) -> str:
        return ".".join(self)

    def sibling(self, suffix: str) -> "TableName":
        """The table beside this one: `p_payload`.sibling("labels") is `p_labels`.

        Of a name with none of our suffixes the suffix is appended: `t` -> `t_labels`."""
        stem = self.table
        for known in ("_payload", "_unpacked", "_labels", "_decisions"):
            stem = stem.removesuffix(known)
        return TableName(self.catalog, self.schema, f"{stem}_{suffix}")


def table_name(full_name: str) -> TableName:
    """Parse `catalog.schema.table`. Raises InvalidParameter."""
    parts = full_name.split(".")
    if len(parts) != 3:
        raise errors.InvalidParameter(
            f"Table name '{full_name[:200]}' has {len(parts)} parts, not catalog.schema.table."
        )
    for part in parts:
        check_part(part, "table name")
    return TableName(*parts)


def check_part(part: str, field: str) -> str:
    """A catalog, schema, table or prefix that is safe in a path. Raises InvalidParameter."""
    if not PART_PATTERN.fullmatch(part):
        raise errors.InvalidParameter(
            f"{field}: '{part[:200]}' is not allowed; use 1 to 128 letters, digits, '_' or '-'."
        )
    return part


def check_entity(name: str, field: str) -> str:
    """The name of an endpoint or served entity. Raises InvalidParameter."""
    if not ENTITY_PATTERN.fullmatch(name):
        raise errors.InvalidParameter(
            f"{field}: '{name[:200]}' is not allowed; use 1 to 63 letters, digits, '_' or '-'."
        )
    return name


def table_path(root: str, name: TableName) -> str:
    """Folder (or object-store prefix) of a table; never outside of `root`."""
    for part in name:
        check_part(part, "table name")
    if "://" in root:
        return "/".join((root.rstrip("/"), *name))
    base = Path(root).resolve()
    path = base.joinpath(*name)
    if not path.resolve().is_relative_to(base):
        raise errors.InvalidParameter(f"Table '{name}' lies outside of the tables folder.")
    return str(path)


def uuid7(unix_ms: int, random_bits: int) -> UUID:
    """A version 7 UUID (RFC 9562): 48 bits of Unix milliseconds, then 74 random bits."""
    value = (unix_ms & 0xFFFFFFFFFFFF) << 80
    value |= 0x7 << 76 | (random_bits >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | random_bits & 0x3FFFFFFFFFFFFFFF
    return UUID(int=value)


def new_request_id() -> str:
    """Id of a request: a UUIDv7, so that a look-up by id prunes by time."""
    return str(uuid7(time.time_ns() // 1_000_000, secrets.randbits(74)))


def copy_of(request_id: str) -> str:
    """Id of the copy of a request that a version in the shadow answers: the last bit turned. All
    but the last digit is the original's, so either id leads to the other."""
    return request_id[:-1] + f"{int(request_id[-1], 16) ^ 1:x}"


def copy_number(number: int) -> int:
    """The same of an id as a number."""
    return number ^ 1


def request_time_ms(request_id: str) -> int | None:
    """Unix milliseconds in a request id, or None if it is not one of ours."""
    try:
        value = UUID(request_id)
    except ValueError:
        return None
    return value.int >> 80 if value.version == 7 else None


def new_id() -> str:
    """A random id of 32 hexadecimal digits (endpoints, entities, tokens)."""
    return secrets.token_hex(16)
