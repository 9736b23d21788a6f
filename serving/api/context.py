"""What every route of the control API works with, and how it reads and changes state."""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from capture import catalog, database, errors, logline
from capture.settings import Settings
from serving import (
    access,
    changes_state,
    configuration,
    promotion,
    replica_state,
    replies,
    state,
    wire,
)
from serving.api import envelope

log = logline.logger(__name__)

# The reading child starts with the first question, and imports for seconds on a busy machine.
READ_SECONDS = 30.0
SETTLE_SECONDS, SETTLE_STEP_SECONDS = 1.0, 0.025


class Log(Protocol):
    """The write-ahead log of this process; owned by the event loop."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Rows that were served and not logged, by table."""

    def append(self, table: str, kind: Any, rows: Sequence[Any], power: bool = False) -> None: ...


class RecentIds(Protocol):
    """Ids of requests that were recorded lately."""

    def has(self, known: int | str) -> bool:
        """Whether a request of this number, or of this id of its client, was."""

    def has_request(self, request_id: str) -> bool:
        """Whether a request of this id of ours was."""


class DataPlane(envelope.Knows, Protocol):
    """What the control API needs of the data plane."""

    @property
    def log(self) -> Log: ...
    @property
    def version(self) -> int:
        """The count of changes up to which the route table is drawn."""

    @property
    def recent_ids(self) -> RecentIds: ...
    def publish(self, version: int, snapshot: state.Snapshot) -> None:
        """Take a snapshot over, unless a newer version is there already. Any thread."""

    def metrics(self, endpoint: str | None = None) -> str:
        """Prometheus text of this gateway, or of one endpoint."""

    def copies(self, endpoint: str, served_entity: str) -> Mapping[str, int]:
        """What became of the requests that were copied to this version, since the start."""

    async def attempt(
        self, endpoint: str, served_entity: str, content_type: bytes, body: bytes
    ) -> wire.Answer:
        """A version's answer, recorded nowhere; Unavailable while live requests need it."""

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a query of an endpoint through plain ASGI."""


class Reader(Protocol):
    """The child process that reads Delta tables."""

    async def ask(
        self, operation: str, arguments: dict[str, Any], deadline_seconds: float = 10
    ) -> Any: ...

    async def relay(
        self, operation: str, arguments: dict[str, Any], deadline_seconds: float = 10
    ) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to every router by app.build."""

    settings: Settings
    engine: sa.Engine
    data_plane: DataPlane
    reader: Reader
    aliases: promotion.Aliases

    async def read(
        self, operation: str, arguments: dict[str, Any], deadline_seconds: float = READ_SECONDS
    ) -> Any:
        """Ask the reading child. Raises what the operation raised, or Unavailable."""
        return await self.reader.ask(operation, arguments, deadline_seconds)

    def require(self, request: Request, endpoint: str | None, level: str) -> access.Caller:
        """The caller, if they hold `level` on the endpoint of this name; None: on the server, where
        everybody may view and administrators may do the rest. Of an endpoint that is gone,
        administrators see what it recorded.

        Raises DoesNotExist, PermissionDenied."""
        who = caller(request)
        if endpoint is None:
            if level != "CAN_VIEW":
                access.require_admin(who)
            return who
        with database.reading(self.engine) as db:
            row = state.find_endpoint(db, endpoint)
            left = row is None and catalog.of_endpoint(db, endpoint) is not None
        if row is not None:
            self.allowed(who, row, level)
        elif not (left and who.is_admin):
            raise errors.DoesNotExist(f"Endpoint '{endpoint[:200]}' does not exist.")
        return who

    def manages(self, who: access.Caller, endpoint_id: str | None) -> bool:
        """Whether the caller holds CAN_MANAGE; of an endpoint that is gone (None), only
        administrators do."""
        if endpoint_id is None:
            return who.is_admin
        return access.level(who, endpoint_id, self.data_plane.snapshot) == "CAN_MANAGE"

    def allowed(self, who: access.Caller, row: state.Endpoint, level: str) -> access.Level:
        """The caller's right on an endpoint, at least `level`. Raises as `require`."""
        needed = access.LEVELS[access.LEVELS.index(level)]
        return access.require(who, row.id, row.name, needed, self.data_plane.snapshot)

    def right(self, who: access.Caller, row: state.Endpoint) -> access.Level | None:
        """The caller's right on an endpoint; None: it does not exist for them."""
        return access.level(who, row.id, self.data_plane.snapshot)

    @contextmanager
    def change(self) -> Iterator[sa.Connection]:
        """A writing transaction, in a thread of the pool; afterwards this gateway and the
        controller look at it at once: the client's next request may come with the token, or for
        the endpoint, that this one made."""
        with database.transaction(self.engine) as db:
            yield db
        try:
            with database.reading(self.engine) as db:
                self.catch_up(db)
        except sa.exc.SQLAlchemyError as error:
            # What was asked for is done; the gateway's own watch finds it a little later.
            log.warning("routes_not_published", error=str(error))
        nudge(self.settings)

    @contextmanager
    def trial(self) -> Iterator[sa.Connection]:
        """A writing transaction that is undone at its end: shows what a change would make."""
        with database.transaction(self.engine) as db:
            yield db
            db.rollback()

    def catch_up(self, db: sa.Connection) -> None:
        """Have this gateway route by whatever `db` has shown so far, if it does not yet. To be
        called after the reads of a reply, in a thread of the pool: the loop takes the routes over
        before it sends that reply, so that NOT_UPDATING means that the next query meets the new
        configuration here."""
        version = changes_state.counter(db)
        if version > self.data_plane.version:
            self.data_plane.publish(version, state.snapshot(db))

    def endpoint_object(self, who: access.Caller, endpoint_id: str) -> dict[str, Any]:
        """The detailed endpoint object as the caller sees it."""
        with database.reading(self.engine) as db:
            shown = self.shown(db, who, endpoint_id)
            self.catch_up(db)
        return shown

    def shown(self, db: sa.Connection, who: access.Caller, endpoint_id: str) -> dict[str, Any]:
        """The same as it stands in a transaction."""
        row = state.endpoint_by_id(db, endpoint_id)
        live = state.live_configurations(db, [row.id])
        states = replica_state.states_of(db, [row.id])
        level = self.right(who, row) or "CAN_MANAGE"
        return replies.detailed(row, live, states, level, self.settings.url)

    def settle(self, row: state.Endpoint) -> None:
        """Give the controller a moment: a small deployment that ends within the call that asked for
        it spares the client a second of polling. Without a controller nobody waits."""
        if row.config_update != state.IN_PROGRESS or not nudge(self.settings):
            return
        ends = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < ends:
            time.sleep(SETTLE_STEP_SECONDS)
            with database.reading(self.engine) as db:
                found = state.find_endpoint(db, row.name)
            if found is None or found.config_update != state.IN_PROGRESS:
                return


def caller(request: Request) -> access.Caller:
    """Who sent a request that the envelope let in."""
    who: access.Caller = request.state.caller
    return who


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def author(who: access.Caller) -> configuration.Author:
    """The caller as somebody who writes configurations, now."""
    return configuration.Author(who.user, now_ms(), state.new_endpoint_id)


def nudge(settings: Settings) -> bool:
    """Tell the controller to look at SQL now; False: it is not there (it looks by itself later)."""
    path = str(settings.run_dir / "controller.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        try:
            line.sendto(b"look", path)
        except BlockingIOError:
            return True  # it has plenty of messages to wake up by
        except OSError as error:
            log.debug("controller_not_nudged", error=str(error))
            return False
    return True
