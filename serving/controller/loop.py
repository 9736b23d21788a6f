"""The controller at work: read what is wanted, look at what is there, plan, act; ten times a second
while anything happens, twice a second in silence, and whenever somebody knocks.

Each turn is reading, `reconcile`, one transaction with all that it decided, then the processes. SQL
runs in a thread, so a locked database stops decisions but no heartbeat.
"""

import asyncio
import contextlib
import dataclasses
import os
import secrets
import time
from collections.abc import Mapping, Sequence, Set

import sqlalchemy as sa

from capture import database, lives, logline
from capture.settings import Settings
from serving import changes_state, processes, replica_state, state, vault
from serving.controller import (
    devices,
    holding,
    local,
    orders,
    preparation,
    reconcile,
    shapes,
    wanted,
)

log = logline.logger(__name__)

PROLONG_SECONDS = 5.0
TURN_SECONDS, QUIET_TURN_SECONDS = 0.1, 0.5
WARM_AFTER_SECONDS = 3.0
PREDICT_GRACE_SECONDS = 3.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Facts:
    """What a turn reads from SQL. `endpoints`: `found` as reconcile takes it; `memory_limits`:
    bytes by served entity id, of every wanted one."""

    found: tuple[state.WantedEndpoint, ...] = ()
    endpoints: tuple[shapes.Endpoint, ...] = ()
    memory_limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    states: Mapping[str, shapes.State] = dataclasses.field(default_factory=dict)
    demand: Mapping[str, shapes.Demand] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class _Decided:
    """A plan with what it needs to be carried out. `starts`: per step, the new replica of a Start
    and how to start it; `gone`: replicas to be stopped whose process is gone already, found out
    once, so that SQL and the mirror of its rows go the same way."""

    steps: tuple[shapes.Step, ...]
    starts: Sequence[tuple[replica_state.Replica, orders.Order] | None]
    gone: Set[str]


class Controller:
    """One per data directory. `adopt`, then `run`; `wake` makes it look now; `stop` ends `run`."""

    def __init__(self, settings: Settings, engine: sa.Engine, stop_workers: bool) -> None:
        self.settings, self.engine, self.stop_workers = settings, engine, stop_workers
        self.cores, self.gpus = max(1, os.cpu_count() or 1), devices.present()
        self.backend = local.Local(settings)
        self.holding = holding.Holding(settings, self.backend, self.wake)
        self.preparations = preparation.Preparations(
            settings, engine, self.wake, self.backend.zygotes.imported
        )
        self.limits = shapes.Limits(
            deployment_seconds=settings.deployment_timeout_seconds,
            zero_seconds=settings.scale_to_zero_after_seconds,
            # The gateway has told the client by then.
            predict_seconds=settings.model_timeout_seconds + PREDICT_GRACE_SECONDS,
        )
        self.memory: dict[str, shapes.Memory] = {}
        self._knock = asyncio.Event()
        self._stopping = False
        self._restless = True
        self._warm_at: float | None = None
        self._prolonged_at = -PROLONG_SECONDS
        self._watch = changes_state.Watch(engine)
        self._stale = True
        self._facts = _Facts()

    def wake(self) -> None:
        """Have the next turn now."""
        self._knock.set()

    def stop(self) -> None:
        """End `run` after the present turn."""
        self._stopping = True
        self.wake()

    async def adopt(self) -> None:
        """Take over the replicas that a controller before this one left."""
        self.holding.adopt(await asyncio.to_thread(self._rows))

    async def run(self) -> None:
        """Control until `stop`; the replicas go on, unless this is a full stop."""
        self._warm_at = time.monotonic() + WARM_AFTER_SECONDS
        keeping_logs = asyncio.create_task(self.holding.keep_logs())
        while not self._stopping:
            self._knock.clear()
            await self._safe_turn()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TURN_SECONDS if self._restless else QUIET_TURN_SECONDS):
                    await self._knock.wait()
        keeping_logs.cancel()
        ids = self.holding.ids()
        await asyncio.to_thread(self._write_alive, ids, self.holding.news(ids))
        if self.stop_workers:
            await self.holding.end_all()
            await asyncio.to_thread(self._remove_rows, self.holding.ids())
        self.holding.let_go()
        self.backend.close()
        self._watch.close()

    async def _safe_turn(self) -> None:
        try:
            await self.turn()
        except (KeyboardInterrupt, SystemExit, asyncio.CancelledError):
            raise
        except BaseException as error:  # noqa: BLE001 - it must live; the next turn tries again
            log.error("turn_failed", reason=f"{type(error).__name__}: {error}")
            self._stale = self._restless = True
            await asyncio.sleep(TURN_SECONDS)

    async def turn(self) -> None:
        """One look and everything that follows from it."""
        now = time.monotonic()
        self.backend.expire(now)
        self.holding.measure(self._facts.memory_limits, now, self._restless)
        facts = self._facts = await asyncio.to_thread(self._read)
        self._warm(now)
        observed = shapes.Observed(
            self.holding.seen(facts.memory_limits, now),
            self.preparations.seen(),
            facts.demand,
            facts.states,
            self.gpus,
            len(devices.free(self.gpus, self.holding.gpus())),
        )
        plan = reconcile.reconcile(facts.endpoints, observed, self.memory, self.limits, now)
        self._restless = reconcile.is_restless(observed, plan, now)
        self.preparations.keep(facts.memory_limits.keys())
        if plan.steps:
            decided = self._decided(plan.steps)
            for step in plan.steps:
                # Before SQL, which may be locked: one second more of it costs gigabytes.
                if isinstance(step, shapes.Stop) and step.kill:
                    self.holding.kill(step.replica_id)
            await asyncio.to_thread(self._write, decided)
            self._act(decided, now)
            self._stale = True
        self.memory = plan.memory
        await self._prolong(observed.replicas, now)
        self._keep_parents()

    def _keep_parents(self) -> None:
        """A template for each entity that sleeps, one at a time, and none that nobody wants."""
        wanted_ids, templates = self._facts.memory_limits.keys(), self.backend.templates
        awake = {entity_id for entity_id, known in self.memory.items() if known.awake}
        templates.keep(wanted_ids, awake)
        self.backend.zygotes.keep(self.preparations.pythons())
        prepared = self.preparations.seen()
        for entity_id, known in self.memory.items():
            if not known.proven or known.awake or not templates.wants(entity_id):
                continue
            seen = prepared.get(entity_id)
            if seen is None:  # asleep since before this controller started
                self.preparations.begin(self._definition(entity_id)[1])
            elif seen.stage == "ready":
                templates.make(self._template_order(entity_id))
            if seen is None or seen.stage != "failed":
                return  # one at a time

    def _warm(self, now: float) -> None:
        # A zygote's imports take seconds of processor time, which the other parts of a server that
        # just starts need more, unless a model waits for it.
        if self._warm_at is not None and (self._facts.memory_limits or now >= self._warm_at):
            self._warm_at = None
            self.backend.warm()

    def _decided(self, steps: tuple[shapes.Step, ...]) -> _Decided:
        free = devices.free(self.gpus, self.holding.gpus())
        starts = [
            self._new(step, free) if isinstance(step, shapes.Start) else None for step in steps
        ]
        stops = {step.replica_id for step in steps if isinstance(step, shapes.Stop)}
        return _Decided(steps, starts, {each for each in stops if self.holding.gone(each)})

    def _new(
        self, step: shapes.Start, free: list[int]
    ) -> tuple[replica_state.Replica, orders.Order]:
        """The row of a new replica and how to start it; takes its devices from those `free`."""
        replica_id = secrets.token_hex(6)
        row = replica_state.Replica(
            id=replica_id,
            endpoint_id=step.endpoint_id,
            served_entity_id=step.entity_id,
            socket=str(self.settings.run_dir / f"w-{replica_id}.sock"),
            pid=None,
            pid_start=None,
            state=shapes.STARTING,
            message=None,
            created_ms=_now_ms(),
            ready_ms=None,
            concurrency=step.concurrency,
        )
        needed = devices.needed(self._definition(step.entity_id)[1].definition.get("workload_type"))
        taken, free[:] = tuple(free[:needed]), free[needed:]
        return row, self._order(row, step.fresh, taken)

    # --- SQL, in a thread -------------------------------------------------------------------------

    def _rows(self) -> list[replica_state.Replica]:
        with database.reading(self.engine) as connection:
            vault.hide_all(connection, self.settings)  # replicas that died meanwhile may show them
            return replica_state.all_replicas(connection)

    def _read(self) -> _Facts:
        if not (self._watch.touched() or self._stale):
            return self._facts
        changed = self._watch.moved() or self._stale
        with database.reading(self.engine) as connection:
            demand = {
                entity_id: shapes.Demand(d.waiting, d.in_flight, d.last_request_ms)
                for entity_id, d in replica_state.demand_by_entity(connection).items()
            }
            if not changed:
                return dataclasses.replace(self._facts, demand=demand)
            found = tuple(state.desired(connection))
            states = {
                entity_id: shapes.State(said.deployment, said.message)
                for entity_id, said in replica_state.states_of(connection).items()
            }
        self._stale = False
        limits = {
            entity.id: wanted.memory_bytes(entity.definition, self.settings.worker_memory_bytes)
            for endpoint in found
            for entity in endpoint.entities
        }
        endpoints = tuple(wanted.endpoint(each, self.cores) for each in found)
        return _Facts(found, endpoints, limits, states, demand)

    def _write(self, decided: _Decided) -> None:
        """Everything that a turn decided, in one transaction."""
        now_ms = _now_ms()
        with database.transaction(self.engine) as db:
            for step, start in zip(decided.steps, decided.starts, strict=True):
                match step:
                    case shapes.Start() if start is not None:
                        replica_state.add_replica(db, start[0])
                        lives.begin(db, self._life(start[0]))
                    case shapes.Admit(replica_id):
                        replica_state.set_replica(
                            db, replica_id, state=shapes.READY, ready_ms=now_ms
                        )
                        replica_state.set_reports(db, self.holding.news([replica_id]))
                    case shapes.Drain(replica_id):
                        replica_state.set_replica(db, replica_id, state=shapes.DRAINING)
                    case shapes.Stop(replica_id) if replica_id in decided.gone:
                        replica_state.remove_replica(db, replica_id)
                    case shapes.Stop(replica_id):
                        if self.holding.state_of(replica_id) != shapes.DRAINING:
                            replica_state.set_replica(db, replica_id, state=shapes.DRAINING)
                    case shapes.Mark(endpoint_id, entity_id, said):
                        words = (said.deployment, said.message)
                        replica_state.set_entity_state(db, endpoint_id, entity_id, *words, now_ms)
                    case shapes.Complete(endpoint_id, version):
                        state.complete_update(db, endpoint_id, version, now_ms)
                    case shapes.Fail(endpoint_id, version, message):
                        state.fail_update(db, endpoint_id, version, message, now_ms)

    def _write_process(self, replica_id: str, process: processes.Identity) -> None:
        with database.transaction(self.engine) as connection:
            replica_state.set_replica(
                connection, replica_id, pid=process.pid, pid_start=process.start
            )

    def _life(self, row: replica_state.Replica) -> lives.Life:
        endpoint, entity = self._definition(row.served_entity_id)
        given = entity.definition
        return lives.Life(
            replica_id=row.id,
            endpoint=endpoint,
            served_entity=entity.name,
            workload_type=str(given.get("workload_type") or "CPU"),
            workload_size=given.get("workload_size"),
            from_ms=row.created_ms,
            until_ms=row.created_ms,
        )

    async def _prolong(self, replicas: Sequence[shapes.Replica], now: float) -> None:
        """Count on the lives of those that are seen alive, now and then (nobody bills seconds),
        and write what they report, where that is new."""
        alive = [each.id for each in replicas if each.alive]
        if alive and now - self._prolonged_at >= PROLONG_SECONDS:
            self._prolonged_at = now
            news = self.holding.news(alive)
            await asyncio.to_thread(self._write_alive, alive, news)
            self.holding.written(news)

    def _write_alive(
        self, replica_ids: Sequence[str], news: Mapping[str, replica_state.Report]
    ) -> None:
        with database.transaction(self.engine) as connection:
            lives.prolong(connection, replica_ids, _now_ms())
            replica_state.set_reports(connection, news)

    def _remove_rows(self, replica_ids: Sequence[str]) -> None:
        with database.transaction(self.engine) as connection:
            for replica_id in replica_ids:
                replica_state.remove_replica(connection, replica_id)

    # --- acting -----------------------------------------------------------------------------------

    def _act(self, decided: _Decided, now: float) -> None:
        """What was written, done to the processes."""
        for step, start in zip(decided.steps, decided.starts, strict=True):
            match step:
                case shapes.Prepare(_, entity_id):
                    self.preparations.begin(self._definition(entity_id)[1])
                case shapes.Start() if start is not None:
                    self.holding.start(*start, self._started, now)
                case shapes.Admit(replica_id):
                    self.holding.admit(replica_id, now)
                case shapes.Drain(replica_id):
                    self.holding.drain(replica_id, now)
                case shapes.Stop(replica_id, _, reason, _) if replica_id in decided.gone:
                    self.holding.remove(replica_id, reason)
                case shapes.Stop(replica_id, finish, reason, _):
                    self.holding.stop(replica_id, finish, reason, now)
                case shapes.Complete(endpoint_id, version):
                    log.info("update_completed", endpoint_id=endpoint_id, config_version=version)
                case shapes.Fail(endpoint_id, version, message):
                    facts = {"endpoint_id": endpoint_id, "config_version": version}
                    log.warning("update_failed", **facts, message=message)

    def _definition(self, entity_id: str) -> tuple[str, state.WantedEntity]:
        """(endpoint's name, entity) of a wanted entity."""
        return next(
            (endpoint.name, entity)
            for endpoint in self._facts.found
            for entity in endpoint.entities
            if entity.id == entity_id
        )

    def _order(
        self, row: replica_state.Replica, fresh: bool, gpus: tuple[int, ...]
    ) -> orders.Order:
        endpoint, entity = self._definition(row.served_entity_id)
        log_path = orders.log_path(self.settings, endpoint, entity.name, row.id)
        spec = {**self._spec(entity.id), "socket": row.socket, "log": str(log_path), "gpus": gpus}
        prepared = self.preparations.ready(entity.id)
        python, variables, model = prepared.python, prepared.variables, prepared.model
        return orders.Order(row.id, python, spec, variables, log_path, fresh, gpus, model)

    def _template_order(self, entity_id: str) -> orders.Order:
        endpoint, entity = self._definition(entity_id)
        log_path = orders.template_log_path(self.settings, endpoint, entity.name)
        prepared = self.preparations.ready(entity_id)
        spec = {**self._spec(entity_id), "socket": "", "log": str(log_path)}
        python, variables, model = prepared.python, prepared.variables, prepared.model
        return orders.Order("", python, spec, variables, log_path, False, model=model)

    def _spec(self, entity_id: str) -> dict[str, object]:
        """What every process of an entity is told, whatever it listens on and writes to."""
        endpoint, entity = self._definition(entity_id)
        return {
            "endpoint": endpoint,
            "entity": entity.name,
            "served_entity_id": entity.id,
            "model_path": str(self.preparations.ready(entity_id).folder),
            "feature_spec": None,
            "snapshots_dir": str(self.settings.snapshots_dir),
            "batch": wanted.batch(entity.definition),
            "max_batch": 64,
            "max_answer_bytes": self.settings.max_answer_bytes,
        }

    async def _started(self, replica_id: str, process: processes.Identity) -> None:
        try:
            await asyncio.to_thread(self._write_process, replica_id, process)
        except sa.exc.SQLAlchemyError as error:
            # Without its pid in SQL the next controller still finds it, through its socket.
            log.warning("pid_not_written", replica=replica_id, reason=str(error))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
