"""What every route of the monitors needs, and how their requests are read."""

import base64
import binascii
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from starlette.requests import Request

from capture import errors
from capture.settings import Settings
from monitors import contract

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
# The reading child starts with the first question and imports for seconds on a busy machine.
READ_SECONDS = 30.0


class Caller(Protocol):
    """Who sent a request."""

    @property
    def user(self) -> str: ...


class Access(Protocol):
    """The server's judgement on who may do what."""

    def require(self, request: Request, endpoint: str | None, level: str) -> Caller:
        """The caller, if they hold `level` (CAN_VIEW, CAN_QUERY, CAN_MANAGE) on the endpoint; None:
        on the server as a whole. Raises PermissionDenied, DoesNotExist, Unauthenticated."""


class Reader(Protocol):
    """The child process that reads Delta tables."""

    async def ask(
        self, operation: str, arguments: dict[str, Any], deadline_seconds: float = 10
    ) -> Any: ...

    async def relay(
        self, operation: str, arguments: dict[str, Any], deadline_seconds: float = 10
    ) -> bytes:
        """The answer as JSON text, for a route that passes it on as it is."""


class Promote(Protocol):
    """The one path of a traffic change; gives the endpoint object with `audit_id`. `shares`: the
    whole split afterwards; None: the others share the rest in their present proportions."""

    def __call__(
        self,
        caller: Any,
        endpoint: str,
        served_entity: str,
        traffic_percentage: int,
        if_config_version: int | None,
        reason: str | None,
        origin: str,
        shares: Mapping[str, int] | None = None,
    ) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to the routers by the server that mounts them."""

    engine: sa.Engine
    settings: Settings
    reader: Reader
    access: Access
    promote: Promote

    def may_see(self, request: Request, endpoint: str | None) -> bool:
        """May the caller see what belongs to this endpoint?"""
        try:
            self.access.require(request, endpoint, "CAN_VIEW")
        except (errors.PermissionDenied, errors.DoesNotExist):
            return False
        return True


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def deadline(seconds: float) -> float:
    """That far from now, on the monotonic clock."""
    return time.monotonic() + seconds


async def raw_body(request: Request) -> bytes:
    """The body, bounded while it is read. Raises BadRequest."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > contract.MAX_BODY_BYTES:
            raise errors.BadRequest(f"Body over {contract.MAX_BODY_BYTES} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)


def query(request: Request, known: Collection[str]) -> dict[str, str]:
    """Query parameters, empty ones left out. Raises BadRequest that names unknown ones."""
    given = dict(request.query_params)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise errors.BadRequest(
            f"Unknown query parameter: {', '.join(unknown)[:200]}; "
            f"allowed: {', '.join(known) or 'none'}."
        )
    return {name: value for name, value in given.items() if value != ""}


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for. `after`: the last place that the caller has seen."""

    size: int
    after: tuple[int, str] | None


def page(given: dict[str, str]) -> Page:
    """Page of `page_size` and `page_token`. Raises BadRequest."""
    text = given.get("page_size", str(DEFAULT_PAGE_SIZE))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= MAX_PAGE_SIZE:
        raise errors.BadRequest(f"page_size: expected an integer 1..{MAX_PAGE_SIZE}.")
    token = given.get("page_token")
    if token is None:
        return Page(int(text), None)
    try:
        number, _, name = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        return Page(int(text), (int(number), name))
    except (ValueError, binascii.Error):
        raise errors.BadRequest("page_token: not one that this server gave out.") from None


def page_token(number: int, name: str) -> str:
    return base64.urlsafe_b64encode(f"{number}:{name}".encode()).decode()


def choice(given: dict[str, str], name: str, allowed: Collection[str]) -> str | None:
    """A query parameter out of a few. Raises BadRequest."""
    value = given.get(name)
    if value is not None and value not in allowed:
        raise errors.BadRequest(f"{name}: '{value[:50]}' is not one of {', '.join(allowed)}.")
    return value
