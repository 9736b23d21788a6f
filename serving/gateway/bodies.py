"""What lies in a query before a model sees it: path, encodings, side fields, ids. Pure."""

import random
import zlib
from collections.abc import Mapping

import msgspec

from capture import errors
from serving import wire

_CONTENT_TYPES = {
    "": wire.JSON,
    "application/json": wire.JSON,
    "text/csv": wire.CSV,
    "application/x-parquet": wire.PARQUET,
    "application/vnd.apache.parquet": wire.PARQUET,
}


def request_number(time_ns: int, source: random.Random) -> int:
    """A UUIDv7 as a number: 48 bits of unix ms, version, 12 random bits, variant, 62 random bits
    (names.uuid7, without an object per request)."""
    bits = source.getrandbits(74)
    high = (time_ns // 1_000_000 << 16) | 0x7000 | bits >> 62
    return high << 64 | 0x8000000000000000 | bits & 0x3FFFFFFFFFFFFFFF


def named(target: bytes) -> tuple[str, str | None]:
    """Endpoint and entity in a path that no route of the table has. Raises RouteNotFound."""
    parts = target.decode("latin-1").split("/")
    if len(parts) == 4 and parts[1] == "serving-endpoints" and parts[3] == "invocations":
        return parts[2], None
    if len(parts) == 6 and parts[3] == "served-models" and parts[5] == "invocations":
        return parts[2], parts[4]
    raise errors.RouteNotFound(f"No route POST {target.decode('latin-1')[:200]}")


def content_type(header: str) -> int:
    """The wire's number of a Content-Type; none given means JSON. Raises BadRequest."""
    name, *parameters = (part.strip() for part in header.split(";"))
    found = _CONTENT_TYPES.get(name.lower())
    if found is None:
        offered = "application/json, text/csv and application/x-parquet"
        raise errors.BadRequest(f"Content-Type '{name[:100]}' is not supported; {offered} are.")
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        value = value.strip('"').lower()
        if key.lower() == "charset" and value not in ("utf-8", "utf8"):
            raise errors.BadRequest(f"Charset '{value[:50]}' is not supported; utf-8 is.")
    return found


def decoded(body: bytes, encoding: bytes, most_bytes: int) -> bytes:
    """The body without its Content-Encoding. Raises BadRequest."""
    name = encoding.decode("latin-1").strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ("gzip", "x-gzip"):
        raise errors.BadRequest(
            f"Content-Encoding '{name[:50]}' is not supported; gzip and identity are."
        )
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(body, most_bytes + 1)
    except zlib.error:
        raise errors.BadRequest("Body is not valid gzip.") from None
    if len(found) > most_bytes:
        raise errors.BadRequest(f"Body over {most_bytes} bytes.")
    if not unpacker.eof or unpacker.unused_data:
        raise errors.BadRequest("Body is not valid gzip: cut off, or more than one member.")
    return found


class Sides(msgspec.Struct):
    """The side fields at the top level of a body; everything else is skipped."""

    client_request_id: str | None = None
    usage_context: dict[str, str] | None = None


class _ClientId(msgspec.Struct):
    client_request_id: str | None = None


NO_SIDES = Sides()
_decode_sides = msgspec.json.Decoder(Sides).decode
_decode_usage = msgspec.json.Decoder(dict[str, str]).decode
_decode_client_id = msgspec.json.Decoder(_ClientId).decode


def sides(body: bytes) -> Sides:
    """Side fields, as far as the body lets itself be read."""
    if b"client_request_id" not in body and b"usage_context" not in body:
        return NO_SIDES
    try:
        return _decode_sides(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        pass
    try:
        return Sides(_decode_client_id(body).client_request_id)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return NO_SIDES


def check_usage(received: bytes) -> None:
    """Raises ValidationError if a usage context, as a worker answers it, is no JSON of texts by
    text."""
    _decode_usage(received)


def checked_usage(usage: Mapping[str, str] | None) -> dict[str, str] | None:
    """A refused request's usage context, if it is of a size to be kept."""
    if not usage or len(usage) > 64 or any(len(k) + len(v) > 512 for k, v in usage.items()):
        return None
    return dict(usage)
