"""THE request, top to bottom: token, grant, route, admission, frame, answer, log, reply.

`DataPlane.handle` takes a request and answers by a callback, in one turn of the loop or many, with
no task or future of its own. Whatever the answer, a request with a valid token becomes one row of
the endpoint's log *before* its reply goes out; rows of one turn are written together.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
import sqlalchemy as sa

from capture import errors, exchanges, logline, meters, rows, wal
from capture.settings import Settings
from serving import access, state, wire
from serving.gateway import (
    admission,
    bodies,
    clerk,
    counts,
    heads,
    recent,
    recorded,
    replicas,
    routing,
    shadows,
    twin,
)

log = logline.logger(__name__)

TICK_SECONDS = 0.05
TICKS_PER_EXPIRE, TICKS_PER_DEMAND = 5, 20
DAY_NS = 86_400_000_000_000


class DataPlane:
    """Everything that answers queries in one gateway. For one event loop, save `publish`."""

    def __init__(self, settings: Settings, log: wal.Log, engine: sa.Engine) -> None:
        self.settings = settings
        self.log = log
        self.cap_bytes = settings.payload_cap_bytes
        self.door = access.Door(
            _revealed(settings.admin_token),
            _revealed(settings.service_token),
            settings.failed_logins_per_minute,
        )
        self.counts = counts.Counts()
        self.heads = heads.Heads()
        self.contexts = recorded.Contexts()
        self.recent_ids = recent.RecentIds()
        self._version, snapshot = clerk.read_snapshot(engine)
        self.table = routing.table(snapshot)
        self.limits = admission.RateLimits()
        self.random = random.Random()
        self.lines: replicas.Lines
        self.shadows: shadows.Shadows
        self.clerk: clerk.Clerk
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop
        self._finished: list[Call] = []
        self._ticker: asyncio.Task[None] | None = None
        self._content_types: dict[bytes, int] = {}
        self._told: dict[str, float] = {}
        self._sweeps: list[Callable[[float], None]] = []

    # -- life

    def start(self) -> None:
        """Connect to the replicas of the present route table, and follow its changes. To be called
        in the running loop."""
        self._loop = asyncio.get_running_loop()
        self.lines = replicas.Lines(self.settings, self._loop)
        self.lines.apply(entity for _, entity in self.table.entities())
        self.shadows = shadows.Shadows(
            self.settings, self.log, self.lines, self.counts, self.awaken
        )
        self.each_sweep(self.shadows.sweep)
        self.clerk = clerk.Clerk(
            self._engine, f"gateway-{self.settings.port}", self.settings.run_dir, self.publish
        )
        self.clerk.start()
        self._ticker = self._loop.create_task(self._tick())

    @property
    def snapshot(self) -> state.Snapshot:
        """What the present route table was drawn from."""
        return self.table.snapshot

    @property
    def version(self) -> int:
        """The count of changes up to which the present route table is drawn. Any thread."""
        return self._version

    def publish(self, version: int, snapshot: state.Snapshot) -> None:
        """A new snapshot: draw the route table here, swap it in the loop. Any thread."""
        table = routing.table(snapshot)
        self._loop.call_soon_threadsafe(self._swap, version, table)

    def _swap(self, version: int, table: routing.RouteTable) -> None:
        if version < self._version:
            return  # read before the one that came in between
        self._version, self.table = version, table
        self.heads.forget()
        self.lines.apply(entity for _, entity in table.entities())

    async def close(self) -> None:
        """After the last reply: write what is left, end the thread, seal the log."""
        if self._ticker is not None:
            self._ticker.cancel()
        self.lines.close()
        self._flush()
        await asyncio.to_thread(self.clerk.close)
        self.log.close()

    def each_sweep(self, sweep: Callable[[float], None]) -> None:
        """Have this called four times a second with the loop's time (deadlines of connections)."""
        self._sweeps.append(sweep)

    async def _tick(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(TICK_SECONDS)
            number += 1
            try:
                self.log.tick()
                self.counts.add_up()
                if number % TICKS_PER_EXPIRE == 0:
                    now = self._loop.time()
                    self.lines.expire(now)
                    for sweep in self._sweeps:
                        sweep(now)
                if number % TICKS_PER_DEMAND == 0:
                    self.clerk.offer(self.lines.loads(), urgent=False)
            except Exception as error:  # noqa: BLE001  the clockwork goes on
                log.error("tick_failed", error=f"{type(error).__name__}: {error}"[:500])

    # -- requests

    def handle(self, request: twin.Request, reply: Callable[[twin.Reply], None]) -> "Call":
        """Answer a request; `reply` is called once, unless the call is cancelled."""
        call = Call(self, request, reply)
        try:
            now = self._loop.time()
            call.admit(now)
            call.dispatch(now)
        except errors.InferlakeError as error:
            call.refuse(error)
        except Exception as error:  # noqa: BLE001  our own bug: one request's, not the connection's
            call.fail(error)
        return call

    async def attempt(
        self, endpoint: str, served_entity: str, content_type: bytes, body: bytes
    ) -> wire.Answer:
        """A version's answer to a body, recorded nowhere and counted as nothing; Unavailable while
        live requests need its replicas."""
        route = self.table.routes.get(endpoint)
        entity = None if route is None else route.by_name.get(served_entity)
        if route is None or entity is None or entity.kind != "custom":
            raise errors.DoesNotExist(
                f"Served entity '{served_entity[:200]}' of endpoint '{endpoint[:200]}' does not "
                "exist."
            )
        if route.endpoint.stopped:
            raise errors.BadRequest(f"Endpoint '{endpoint}' is stopped; start it first.")
        return await self.shadows.ask(entity, body, self.content_type(content_type))

    def copies(self, endpoint: str, served_entity: str) -> Mapping[str, int]:
        """What became of the requests that were copied to this version, since the start."""
        found = self.counts.copies.get(counts.Key(endpoint, served_entity))
        return {} if found is None else found.copy()

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        """The safe twin: the same request through plain ASGI."""
        await twin.answer(self, scope, receive, send)

    def content_type(self, header: bytes) -> int:
        """The wire's number of a Content-Type header. Raises BadRequest."""
        found = self._content_types.get(header)
        if found is None:
            found = bodies.content_type(header.decode("latin-1"))
            if len(self._content_types) < 1_000:
                self._content_types[header] = found
        return found

    def permit(self, request: twin.Request, now_ms: int) -> heads.Permit:
        """Who asks, and what; remembered with the head. now_ms: unix ms. Raises the error of the
        first that refuses: token, endpoint, grant."""
        head, table = request.head, self.table
        found = head.permit
        if found is not None and found.table is table and now_ms < found.until_ms:
            return found
        authorization = head.headers.get(b"authorization")
        caller = self.door.caller(
            None if authorization is None else authorization.decode("latin-1"),
            request.peer,
            table.snapshot,
            now_ms,
            self.now(),
        )
        name, entity_name = table.targets.get(head.target) or bodies.named(head.target)
        route = table.routes.get(name)
        if route is None:
            raise errors.DoesNotExist(f"Endpoint '{name[:200]}' does not exist.")
        access.require(caller, route.endpoint.id, name, "CAN_QUERY", table.snapshot)
        token = table.snapshot.tokens.get(caller.token_id or "")
        until_ms = math.inf if token is None or token.expires_ms is None else token.expires_ms
        limits = admission.counted(route.endpoint.id, route.endpoint.rate_limits, caller.user)
        endpoint = route.endpoint
        by_chance = bool(endpoint.entities) and entity_name is None and endpoint.sticky_key is None
        head.permit = heads.Permit(
            table, until_ms, limits, caller, route, entity_name, {}, by_chance
        )
        if head.raw:
            self.heads.keep(head)
        return head.permit

    def now(self) -> float:
        """The loop's time."""
        return self._loop.time()

    def awaken(self, entity_id: str) -> None:
        """A request waits for an entity: if that has no replica, the controller hears of it at
        once, and again each second."""
        line = self.lines.by_entity[entity_id]
        now = self._loop.time()
        if line.waiting and not line.ready and now - self._told.get(entity_id, -1.0) >= 1:
            self._told[entity_id] = now
            self.clerk.offer(self.lines.loads(), urgent=True)

    # -- the log

    def check_log(self) -> None:
        """Of a full log: raises LogFull if it refuses requests, before a model works in vain."""
        if self.settings.wal_full_policy == "refuse":
            raise errors.LogFull(
                f"{self.log.backlog_bytes} bytes of requests wait to be recorded; the limit is "
                f"{self.settings.wal_backlog_bytes}."
            )

    def finished(self, call: "Call") -> None:
        """An answer is there: log and reply at the end of this turn, with all others."""
        if not self._finished:
            self._loop.call_soon(self._flush)
        self._finished.append(call)

    def _flush(self) -> None:
        finished, self._finished = self._finished, []
        self._record(finished)
        self._note_usage([call for call in finished if call.is_tracked])
        second = int(self._loop.time())
        for call in finished:
            try:
                call.send(second)
            except Exception as error:  # noqa: BLE001  one client's connection, not the others'
                log.error("reply_failed", request=call.request_id, error=str(error))

    def _record(self, finished: "list[Call]") -> None:
        """Write the rows of requests, by table."""
        groups: Iterable[list[Call]] = (finished,)  # one, as mostly, up to some hundreds a second
        if len(finished) != 1:
            by_table: dict[int, list[Call]] = {}
            for call in finished:
                by_table.setdefault(id(call.capture), []).append(call)
            groups = by_table.values()
        for calls in groups:
            capture = calls[0].capture
            if capture is None:
                continue
            written: list[Call] = []
            logged: list[exchanges.Exchange] = []
            for call in calls:
                try:
                    exchange = call.exchange()
                except Exception as error:  # noqa: BLE001  one request's fault, not its neighbours'
                    call.fail(error)
                    continue
                if exchange is not None:
                    written.append(call)
                    logged.append(exchange)
            self._append(capture, written, logged)

    def _append(
        self, capture: state.CaptureView, calls: "list[Call]", logged: list[exchanges.Exchange]
    ) -> None:
        power = capture.acknowledgement == "power"
        try:
            self.log.append(capture.table, "payload", logged, power)
        except Exception as error:  # noqa: BLE001  a row that cannot be encoded fails alone
            if len(calls) == 1 or isinstance(error, errors.LogFull):
                self._not_logged(capture.table, calls, error)
                return
            for call, one in zip(calls, logged, strict=True):
                self._append(capture, [call], [one])
            return
        for call, one in zip(calls, logged, strict=True):
            self.recent_ids.add(call.number, one.client_request_id)

    def _not_logged(self, table: str, calls: "list[Call]", error: Exception) -> None:
        """Requests whose row cannot be written are refused instead of answered."""
        self.counts.unlogged[table] += len(calls)
        for call in calls:
            if isinstance(error, errors.LogFull):
                call.replace(error)
            else:
                call.fail(error)

    def _note_usage(self, tracked: "list[Call]") -> None:
        """Write the usage of requests; one that cannot be written is counted, and answered all the
        same: its row in the record, if it has one, is there already."""
        if not tracked:
            return
        try:
            self.log.append(rows.USAGE_TABLE, "usage", [call.usage() for call in tracked])
        except errors.LogFull:
            self.counts.unlogged[rows.USAGE_TABLE] += len(tracked)
        except Exception as error:  # noqa: BLE001  a row that cannot be encoded fails alone
            if len(tracked) > 1:
                for one in tracked:
                    self._note_usage([one])
                return
            self.counts.unlogged[rows.USAGE_TABLE] += 1
            log.error("usage_not_noted", error=f"{type(error).__name__}: {error}"[:500])

    # -- numbers

    def metrics(self, endpoint: str | None = None) -> str:
        """Prometheus text of this gateway; of one endpoint in the names of the contract."""
        concurrency: dict[counts.Key, float] = {}
        waiting: dict[counts.Key, float] = {}
        in_flight: dict[counts.Key, float] = {}
        for view, entity in self.table.entities():
            if endpoint not in (None, view.name) or entity.kind != "custom":
                continue
            key = counts.Key(view.name, entity.name)
            load = self.lines.by_entity[entity.id].load()
            concurrency[key] = sum(replica.concurrency for replica in entity.replicas)
            waiting[key], in_flight[key] = load.waiting, load.in_flight
        if endpoint is not None:
            return self.counts.export(endpoint, concurrency, int(self.now()))
        gauges = {
            "inferlake_provisioned_concurrency": concurrency,
            "inferlake_waiting_requests": waiting,
            "inferlake_in_flight_requests": in_flight,
        }
        logged = meters.text(meters.registry(self.log.readings))
        return self.counts.text(gauges) + logged.decode()


class Call:
    """One request on its way. States: admitted -> dispatched -> finished -> sent, or cancelled."""

    __slots__ = (
        "_answer", "_ask", "_begun", "_body", "_caller", "_choice", "_content_type", "_contexts",
        "_entity_name", "_error", "_headers", "_id", "_plane", "_reply", "_request",
        "_response", "_route", "_source", "_status", "_time_ns", "capture", "is_tracked", "number",
    )  # fmt: skip

    def __init__(
        self, plane: DataPlane, request: twin.Request, reply: Callable[[twin.Reply], None]
    ) -> None:
        self._time_ns = time.time_ns()
        self._begun = time.perf_counter_ns()
        self._plane = plane
        self._request = request
        self._reply: Callable[[twin.Reply], None] | None = reply
        self.number = bodies.request_number(self._time_ns, plane.random)
        self._body = request.body
        self._headers: dict[bytes, bytes] = {}
        self._caller: access.Caller | None = None
        self._route: routing.Route | None = None
        self._choice: routing.Choice | None = None
        self._entity_name: str | None = None
        self._contexts: dict[str | None, bytes] = {}
        self._content_type = wire.JSON
        self._ask: replicas.Ask | None = None
        self._answer: wire.Answer | None = None
        self._error: errors.InferlakeError | None = None
        self._id: str | None = None
        self._status = 0
        self._response = b""
        self._source: str | None = None
        self.capture: state.CaptureView | None = None
        self.is_tracked = False  # whether the usage of this request is noted

    # -- coming in

    def admit(self, now: float) -> None:
        """Token, endpoint, grant, limits, encoding of the body. now: the loop's time. Raises the
        error of the first that refuses."""
        plane, request = self._plane, self._request
        head = request.head
        self._headers = head.headers
        permit = plane.permit(request, self._time_ns // 1_000_000)
        _, _, limits, self._caller, route, self._entity_name, self._contexts, by_chance = permit
        self._route, endpoint = route, route.endpoint
        self.capture, self.is_tracked = endpoint.capture, endpoint.usage
        if endpoint.stopped:
            raise errors.BadRequest(f"Endpoint '{endpoint.name}' is stopped; start it first.")
        if plane.log.is_full and (self.capture is not None or endpoint.usage):
            plane.check_log()
        if limits:
            plane.limits.admit(limits, now)
        if head.encoding is not None:
            most_bytes = plane.settings.max_body_bytes
            self._body = bodies.decoded(request.body, head.encoding, most_bytes)
        if head.content_type is None:
            head.content_type = plane.content_type(head.headers.get(b"content-type", b""))
        self._content_type = head.content_type
        if by_chance:
            self._choice = route.draw(None, plane.random.random())
        else:
            self._choice = self._chosen(route)

    def _chosen(self, route: routing.Route) -> routing.Choice:
        endpoint, entity_name = route.endpoint, self._entity_name
        if not endpoint.entities:
            if endpoint.updating:
                raise errors.Unavailable(f"Endpoint '{endpoint.name}' is being created.")
            raise errors.BadRequest(f"Endpoint '{endpoint.name}' serves no entity yet.")
        if entity_name is not None:
            entity = route.by_name.get(entity_name)
            if entity is None:
                raise errors.DoesNotExist(
                    f"Served entity '{entity_name[:200]}' of endpoint '{endpoint.name}' "
                    "does not exist."
                )
            return routing.choice(entity)
        return route.draw(self._routing_key(endpoint), self._plane.random.random())

    def _routing_key(self, endpoint: state.EndpointView) -> str | None:
        """What the request's unit is; None: it has none, and is drawn by chance."""
        key = endpoint.sticky_key
        if key is None or self._caller is None:
            return None
        if key == "caller":
            return self._caller.user
        header = routing.header_name(key)
        if header is not None:
            value = self._headers.get(header)
            return None if value is None else value.decode("latin-1")
        if self._content_type != wire.JSON:
            return None
        if key == "client_request_id":
            return bodies.sides(self._body).client_request_id
        try:
            return routing.key_in_body(orjson.loads(self._body), key)
        except orjson.JSONDecodeError:
            return None  # the worker says what is wrong with it

    def dispatch(self, now: float) -> None:
        """Send the request to its entity, or put it in line. now: the loop's time. Raises
        QueueFull."""
        assert self._choice is not None  # set by admit
        plane, entity = self._plane, self._choice.entity
        if entity.kind != "custom":
            raise errors.NotImplementedHere("External models are not offered yet.")
        self._ask = replicas.Ask(
            self.number & 0xFFFFFFFFFFFFFFFF, self._body, self._content_type, self._answered, now
        )
        line = plane.lines.by_entity[entity.id]
        line.submit(self._ask, now, self._time_ns // 1_000_000)
        if line.waiting:
            plane.awaken(entity.id)

    # -- coming back

    def _answered(self, answer: wire.Answer | None, error: errors.InferlakeError | None) -> None:
        self._ask = None
        if answer is not None:
            self._answer = answer
            self._status, self._response = answer.status, answer.body
            self._source = answer.error_source
            self._plane.finished(self)
        elif error is not None:
            self.refuse(error)
        else:
            self._again()

    def _again(self) -> None:
        """The entity left the configuration before it was asked: draw once more."""
        assert self._route is not None  # set before anything was asked
        name = self._route.endpoint.name
        try:
            route = self._plane.table.routes.get(name)
            if route is None:
                raise errors.DoesNotExist(f"Endpoint '{name}' does not exist.")
            self._route, self.capture, self._contexts = route, route.endpoint.capture, {}
            self.is_tracked = route.endpoint.usage
            self._choice = self._chosen(route)
            self.dispatch(self._plane.now())
        except errors.InferlakeError as error:
            self.refuse(error)
        except Exception as error:  # noqa: BLE001  as in DataPlane.handle
            self.fail(error)

    def refuse(self, error: errors.InferlakeError) -> None:
        """Answer with an error."""
        self._ask, self._answer = None, None
        self.replace(error)
        self._plane.finished(self)

    def replace(self, error: errors.InferlakeError) -> None:
        """The answer becomes this error."""
        self._error = error
        self._status = error.status
        self._response = orjson.dumps(errors.envelope(error))
        self._source = "request" if error.status < 500 else "server"

    def fail(self, error: Exception) -> None:
        """Our own bug: told by its id only."""
        log.error(
            "request_failed", request=self.request_id, error=f"{type(error).__name__}: {error}"
        )
        wrong = errors.InternalError(f"Internal error, request id {self.request_id}.")
        if self._status:  # found while logging: the reply goes out in this same turn
            self.replace(wrong)
        else:
            self.refuse(wrong)

    def cancel(self) -> None:
        """The client hung up: nobody gets a reply, the row says 499."""
        if self._reply is None or self._status:
            self._reply = None
            return
        self._reply = None
        if self._ask is not None:
            self._ask.cancel()
            self._ask = None
        self._status, self._source = 499, "request"
        self._plane.finished(self)

    @property
    def request_id(self) -> str:
        """The request's id, a UUIDv7."""
        if self._id is None:
            text = f"{self.number:032x}"
            self._id = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
        return self._id

    # -- going out

    def send(self, second: int) -> None:
        """Count the request and call back with the reply, once. second: of the loop's time."""
        self._count(second)
        reply, self._reply = self._reply, None
        if reply is None:
            return
        request_id = self.request_id.encode()
        headers = b"%bx-request-id: %b\r\ndatabricks-request-id: %b\r\n" % (
            twin.JSON_HEADER,
            request_id,
            request_id,
        )
        if self._choice is not None:
            headers += self._choice.header
        if self._status in (429, 503):
            retry_after = (self._error.retry_after if self._error else None) or 1
            headers += b"retry-after: %d\r\n" % retry_after
        reply(twin.Reply(self._status, headers, self._response))
        if self._route is not None and self._route.endpoint.shadow is not None:
            self._copy(self._route.endpoint.shadow)

    def _copy(self, shadow: state.ShadowView) -> None:
        """Have the version in the shadow answer as well, if another one did by the split."""
        plane, route, choice, capture = self._plane, self._route, self._choice, self.capture
        if route is None or choice is None or capture is None or self._caller is None:
            return
        is_drawn = choice.share is not None and choice.entity.name != shadow.served_entity
        if self._answer is None or not is_drawn or plane.random.random() >= shadow.share:
            return
        if capture.sampling_fraction < 1 and not plane.recent_ids.has(self.number):
            return  # the original was left out of the record: there is nothing to compare with
        client_id, usage = self._beside()
        content_type = self._headers.get(b"content-type")
        plane.shadows.offer(
            shadows.Copy(
                endpoint=route.endpoint,
                entity=route.by_name[shadow.served_entity],
                capture=capture,
                number=self.number,
                time_ns=self._time_ns,
                body=self._body,
                content_type=self._content_type,
                content_header=content_type,
                client_request_id=client_id,
                usage_context=usage,
                requester=self._caller.user,
                unit_id=choice.unit_id,
            )
        )

    def _count(self, second: int) -> None:
        if self._caller is None or self._route is None:
            self._plane.counts.refused[self._status] += 1
            return
        endpoint = self._route.endpoint.name
        entity = self._choice.entity.name if self._choice is not None else ""
        total_us = (time.perf_counter_ns() - self._begun) // 1000
        answer = self._answer
        queue_us, predict_us = (0, 0) if answer is None else (answer.queue_us, answer.predict_us)
        self._plane.counts.record(
            endpoint, entity, self._status, second, total_us, queue_us, predict_us
        )

    def exchange(self) -> exchanges.Exchange | None:
        """This request as the log has it; None if its endpoint records none of it."""
        plane, capture, route, caller = self._plane, self.capture, self._route, self._caller
        if capture is None or route is None or caller is None:
            return None
        fraction, choice = capture.sampling_fraction, self._choice
        if fraction < 1 and plane.random.random() >= fraction:
            return None
        total_us = (time.perf_counter_ns() - self._begun) // 1000
        entity_id = None if choice is None else choice.entity.id
        context = self._contexts.get(entity_id)
        if context is None:
            header = self._headers.get(b"content-type")
            context = plane.contexts.of(route.endpoint, capture, choice, caller.user, header)
            self._contexts[entity_id] = context
        answer = self._answer or recorded.NO_ANSWER
        client_id, usage = answer.client_request_id, None
        if answer.status != 200 or answer.usage_context is not None:
            client_id, usage = self._beside()
        return exchanges.exchange(
            context,
            self._time_ns,
            self.number,
            self._status,
            self._body,
            self._response,
            plane.cap_bytes,
            total_us,
            answer.queue_us,
            answer.features_us,
            answer.predict_us,
            self._source,
            client_id,
            None if choice is None else choice.unit_id,
            usage,
            answer.looked_up,
        )

    def _beside(self) -> tuple[str | None, bytes | None]:
        """The client's id and usage context (JSON), which came beside the input: the worker saw
        them, or the body is looked at."""
        answer = self._answer
        if answer is not None and answer.status == 200:
            if answer.usage_context is not None:
                bodies.check_usage(answer.usage_context)
            return answer.client_request_id, answer.usage_context
        sides = bodies.sides(self._body) if self._content_type == wire.JSON else bodies.NO_SIDES
        usage = bodies.checked_usage(sides.usage_context)
        return sides.client_request_id, None if usage is None else orjson.dumps(usage)

    def usage(self) -> rows.Usage:
        """What a tracked request is in `system.serving.endpoint_usage`."""
        assert self._route is not None and self._caller is not None  # it is tracked
        client_id, usage_context = self._beside()
        entity = None if self._choice is None else self._choice.entity
        predict_us = 0 if self._answer is None else self._answer.predict_us
        return rows.Usage(
            request_date=self._time_ns // DAY_NS,
            account_id=None,
            workspace_id=None,
            client_request_id=client_id,
            databricks_request_id=self.request_id,
            requester=self._caller.user,
            status_code=self._status,
            request_time=self._time_ns // 1000,
            input_token_count=None,
            output_token_count=None,
            input_character_count=None,
            output_character_count=None,
            usage_context=None if usage_context is None else orjson.loads(usage_context),
            request_streaming=False,
            served_entity_id=None if entity is None else entity.id,
            endpoint_id=self._route.endpoint.id,
            endpoint_name=self._route.endpoint.name,
            served_entity_name=None if entity is None else entity.name,
            config_version=self._route.endpoint.config_version,
            execution_duration_ms=(predict_us + 500) // 1000,
        )


def _revealed(secret: Any) -> str | None:
    return None if secret is None else secret.get_secret_value()
