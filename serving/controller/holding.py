"""The replicas that this controller has: a mirror of their rows, and what it sees of them.

Only the controller writes replicas, hence this mirror is read once, at the start, and is the truth
from then on. Nothing here writes SQL: the loop does, before it calls.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capture import logline
from capture.settings import Settings
from serving import logs, processes, replica_state
from serving.controller import local, orders, replicas, shapes, wanted

log = logline.logger(__name__)

LOOK_SECONDS, QUIET_LOOK_SECONDS = 1.0, 5.0
UNWANTED_GRACE_SECONDS = 1.0
FULL_STOP_GRACE_SECONDS = 10.0
# A fork of a template has nothing to load: one that does not answer by then never will.
TEMPLATE_ANSWER_SECONDS = 10.0
# A fork hangs if a library of its parent held a lock: it neither answers nor works.
FORK_SILENT_SECONDS = 15.0
HANG_LOOK_SECONDS = 0.25
LOG_LOOK_SECONDS = 0.05

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
    gpus: tuple[int, ...] = ()
    heartbeat: asyncio.Task[None] | None = None
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
            held.gpus = tuple(int(number) for number in spec.get("gpus", ()))
            if process is None:
                held.found_dead = True
            else:
                self._follow(held, process)
        if rows:
            lost = sum(held.found_dead for held in self._held.values())
            log.info("adopted", replicas=len(rows) - lost, lost=lost)

    def measure(self, memory_limits: Mapping[str, int], now: float, restless: bool = True) -> None:
        """Memory and processor time of all groups, once a second (in silence every fifth, for it
        reads of every process of the machine) and before one is let in; between two such looks the
        memory of each replica's own process."""
        running = [held for held in self._held.values() if held.pulse is not None]
        answered = any(
            held.pulse is not None and held.pulse.answered and held.row.state == shapes.STARTING
            for held in running
        )
        pulses = {held.pulse.process.pid: held.pulse for held in running if held.pulse}
        pause = LOOK_SECONDS if restless else QUIET_LOOK_SECONDS
        if now - self._looked < pause and not answered:
            for pid, pulse in pulses.items():
                pulse.grown(processes.rss_bytes(pid))
        else:
            self._looked = now
            used = processes.usage(pulses.keys()) if pulses else {}
            for pid, pulse in pulses.items():
                limit = memory_limits.get(pulse.served_entity_id, wanted.LARGEST_MEMORY_BYTES)
                pulse.used(_exact(pid, used.get(pid, processes.NO_USAGE), limit))

    async def keep_logs(self) -> None:
        """Keep every log by its size, until cancelled. More often than turns come: a model can
        print gigabytes in a second."""
        while True:
            for held in self._held.values():
                if held.log_path is not None:
                    self._keep_log(held.log_path)
            await asyncio.sleep(LOG_LOOK_SECONDS)

    def _keep_log(self, path: Path) -> None:
        try:
            logs.trim(path)
        except OSError as error:
            log.error("log_not_trimmed", log=str(path), reason=str(error))

    def seen(self, memory_limits: Mapping[str, int], now: float) -> list[shapes.Replica]:
        """Every replica as `reconcile` takes it. memory_limits: bytes by served entity id."""
        return [self._seen(held, memory_limits, now) for held in self._held.values()]

    def gpus(self) -> list[int]:
        """Numbers of the devices that replicas have."""
        return [number for held in self._held.values() for number in held.gpus]

    def gone(self, replica_id: str) -> bool:
        """It has no process any more, or never got one."""
        return not self._held[replica_id].alive

    def state_of(self, replica_id: str) -> str:
        return self._held[replica_id].row.state

    def ids(self) -> list[str]:
        return list(self._held)

    def news(self, replica_ids: Sequence[str]) -> dict[str, replica_state.Report]:
        """What these replicas report, by id, where it differs from what was written of them."""
        found = {}
        for held in (self._held[each] for each in replica_ids if each in self._held):
            pulse = held.pulse
            if pulse is not None and pulse.answered:
                report = _report(pulse.report)
                if report != held.row.report:
                    found[held.row.id] = report
        return found

    def written(self, news: Mapping[str, replica_state.Report]) -> None:
        """These reports are in SQL now."""
        for replica_id, report in news.items():
            held = self._held[replica_id]
            held.row = dataclasses.replace(held.row, report=report)

    def _process_of(self, row: replica_state.Replica) -> processes.Identity | None:
        if row.pid is None or row.pid_start is None:
            return self.backend.adopt(row.socket)
        process = processes.Identity(row.pid, row.pid_start)
        return process if processes.alive(process) else None

    def _seen(self, held: _Held, memory_limits: Mapping[str, int], now: float) -> shapes.Replica:
        row, pulse, alive = held.row, held.pulse, held.alive
        last_lines = held.trouble
        if not alive and not last_lines and held.log_path is not None:
            last_lines = logs.tail(held.log_path)
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
            growing=pulse.growing,
        )

    # --- acting -----------------------------------------------------------------------------------

    def start(
        self, row: replica_state.Replica, order: orders.Order, started: Started, now: float
    ) -> None:
        """Have a process started for a new row; `started` is told when it is there."""
        held = self._held[row.id] = _Held(row, now, order.log, gpus=order.gpus)
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

    def kill(self, replica_id: str) -> None:
        """End its process now, with all that it started."""
        pulse = self._held[replica_id].pulse
        if pulse is not None:
            processes.signal_group(pulse.process, signal.SIGKILL)

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

    async def _start(self, held: _Held, order: orders.Order, started: Started) -> None:
        """As a fork where that may be; as a fresh process if the fork hangs."""
        try:
            woken = await self.backend.wake(order)
            process = woken or await self.backend.start(order)
            await self._started(held, process, started)
            if order.forkable and await self._hangs(held, woken is not None):
                log.warning("fork_hangs", replica=held.row.id)
                self.backend.templates.distrust(held.row.served_entity_id)
                self._forsake(held, process)
                fresh = dataclasses.replace(order, fresh=True)
                await self._started(held, await self.backend.start(fresh), started)
        except (local.StartFailed, OSError) as error:
            held.trouble = str(error)
            self.wake()

    async def _started(self, held: _Held, process: processes.Identity, started: Started) -> None:
        held.row = dataclasses.replace(held.row, pid=process.pid, pid_start=process.start)
        self._follow(held, process)
        await started(held.row.id, process)

    async def _hangs(self, held: _Held, by_template: bool) -> bool:
        """Wait for the first answer of a fork, or its end; True: neither comes. A fork of a zygote
        may load for as long as it likes, but not without using the processor."""
        begun = time.monotonic()
        while held.pulse is not None and held.alive and not held.pulse.answered:
            if by_template and time.monotonic() - begun > TEMPLATE_ANSWER_SECONDS:
                return True
            if held.pulse.silent_seconds > FORK_SILENT_SECONDS:
                return True
            await asyncio.sleep(HANG_LOOK_SECONDS)
        return False

    def _forsake(self, held: _Held, process: processes.Identity) -> None:
        """Let a process go that held it so far; the next one gets its row."""
        if held.heartbeat is not None:
            held.heartbeat.cancel()
        held.pulse = None
        self._ended(process.pid)
        self.backend.stop(process, 0, time.monotonic())

    def _follow(self, held: _Held, process: processes.Identity) -> None:
        """Watch a process: its heartbeat, and its end."""
        held.pulse = replicas.Pulse(process, held.row.socket, held.row.served_entity_id)
        held.heartbeat = asyncio.create_task(replicas.follow(held.pulse, self.wake))
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
        for task in (*held.tasks, held.heartbeat):
            if task is not None:
                task.cancel()
        if held.pulse is not None:
            self._ended(held.pulse.process.pid)


def _exact(group: int, usage: processes.Usage, limit_bytes: int) -> processes.Usage:
    """Usage whose memory counts shared pages once, where it matters: forks of a model's process
    share most of theirs, and twenty of them are no reason to end it."""
    if usage.members < 2 or usage.rss_bytes < limit_bytes / 2:
        return usage
    return usage._replace(rss_bytes=processes.shared_out_bytes(group))


def _report(answer: Mapping[str, Any]) -> replica_state.Report:
    """Of an answered probe what is kept; a worker of an earlier release may tell less."""
    return {
        "ways": answer.get("ways", {}),
        "calls": answer.get("counts", {}),
        "feature_misses": answer.get("feature_misses", {}),
    }


def _last_line(text: str) -> str:
    return text.splitlines()[-1] if text else ""


def _read_spec(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
