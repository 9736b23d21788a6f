"""Values that pass between the controller's loop and its decisions: what is wanted, what is seen,
what is remembered, and the steps. Pure."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
    memory_hold_share: float = 0.9
    memory_growth_share: float = 0.1


@dataclass(frozen=True, slots=True)
class Entity:
    """A served entity as the controller sees it. Replica numbers, not units of concurrency.

    `asked_replicas`: what its maximum concurrency would need; `max_replicas`: what fits here;
    `gpus`: devices that each replica takes, of which the workload type `workload` tells.
    """

    id: str
    name: str
    min_replicas: int = 1
    max_replicas: int = 1
    asked_replicas: int = 1
    replica_concurrency: int = 4
    scale_to_zero: bool = False
    needs_replicas: bool = True
    gpus: int = 0
    workload: str = "CPU"


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
    `memory_share`: of its limit; `memory_share_at_ready`: the same when it became READY; `growing`:
    it took much more since the last look.
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
    growing: bool = False
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
    """Everything seen in this turn; mappings by served entity id. `gpus`: of this machine."""

    replicas: Sequence[Replica] = ()
    preparations: Mapping[str, Preparation] = dataclasses.field(default_factory=dict)
    demand: Mapping[str, Demand] = dataclasses.field(default_factory=dict)
    states: Mapping[str, State] = dataclasses.field(default_factory=dict)
    gpus: int = 0
    free_gpus: int = 0


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
    """End the process. `finish`: after what it holds, otherwise at once. `kill`: without asking it
    first, for it does harm or cannot hear."""

    replica_id: str
    finish: bool
    reason: str
    kill: bool = False


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
