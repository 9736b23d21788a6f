"""How bodies and queries of the control API are read: bounded, strict, each refusal a sentence."""

import base64
import binascii
import re
import zlib
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from starlette.requests import Request

from capture import errors
from serving import fields

MOST_NESTING, MOST_KEYS, MOST_VALUES = 200, 100_000, 1_000_000
DEFAULT_PAGE, MOST_PAGE = 50, 1000
_MOST_INFLATED = 16 << 20


async def raw(request: Request) -> bytes:
    """The body, decompressed. Raises BadRequest."""
    body = await request.body()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding != "gzip":
        raise errors.BadRequest(
            f"Content-Encoding '{encoding[:50]}' is not supported; gzip and identity are."
        )
    inflate = zlib.decompressobj(31)
    try:
        inflated = inflate.decompress(body, _MOST_INFLATED + 1)
    except zlib.error as error:
        raise errors.BadRequest(f"Body is not valid gzip: {error}.") from None
    if len(inflated) > _MOST_INFLATED:
        raise errors.BadRequest(f"Body over {_MOST_INFLATED} bytes.")
    if not inflate.eof:
        raise errors.BadRequest("Body is not valid gzip: it ends too early.")
    return inflated


async def json(request: Request) -> Any:
    """The body as JSON; an empty one is an empty object. Raises BadRequest."""
    return parse(await raw(request))


def parse(body: bytes) -> Any:
    """JSON within the limits of promises.md. Raises BadRequest that says what and where."""
    if not body.strip():
        return {}
    _check_counts(body)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        at = len(error.doc[: error.pos].encode("utf-8", "replace"))
        what = re.sub(r": line \d+ column \d+ \(char \d+\)$", "", str(error))
        raise errors.BadRequest(f"Body is not valid JSON: {what} at byte {at}.") from None
    _check_nesting(value)
    return value


def _check_counts(body: bytes) -> None:
    """Before anything is built: the loop that answers queries waits while a million values are."""
    for what, sign, most in (("keys", b":", MOST_KEYS), ("values", b",", MOST_VALUES)):
        if body.count(sign) > most:
            raise errors.BadRequest(
                f"Over {most} {what}, or a text with so many {sign.decode()!r}."
            )


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(MOST_NESTING + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise errors.BadRequest(f"Nesting over {MOST_NESTING}.")


def query(request: Request, allowed: Collection[str]) -> dict[str, str]:
    """Query parameters; empty ones count as absent. Raises InvalidParameter for unknown ones."""
    given = dict(request.query_params)
    for key in given:
        if key not in allowed:
            listed = ", ".join(allowed) or "none"
            raise errors.InvalidParameter(f"{key[:100]}: unknown parameter; allowed: {listed}.")
    return {key: value for key, value in given.items() if value != ""}


class Page(NamedTuple):
    """Which part of a list is asked for; after: the last key that was seen."""

    size: int
    after: str | None


PAGE = ("page_size", "page_token")


def page(given: dict[str, str]) -> Page:
    """Of `page_size` (default 50, at most 1,000) and `page_token`. Raises InvalidParameter."""
    size = given.get("page_size", str(DEFAULT_PAGE))
    if not re.fullmatch(r"[0-9]{1,4}", size, re.ASCII) or not 1 <= int(size) <= MOST_PAGE:
        asked = fields.Field(size, "page_size")
        raise asked.refuse(f"an integer 1..{MOST_PAGE}")
    token = given.get("page_token")
    if token is None:
        return Page(int(size), None)
    try:
        return Page(
            int(size), base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
        )
    except (binascii.Error, ValueError):
        raise errors.InvalidParameter("page_token: not one that this server gave out.") from None


def whole(after: str | None) -> int | None:
    """The number in a page's key. Raises InvalidParameter."""
    if after is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", after, re.ASCII):
        raise errors.InvalidParameter("page_token: not one that this server gave out.")
    return int(after)


def token(after: int | str) -> str:
    """The `page_token` that goes on after this key."""
    return base64.urlsafe_b64encode(str(after).encode()).decode()


def moment(given: dict[str, str], key: str) -> int | None:
    """A parameter that is a time, RFC 3339, as unix ms. Raises InvalidParameter."""
    text = given.get(key)
    return None if text is None else moment_of(fields.Field(text, key))


def moment_of(found: fields.Field) -> int:
    """A time, RFC 3339, as unix ms; without an offset it is UTC. Raises InvalidParameter."""
    try:
        at = datetime.fromisoformat(found.value)
    except (ValueError, TypeError):
        raise found.refuse("a time like 2026-11-24T12:00:00Z") from None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return int(at.timestamp() * 1000)


def flag(given: dict[str, str], key: str) -> bool:
    """A parameter that is true or false; absent: false. Raises InvalidParameter."""
    text = given.get(key, "false").lower()
    if text not in ("true", "false"):
        raise fields.Field(text, key).refuse("true or false")
    return text == "true"
