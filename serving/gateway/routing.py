"""The route table: which entity answers a request. Pure; drawn from a snapshot, never changed.

A request without a sticky key is drawn by chance, by the exact percentages. With one, its unit has
a position in [0, 1), and entities own stretches of that line with the lengths of their shares
(serving/placement.py; experiments.md, "Sticky assignment").
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from serving import placement, state

# Where a sticky key is found, by its prefix in the configuration.
IN_BODY = ("client_request_id", "usage_context.", "feature:")


class Choice(NamedTuple):
    """The entity that answers. `share`: 0..1, None if the split did not draw it; `split`: the whole
    split as JSON; `unit_id`: hash of the unit, hexadecimal; `header`: a reply's, with its name."""

    entity: state.EntityView
    share: float | None
    split: str | None
    unit_id: str | None
    header: bytes


def choice(
    entity: state.EntityView,
    share: float | None = None,
    split: str | None = None,
    unit_id: str | None = None,
) -> Choice:
    """A choice with its header."""
    return Choice(entity, share, split, unit_id, f"served-model-name: {entity.name}\r\n".encode())


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint: its entities, and how a request is drawn. by_unit, by_chance: (end, number of
    the entity) of stretches of [0, 1), in order; the last ends at 1. choices: by number of the
    entity, for requests without a unit."""

    endpoint: state.EndpointView
    by_unit: tuple[tuple[float, int], ...]
    by_chance: tuple[tuple[float, int], ...]
    choices: tuple[Choice, ...] = field(repr=False)
    by_name: Mapping[str, state.EntityView] = field(repr=False)

    @property
    def key_in_body(self) -> bool:
        """Whether the sticky key lies in the body, which has to be read for it."""
        key = self.endpoint.sticky_key
        return key is not None and key.startswith(IN_BODY)

    def draw(self, key: str | None, random: float) -> Choice:
        """The entity of a request. `key`: routing key of its unit, None for a draw by `random`
        (uniform over [0, 1)). The endpoint must have an entity."""
        if key is None:
            return self.choices[_owner(self.by_chance, random)]
        digest = unit_digest(key, self.endpoint.sticky_salt)
        number = _owner(self.by_unit, position(digest))
        return self.choices[number]._replace(unit_id=digest.hex())


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All endpoints at one moment. `targets`: request target -> (endpoint, entity name or None)."""

    snapshot: state.Snapshot
    routes: Mapping[str, Route]
    targets: Mapping[bytes, tuple[str, str | None]]

    def entities(self) -> list[tuple[state.EndpointView, state.EntityView]]:
        """Every entity that may be asked."""
        return [
            (route.endpoint, entity)
            for route in self.routes.values()
            for entity in route.endpoint.entities
        ]


def table(snapshot: state.Snapshot) -> RouteTable:
    """The route table of a snapshot."""
    routes = {endpoint.name: route(endpoint) for endpoint in snapshot.endpoints}
    targets: dict[bytes, tuple[str, str | None]] = {}
    for name, one in routes.items():
        base = f"/serving-endpoints/{name}"
        targets[f"{base}/invocations".encode()] = (name, None)
        for entity in one.endpoint.entities:
            targets[f"{base}/served-models/{entity.name}/invocations".encode()] = (
                name,
                entity.name,
            )
    return RouteTable(snapshot, routes, targets)


def route(endpoint: state.EndpointView) -> Route:
    """How requests to one endpoint are drawn."""
    names = [entity.name for entity in endpoint.entities]
    shares = {entity.name: entity.percentage for entity in endpoint.entities}
    places = sorted(endpoint.places or placement.first(shares))
    split = orjson.dumps(shares).decode()
    return Route(
        endpoint,
        _stretches([(place.end, names.index(place.owner)) for place in places]),
        _cumulative(list(shares.values())),
        tuple(choice(each, each.percentage / 100, split) for each in endpoint.entities),
        {entity.name: entity for entity in endpoint.entities},
    )


def _owner(stretches: tuple[tuple[float, int], ...], place: float) -> int:
    """Whose stretch a place in [0, 1) lies in."""
    for end, owner in stretches:
        if place < end:
            return owner
    return stretches[-1][1]


def _cumulative(percentages: Sequence[int]) -> tuple[tuple[float, int], ...]:
    """(end, owner) of stretches of [0, 1) with the lengths of the shares; the last ends at 1."""
    found: list[tuple[float, int]] = []
    total = 0
    for number, share in enumerate(percentages):
        if share > 0:
            total += share
            found.append((total / 100, number))
    return _stretches(found)


def _stretches(found: Sequence[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """The last one ends at 1, whatever was rounded."""
    if not found:
        return ((1.0, 0),)
    return (*found[:-1], (1.0, found[-1][1]))


def unit_digest(key: str, salt: str) -> bytes:
    """SHA-256 of salt, 0x00, routing key: its first 8 bytes place a unit, its hexadecimal form is
    all that is stored of it."""
    return hashlib.sha256(salt.encode() + b"\0" + key.encode("utf-8", "replace")).digest()


def position(digest: bytes) -> float:
    """Place of a unit in [0, 1): uniform over units, the same on every gateway and after every
    restart."""
    return int.from_bytes(digest[:8], "big") / 2**64


def header_name(sticky_key: str | None) -> bytes | None:
    """The header that holds the routing key, in lower case; None if it lies elsewhere."""
    if sticky_key is None or not sticky_key.startswith("header:"):
        return None
    return sticky_key.removeprefix("header:").lower().encode()


def key_in_body(body: object, sticky_key: str) -> str | None:
    """The routing key in a parsed body: client_request_id, usage_context.NAME or feature:COLUMN
    (of the first row); None if it is not there."""
    if not isinstance(body, dict):
        return None
    if sticky_key == "client_request_id":
        return _text(body.get("client_request_id"))
    if sticky_key.startswith("usage_context."):
        usage = body.get("usage_context")
        name = sticky_key.removeprefix("usage_context.")
        return _text(usage.get(name)) if isinstance(usage, dict) else None
    return _text(_first_value(body, sticky_key.removeprefix("feature:")))


def _first_value(body: dict[str, object], column: str) -> object:
    split = body.get("dataframe_split")
    if isinstance(split, dict):
        columns, data = split.get("columns"), split.get("data")
        if not (isinstance(columns, list) and isinstance(data, list) and column in columns):
            return None
        place = columns.index(column)
        first = data[0] if data else None
        return first[place] if isinstance(first, list) and place < len(first) else None
    for form in ("dataframe_records", "instances"):
        rows = body.get(form)
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            return rows[0].get(column)
    inputs = body.get("inputs")
    if isinstance(inputs, dict):
        values = inputs.get(column)
        return (values[0] if values else None) if isinstance(values, list) else values
    return None


def _text(value: object) -> str | None:
    """A scalar as the text that is hashed: a string as it is, others as their JSON."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (dict, list)):
        return None
    return orjson.dumps(value).decode()
