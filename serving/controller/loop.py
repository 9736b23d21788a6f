"""The controller at work: read what is wanted, look at what is there, plan, act; ten times a second
and whenever somebody knocks.

Each turn is reading, `reconcile`, one transaction with all that it decided, then the processes. SQL
runs in a thread, so a locked database stops decisions but no heartbeat. Only this process writes
replicas, hence it keeps its own copy of their rows, read once at the start.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import sqlalchemy as sa

from capture import database, logline
from capture.settings import Settings
from serving import contract, processes, state
from serving.controller import local, preparation, reconcile, replicas

log = logline.logger(__name__)

TURN_SECONDS = 0.1
LOOK_SECONDS = 1.0
WARM_AFTER_SECONDS = 3.0
UNWANTED_GRACE_SECONDS = 1.0
FULL_STOP_GRACE_SECONDS = 10.0
PREDICT_GRACE_SECONDS = 3.0
GIB = 1 << 30
MEMORY_BYTES = {"CPU": 4 * GIB, "CPU_MEDIUM": 8 * GIB}
LARGEST_MEMORY_BYTES = 16 * GIB
REPLICA_CONCURRENCY = 4


@dataclasses.dataclass(slots=True)
class _Held:
    """One replica as this controller holds it. `since`: monotonic time of its present state."""

    row: state.Replica
    since: float
    log_path: Path | None
    pulse: replicas.Pulse | None = None
    found_dead: bool = False
    unwanted: bool = False
    trouble: str = ""
    tasks: list[asyncio.Task[None]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class _Facts:
    """What a turn reads from SQL. endpoints: `wanted` as reconcile takes it; memory_limits: bytes
    by served entity id, of every wanted one."""

    wanted: tuple[state.WantedEndpoint, ...] = ()
    endpoints: tuple[reconcile.Endpoint, ...] = ()
    memory_limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    states: Mapping[str, reconcile.State] = dataclasses.field(default_factory=dict)
    demand: Mapping[str, reconcile.Demand] = dataclasses.field(default_factory=dict)


class Controller:
    """One per data directory. `adopt`, then `run`; `wake` makes it look now; `stop` ends `run`."""

    def __init__(self, settings: Settings, engine: sa.Engine, stop_workers: bool) -> None:
        self.settings, self.engine, self.stop_workers = settings, engine, stop_workers
        self.backend = local.Local(settings)
        self.preparations = preparation.Preparations(settings, engine, self.wake)
        self.limits = reconcile.Limits(
            deployment_seconds=settings.deployment_timeout_seconds,
            zero_seconds=settings.scale_to_zero_after_seconds,
            # The gateway has told the client by then.
            predict_seconds=settings.model_timeout_seconds + PREDICT_GRACE_SECONDS,
        )
        self.memory: dict[str, reconcile.Memory] = {}
        self._held: dict[str, _Held] = {}
        self._knock = asyncio.Event()
        self._stopping = False
        self._looked = 0.0
        self._warm_at: float | None = None
        self._watch = state.Watch(engine)
        self._stale = True
        self._facts = _Facts()
        self._pidfds: dict[int, int] = {}

    def wake(self) -> None:
        """Have the next turn now."""
        self._knock.set()

    def stop(self) -> None:
        """End `run` after the present turn."""
        self._stopping = True
        self.wake()

    async def run(self) -> None:
        """Control until `stop`; the replicas go on, unless this is a full stop."""
        self._warm_at = time.monotonic() + WARM_AFTER_SECONDS
        while not self._stopping:
            self._knock.clear()
            await self._safe_turn()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TURN_SECONDS):
                    await self._knock.wait()
        if self.stop_workers:
            await self._end_all()
        for held in self._held.values():
            self._let_go(held)
        self.backend.close()
        self._watch.close()

    async def _safe_turn(self) -> None:
        try:
            await self.turn()
        except (KeyboardInterrupt, SystemExit, asyncio.CancelledError):
            raise
        except BaseException as error:  # noqa: BLE001 - it must live; the next turn tries again
            log.error("turn_failed", reason=f"{type(error).__name__}: {error}")
            self._stale = True
            await asyncio.sleep(TURN_SECONDS)

    async def turn(self) -> None:
        """One look and everything that follows from it."""
        now = time.monotonic()
        self.backend.expire(now)
        self._measure(now)
        self._facts = await asyncio.to_thread(self._read)
        observed = reconcile.Observed(
            [self._seen(held, now) for held in self._held.values()],
            self.preparations.seen(),
            self._facts.demand,
            self._facts.states,
        )
        # A zygote's imports take seconds of processor time, which the other parts of a server that
        # just starts need more, unless a model waits for it.
        wanted = self._facts.memory_limits.keys()
        if self._warm_at is not None and (wanted or now >= self._warm_at):
            self._warm_at = None
            self.backend.warm()
        plan = reconcile.reconcile(self._facts.endpoints, observed, self.memory, self.limits, now)
        self.preparations.keep(wanted)
        if plan.steps:
            rows = [_new_row(self.settings, step) for step in plan.steps]
            await asyncio.to_thread(self._write, plan.steps, rows)
            self._act(plan.steps, rows, now)
            self._stale = True
        self.memory = plan.memory

    # --- looking ----------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Take over the replicas that a controller before this one left."""
        rows = await asyncio.to_thread(self._rows)
        for row in rows:
            process = self._process_of(row)
            spec = _read_spec(self.settings.run_dir / f"w-{row.id}.json")
            log_path = Path(spec["log"]) if "log" in spec else None
            since = time.monotonic() - (processes.age_seconds(process) if process else 0)
            held = _Held(row, since, log_path)
            self._held[row.id] = held
            if process is None:
                held.found_dead = True
            else:
                self._follow(held, process)
        if rows:
            lost = sum(held.found_dead for held in self._held.values())
            log.info("adopted", replicas=len(rows) - lost, lost=lost)

    def _process_of(self, row: state.Replica) -> processes.Identity | None:
        if row.pid is None or row.pid_start is None:
            return self.backend.adopt(row.socket)
        process = processes.Identity(row.pid, row.pid_start)
        return process if processes.alive(process) else None

    def _rows(self) -> list[state.Replica]:
        with database.reading(self.engine) as connection:
            return state.all_replicas(connection)

    def _read(self) -> _Facts:
        changed = self._watch.changed() or self._stale
        with database.reading(self.engine) as connection:
            demand = {
                entity_id: reconcile.Demand(d.waiting, d.in_flight, d.last_request_ms)
                for entity_id, d in state.demand_by_entity(connection).items()
            }
            if not changed:
                return dataclasses.replace(self._facts, demand=demand)
            wanted = tuple(state.desired(connection))
            states = {
                entity_id: reconcile.State(found.deployment, found.message)
                for entity_id, found in state.states_of(connection).items()
            }
        self._stale = False
        limits = {
            entity.id: _memory_limit(self.settings, entity.definition)
            for endpoint in wanted
            for entity in endpoint.entities
        }
        return _Facts(wanted, tuple(map(_endpoint, wanted)), limits, states, demand)

    def _measure(self, now: float) -> None:
        """Memory and processor time of all groups, once a second and before one is let in."""
        answered = any(
            held.row.state == reconcile.STARTING and held.pulse is not None and held.pulse.answered
            for held in self._held.values()
        )
        if now - self._looked < LOOK_SECONDS and not answered:
            return
        self._looked = now
        pulses = {h.pulse.process.pid: h for h in self._held.values() if h.pulse is not None}
        if not pulses:
            return
        used = processes.usage(pulses.keys())
        for pid, held in pulses.items():
            assert held.pulse is not None
            held.pulse.used(used.get(pid, processes.NO_USAGE))
            if held.log_path is not None:
                local.trim(held.log_path)

    def _seen(self, held: _Held, now: float) -> reconcile.Replica:
        pulse = held.pulse
        alive = not held.trouble and not held.found_dead
        if pulse is not None:
            alive = alive and processes.alive(pulse.process)
        last_lines = held.trouble
        if not alive and not last_lines and held.log_path is not None and not held.found_dead:
            last_lines = local.tail(held.log_path)
        limit = self._facts.memory_limits.get(held.row.served_entity_id, LARGEST_MEMORY_BYTES)
        return reconcile.Replica(
            id=held.row.id,
            endpoint_id=held.row.endpoint_id,
            entity_id=held.row.served_entity_id,
            state=held.row.state,
            alive=alive,
            found_dead=held.found_dead,
            answered=pulse is not None and pulse.answered,
            seconds=now - held.since,
            silent_seconds=pulse.silent_seconds if pulse else 0.0,
            predicting_seconds=pulse.report.get("predicting_ms", 0) / 1000 if pulse else 0.0,
            memory_share=pulse.usage.rss_bytes / limit if pulse else 0.0,
            memory_share_at_ready=pulse.rss_bytes_at_ready / limit if pulse else 0.0,
            last_lines=last_lines,
        )

    def _follow(self, held: _Held, process: processes.Identity) -> None:
        """Watch a process: its heartbeat, and its end."""
        entity_id = held.row.served_entity_id
        held.pulse = replicas.Pulse(process, held.row.socket, entity_id)
        held.tasks.append(asyncio.create_task(replicas.follow(held.pulse, self.wake)))
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process.pid)
            self._pidfds[process.pid] = descriptor
            loop = asyncio.get_running_loop()
            loop.add_reader(descriptor, self._ended, process.pid)

    def _ended(self, pid: int) -> None:
        descriptor = self._pidfds.pop(pid, None)
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
        self.wake()

    def _let_go(self, held: _Held) -> None:
        for task in held.tasks:
            task.cancel()
        if held.pulse is not None:
            self._ended(held.pulse.process.pid)

    # --- acting -----------------------------------------------------------------------------------

    def _write(self, steps: Sequence[reconcile.Step], rows: Sequence[state.Replica | None]) -> None:
        """Everything that a turn decided, in one transaction. rows: the new replica of a Start."""
        now_ms = time.time_ns() // 1_000_000
        with database.transaction(self.engine) as connection:
            for step, row in zip(steps, rows, strict=True):
                match step:
                    case reconcile.Start():
                        assert row is not None
                        state.add_replica(connection, row)
                    case reconcile.Admit(replica_id):
                        state.set_replica(
                            connection, replica_id, state=reconcile.READY, ready_ms=now_ms
                        )
                    case reconcile.Drain(replica_id):
                        state.set_replica(connection, replica_id, state=reconcile.DRAINING)
                    case reconcile.Stop(replica_id):
                        self._write_stop(connection, replica_id)
                    case reconcile.Mark(endpoint_id, entity_id, found):
                        state.set_entity_state(
                            connection,
                            endpoint_id,
                            entity_id,
                            found.deployment,
                            found.message,
                            now_ms,
                        )
                    case reconcile.Complete(endpoint_id, version):
                        state.complete_update(connection, endpoint_id, version, now_ms)
                    case reconcile.Fail(endpoint_id, version, message):
                        state.fail_update(connection, endpoint_id, version, message, now_ms)
                    case reconcile.Prepare():
                        pass

    def _write_stop(self, connection: sa.Connection, replica_id: str) -> None:
        held = self._held[replica_id]
        if self._gone(held):
            state.remove_replica(connection, replica_id)
        elif held.row.state != reconcile.DRAINING:
            state.set_replica(connection, replica_id, state=reconcile.DRAINING)

    def _gone(self, held: _Held) -> bool:
        if held.pulse is not None:
            return not processes.alive(held.pulse.process)
        return held.found_dead or bool(held.trouble)

    def _act(
        self,
        steps: Sequence[reconcile.Step],
        rows: Sequence[state.Replica | None],
        now: float,
    ) -> None:
        definitions = {
            entity.id: (endpoint.name, entity)
            for endpoint in self._facts.wanted
            for entity in endpoint.entities
        }
        for step, row in zip(steps, rows, strict=True):
            match step:
                case reconcile.Prepare(_, entity_id):
                    self.preparations.begin(definitions[entity_id][1])
                case reconcile.Start():
                    assert row is not None
                    endpoint_name, wanted = definitions[step.entity_id]
                    self._start(row, endpoint_name, wanted, step.fresh, now)
                case reconcile.Admit(replica_id):
                    held = self._held[replica_id]
                    self._set_state(held, reconcile.READY, now)
                    if held.pulse is not None:
                        held.pulse.rss_bytes_at_ready = held.pulse.usage.rss_bytes
                    log.info("replica_ready", replica=replica_id, seconds=_seconds_up(held))
                case reconcile.Drain(replica_id):
                    self._set_state(self._held[replica_id], reconcile.DRAINING, now)
                case reconcile.Stop(replica_id, finish, reason):
                    self._stop(self._held[replica_id], finish, reason, now)
                case reconcile.Complete(endpoint_id, version):
                    log.info("update_completed", endpoint_id=endpoint_id, config_version=version)
                case reconcile.Fail(endpoint_id, version, message):
                    log.warning(
                        "update_failed",
                        endpoint_id=endpoint_id,
                        config_version=version,
                        message=message,
                    )
                case reconcile.Mark():
                    pass

    def _set_state(self, held: _Held, new: str, now: float) -> None:
        held.row = dataclasses.replace(held.row, state=new)
        held.since = now

    def _start(
        self,
        row: state.Replica,
        endpoint_name: str,
        wanted: state.WantedEntity,
        fresh: bool,
        now: float,
    ) -> None:
        log_path = local.log_path(self.settings, endpoint_name, wanted.name, row.id)
        held = _Held(row, now, log_path)
        self._held[row.id] = held
        prepared = self.preparations.ready(wanted.id)
        spec = {
            "endpoint": endpoint_name,
            "entity": wanted.name,
            "served_entity_id": wanted.id,
            "socket": row.socket,
            "model_path": str(prepared.folder),
            "feature_spec": None,
            "snapshots_dir": str(self.settings.snapshots_dir),
            "batch": _batch(wanted.definition),
            "max_batch": 64,
            "log": str(log_path),
        }
        order = local.Order(row.id, prepared.python, spec, prepared.variables, log_path, fresh)
        held.tasks.append(asyncio.create_task(self._started(held, order)))

    async def _started(self, held: _Held, order: local.Order) -> None:
        try:
            process = await self.backend.start(order)
        except (local.StartFailed, OSError) as error:
            held.trouble = str(error)
            self.wake()
            return
        held.row = dataclasses.replace(held.row, pid=process.pid, pid_start=process.start)
        self._follow(held, process)
        try:
            await asyncio.to_thread(self._write_process, held.row.id, process)
        except sa.exc.SQLAlchemyError as error:
            # Without its pid in SQL the next controller still finds it, through its socket.
            log.warning("pid_not_written", replica=held.row.id, reason=str(error))

    def _write_process(self, replica_id: str, process: processes.Identity) -> None:
        with database.transaction(self.engine) as connection:
            state.set_replica(connection, replica_id, pid=process.pid, pid_start=process.start)

    def _stop(self, held: _Held, finish: bool, reason: str, now: float) -> None:
        why = reason.splitlines()[-1]
        if self._gone(held):
            expected = held.row.state == reconcile.DRAINING
            if held.pulse is not None:
                self.backend.forget(held.pulse.process)
            self._let_go(held)
            del self._held[held.row.id]
            self.backend.remove_files(held.row.id)
            if expected:
                log.info("replica_ended", replica=held.row.id)
            else:
                log.warning("replica_died", replica=held.row.id, reason=why)
            return
        held.unwanted = held.unwanted or not finish
        if held.row.state != reconcile.DRAINING:
            log.info("replica_stopped", replica=held.row.id, reason=why)
            self._set_state(held, reconcile.DRAINING, now)
        if held.pulse is None:
            return  # still being started: ended once it has a process
        grace = UNWANTED_GRACE_SECONDS if held.unwanted else self.settings.drain_seconds
        self.backend.stop(held.pulse.process, grace, now)

    async def _end_all(self) -> None:
        """A full stop: the gateways have drained, so nothing waits for an answer."""
        await self._settle_starts()
        now = time.monotonic()
        running = [held.pulse.process for held in self._held.values() if held.pulse is not None]
        for process in running:
            self.backend.stop(process, FULL_STOP_GRACE_SECONDS, now)
        while any(processes.alive(process) for process in running):
            await asyncio.sleep(0.02)
            self.backend.expire(time.monotonic())
        for held in self._held.values():
            self.backend.remove_files(held.row.id)
        await asyncio.to_thread(self._remove_rows, list(self._held))

    async def _settle_starts(self) -> None:
        starting = [h.tasks[0] for h in self._held.values() if h.pulse is None and h.tasks]
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)

    def _remove_rows(self, replica_ids: list[str]) -> None:
        with database.transaction(self.engine) as connection:
            for replica_id in replica_ids:
                state.remove_replica(connection, replica_id)


def _new_row(settings: Settings, step: reconcile.Step) -> state.Replica | None:
    if not isinstance(step, reconcile.Start):
        return None
    replica_id = secrets.token_hex(6)
    return state.Replica(
        id=replica_id,
        endpoint_id=step.endpoint_id,
        served_entity_id=step.entity_id,
        socket=str(settings.run_dir / f"w-{replica_id}.sock"),
        pid=None,
        pid_start=None,
        state=reconcile.STARTING,
        message=None,
        created_ms=time.time_ns() // 1_000_000,
        ready_ms=None,
        concurrency=step.concurrency,
    )


def _endpoint(wanted: state.WantedEndpoint) -> reconcile.Endpoint:
    entities = [(each, entity(each)) for each in wanted.entities]
    return reconcile.Endpoint(
        id=wanted.id,
        name=wanted.name,
        stopped=wanted.stopped,
        active_version=wanted.active_version,
        active=tuple(made for each, made in entities if each.in_active),
        pending_version=wanted.pending_version,
        pending=tuple(made for each, made in entities if each.in_pending),
    )


def entity(wanted: state.WantedEntity) -> reconcile.Entity:
    """An entity's numbers of replicas from its concurrency, within what this machine has."""
    least, most = contract.concurrency(wanted.definition)
    each = 1 if _batch(wanted.definition) is False else REPLICA_CONCURRENCY
    fits = max(1, os.cpu_count() or 1)
    asked = max(1, -(-most // each))
    return reconcile.Entity(
        id=wanted.id,
        name=wanted.name,
        min_replicas=min(-(-least // each), fits),
        max_replicas=min(asked, fits),
        asked_replicas=asked,
        replica_concurrency=each,
        scale_to_zero=bool(wanted.definition.get("scale_to_zero_enabled")),
        needs_replicas=contract.kind(wanted.definition) == "custom",
    )


def _batch(definition: Mapping[str, object]) -> bool | None:
    """What the entity's owner says about joining requests; None: nothing, its flavour decides."""
    variables = definition.get("environment_vars") or {}
    assert isinstance(variables, Mapping)
    said = str(variables.get("INFERLAKE_BATCH", "")).lower()
    return {"true": True, "1": True, "false": False, "0": False}.get(said)


def _memory_limit(settings: Settings, definition: Mapping[str, object]) -> int:
    kind = str(definition.get("workload_type") or "CPU")
    return settings.worker_memory_bytes or MEMORY_BYTES.get(kind, LARGEST_MEMORY_BYTES)


def _seconds_up(held: _Held) -> float:
    return round(processes.age_seconds(held.pulse.process), 2) if held.pulse else 0.0


def _read_spec(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
