"""What is wanted and what is seen -> the next steps. Pure; every step can be repeated.

Rules, in the order in which `reconcile` applies them:

- A replica whose process is gone is removed. It counts as a failure of its entity, unless it was
  draining, or died before this controller looked (a crash of everything says nothing of the model).
- STARTING becomes READY by an answered probe, and by nothing else.
- A READY replica that neither answers nor uses the processor for `freeze_seconds` is frozen; one
  whose model does not return for `predict_seconds`, or that is over its memory limit, is of no more
  use. All three are ended and count as failures. From `memory_retire_share` of the limit on, a
  replica is replaced, the new one first; from `memory_hold_share` on requests wait for that one.
- A failing entity that never answered fails its update, at once and with its last log lines. One
  that has answered before is restarted after 0.1 s, doubling to 30 s, less the time that it had
  worked; 60 s of good work reset this. One that could not even load is started without a zygote.
- The number of replicas lies between those of the minimum and the maximum concurrency: one more
  when requests waited for `scale_out_seconds`, one fewer when the rest had room for all for
  `scale_in_seconds`, none after `zero_seconds` without a request where that is allowed, and one
  again when a request waits. A replica that is starting counts, so N waiting cause one start.
- A pending configuration is completed when each of its entities has a READY replica, has been
  READY since it became pending and sleeps, or serves in the active configuration already: an old
  entity that is restarting must not hold up the roll-back that takes its traffic away.
- A replica that takes GPUs is started once as many are free; until then its entity waits and says
  for what, and its update neither fails nor ends.
- What no configuration names any more drains: first the gateways stop sending, `settle_seconds`
  later the process is asked to finish what it holds and end. What never served is ended at once.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serving import contract
from serving.controller import shapes


def reconcile(
    endpoints: Sequence[shapes.Endpoint],
    observed: shapes.Observed,
    memory: Mapping[str, shapes.Memory],
    limits: shapes.Limits,
    now: float,
) -> shapes.Plan:
    """The next steps. `now`: monotonic seconds; `memory`: what the last turn's plan gave."""
    steps: list[shapes.Step] = []
    remembered: dict[str, shapes.Memory] = {}
    wanted: set[str] = set()
    by_entity: dict[str, list[shapes.Replica]] = {}
    devices = _Devices(observed.gpus, observed.free_gpus)
    for replica in observed.replicas:
        by_entity.setdefault(replica.entity_id, []).append(replica)
    for endpoint in endpoints:
        entities = _wanted(endpoint)
        wanted.update(entities)
        own: list[shapes.Step] = []
        for entity in entities.values():
            own_replicas = by_entity.get(entity.id, [])
            turn = _Turn(endpoint, entity, own_replicas, observed, devices, limits, now)
            known = memory.get(entity.id) or _first_sight(turn)
            remembered[entity.id] = turn.run(known)
            own.extend(turn.steps)
        steps.extend(_update(endpoint, by_entity, remembered, own))
    known_endpoints = {endpoint.id for endpoint in endpoints}
    for replica in observed.replicas:
        if replica.entity_id not in wanted:
            steps.extend(_retire(replica, replica.endpoint_id in known_endpoints, limits))
    return shapes.Plan(tuple(steps), remembered)


def is_restless(observed: shapes.Observed, plan: shapes.Plan, now: float) -> bool:
    """Whether anything may need a step within a moment, so that the next look must come soon."""
    return (
        bool(plan.steps)
        or any(
            one.state != shapes.READY or not one.alive or one.silent_seconds > 0 or one.growing
            for one in observed.replicas
        )
        or any(
            # Not of entities that are gone: what a gateway said of them last stays written.
            (one.waiting or one.in_flight) and entity_id in plan.memory
            for entity_id, one in observed.demand.items()
        )
        or any(one.stage == "working" for one in observed.preparations.values())
        or any(one.retry_at > now for one in plan.memory.values())
    )


def backoff_seconds(failures: int, limits: shapes.Limits) -> float:
    """Wait before the next start after this many failures in a row (>= 1)."""
    # The exponent is bounded, so that a model that crashes for a year does not overflow a float.
    doubled = limits.first_backoff_seconds * 2 ** min(failures - 1, 32)
    return min(doubled, limits.longest_backoff_seconds)


def _wanted(endpoint: shapes.Endpoint) -> dict[str, shapes.Entity]:
    """Entities that may have replicas; none of a stopped endpoint."""
    if endpoint.stopped:
        return {}
    pending = endpoint.pending if endpoint.pending_version is not None else ()
    return {entity.id: entity for entity in (*endpoint.active, *pending)}


def _first_sight(turn: "_Turn") -> shapes.Memory:
    # What serves in the active configuration answered once, or it would not be there.
    served = turn.entity.id in _served_before(turn.endpoint)
    asleep = served and turn.entity.scale_to_zero and not turn.replicas
    last = turn.demand.last_request_ms
    return shapes.Memory(proven=served, awake=not asleep, busy_at=turn.now, last_request_ms=last)


def _served_before(endpoint: shapes.Endpoint) -> set[str]:
    """Entities that serve now, whatever becomes of the update. An endpoint that is started again
    has its own active configuration pending: there, every entity must answer anew."""
    if endpoint.pending_version == endpoint.active_version:
        return set()
    return {entity.id for entity in endpoint.active}


class _Devices:
    """The GPUs that are left to this turn's starts."""

    def __init__(self, present: int, free: int) -> None:
        self.present, self.free = present, free

    def take(self, each: int, wanted: int) -> int:
        """How many of the wanted replicas get theirs; each: GPUs of one."""
        fitting = min(wanted, self.free // each) if each else wanted
        self.free -= fitting * each
        return fitting


class _Turn:
    """One entity in one turn: collects its steps."""

    def __init__(
        self,
        endpoint: shapes.Endpoint,
        entity: shapes.Entity,
        replicas: Sequence[shapes.Replica],
        observed: shapes.Observed,
        devices: _Devices,
        limits: shapes.Limits,
        now: float,
    ) -> None:
        self.devices, self.waits_for = devices, ""
        self.endpoint, self.entity, self.limits, self.now = endpoint, entity, limits, now
        self.replicas = replicas
        self.preparation = observed.preparations.get(entity.id)
        self.demand = observed.demand.get(entity.id, shapes.Demand())
        self.state = observed.states.get(entity.id)
        self.steps: list[shapes.Step] = []
        self.serving: list[shapes.Replica] = []
        self.starting: list[shapes.Replica] = []
        self.retiring: list[shapes.Replica] = []

    def run(self, memory: shapes.Memory) -> shapes.Memory:
        if not self.entity.needs_replicas:
            self._mark(shapes.State(shapes.DEPLOYMENT_READY, "Ready"))
            return _changed(memory, proven=True)
        memory = _changed(memory, failed=None)
        for replica in self.replicas:
            memory = self._judge(replica, memory)
        memory = _follow(memory, self.demand, self.now)
        memory = self._scale(memory)
        memory = self._adjust(memory)
        self._mark(self._described(memory))
        return memory

    def _judge(self, replica: shapes.Replica, memory: shapes.Memory) -> shapes.Memory:
        """Sort a replica, or end it and remember the failure."""
        trouble = self._trouble(replica)
        if trouble is not None:
            self.steps.append(shapes.Stop(replica.id, False, trouble, kill=replica.alive))
            blameless = replica.found_dead or replica.state == shapes.DRAINING
            return memory if blameless else self._failed(memory, trouble, replica)
        if replica.state == shapes.DRAINING:
            if replica.seconds >= self.limits.settle_seconds:
                self.steps.append(shapes.Stop(replica.id, finish=True, reason="drained"))
            return memory
        if replica.state == shapes.STARTING and not replica.answered:
            self.starting.append(replica)
            return memory
        if replica.state == shapes.STARTING:
            self.steps.append(shapes.Admit(replica.id))
            memory = _changed(memory, proven=True, busy_at=self.now, trouble="", stillborn=False)
        elif replica.seconds >= self.limits.good_work_seconds:
            memory = _changed(memory, failures=0, trouble="")
        grown = replica.memory_share - replica.memory_share_at_ready
        large = replica.memory_share >= self.limits.memory_retire_share
        if large and grown >= self.limits.memory_growth_share:
            self.retiring.append(replica)
        else:
            self.serving.append(replica)
        return memory

    def _trouble(self, replica: shapes.Replica) -> str | None:
        """Why this replica must end now; None: nothing is wrong with it."""
        if not replica.alive:
            return replica.last_lines or "The model's process ended without a word."
        if replica.state == shapes.STARTING and not replica.answered:
            limit = self.limits.deployment_seconds
            if replica.seconds >= limit:
                return f"The model did not answer within {limit:g} s of its start."
        if replica.state == shapes.READY and replica.silent_seconds >= self.limits.freeze_seconds:
            return f"The model's process was frozen for {self.limits.freeze_seconds:g} s."
        if replica.predicting_seconds >= self.limits.predict_seconds:
            return f"The model did not return within {self.limits.predict_seconds:g} s."
        if replica.memory_share >= 1:
            return "The model's process used more memory than its workload_type has."
        return None

    def _failed(
        self, memory: shapes.Memory, trouble: str, replica: shapes.Replica | None = None
    ) -> shapes.Memory:
        failures = memory.failures + 1
        worked = replica.seconds if replica is not None and replica.state == shapes.READY else 0.0
        wait = backoff_seconds(failures, self.limits) - worked
        return _changed(
            memory,
            failures=failures,
            retry_at=self.now + max(wait, self.limits.first_backoff_seconds),
            stillborn=replica is not None and replica.state == shapes.STARTING,
            trouble=trouble,
            failed=None if memory.proven else trouble,
        )

    def _scale(self, memory: shapes.Memory) -> shapes.Memory:
        """Follow demand: awake or asleep, and how many replicas beyond the minimum."""
        entity, demand, limits, now = self.entity, self.demand, self.limits, self.now
        if not entity.scale_to_zero or demand.waiting or not memory.proven:
            memory = _changed(memory, awake=True)
        elif now - memory.busy_at >= limits.zero_seconds:
            memory = _changed(memory, awake=False, extra=0)
        elif self.serving:
            memory = _changed(memory, awake=True)
        room = entity.max_replicas - max(1, entity.min_replicas)
        waited = memory.waiting_since is not None and (
            now - memory.waiting_since >= limits.scale_out_seconds
        )
        if waited and not self.starting and memory.extra < room:
            return _changed(memory, extra=memory.extra + 1, waiting_since=now)
        held = (len(self.serving) - 1) * entity.replica_concurrency
        if memory.extra == 0 or demand.waiting or demand.in_flight >= held:
            return _changed(memory, spare_since=None)
        if memory.spare_since is None:
            return _changed(memory, spare_since=now)
        if now - memory.spare_since >= limits.scale_in_seconds:
            return _changed(memory, extra=memory.extra - 1, spare_since=now)
        return memory

    def target(self, memory: shapes.Memory) -> int:
        """Replicas that should serve now."""
        if not memory.awake:
            return 0
        if not memory.proven:
            return 1
        lowest = max(1, min(self.entity.min_replicas, self.entity.max_replicas))
        return min(lowest + memory.extra, max(lowest, self.entity.max_replicas))

    def _adjust(self, memory: shapes.Memory) -> shapes.Memory:
        """Start what is missing, drain what is too much."""
        if memory.failed is not None:
            return memory
        target = self.target(memory)
        replaced = len(self.serving) >= target
        for replica in self.retiring:
            if replaced or replica.memory_share >= self.limits.memory_hold_share:
                self.steps.append(shapes.Drain(replica.id))
        missing = target - len(self.serving) - len(self.starting)
        if missing > 0:
            return self._start(missing, memory)
        # Newest last: what was started for a peak goes first.
        for surplus in self.serving[target:]:
            self.steps.append(shapes.Drain(surplus.id))
        if len(self.serving) >= target:
            surplus_starts = self.starting[max(0, target - len(self.serving)) :]
            self.steps.extend(
                shapes.Stop(replica.id, finish=False, reason="not needed any more")
                for replica in surplus_starts
            )
        return memory

    def _start(self, missing: int, memory: shapes.Memory) -> shapes.Memory:
        endpoint, entity = self.endpoint, self.entity
        if self.now < memory.retry_at:
            return memory
        if self.preparation is None:
            self.steps.append(shapes.Prepare(endpoint.id, entity.id))
        elif self.preparation.stage == "failed":
            memory = self._failed(memory, self.preparation.message)
            if memory.proven:
                self.steps.append(shapes.Prepare(endpoint.id, entity.id))
        elif self.preparation.stage == "ready":
            start = shapes.Start(
                endpoint.id, entity.id, entity.replica_concurrency, memory.stillborn
            )
            fitting = self.devices.take(entity.gpus, missing)
            self.steps.extend([start] * fitting)
            if fitting < missing:
                self.waits_for = _device_wanted(entity, self.devices.present)
        return memory

    def _described(self, memory: shapes.Memory) -> shapes.State:
        entity = self.entity
        if memory.failed is not None:
            return shapes.State(shapes.DEPLOYMENT_FAILED, memory.failed)
        if self.serving or self.retiring:
            if entity.asked_replicas > entity.max_replicas:
                fits = f"{entity.max_replicas} of {entity.asked_replicas} replicas"
                return shapes.State(shapes.DEPLOYMENT_READY, f"Ready; {fits} fit on this machine")
            return shapes.State(shapes.DEPLOYMENT_READY, "Ready")
        if not memory.awake:
            return shapes.State(shapes.DEPLOYMENT_READY, "Scaled to zero")
        if self.waits_for:
            known = shapes.DEPLOYMENT_RECOVERING if memory.proven else shapes.DEPLOYMENT_CREATING
            return shapes.State(known, self.waits_for)
        if memory.trouble:
            return shapes.State(shapes.DEPLOYMENT_RECOVERING, f"Restarting. {memory.trouble}")
        if memory.proven and entity.scale_to_zero:
            return shapes.State(shapes.DEPLOYMENT_READY, "Starting from zero")
        if memory.proven:
            return shapes.State(shapes.DEPLOYMENT_RECOVERING, "Starting")
        working = self.preparation is not None and self.preparation.stage == "working"
        message = self.preparation.message if self.preparation and working else "Starting"
        return shapes.State(shapes.DEPLOYMENT_CREATING, message)

    def _mark(self, state: shapes.State) -> None:
        if state != self.state:
            self.steps.append(shapes.Mark(self.endpoint.id, self.entity.id, state))


def _device_wanted(entity: shapes.Entity, present: int) -> str:
    """What an entity waits for, said so that its owner knows what to change."""
    needed = "1 GPU" if entity.gpus == 1 else f"{entity.gpus} GPUs"
    if present < entity.gpus:
        found = f"this machine has {present or 'none'}"
        return (
            f"{contract.WAITING_FOR_DEVICE}: {entity.workload} takes {needed}, {found}; change "
            "workload_type or delete the endpoint."
        )
    return f"{contract.WAITING_FOR_DEVICE}: {entity.workload} takes {needed}; others use them."


def _changed(memory: shapes.Memory, **values: Any) -> shapes.Memory:
    """`memory` with these values; itself if it has them: mostly, and a new one costs 3 us."""
    if all(getattr(memory, name) == value for name, value in values.items()):
        return memory
    return dataclasses.replace(memory, **values)


def _follow(memory: shapes.Memory, demand: shapes.Demand, now: float) -> shapes.Memory:
    """Note arrivals and waiting on our own clock: the wall clock may jump."""
    arrived = demand.last_request_ms != memory.last_request_ms
    busy = arrived or demand.waiting > 0 or demand.in_flight > 0
    since = memory.waiting_since if memory.waiting_since is not None else now
    return _changed(
        memory,
        busy_at=now if busy else memory.busy_at,
        last_request_ms=demand.last_request_ms,
        waiting_since=since if demand.waiting else None,
    )


def _update(
    endpoint: shapes.Endpoint,
    by_entity: Mapping[str, Sequence[shapes.Replica]],
    memory: Mapping[str, shapes.Memory],
    steps: list[shapes.Step],
) -> list[shapes.Step]:
    """The endpoint's steps, with the end of its update, once that is decided."""
    if endpoint.pending_version is None or endpoint.stopped:
        return steps
    for entity in endpoint.pending:
        failed = memory[entity.id].failed
        if failed is not None:
            message = f"Served entity '{entity.name}' did not start. {failed}"
            return _given_up(endpoint, entity, message, steps)
    ended = {step.replica_id for step in steps if isinstance(step, shapes.Stop)}
    admitted = {step.replica_id for step in steps if isinstance(step, shapes.Admit)}
    served_before = _served_before(endpoint)
    for entity in endpoint.pending:
        known = memory[entity.id]
        ready = any(
            replica.id in admitted or (replica.state == shapes.READY and replica.id not in ended)
            for replica in by_entity.get(entity.id, ())
        )
        asleep = known.proven and not known.awake
        served = entity.id in served_before
        if not (ready or asleep or served or not entity.needs_replicas):
            return steps
    return [*steps, shapes.Complete(endpoint.id, endpoint.pending_version)]


def _given_up(
    endpoint: shapes.Endpoint, culprit: shapes.Entity, message: str, steps: list[shapes.Step]
) -> list[shapes.Step]:
    """Fail the update, and do nothing more for those of its entities that are not active."""
    assert endpoint.pending_version is not None
    active = {entity.id for entity in endpoint.active}
    others = {e.id for e in endpoint.pending if e.id not in active} - {culprit.id}
    kept = [
        step
        for step in steps
        if not (
            isinstance(step, shapes.Prepare | shapes.Start | shapes.Mark)
            and step.entity_id in others
        )
    ]
    aborted = shapes.State(shapes.DEPLOYMENT_ABORTED, f"The update failed at '{culprit.name}'")
    marks = [shapes.Mark(endpoint.id, entity_id, aborted) for entity_id in sorted(others)]
    return [*kept, *marks, shapes.Fail(endpoint.id, endpoint.pending_version, message)]


def _retire(
    replica: shapes.Replica, endpoint_exists: bool, limits: shapes.Limits
) -> Iterator[shapes.Step]:
    """A replica that no configuration names any more."""
    if not replica.alive:
        yield shapes.Stop(replica.id, finish=False, reason="ended")
    elif replica.state == shapes.STARTING or not endpoint_exists:
        yield shapes.Stop(replica.id, finish=False, reason="not needed any more")
    elif replica.state == shapes.READY:
        yield shapes.Drain(replica.id)
    elif replica.seconds >= limits.settle_seconds:
        yield shapes.Stop(replica.id, finish=True, reason="drained")
