"""What requests of one route and caller have in common, as the log has it once a block. Pure.

Its field types are read while running, which a compiled module (hatch_build.py) does not keep.
"""

import struct
from typing import NamedTuple

import msgspec

from capture import blocks

LENGTH = struct.Struct("<I")


class Context(NamedTuple):
    """The columns of the payload row that are the same for all of them."""

    sampling_fraction: float
    served_entity_id: str | None
    requester: str | None
    endpoint_id: str
    served_entity_name: str | None
    model_name: str | None
    model_version: str | None
    config_version: int | None
    route_share: float | None
    route_split: str | None
    shadow: bool
    content_type: str | None


_pack_context = msgspec.msgpack.Encoder().encode


def packed(of: Context) -> bytes:
    """A context as it stands in a block; to be made once and used for many exchanges."""
    try:
        text = _pack_context(of)
    except UnicodeEncodeError:  # a lone surrogate is no UTF-8; it becomes a question mark
        kept = [v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for v in of]
        text = _pack_context(kept)
    text = LENGTH.pack(len(text)) + text
    return text + blocks.PADDINGS[-len(text) % 8]
