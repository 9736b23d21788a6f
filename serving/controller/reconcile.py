"""What is wanted and what is seen -> the next steps. Pure; every step can be repeated.

Rules, in the order in which `reconcile` applies them:

- A replica whose process is gone is removed. It counts as a failure of its entity, unless it was
  draining, or died before this controller looked (a crash of everything says nothing of the model).
- STARTING becomes READY by an answered probe, and by nothing else.
- A READY replica that neither answers nor uses the processor for `freeze_seconds` is frozen; one
  whose model does not return for `predict_seconds`, or that is over its memory limit, is of no more
  use. All three are ended and count as failures. From `memory_retire_share` of the limit on, a
  replica is replaced, the new one first.
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
- What no configuration names any more drains: first the gateways stop sending, `settle_seconds`
  later the process is asked to finish what it holds and end. What never served is ended at once.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

STARTING, READY, DRAINING = "STARTING", "READY", "DRAINING"
DEPLOYMENT_CREATING = "DEPLOYMENT_CREATING"
DEPLOYMENT_RECOVERING = "DEPLOYMENT_RECOVERING"
DEPLOYMENT_READY = "DEPLOYMENT_READY"
DEPLOYMENT_FAILED = "DEPLOYMENT_FAILED"
DEPLOYMENT_ABORTED = "DEPLOYMENT_ABORTED"


@dataclass(frozen=True, slots=True)
class Limits:
    """Every number of the rules above, in seconds or as a share."""

    deployment_seconds: float = 1800
    zero_seconds: float = 1800
    freeze_seconds: float = 10
    predict_seconds: float = 300
    settle_seconds: float = 1
    first_backoff_seconds: float = 0.1
    longest_backoff_seconds: float = 30
    good_work_seconds: float = 60
    scale_out_seconds: float = 3
    scale_in_seconds: float = 60
    memory_retire_share: float = 0.8
    memory_growth_share: float = 0.1


@dataclass(frozen=True, slots=True)
class Entity:
    """A served entity as the controller sees it. Replica numbers, not units of concurrency.

    `asked_replicas`: what its maximum concurrency would need; `max_replicas`: what fits here.
    """

    id: str
    name: str
    min_replicas: int = 1
    max_replicas: int = 1
    asked_replicas: int = 1
    replica_concurrency: int = 4
    scale_to_zero: bool = False
    needs_replicas: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint's active and pending configuration; a version is None where there is none."""

    id: str
    name: str
    stopped: bool = False
    active_version: int | None = None
    active: tuple[Entity, ...] = ()
    pending_version: int | None = None
    pending: tuple[Entity, ...] = ()


@dataclass(frozen=True, slots=True)
class Replica:
    """What is seen of one replica.

    `alive`: its process runs; `found_dead`: it did not when this controller first looked.
    `answered`: a probe was answered. `seconds`: time in its present state. `silent_seconds`: since
    it last answered or used the processor. `predicting_seconds`: since its model was called.
    `memory_share`: of its limit; `memory_share_at_ready`: the same when it became READY.
    `last_lines`: end of its log, filled in when it is dead.
    """

    id: str
    endpoint_id: str
    entity_id: str
    state: str
    alive: bool = True
    found_dead: bool = False
    answered: bool = False
    seconds: float = 0
    silent_seconds: float = 0
    predicting_seconds: float = 0
    memory_share: float = 0
    memory_share_at_ready: float = 0
    last_lines: str = ""


@dataclass(frozen=True, slots=True)
class Preparation:
    """How far model folder and environment of an entity are. No preparation: not begun."""

    stage: Literal["working", "ready", "failed"]
    message: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """All gateways' view of one entity: requests in line, requests in the model, last arrival."""

    waiting: int = 0
    in_flight: int = 0
    last_request_ms: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """What is written of an entity, for people to read."""

    deployment: str
    message: str


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything seen in this turn; mappings by served entity id."""

    replicas: Sequence[Replica] = ()
    preparations: Mapping[str, Preparation] = dataclasses.field(default_factory=dict)
    demand: Mapping[str, Demand] = dataclasses.field(default_factory=dict)
    states: Mapping[str, State] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of an entity from turn to turn; times are the `now` of reconcile.

    `proven`: a replica has answered. `awake`: it may not sleep at zero now. `extra`: replicas
    beyond the minimum that demand asked for. `stillborn`: the last start ended before an answer.
    `failed`: why its update cannot succeed.
    """

    proven: bool = False
    awake: bool = True
    busy_at: float = 0
    last_request_ms: int = 0
    extra: int = 0
    waiting_since: float | None = None
    spare_since: float | None = None
    failures: int = 0
    retry_at: float = 0
    stillborn: bool = False
    trouble: str = ""
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Prepare:
    """Find the model's folder and environment."""

    endpoint_id: str
    entity_id: str


@dataclass(frozen=True, slots=True)
class Start:
    """Start one replica. `fresh`: not from a zygote, since the last start went wrong."""

    endpoint_id: str
    entity_id: str
    concurrency: int
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Admit:
    """The replica answered: requests may go to it."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class Drain:
    """No new requests to this replica."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process. `finish`: after what it holds, otherwise at once."""

    replica_id: str
    finish: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Write an entity's state."""

    endpoint_id: str
    entity_id: str
    state: State


@dataclass(frozen=True, slots=True)
class Complete:
    """The pending configuration becomes the active one."""

    endpoint_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Fail:
    """The pending configuration is given up."""

    endpoint_id: str
    version: int
    message: str


Step = Prepare | Start | Admit | Drain | Stop | Mark | Complete | Fail


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order in which they must be taken, and the memory for the next turn."""

    steps: tuple[Step, ...]
    memory: dict[str, Memory]


def reconcile(
    endpoints: Sequence[Endpoint],
    observed: Observed,
    memory: Mapping[str, Memory],
    limits: Limits,
    now: float,
) -> Plan:
    """The next steps. `now`: monotonic seconds; `memory`: what the last turn's plan gave."""
    steps: list[Step] = []
    remembered: dict[str, Memory] = {}
    wanted: set[str] = set()
    by_entity: dict[str, list[Replica]] = {}
    for replica in observed.replicas:
        by_entity.setdefault(replica.entity_id, []).append(replica)
    for endpoint in endpoints:
        entities = _wanted(endpoint)
        wanted.update(entities)
        own: list[Step] = []
        for entity in entities.values():
            turn = _Turn(endpoint, entity, by_entity.get(entity.id, []), observed, limits, now)
            known = memory.get(entity.id) or _first_sight(turn)
            remembered[entity.id] = turn.run(known)
            own.extend(turn.steps)
        steps.extend(_update(endpoint, by_entity, remembered, own))
    known_endpoints = {endpoint.id for endpoint in endpoints}
    for replica in observed.replicas:
        if replica.entity_id not in wanted:
            steps.extend(_retire(replica, replica.endpoint_id in known_endpoints, limits))
    return Plan(tuple(steps), remembered)


def backoff_seconds(failures: int, limits: Limits) -> float:
    """Wait before the next start after this many failures in a row (>= 1)."""
    # The exponent is bounded, so that a model that crashes for a year does not overflow a float.
    doubled = limits.first_backoff_seconds * 2 ** min(failures - 1, 32)
    return min(doubled, limits.longest_backoff_seconds)


def _wanted(endpoint: Endpoint) -> dict[str, Entity]:
    """Entities that may have replicas; none of a stopped endpoint."""
    if endpoint.stopped:
        return {}
    pending = endpoint.pending if endpoint.pending_version is not None else ()
    return {entity.id: entity for entity in (*endpoint.active, *pending)}


def _first_sight(turn: "_Turn") -> Memory:
    # What serves in the active configuration answered once, or it would not be there.
    served = turn.entity.id in _served_before(turn.endpoint)
    asleep = served and turn.entity.scale_to_zero and not turn.replicas
    last = turn.demand.last_request_ms
    return Memory(proven=served, awake=not asleep, busy_at=turn.now, last_request_ms=last)


def _served_before(endpoint: Endpoint) -> set[str]:
    """Entities that serve now, whatever becomes of the update. An endpoint that is started again
    has its own active configuration pending: there, every entity must answer anew."""
    if endpoint.pending_version == endpoint.active_version:
        return set()
    return {entity.id for entity in endpoint.active}


class _Turn:
    """One entity in one turn: collects its steps."""

    def __init__(
        self,
        endpoint: Endpoint,
        entity: Entity,
        replicas: Sequence[Replica],
        observed: Observed,
        limits: Limits,
        now: float,
    ) -> None:
        self.endpoint, self.entity, self.limits, self.now = endpoint, entity, limits, now
        self.replicas = replicas
        self.preparation = observed.preparations.get(entity.id)
        self.demand = observed.demand.get(entity.id, Demand())
        self.state = observed.states.get(entity.id)
        self.steps: list[Step] = []
        self.serving: list[Replica] = []
        self.starting: list[Replica] = []
        self.retiring: list[Replica] = []

    def run(self, memory: Memory) -> Memory:
        if not self.entity.needs_replicas:
            self._mark(State(DEPLOYMENT_READY, "Ready"))
            return _changed(memory, proven=True)
        memory = _changed(memory, failed=None)
        for replica in self.replicas:
            memory = self._judge(replica, memory)
        memory = _follow(memory, self.demand, self.now)
        memory = self._scale(memory)
        memory = self._adjust(memory)
        self._mark(self._described(memory))
        return memory

    def _judge(self, replica: Replica, memory: Memory) -> Memory:
        """Sort a replica, or end it and remember the failure."""
        trouble = self._trouble(replica)
        if trouble is not None:
            self.steps.append(Stop(replica.id, finish=False, reason=trouble))
            blameless = replica.found_dead or replica.state == DRAINING
            return memory if blameless else self._failed(memory, trouble, replica)
        if replica.state == DRAINING:
            if replica.seconds >= self.limits.settle_seconds:
                self.steps.append(Stop(replica.id, finish=True, reason="drained"))
            return memory
        if replica.state == STARTING and not replica.answered:
            self.starting.append(replica)
            return memory
        if replica.state == STARTING:
            self.steps.append(Admit(replica.id))
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

    def _trouble(self, replica: Replica) -> str | None:
        """Why this replica must end now; None: nothing is wrong with it."""
        if not replica.alive:
            return replica.last_lines or "The model's process ended without a word."
        if replica.state == STARTING and not replica.answered:
            limit = self.limits.deployment_seconds
            if replica.seconds >= limit:
                return f"The model did not answer within {limit:g} s of its start."
        if replica.state == READY and replica.silent_seconds >= self.limits.freeze_seconds:
            return f"The model's process was frozen for {self.limits.freeze_seconds:g} s."
        if replica.predicting_seconds >= self.limits.predict_seconds:
            return f"The model did not return within {self.limits.predict_seconds:g} s."
        if replica.memory_share >= 1:
            return "The model's process used more memory than its workload_type has."
        return None

    def _failed(self, memory: Memory, trouble: str, replica: Replica | None = None) -> Memory:
        failures = memory.failures + 1
        worked = replica.seconds if replica is not None and replica.state == READY else 0.0
        wait = backoff_seconds(failures, self.limits) - worked
        return _changed(
            memory,
            failures=failures,
            retry_at=self.now + max(wait, self.limits.first_backoff_seconds),
            stillborn=replica is not None and replica.state == STARTING,
            trouble=trouble,
            failed=None if memory.proven else trouble,
        )

    def _scale(self, memory: Memory) -> Memory:
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

    def target(self, memory: Memory) -> int:
        """Replicas that should serve now."""
        if not memory.awake:
            return 0
        if not memory.proven:
            return 1
        lowest = max(1, min(self.entity.min_replicas, self.entity.max_replicas))
        return min(lowest + memory.extra, max(lowest, self.entity.max_replicas))

    def _adjust(self, memory: Memory) -> Memory:
        """Start what is missing, drain what is too much."""
        if memory.failed is not None:
            return memory
        target = self.target(memory)
        missing = target - len(self.serving) - len(self.starting)
        if missing > 0:
            return self._start(missing, memory)
        # Newest last: what was started for a peak goes first.
        for surplus in self.serving[target:]:
            self.steps.append(Drain(surplus.id))
        if len(self.serving) >= target:
            self.steps.extend(Drain(replica.id) for replica in self.retiring)
            surplus_starts = self.starting[max(0, target - len(self.serving)) :]
            self.steps.extend(
                Stop(replica.id, finish=False, reason="not needed any more")
                for replica in surplus_starts
            )
        return memory

    def _start(self, missing: int, memory: Memory) -> Memory:
        endpoint, entity = self.endpoint, self.entity
        if self.now < memory.retry_at:
            return memory
        if self.preparation is None:
            self.steps.append(Prepare(endpoint.id, entity.id))
        elif self.preparation.stage == "failed":
            memory = self._failed(memory, self.preparation.message)
            if memory.proven:
                self.steps.append(Prepare(endpoint.id, entity.id))
        elif self.preparation.stage == "ready":
            start = Start(endpoint.id, entity.id, entity.replica_concurrency, memory.stillborn)
            self.steps.extend([start] * missing)
        return memory

    def _described(self, memory: Memory) -> State:
        entity = self.entity
        if memory.failed is not None:
            return State(DEPLOYMENT_FAILED, memory.failed)
        if self.serving or self.retiring:
            if entity.asked_replicas > entity.max_replicas:
                fits = f"{entity.max_replicas} of {entity.asked_replicas} replicas"
                return State(DEPLOYMENT_READY, f"Ready; {fits} fit on this machine")
            return State(DEPLOYMENT_READY, "Ready")
        if not memory.awake:
            return State(DEPLOYMENT_READY, "Scaled to zero")
        if memory.trouble:
            return State(DEPLOYMENT_RECOVERING, f"Restarting. {memory.trouble}")
        if memory.proven and entity.scale_to_zero:
            return State(DEPLOYMENT_READY, "Starting from zero")
        if memory.proven:
            return State(DEPLOYMENT_RECOVERING, "Starting")
        working = self.preparation is not None and self.preparation.stage == "working"
        message = self.preparation.message if self.preparation and working else "Starting"
        return State(DEPLOYMENT_CREATING, message)

    def _mark(self, state: State) -> None:
        if state != self.state:
            self.steps.append(Mark(self.endpoint.id, self.entity.id, state))


def _changed(memory: Memory, **values: Any) -> Memory:
    """`memory` with these values; itself if it has them: mostly, and a new one costs 3 us."""
    if all(getattr(memory, name) == value for name, value in values.items()):
        return memory
    return dataclasses.replace(memory, **values)


def _follow(memory: Memory, demand: Demand, now: float) -> Memory:
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
    endpoint: Endpoint,
    by_entity: Mapping[str, Sequence[Replica]],
    memory: Mapping[str, Memory],
    steps: list[Step],
) -> list[Step]:
    """The endpoint's steps, with the end of its update, once that is decided."""
    if endpoint.pending_version is None or endpoint.stopped:
        return steps
    for entity in endpoint.pending:
        failed = memory[entity.id].failed
        if failed is not None:
            message = f"Served entity '{entity.name}' did not start. {failed}"
            return _given_up(endpoint, entity, message, steps)
    ended = {step.replica_id for step in steps if isinstance(step, Stop)}
    admitted = {step.replica_id for step in steps if isinstance(step, Admit)}
    served_before = _served_before(endpoint)
    for entity in endpoint.pending:
        known = memory[entity.id]
        ready = any(
            replica.id in admitted or (replica.state == READY and replica.id not in ended)
            for replica in by_entity.get(entity.id, ())
        )
        asleep = known.proven and not known.awake
        served = entity.id in served_before
        if not (ready or asleep or served or not entity.needs_replicas):
            return steps
    return [*steps, Complete(endpoint.id, endpoint.pending_version)]


def _given_up(endpoint: Endpoint, culprit: Entity, message: str, steps: list[Step]) -> list[Step]:
    """Fail the update, and do nothing more for those of its entities that are not active."""
    assert endpoint.pending_version is not None
    active = {entity.id for entity in endpoint.active}
    others = {e.id for e in endpoint.pending if e.id not in active} - {culprit.id}
    kept = [
        step
        for step in steps
        if not (isinstance(step, Prepare | Start | Mark) and step.entity_id in others)
    ]
    aborted = State(DEPLOYMENT_ABORTED, f"The update failed at '{culprit.name}'")
    marks = [Mark(endpoint.id, entity_id, aborted) for entity_id in sorted(others)]
    return [*kept, *marks, Fail(endpoint.id, endpoint.pending_version, message)]


def _retire(replica: Replica, endpoint_exists: bool, limits: Limits) -> Iterator[Step]:
    """A replica that no configuration names any more."""
    if not replica.alive:
        yield Stop(replica.id, finish=False, reason="ended")
    elif replica.state == STARTING or not endpoint_exists:
        yield Stop(replica.id, finish=False, reason="not needed any more")
    elif replica.state == READY:
        yield Drain(replica.id)
    elif replica.seconds >= limits.settle_seconds:
        yield Stop(replica.id, finish=True, reason="drained")
