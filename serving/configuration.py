"""Request + present configuration -> the next one, or a 400 that names the field; traffic shifts;
endpoint states. Pure: models are resolved, ids made and times read by the caller."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from capture import errors
from serving import attributes, contract, placement

# What an entity is, apart from its id: the rest only says who wrote it and when.
_WRITTEN = frozenset({"id", "creator", "creation_timestamp"})


class Resolved(NamedTuple):
    """What the registry says of a model and a version or alias. digest: of its files."""

    version: str
    digest: str


class Author(NamedTuple):
    """Who writes a configuration, when (unix ms), and where fresh ids come from."""

    user: str
    now_ms: int
    new_id: Callable[[], str]


def next_configuration(
    request: contract.ConfigRequest,
    present: Mapping[str, Any] | None,
    active: Mapping[str, Any] | None,
    models: Mapping[tuple[str, str], Resolved],
    endpoint: tuple[str, str],
    author: Author,
) -> dict[str, Any]:
    """The normalised configuration that `request` makes of the present one: the active one, or the
    newest where none became active.

    endpoint: (id, name). models: (name, version or @alias) -> what it is, for every entity asked
    for. An entity that the active configuration has with the same definition keeps its id. Raises
    InvalidParameter."""
    before = list(present["served_entities"]) if present else []
    if request == contract.ConfigRequest():
        raise errors.InvalidParameter(
            "config: give served_entities, traffic_config or auto_capture_config, found none."
        )
    if request.entities is None and not before:
        raise errors.InvalidParameter("config.served_entities: a value is needed, found none.")
    entities = before
    if request.entities is not None:
        entities = [_entity(each, models[each.model, each.version]) for each in request.entities]
        pairs = zip(request.entities, entities, strict=True)
        contract.check_names([(each.where, entity["name"]) for each, entity in pairs])
    known = [entity["name"] for entity in entities]
    contract.check_routes(known, request.routes)
    traffic = (present or {}).get("traffic_config") or {}
    shares = _shares(known, request.routes, present)
    sticky = _sticky(request.sticky, traffic.get("sticky"), endpoint[0])
    return {
        "served_entities": identified(entities, active, author),
        "traffic_config": _traffic(shares, sticky, traffic),
        "auto_capture_config": _capture(request.auto_capture, present, endpoint[1]),
    }


def identified(
    entities: Sequence[Mapping[str, Any]], active: Mapping[str, Any] | None, author: Author
) -> list[dict[str, Any]]:
    """Entities with ids: those that run already under the same definition keep theirs, so that a
    change of traffic restarts nothing; all others are new, so that a failed one starts afresh."""
    running = list(active["served_entities"]) if active else []
    made = []
    for entity in entities:
        bare = _bare(entity)
        same = (dict(known) for known in running if _bare(known) == bare)
        made.append(next(same, None) or _signed(bare, author))
    return made


def _entity(asked: contract.EntityRequest, model: Resolved) -> dict[str, Any]:
    return {
        "name": asked.name or contract.default_name(asked.model, model.version),
        "entity_name": asked.model,
        "entity_version": model.version,
        **asked.settings,
        "model_digest": model.digest,
    }


def _bare(entity: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entity.items() if key not in _WRITTEN}


def _signed(entity: dict[str, Any], author: Author) -> dict[str, Any]:
    return {
        "id": author.new_id(),
        **entity,
        "creator": author.user,
        "creation_timestamp": author.now_ms,
    }


def _shares(
    known: Sequence[str],
    routes: Sequence[contract.RouteRequest] | None,
    present: Mapping[str, Any] | None,
) -> dict[str, int]:
    if routes is not None:
        asked = {route.name: route.percentage for route in routes}
        return {name: asked.get(name, 0) for name in known}
    before = contract.percentages(present) if present else {}
    if set(before) == set(known):
        return {name: before[name] for name in known}
    if len(known) == 1:
        return {known[0]: 100}
    raise errors.InvalidParameter(
        f"config.traffic_config.routes: {len(known)} served entities need percentages "
        "that sum to 100, found none."
    )


def _sticky(
    asked: Mapping[str, Any] | None, present: Mapping[str, Any] | None, endpoint_id: str
) -> dict[str, Any] | None:
    if asked is None:
        return dict(present) if present else None
    if not asked:
        return None
    return {"key": asked["key"], "salt": asked.get("salt") or endpoint_id}


def _traffic(
    shares: Mapping[str, int], sticky: Mapping[str, Any] | None, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Routes and, of a sticky split, the places of its units: as few as possible move from where
    they were under the same key and salt."""
    traffic = {"routes": contract.routes_of(shares), "sticky": sticky}
    if sticky is None:
        return traffic
    places = placement.moved(_places(before), shares) if before.get("sticky") == sticky else None
    return {**traffic, "places": [list(each) for each in places or placement.first(shares)]}


def _places(traffic: Mapping[str, Any]) -> list[placement.Place]:
    """Where units are; a configuration from before places were kept has those of a first split."""
    stored = [placement.Place(*each) for each in traffic.get("places") or ()]
    return stored or placement.first(contract.percentages({"traffic_config": traffic}))


def restored(config: Mapping[str, Any], active: Mapping[str, Any]) -> dict[str, Any]:
    """The traffic of an earlier configuration, to follow on that of the active one: its own places
    where no others would move fewer units."""
    wanted, now = config["traffic_config"], active["traffic_config"]
    if not wanted.get("sticky") or wanted["sticky"] != now.get("sticky"):
        return dict(wanted)
    shares = contract.percentages(config)
    nearest = _traffic(shares, wanted["sticky"], now)
    present, own = _places(now), _places(wanted)
    least = placement.distance(present, _places(nearest))
    if placement.distance(present, own) <= least + placement.NOTHING:
        return {**nearest, "places": [list(each) for each in own]}
    return nearest


def _capture(
    asked: Mapping[str, Any] | None, present: Mapping[str, Any] | None, endpoint: str
) -> dict[str, Any] | None:
    before = (present or {}).get("auto_capture_config")
    if asked is None:
        return dict(before) if before else None
    refuse_renaming(asked, before, endpoint, "config.auto_capture_config")
    return {**(before or {}), **asked}


def refuse_renaming(
    asked: Mapping[str, Any], before: Mapping[str, Any] | None, endpoint: str, where: str
) -> None:
    """Raises InvalidParameter if an inference table that is switched on would change its name."""
    if not before or not before.get("enabled", True) or not asked.get("enabled", True):
        return
    for key, default in attributes.table_defaults(endpoint).items():
        present = before.get(key) or default
        if key in asked and asked[key] != present:
            raise errors.InvalidParameter(
                f"{where}.{key}: '{asked[key]}' is not '{present}'; "
                "switch the table off first (enabled: false)."
            )


def refuse_renaming_telemetry(
    asked: Mapping[str, Any] | None, before: Mapping[str, Any] | None
) -> None:
    """The same for the table of a `telemetry_config`, which is switched off by leaving it out."""
    wanted = contract.telemetry_table(asked) if asked else None
    present = contract.telemetry_table(before) if before else None
    if wanted is not None and present is not None and wanted != present:
        raise errors.InvalidParameter(
            f"telemetry_config.inference_table_config.name: '{wanted}' is not '{present}'; "
            "switch the table off first (without inference_table_config)."
        )


# --- traffic --------------------------------------------------------------------------------------


def shift(config: Mapping[str, Any], name: str, percentage: int) -> dict[str, Any]:
    """The configuration with `percentage` of the traffic on entity `name`; the others share the
    rest in their present proportions (all at 0: equally), in whole percent by largest remainder.

    Raises DoesNotExist for an unknown entity, InvalidParameter if nobody could take the rest."""
    shares = {entity["name"]: 0 for entity in config["served_entities"]}
    shares |= contract.percentages(config)
    if name not in shares:
        raise errors.DoesNotExist(f"Served entity '{name[:200]}' does not exist.")
    others = {other: share for other, share in shares.items() if other != name}
    if not others and percentage != 100:
        raise errors.InvalidParameter(
            f"traffic_percentage: '{name}' is the only served entity and takes 100, "
            f"found {percentage}."
        )
    if not any(others.values()):
        others = dict.fromkeys(others, 1)
    rest = apportion(others, 100 - percentage)
    moved = {other: rest.get(other, percentage) for other in shares}
    before = config["traffic_config"]
    return {**config, "traffic_config": _traffic(moved, before.get("sticky"), before)}


def divide(config: Mapping[str, Any], shares: Mapping[str, int]) -> dict[str, Any]:
    """The configuration with exactly this split. shares: whole percentages that sum to 100.

    Raises Conflict if they are not of the entities that it serves."""
    served = [entity["name"] for entity in config["served_entities"]]
    strange = sorted({name for name, share in shares.items() if share} - set(served))
    if strange or sum(shares.values()) != 100:
        raise errors.Conflict(
            f"The endpoint serves {', '.join(served)}; the split was proposed for "
            f"{', '.join(shares)}."[:500]
        )
    before = config["traffic_config"]
    split = {name: shares.get(name, 0) for name in served}
    return {**config, "traffic_config": _traffic(split, before.get("sticky"), before)}


def apportion(weights: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total` in proportion to weights (not all 0): largest remainder;
    among equal remainders the larger weight, then the earlier one."""
    if not weights:
        return {}
    whole = sum(weights.values())
    quotas = {key: Fraction(total * weight, whole) for key, weight in weights.items()}
    given = {key: int(quota) for key, quota in quotas.items()}
    by_claim = sorted(weights, key=lambda key: (given[key] - quotas[key], -weights[key]))
    for key in by_claim[: total - sum(given.values())]:
        given[key] += 1
    return given


# --- states ---------------------------------------------------------------------------------------


def at_once(
    config: Mapping[str, Any],
    active: Mapping[str, Any] | None,
    deployments: Mapping[str, str],
    stopped: bool,
) -> bool:
    """Whether nothing has to start for `config`: the endpoint is stopped, or every entity is one of
    the active configuration and those with traffic are ready.

    deployments: DEPLOYMENT_* by served entity id."""
    if stopped:
        return True
    if active is None:
        return False
    running = {entity["id"] for entity in active["served_entities"]}
    shares = contract.percentages(config)
    return all(
        entity["id"] in running
        and (not shares.get(entity["name"]) or deployments.get(entity["id"]) == "DEPLOYMENT_READY")
        for entity in config["served_entities"]
    )


def is_ready(
    active: Mapping[str, Any] | None, deployments: Mapping[str, str], stopped: bool
) -> bool:
    """Whether an endpoint counts as READY: all entities of its active configuration are."""
    if active is None or stopped:
        return False
    return all(
        deployments.get(entity["id"]) == "DEPLOYMENT_READY" for entity in active["served_entities"]
    )
