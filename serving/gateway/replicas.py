"""Connections to workers: who is asked, who waits, what becomes of requests whose worker is lost.

Rules:

- One connection per replica carries its requests at once. A replica gets no more than it can use
  (`_Replica.window`); the rest of the line waits here, where it can still go elsewhere.
- The replica with the fewest requests per unit of concurrency is asked.
- A request whose worker is lost is a suspect: it, or one beside it, may have ended the process. It
  is tried once more, alone on its replica, so that a request that kills workers costs two of them
  and no neighbour. For `ALONE_SECONDS` after a loss a replica gives suspects the room to be alone;
  if others were there all the same, a second loss proves nothing and the answer is 503, not 500.
- What a request's callback does never reaches the connection: a client that hung up harms nobody.
- Everything here runs in one event loop. A request is in exactly one place: in line, among the
  suspects, at a replica, or done.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import orjson

from capture import errors, logline
from capture.settings import Settings
from serving import state, wire
from serving.gateway import admission

log = logline.logger(__name__)

ALONE_SECONDS = 5.0
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.05, 1.0
CONNECT_SECONDS = 5.0
BATCHING_WINDOW = 128  # two full batches: one in the model, one in line behind it
HANDSHAKE_ID = 0


class Ask:
    """One request on its way to an entity. `done` is called exactly once, unless it is cancelled:
    with an answer, with an error, or with neither: the entity is gone, draw again."""

    __slots__ = ("alone", "content_type", "done", "id", "line", "losses", "lost_at", "payload",
                 "replica", "sent", "since")  # fmt: skip

    def __init__(
        self,
        request_id: int,
        payload: bytes,
        content_type: int,
        done: "Callable[[wire.Answer | None, errors.InferlakeError | None], None]",
        now: float,
    ) -> None:
        self.id = request_id
        self.payload = payload
        self.content_type = content_type
        self.done: Callable[[wire.Answer | None, errors.InferlakeError | None], None] | None = done
        self.since = now
        self.sent = self.lost_at = 0.0
        self.losses = 0
        self.alone = False
        self.line: Line | None = None
        self.replica: _Replica | None = None

    def cancel(self) -> None:
        """Nobody waits any more: leave the line, or tell the worker."""
        if self.done is None:
            return
        self.done = None
        if self.replica is not None:
            self.replica.cancel(self)
        elif self.line is not None:
            self.line.waiting -= 1

    def finish(self, answer: wire.Answer | None, error: errors.InferlakeError | None) -> None:
        """Call back, once, and let nothing out."""
        done, self.done = self.done, None
        if done is None:
            return
        try:
            done(answer, error)
        except Exception as wrong:  # noqa: BLE001  one request's fault must not end the connection
            log.error("callback_failed", error=f"{type(wrong).__name__}: {wrong}")


class Load(NamedTuple):
    """An entity's load as this gateway sees it. `last_request_ms`: unix ms, 0: none yet."""

    served_entity_id: str
    waiting: int
    in_flight: int
    last_request_ms: int
    asleep: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """The times and lengths of settings.py that a line keeps."""

    queue_length: int
    queue_seconds: float
    model_seconds: float

    @staticmethod
    def of(settings: Settings) -> "Limits":
        return Limits(
            settings.queue_length, settings.queue_timeout_seconds, settings.model_timeout_seconds
        )


class Line:
    """One served entity: its replicas and the requests that wait for them."""

    def __init__(
        self, view: state.EntityView, limits: Limits, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.view = view
        self.waiting = 0
        self.in_flight = 0
        self.last_request_ms = 0
        self.queue_ms = int(limits.queue_seconds * 1000)  # how long a worker may keep a request
        self._limits = limits
        self._loop = loop
        self._queue: deque[Ask] = deque()
        self._suspects: deque[Ask] = deque()
        self._suspected = 0
        self._replicas: dict[str, _Replica] = {}
        self._lost_at: float | None = None
        self._retired = False

    @property
    def ready(self) -> list["_Replica"]:
        """Replicas that may be asked."""
        return [one for one in self._replicas.values() if one.connected and not one.leaving]

    @property
    def has_room(self) -> bool:
        """Whether a replica could take more at once, and nobody waits for it: what is not live may
        use that, and leaves the rest of a replica's window to live requests."""
        if self.waiting:
            return False
        return any(len(one.pending) < one.concurrency for one in self.ready)

    def submit(self, ask: Ask, now: float, now_ms: int) -> None:
        """Send a request, or put it in line. Raises QueueFull."""
        self.last_request_ms = now_ms
        ask.line = self
        replica = None if self._queue else self._free_replica(now)
        if replica is not None:
            replica.send(ask, now)
            return
        concurrency = max(self.view.concurrency, 1)
        longest = admission.queue_length(concurrency, self._limits.queue_length)
        admission.check_queue(self.waiting, longest, self.view.name)
        self.waiting += 1
        self._queue.append(ask)
        self.pump(now)

    def load(self) -> Load:
        """What the controller is told."""
        return Load(
            self.view.id, self.waiting, self.in_flight, self.last_request_ms, not self.ready
        )

    # -- replicas come and go

    def update(self, view: state.EntityView) -> None:
        """A new route table: connect to replicas that are new, leave those that are gone."""
        self.view = view
        present = {replica.id for replica in view.replicas}
        for replica in list(self._replicas.values()):
            if replica.view.id not in present:
                replica.leave()
        for one in view.replicas:
            if one.id not in self._replicas:
                self._replicas[one.id] = _Replica(one, self, self._loop)

    def retire(self) -> None:
        """No configuration names this entity any more: who waits is drawn again, who is at a
        replica is answered there."""
        self._retired = True
        for replica in list(self._replicas.values()):
            replica.leave()
        for ask in self._drained():
            ask.finish(None, None)

    def forget(self, replica: "_Replica") -> None:
        """A replica that was left has answered everything."""
        self._replicas.pop(replica.view.id, None)

    def fail_all(self, error: errors.InferlakeError) -> None:
        """The gateway ends: answer whoever still waits."""
        for ask in self._drained():
            ask.finish(None, error)

    def _drained(self) -> Iterator[Ask]:
        waiting = [ask for ask in (*self._suspects, *self._queue) if ask.done is not None]
        self._queue.clear()
        self._suspects.clear()
        self.waiting = 0
        yield from waiting

    def lost(self, asks: Iterable[Ask], now: float, expected: bool) -> None:
        """A connection is gone, with these requests unanswered: try them once more. `expected`: the
        replica had left the route table."""
        unanswered = [ask for ask in asks if ask.done is not None]
        if not expected and not self.ready:
            self._lost_at = now
        if unanswered or not expected:
            log.warning("worker_lost", entity=self.view.name, unanswered=len(unanswered))
        for ask in unanswered:
            ask.replica = None
            ask.losses += 1
            if self._retired:
                ask.finish(None, None)
            elif ask.losses == 1:
                ask.alone, ask.lost_at = True, now
                self.waiting += 1
                self._suspects.append(ask)
            else:
                ask.finish(None, self._lost_twice(was_alone=len(unanswered) == 1))
        self.pump(now)

    def _lost_twice(self, was_alone: bool) -> errors.InferlakeError:
        if was_alone:
            return errors.InternalError(
                "The model's process ended twice while answering this request."
            )
        return errors.Unavailable(f"'{self.view.name}' is restarting.")

    # -- who goes next

    def pump(self, now: float) -> None:
        """Send what can be sent: suspects first, each alone; then the line."""
        self._send_suspects(now)
        while self._queue:
            if self._queue[0].done is None:
                self._queue.popleft()  # cancelled: it has left the count already
                continue
            replica = self._free_replica(now)
            if replica is None:
                return
            self.waiting -= 1
            replica.send(self._queue.popleft(), now)

    def _send_suspects(self, now: float) -> None:
        while self._suspects:
            ask = self._suspects[0]
            if ask.done is None:
                self._suspects.popleft()
                continue
            replica = self._replica_for_suspect(now)
            if replica is None:
                return
            self._suspects.popleft()
            self.waiting -= 1
            self._suspected += 1
            replica.suspect = ask
            replica.send(ask, now)

    def _replica_for_suspect(self, now: float) -> "_Replica | None":
        if not admission.may_retry(self._suspected, self.waiting + self.in_flight):
            return None
        free = [one for one in self.ready if one.suspect is None]
        if not free:
            return None
        best = min(free, key=_Replica.burden)
        if best.pending and self._makes_room(now):
            return None
        return best

    def _makes_room(self, now: float) -> bool:
        """Whether suspects still wait until they are alone, and others stay away from them."""
        return bool(self._suspects) and now - self._suspects[0].lost_at < ALONE_SECONDS

    def _free_replica(self, now: float) -> "_Replica | None":
        best, least = None, float("inf")
        reserved = None
        if self._suspects and self._makes_room(now):
            # One replica empties itself for the suspects; with only one, the line waits for them.
            reserved = min(self.ready, key=_Replica.burden, default=None)
        for one in self._replicas.values():
            if not one.connected or one.leaving or one is reserved:
                continue
            if len(one.pending) >= one.window:
                continue
            if one.suspect is not None and now - one.suspect.sent < ALONE_SECONDS:
                continue
            burden = one.burden()
            if burden < least:
                best, least = one, burden
        return best

    def settled(self, replica: "_Replica", ask: Ask) -> None:
        """A replica has answered, or a request was taken back from it."""
        if replica.suspect is ask:
            replica.suspect = None
            self._suspected -= 1

    # -- time

    def expire(self, now: float) -> None:
        """Answer those who waited too long; to be called a few times a second."""
        limits = self._limits
        longest = admission.longest_wait_seconds(
            self._lost_at if not self.ready else now,
            now,
            limits.queue_seconds,
            limits.model_seconds,
        )
        for queue in (self._suspects, self._queue):
            while queue and (queue[0].done is None or now - queue[0].since > longest):
                ask = queue.popleft()
                if ask.done is not None:
                    self.waiting -= 1
                    ask.finish(None, self.waited_too_long())
        for replica in list(self._replicas.values()):
            replica.expire(now, limits)
        self.pump(now)

    def waited_too_long(self) -> errors.InferlakeError:
        """What a request is told that nobody took up in time."""
        if self.ready:
            return errors.Unavailable(
                f"'{self.view.name}' is busy: {self._limits.queue_seconds:g} s in line."
            )
        return errors.Unavailable(f"'{self.view.name}' is restarting.")


class _Replica(asyncio.Protocol):
    """The connection to one worker, made again until the replica leaves the route table."""

    def __init__(
        self, view: state.ReplicaView, line: Line, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.view = view
        self.pending: dict[int, Ask] = {}
        self.connected = False
        self.leaving = False
        self.suspect: Ask | None = None
        self.concurrency = max(view.concurrency, 1)
        self.window = view.concurrency + 1
        self._joins = False
        self._answered_at = 0.0
        self._line = line
        self._loop = loop
        self._reader = wire.answer_reader()
        self._frames: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = loop.create_task(self._connect())

    def burden(self) -> float:
        """Requests per unit of concurrency."""
        return len(self.pending) / self.concurrency

    async def _connect(self) -> None:
        pause = FIRST_RETRY_SECONDS
        while not self.leaving:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._loop.create_unix_connection(lambda: self, self.view.socket)
                return
            except (OSError, TimeoutError):
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY_SECONDS)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._task = None
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._reader = wire.answer_reader()
        # The handshake; its answer also tells whether this worker joins requests.
        self._transport.write(wire.pack_probe(HANDSHAKE_ID))
        if self.leaving:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            answers = self._reader.feed(data)
        except wire.BrokenStream as error:
            log.error("stream_broken", entity=self._line.view.name, error=str(error))
            if self._transport is not None:
                self._transport.abort()
            return
        line = self._line
        self._answered_at = self._loop.time()
        for answer in answers:
            ask = self.pending.pop(answer.id, None)
            if ask is None:
                if answer.id == HANDSHAKE_ID:
                    self._greeted(answer)
                continue
            line.in_flight -= 1
            line.settled(self, ask)
            ask.replica = None
            ask.finish(answer, None)
        line.pump(self._answered_at)
        self._close_if_empty()

    def _greeted(self, answer: wire.Answer) -> None:
        report = orjson.loads(answer.body)
        if report.get("served_entity_id") != self._line.view.id:
            log.error("stranger_answers", socket=self.view.socket, entity=self._line.view.name)
            if self._transport is not None:
                self._transport.abort()
            return
        if report.get("batches"):
            self.window = max(BATCHING_WINDOW, self.window)
            self._joins = True
        self.connected = True
        self._line.pump(self._loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        self.connected = False
        self._transport = None
        asks = list(self.pending.values())
        self.pending.clear()
        self._line.in_flight -= len(asks)
        if self.suspect is not None:
            self._line.settled(self, self.suspect)
        if self.leaving:
            self._line.forget(self)
        else:
            self._task = self._loop.create_task(self._connect())
        self._line.lost(asks, self._loop.time(), expected=self.leaving)

    def send(self, ask: Ask, now: float) -> None:
        """Hand a request to the worker."""
        ask.replica, ask.sent = self, now
        self.pending[ask.id] = ask
        self._line.in_flight += 1
        self._write(
            wire.pack_request(
                ask.id,
                ask.payload,
                content_type=ask.content_type,
                deadline_ms=self._line.queue_ms,
                flags=wire.ALONE if ask.alone else 0,
            )
        )

    def cancel(self, ask: Ask) -> None:
        """Take a request back. It counts until the worker answers (499 if it was still in line),
        for the model may be at it."""
        self._write(wire.pack_cancel(ask.id))

    def _write(self, frame: bytes) -> None:
        # One system call for all requests of a loop turn: each costs as much as the rest of a
        # request here, and the worker finds its batch together.
        if not self._frames:
            self._loop.call_soon(self._write_frames)
        self._frames.append(frame)

    def _write_frames(self) -> None:
        frames, self._frames = self._frames, []
        if self._transport is not None:
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def expire(self, now: float, limits: Limits) -> None:
        """Answer requests whose model has had its time. Where requests are not joined the model
        has the oldest alone; the others are in line behind it still, and are tried elsewhere if
        its process is ended."""
        for position, ask in enumerate(list(self.pending.values())):
            waited = now - max(ask.sent, self._answered_at)
            if ask.done is None:
                continue
            if position and not self._joins:
                if waited > limits.queue_seconds:
                    self.cancel(ask)
                    ask.finish(None, self._line.waited_too_long())
            elif waited > limits.model_seconds:
                entity, seconds = self._line.view.name, limits.model_seconds
                self.cancel(ask)
                late = f"'{entity}' did not answer within {seconds:g} s."
                ask.finish(None, errors.ModelTimeout(late))

    def leave(self) -> None:
        """The replica left the route table: no new requests; those it has are waited for."""
        if self.leaving:
            return
        self.leaving = True
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._transport is None:
            self._line.forget(self)
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self.leaving and not self.pending and self._transport is not None:
            self._transport.close()


class Lines:
    """The lines of all entities."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._limits = Limits.of(settings)
        self._loop = loop
        self.by_entity: dict[str, Line] = {}  # of the present route table
        self._retired: list[Line] = []

    def apply(self, entities: Iterable[state.EntityView]) -> None:
        """A new route table: open, update and retire lines."""
        views = {view.id: view for view in entities if view.kind == "custom"}
        gone = [line for entity_id, line in self.by_entity.items() if entity_id not in views]
        for entity_id, view in views.items():
            if entity_id not in self.by_entity:
                self.by_entity[entity_id] = Line(view, self._limits, self._loop)
            self.by_entity[entity_id].update(view)
        # Last, since who waited there is drawn again and may go to a line just opened.
        for line in gone:
            del self.by_entity[line.view.id]
            self._retired.append(line)
            line.retire()

    def loads(self) -> list[Load]:
        """The load of every entity."""
        return [line.load() for line in self.by_entity.values()]

    def expire(self, now: float) -> None:
        """Answer those who waited too long."""
        for line in (*self.by_entity.values(), *self._retired):
            line.expire(now)
        self._retired = [line for line in self._retired if line.in_flight]

    def close(self) -> None:
        """Answer whoever still waits, leave all replicas."""
        for line in self.by_entity.values():
            line.fail_all(errors.Unavailable("The server is ending."))
            line.retire()
        self.by_entity.clear()
