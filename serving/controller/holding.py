"""The replicas that this controller has: a mirror of their rows, and what it sees of them.

Only the controller writes replicas, hence this mirror is read once, at the start, and is the truth
from then on. Nothing here writes SQL: the loop does, before it calls.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from capture import logline
from capture.settings import Settings
from serving import processes, replica_state
from serving.controller import local, replicas, shapes, wanted

log = logline.logger(__name__)

LOOK_SECONDS = 1.0
UNWANTED_GRACE_SECONDS = 1.0
FULL_STOP_GRACE_SECONDS = 10.0

# Told of a new process, so that its identity is written down.
Started = Callable[[str, processes.Identity], Awaitable[None]]


@dataclasses.dataclass(slots=True)
class _Held:
    """One replica. `since`: monotonic time of its present state; `pulse`: once it has a process;
    `trouble`: why it never got one."""

    row: replica_state.Replica
    since: float
    log_path: Path | None
    pulse: replicas.Pulse | None = None
    found_dead: bool = False
    unwanted: bool = False
    trouble: str = ""
    tasks: list[asyncio.Task[None]] = dataclasses.field(default_factory=list)

    @property
    def alive(self) -> bool:
        if self.pulse is not None:
            return processes.alive(self.pulse.process)
        return not self.trouble and not self.found_dead

    def enter(self, new: str, now: float) -> None:
        """Change the state."""
        self.row = dataclasses.replace(self.row, state=new)
        self.since = now


class Holding:
    """All replicas of one controller; `wake` is called when one answers first, or ends."""

    def __init__(self, settings: Settings, backend: local.Local, wake: Callable[[], None]) -> None:
        self.settings, self.backend, self.wake = settings, backend, wake
        self._held: dict[str, _Held] = {}
        self._pidfds: dict[int, int] = {}
        self._looked = 0.0

    # --- looking ----------------------------------------------------------------------------------

    def adopt(self, rows: Sequence[replica_state.Replica]) -> None:
        """Take over the replicas that a controller before this one left."""
        for row in rows:
            process = self._process_of(row)
            spec = _read_spec(self.settings.run_dir / f"w-{row.id}.json")
            log_path = Path(spec["log"]) if "log" in spec else None
            since = time.monotonic() - (processes.age_seconds(process) if process else 0)
            held = self._held[row.id] = _Held(row, since, log_path)
            if process is None:
                held.found_dead = True
            else:
                self._follow(held, process)
        if rows:
            lost = sum(held.found_dead for held in self._held.values())
            log.info("adopted", replicas=len(rows) - lost, lost=lost)

    def measure(self, now: float) -> None:
        """Memory and processor time of all groups, once a second and before one is let in."""
        running = [held for held in self._held.values() if held.pulse is not None]
        answered = any(
            held.pulse is not None and held.pulse.answered and held.row.state == shapes.STARTING
            for held in running
        )
        if now - self._looked < LOOK_SECONDS and not answered:
            return
        self._looked = now
        pulses = {held.pulse.process.pid: held.pulse for held in running if held.pulse}
        used = processes.usage(pulses.keys()) if pulses else {}
        for pid, pulse in pulses.items():
            pulse.used(used.get(pid, processes.NO_USAGE))
        for held in running:
            if held.log_path is not None:
                local.trim(held.log_path)

    def seen(self, memory_limits: Mapping[str, int], now: float) -> list[shapes.Replica]:
        """Every replica as `reconcile` takes it. memory_limits: bytes by served entity id."""
        return [self._seen(held, memory_limits, now) for held in self._held.values()]

    def gone(self, replica_id: str) -> bool:
        """It has no process any more, or never got one."""
        return not self._held[replica_id].alive

    def state_of(self, replica_id: str) -> str:
        return self._held[replica_id].row.state

    def ids(self) -> list[str]:
        return list(self._held)

    def _process_of(self, row: replica_state.Replica) -> processes.Identity | None:
        if row.pid is None or row.pid_start is None:
            return self.backend.adopt(row.socket)
        process = processes.Identity(row.pid, row.pid_start)
        return process if processes.alive(process) else None

    def _seen(self, held: _Held, memory_limits: Mapping[str, int], now: float) -> shapes.Replica:
        row, pulse, alive = held.row, held.pulse, held.alive
        last_lines = held.trouble
        if not alive and not last_lines and held.log_path is not None:
            last_lines = local.tail(held.log_path)
        seen = shapes.Replica(
            id=row.id,
            endpoint_id=row.endpoint_id,
            entity_id=row.served_entity_id,
            state=row.state,
            alive=alive,
            found_dead=held.found_dead,
            seconds=now - held.since,
            last_lines=last_lines,
        )
        if pulse is None:
            return seen
        limit = memory_limits.get(row.served_entity_id, wanted.LARGEST_MEMORY_BYTES)
        return dataclasses.replace(
            seen,
            answered=pulse.answered,
            silent_seconds=pulse.silent_seconds,
            predicting_seconds=pulse.report.get("predicting_ms", 0) / 1000,
            memory_share=pulse.usage.rss_bytes / limit,
            memory_share_at_ready=pulse.rss_bytes_at_ready / limit,
        )

    # --- acting -----------------------------------------------------------------------------------

    def start(
        self, row: replica_state.Replica, order: local.Order, started: Started, now: float
    ) -> None:
        """Have a process started for a new row; `started` is told when it is there."""
        held = self._held[row.id] = _Held(row, now, order.log)
        held.tasks.append(asyncio.create_task(self._start(held, order, started)))

    def admit(self, replica_id: str, now: float) -> None:
        """Requests go to it from now on."""
        held = self._held[replica_id]
        held.enter(shapes.READY, now)
        if held.pulse is not None:
            held.pulse.rss_bytes_at_ready = held.pulse.usage.rss_bytes
            seconds = round(processes.age_seconds(held.pulse.process), 2)
            log.info("replica_ready", replica=replica_id, seconds=seconds)

    def drain(self, replica_id: str, now: float) -> None:
        """No new requests go to it."""
        self._held[replica_id].enter(shapes.DRAINING, now)

    def stop(self, replica_id: str, finish: bool, reason: str, now: float) -> None:
        """End its process; `finish`: after what it holds."""
        held = self._held[replica_id]
        held.unwanted = held.unwanted or not finish
        if held.row.state != shapes.DRAINING:
            log.info("replica_stopped", replica=replica_id, reason=_last_line(reason))
            held.enter(shapes.DRAINING, now)
        if held.pulse is None:
            return  # still being started: ended once it has a process
        grace = UNWANTED_GRACE_SECONDS if held.unwanted else self.settings.drain_seconds
        self.backend.stop(held.pulse.process, grace, now)

    def remove(self, replica_id: str, reason: str) -> None:
        """Forget a replica whose process is gone, and clear up after it."""
        held = self._held.pop(replica_id)
        if held.pulse is not None:
            self.backend.forget(held.pulse.process)
        self._let_go(held)
        self.backend.remove_files(replica_id)
        if held.row.state == shapes.DRAINING:
            log.info("replica_ended", replica=replica_id)
        else:
            log.warning("replica_died", replica=replica_id, reason=_last_line(reason))

    async def end_all(self) -> None:
        """A full stop: the gateways have drained, so nothing waits for an answer."""
        unborn = [held for held in self._held.values() if held.pulse is None]
        starting = [task for held in unborn for task in held.tasks]
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        now = time.monotonic()
        running = [held.pulse.process for held in self._held.values() if held.pulse is not None]
        for process in running:
            self.backend.stop(process, FULL_STOP_GRACE_SECONDS, now)
        while any(processes.alive(process) for process in running):
            await asyncio.sleep(0.02)
            self.backend.expire(time.monotonic())
        for replica_id in self._held:
            self.backend.remove_files(replica_id)

    def let_go(self) -> None:
        """Watch nobody any more; the processes go on."""
        for held in self._held.values():
            self._let_go(held)

    async def _start(self, held: _Held, order: local.Order, started: Started) -> None:
        try:
            process = await self.backend.start(order)
        except (local.StartFailed, OSError) as error:
            held.trouble = str(error)
            self.wake()
            return
        held.row = dataclasses.replace(held.row, pid=process.pid, pid_start=process.start)
        self._follow(held, process)
        await started(held.row.id, process)

    def _follow(self, held: _Held, process: processes.Identity) -> None:
        """Watch a process: its heartbeat, and its end."""
        held.pulse = replicas.Pulse(process, held.row.socket, held.row.served_entity_id)
        held.tasks.append(asyncio.create_task(replicas.follow(held.pulse, self.wake)))
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process.pid)
            self._pidfds[process.pid] = descriptor
            asyncio.get_running_loop().add_reader(descriptor, self._ended, process.pid)

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


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else ""


def _read_spec(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
