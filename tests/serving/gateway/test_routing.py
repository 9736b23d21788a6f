import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import placement, state
from serving.gateway import routing


def endpoint(percentages, key="client_request_id", salt="s"):
    entities = tuple(
        state.EntityView(f"id{n}", f"v{n}", "m", str(n), share, 4, "custom", ())
        for n, share in enumerate(percentages)
    )
    return state.EndpointView("e1", "e", False, False, 1, entities, key, salt, (), None)


def owners(percentages, units, salt="s"):
    route = routing.route(endpoint(percentages, salt=salt))
    return [route.draw(unit, 0.5).entity.name for unit in units]


UNITS = [f"flight-{number}" for number in range(4000)]
splits = st.lists(st.integers(0, 100), min_size=1, max_size=5).map(
    lambda weights: to_hundred(weights)
)


def to_hundred(weights):
    total = sum(weights) or 1
    shares = [weight * 100 // total for weight in weights]
    shares[0] += 100 - sum(shares)
    return shares


def test_a_units_place_is_the_first_eight_bytes_of_the_salted_hash():
    digest = routing.unit_digest("u", "salt")
    assert digest == hashlib.sha256(b"salt\0u").digest()
    assert routing.position(digest) == int.from_bytes(digest[:8], "big") / 2**64


def test_units_lie_where_the_configuration_says():
    view = endpoint([50, 50])
    places = (placement.Place(0.0, 0.25, "v0"), placement.Place(0.25, 0.75, "v1"),
              placement.Place(0.75, 1.0, "v0"))  # fmt: skip
    route = routing.route(dataclasses.replace(view, places=places))
    for unit in UNITS[:200]:
        inside = 0.25 <= routing.position(routing.unit_digest(unit, "s")) < 0.75
        assert route.draw(unit, 0.5).entity.name == ("v1" if inside else "v0")


@given(percentages=splits, random=st.floats(0, 1, exclude_max=True))
def test_a_draw_by_chance_never_gives_an_entity_without_a_share(percentages, random):
    choice = routing.route(endpoint(percentages)).draw(None, random)
    assert choice.entity.percentage > 0
    assert choice.unit_id is None
    assert choice.share == choice.entity.percentage / 100


@given(percentages=splits)
def test_draws_by_chance_have_the_exact_percentages(percentages):
    route = routing.route(endpoint(percentages))
    drawn = [route.draw(None, (n + 0.5) / 10_000).entity for n in range(10_000)]
    for entity in route.endpoint.entities:
        assert abs(drawn.count(entity) - entity.percentage * 100) <= 1


@pytest.mark.parametrize("percentages", [[90, 10], [50, 50], [60, 30, 10], [0, 100]])
def test_shares_of_units_converge(percentages):
    found = owners(percentages, UNITS)
    for number, share in enumerate(percentages):
        assert abs(found.count(f"v{number}") / len(UNITS) - share / 100) < 0.03


def test_growing_a_share_moves_units_from_the_champion_only():
    before, after = owners([80, 10, 10], UNITS), owners([60, 30, 10], UNITS)
    moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {("v0", "v1")}


def test_shrinking_sends_the_same_units_back():
    assert owners([90, 10], UNITS) == owners([90, 10], UNITS)
    grown, back = owners([50, 50], UNITS), owners([90, 10], UNITS)
    assert all(new in (old, "v0") for old, new in zip(grown, back, strict=True))


def test_another_salt_is_another_draw():
    assert owners([50, 50], UNITS) != owners([50, 50], UNITS, salt="t")


def test_the_split_and_the_units_hash_are_told():
    choice = routing.route(endpoint([75, 25])).draw("u", 0.0)
    assert choice.split == '{"v0":75,"v1":25}'
    assert choice.unit_id == hashlib.sha256(b"s\0u").hexdigest()


@pytest.mark.parametrize(
    ("body", "key", "found"),
    [
        ({"client_request_id": "r"}, "client_request_id", "r"),
        ({"client_request_id": 7}, "client_request_id", "7"),
        ({"usage_context": {"team": "a"}}, "usage_context.team", "a"),
        ({"usage_context": "a"}, "usage_context.team", None),
        ({"dataframe_records": [{"user": 5}, {"user": 6}]}, "feature:user", "5"),
        ({"dataframe_split": {"columns": ["a", "user"], "data": [[1, "u"]]}}, "feature:user", "u"),
        ({"dataframe_split": {"columns": ["user"], "data": []}}, "feature:user", None),
        ({"instances": [{"user": True}]}, "feature:user", "true"),
        ({"inputs": {"user": ["x", "y"]}}, "feature:user", "x"),
        ({"inputs": {"user": None}}, "feature:user", None),
        ([1], "client_request_id", None),
    ],
)
def test_a_routing_key_is_found_in_the_body(body, key, found):
    assert routing.key_in_body(body, key) == found


def test_a_routing_key_may_be_a_header():
    assert routing.header_name("header:X-User") == b"x-user"
    assert routing.header_name("caller") is None


def test_the_table_knows_every_target():
    table = routing.table(state.Snapshot((endpoint([100]),), {}, {}, frozenset()))
    assert table.targets == {
        b"/serving-endpoints/e/invocations": ("e", None),
        b"/serving-endpoints/e/served-models/v0/invocations": ("e", "v0"),
    }
