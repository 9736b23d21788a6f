"""Templates: per entity that sleeps at zero a paused process that has its model loaded and probed,
and forks on demand: 0.03 s to a replica.

One is forked from the zygote when its entity has gone to sleep, and kept until no configuration
wants the entity any more, all templates together hold more than they may (the one unused longest
goes first), or memory is short. Templates die with their zygote; their replicas live on.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from capture import errors, logline
from serving import logs, processes
from serving.controller import orders, zygotes

log = logline.logger(__name__)

TEMPLATE_PATIENCE_SECONDS = 120.0
FORK_SECONDS = 5.0
LEAST_AVAILABLE_SHARE = 0.1  # of the machine's memory; under it no template is kept


class _Template:
    """One entity's. `process` is None until it was forked; `ready` once it takes orders."""

    def __init__(self, order: orders.Order, run_dir: Path) -> None:
        stem = run_dir / f"t-{os.urandom(6).hex()}"
        self.socket_path, self.spec_path = stem.with_suffix(".sock"), stem.with_suffix(".json")
        self.order = order
        self.process: processes.Identity | None = None
        self.ready = False
        self.own_bytes = 0
        self.task: asyncio.Task[None] | None = None
        self.unwanted = False

    @property
    def lost(self) -> bool:
        """It was there, and is no more."""
        return self.process is not None and not processes.alive(self.process)

    def close(self) -> None:
        self.unwanted = True  # one that is being forked just now is ended by who forks it
        if self.process is not None:
            processes.signal_group(self.process, signal.SIGKILL)
        self.socket_path.unlink(missing_ok=True)
        self.spec_path.unlink(missing_ok=True)


class Templates:
    """Those of one controller. most_bytes: what all of them may hold for themselves; 0: none."""

    def __init__(self, run_dir: Path, parents: zygotes.Zygotes, most_bytes: int) -> None:
        self._run_dir, self._zygotes, self.most_bytes = run_dir, parents, most_bytes
        self._known: dict[str, _Template] = {}
        self._without: set[str] = set()  # entities that cannot have one
        self._evicted: set[str] = set()  # ... that lost theirs, until they have been awake again
        for stale in run_dir.glob("t-*"):
            stale.unlink()

    def keep(self, wanted: Collection[str], awake: Collection[str] = ()) -> None:
        """End those of entities that nobody wants any more, and all while memory is short."""
        self._without.intersection_update(wanted)
        self._evicted.intersection_update(wanted)
        self._evicted.difference_update(awake)
        short = bool(self._known) and processes.available_share() < LEAST_AVAILABLE_SHARE
        for entity_id, template in list(self._known.items()):
            if not template.ready:
                logs.trim(template.order.log)  # of a model that prints while it is loaded
            if entity_id not in wanted:
                self._end(entity_id, "not needed any more")
            elif template.ready and template.lost:
                self._end(entity_id, "it died")
            elif short:
                self._evict(entity_id, "memory is short")

    def stage(self, entity_id: str) -> Literal["none", "making", "ready"]:
        """How far an entity's template is."""
        known = self._known.get(entity_id)
        return "none" if known is None else "ready" if known.ready else "making"

    def wants(self, entity_id: str) -> bool:
        """Whether one should be made for this entity now; one at a time."""
        if not self.most_bytes or entity_id in self._known:
            return False
        if entity_id in self._without or entity_id in self._evicted:
            return False
        if not all(template.ready for template in self._known.values()):
            return False
        return processes.available_share() >= 2 * LEAST_AVAILABLE_SHARE

    def make(self, order: orders.Order) -> None:
        """Have one made, in the background, for an entity that has none."""
        if not order.forkable:
            self._without.add(order.entity_id)
            return
        template = self._known[order.entity_id] = _Template(order, self._run_dir)
        template.task = asyncio.create_task(self._safe_make(template))

    async def fork(
        self, order: orders.Order, environment: dict[str, str], spec: Path
    ) -> int | None:
        """Pid of a new replica; None: there is no template that could be it."""
        template = self._known.get(order.entity_id)
        if template is None or not template.ready:
            return None
        self._known[order.entity_id] = self._known.pop(order.entity_id)  # the last to be evicted
        line = {"spec": str(spec), "env": environment, "log": str(order.log)}
        try:
            return await zygotes.ask(template.socket_path, line, FORK_SECONDS)
        except (OSError, TimeoutError, zygotes.Refused) as error:
            log.warning("template_failed", entity_id=order.entity_id, reason=str(error))
            if self._known.get(order.entity_id) is template:
                self._end(order.entity_id, "it does not fork")
            return None

    def distrust(self, entity_id: str) -> None:
        """A fork of it never answered: this entity has none from now on."""
        self._without.add(entity_id)
        if entity_id in self._known:
            self._end(entity_id, "a fork of it did not answer")

    def close(self) -> None:
        for template in self._known.values():
            template.close()
        self._known.clear()

    async def _safe_make(self, template: _Template) -> None:
        try:
            await self._make(template)
        # A full disk, changed files of the model; others must not wait behind this one for ever.
        except (OSError, errors.Conflict) as error:
            self._without.add(template.order.entity_id)
            if not template.unwanted:
                self._end(template.order.entity_id, str(error))

    async def _make(self, template: _Template) -> None:
        order = template.order
        await order.check_model()
        orders.write_spec(template.spec_path, order.spec)
        order.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        order.log.unlink(missing_ok=True)
        path = self._zygotes.path(order.python)
        line = {
            "spec": str(template.spec_path),
            "env": orders.environment(order.variables, path),
            "log": str(order.log),
            "template": str(template.socket_path),
        }
        zygote = self._zygotes.of(order.python)
        pid = await zygote.fork(line)
        template.process = None if pid is None else processes.identity(pid)
        deadline = time.monotonic() + TEMPLATE_PATIENCE_SECONDS
        while template.process is not None and not template.lost and not template.unwanted:
            if template.socket_path.exists():
                self._made(order.entity_id, template)
                return
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        if template.unwanted:
            template.close()
            return
        if zygote.alive:
            self._without.add(order.entity_id)
        self._end(order.entity_id, _last_line(order.log) or "it did not get ready")

    def _made(self, entity_id: str, template: _Template) -> None:
        assert template.process is not None
        template.own_bytes = processes.private_bytes(template.process.pid)
        held = sum(each.own_bytes for each in self._known.values())
        log.info("template_ready", entity_id=entity_id, own_bytes=template.own_bytes)
        if template.own_bytes > self.most_bytes:
            self._without.add(entity_id)
            self._end(entity_id, f"it holds {template.own_bytes} bytes for itself")
            return
        template.ready = True
        for oldest in list(self._known):
            if held <= self.most_bytes:
                break
            held -= self._known[oldest].own_bytes
            self._evict(oldest, "others need the memory that templates may have")

    def _evict(self, entity_id: str, reason: str) -> None:
        self._evicted.add(entity_id)
        self._end(entity_id, reason)

    def _end(self, entity_id: str, reason: str) -> None:
        log.info("template_ended", entity_id=entity_id, reason=reason)
        self._known.pop(entity_id).close()


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1][:300] if lines else ""
    return ""
