"""Endpoints as SQL has them -> as the controller decides about them. Pure."""

from collections.abc import Mapping

from serving import contract, state
from serving.controller import devices, shapes

GIB = 1 << 30
MEMORY_BYTES = {"CPU": 4 * GIB, "CPU_MEDIUM": 8 * GIB}
LARGEST_MEMORY_BYTES = 16 * GIB
# Requests that a replica works on at once, since it joins them; one that must not join takes one.
REPLICA_CONCURRENCY = 4


def endpoint(found: state.WantedEndpoint, cores: int) -> shapes.Endpoint:
    """An endpoint with its active and pending entities. cores: processors of this machine."""
    entities = [(each, entity(each.definition, cores)) for each in found.entities]
    return shapes.Endpoint(
        id=found.id,
        name=found.name,
        stopped=found.stopped,
        active_version=found.active_version,
        active=tuple(made for each, made in entities if each.in_active),
        pending_version=found.pending_version,
        pending=tuple(made for each, made in entities if each.in_pending),
    )


def entity(definition: Mapping[str, object], cores: int) -> shapes.Entity:
    """An entity's numbers of replicas from its concurrency; at most one replica per core."""
    least, most = contract.concurrency(definition)
    each = 1 if batch(definition) is False else REPLICA_CONCURRENCY
    asked = max(1, -(-most // each))
    return shapes.Entity(
        id=str(definition["id"]),
        name=str(definition["name"]),
        min_replicas=min(-(-least // each), cores),
        max_replicas=min(asked, cores),
        asked_replicas=asked,
        replica_concurrency=each,
        scale_to_zero=bool(definition.get("scale_to_zero_enabled")),
        needs_replicas=contract.kind(definition) == "custom",
        gpus=devices.needed(definition.get("workload_type")),
        workload=str(definition.get("workload_type") or "CPU"),
    )


def batch(definition: Mapping[str, object]) -> bool | None:
    """What the entity's owner says about joining requests; None: nothing, its flavour decides."""
    variables = definition.get("environment_vars") or {}
    assert isinstance(variables, Mapping)
    said = str(variables.get("INFERLAKE_BATCH", "")).lower()
    return {"true": True, "1": True, "false": False, "0": False}.get(said)


def memory_bytes(definition: Mapping[str, object], setting: int) -> int:
    """The most that a replica's process group may hold. setting: for all, 0 for by workload."""
    kind = str(definition.get("workload_type") or "CPU")
    return setting or MEMORY_BYTES.get(kind, LARGEST_MEMORY_BYTES)
