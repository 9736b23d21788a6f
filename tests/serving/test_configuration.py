"""From one configuration to the next."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import errors
from serving import configuration, contract, fields, placement

MODELS = {
    ("main.f.delay", "1"): configuration.Resolved("1", "d1"),
    ("main.f.delay", "2"): configuration.Resolved("2", "d2"),
    ("main.f.delay", "@champion"): configuration.Resolved("2", "d2"),
}
_ids = itertools.count()
AUTHOR = configuration.Author("ann", 7, lambda: f"id{next(_ids)}")


def after(
    body: dict[str, Any],
    present: dict[str, Any] | None = None,
    active: dict[str, Any] | None = None,
) -> dict[str, Any]:
    request = contract.config_request(fields.Field(body, "config"), "x")
    return configuration.next_configuration(
        request, present or active, active, MODELS, ("endpoint-id", "x"), AUTHOR
    )


def entity(version: str = "1", **more: Any) -> dict[str, Any]:
    return {"entity_name": "main.f.delay", "entity_version": version, **more}


def split(**shares: int) -> dict[str, Any]:
    routes = [{"served_model_name": n, "traffic_percentage": p} for n, p in shares.items()]
    return {"routes": routes}


TWO = after(
    {
        "served_entities": [entity("1", name="a"), entity("2", name="b")],
        "traffic_config": split(a=90, b=10),
    }
)


def test_one_entity_gets_all_the_traffic_and_a_name() -> None:
    made = after({"served_entities": [entity()]})
    assert made["served_entities"][0]["name"] == "delay-1"
    assert contract.percentages(made) == {"delay-1": 100}
    assert made["auto_capture_config"] is None


def test_an_alias_is_fixed_to_the_version_it_names_now() -> None:
    made = after({"served_entities": [entity("@champion")]})
    assert made["served_entities"][0]["entity_version"] == "2"
    assert made["served_entities"][0]["name"] == "delay-2"


def test_several_entities_need_a_split() -> None:
    with pytest.raises(errors.InvalidParameter, match=r"config.traffic_config.routes: 2 served"):
        after({"served_entities": [entity("1"), entity("2")]})


def test_an_entity_without_a_route_gets_nothing() -> None:
    body = {
        "served_entities": [entity("1", name="a"), entity("2", name="b")],
        "traffic_config": split(b=100),
    }
    assert contract.percentages(after(body)) == {"a": 0, "b": 100}


def test_a_change_of_traffic_keeps_the_entities() -> None:
    made = after({"traffic_config": split(a=50, b=50)}, active=TWO)
    assert made["served_entities"] == TWO["served_entities"]
    assert contract.percentages(made) == {"a": 50, "b": 50}


def test_an_unchanged_entity_keeps_its_id_and_a_changed_one_does_not() -> None:
    body = {
        "served_entities": [entity("1", name="a"), entity("2", name="b", workload_size="Large")]
    }
    made = after(body, active=TWO)
    assert made["served_entities"][0] == TWO["served_entities"][0]
    assert made["served_entities"][1]["id"] != TWO["served_entities"][1]["id"]
    assert contract.percentages(made) == {"a": 90, "b": 10}


def test_what_never_became_active_starts_afresh() -> None:
    made = after({"traffic_config": split(a=50, b=50)}, present=TWO, active=None)
    pairs = zip(made["served_entities"], TWO["served_entities"], strict=True)
    assert all(new["id"] != old["id"] and new["name"] == old["name"] for new, old in pairs)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "config: give served_entities, traffic_config or auto_capture_config"),
        ({"served_entities": [entity("1"), entity("1")]}, r"served_entities\[1\].name: 'delay-1'"),
        ({"traffic_config": split(a=50, c=50)}, "'c' is no served entity; there are a, b."),
    ],
)
def test_a_configuration_must_fit_together(body: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.InvalidParameter, match=message):
        after(body, active=TWO)


def test_the_first_configuration_needs_entities() -> None:
    with pytest.raises(
        errors.InvalidParameter, match=r"config\.served_entities: a value is needed"
    ):
        after({"traffic_config": split(a=100)})


def test_stickiness_stays_until_it_is_named() -> None:
    sticky = after({"traffic_config": {"sticky": {"key": "caller"}}}, active=TWO)
    assert sticky["traffic_config"]["sticky"] == {"key": "caller", "salt": "endpoint-id"}
    later = after({"traffic_config": split(a=100)}, active=sticky)
    assert later["traffic_config"]["sticky"] == sticky["traffic_config"]["sticky"]
    assert (
        after({"traffic_config": {"sticky": None}}, active=later)["traffic_config"]["sticky"]
        is None
    )
    salted = after({"traffic_config": {"sticky": {"key": "caller", "salt": "s"}}}, active=later)
    assert salted["traffic_config"]["sticky"]["salt"] == "s"


def places(config: dict[str, Any]) -> list[placement.Place]:
    return [placement.Place(*each) for each in config["traffic_config"]["places"]]


def test_units_of_a_sticky_split_stay_where_they_are_unless_shares_move_them() -> None:
    first = after({"traffic_config": {"sticky": {"key": "caller"}}}, active=TWO)
    assert places(first) == placement.first({"a": 90, "b": 10})
    half = configuration.shift(first, "b", 50)
    most = configuration.shift(half, "b", 90)
    for one, other in ((first, half), (half, most)):
        assert placement.distance(places(one), places(other)) == pytest.approx(0.4)
    assert "places" not in TWO["traffic_config"]


def test_another_salt_or_key_is_a_first_split_again() -> None:
    first = after({"traffic_config": {"sticky": {"key": "caller"}}}, active=TWO)
    most = configuration.shift(first, "b", 90)
    salted = {"traffic_config": {"sticky": {"key": "caller", "salt": "s"}}}
    assert places(after(salted, active=most)) == placement.first({"a": 10, "b": 90})


def test_an_earlier_configuration_gives_back_its_units_where_none_would_move_less() -> None:
    first = after({"traffic_config": {"sticky": {"key": "caller"}}}, active=TWO)
    whole = configuration.shift(configuration.shift(first, "b", 50), "b", 100)
    back = configuration.restored(first, whole)
    assert back == first["traffic_config"]
    half = configuration.restored(configuration.shift(first, "b", 50), whole)
    assert half["places"] == configuration.shift(first, "b", 50)["traffic_config"]["places"]


def test_an_inference_table_cannot_be_renamed_while_it_is_on() -> None:
    first = after({"auto_capture_config": {"table_name_prefix": "p"}}, active=TWO)
    with pytest.raises(
        errors.InvalidParameter, match=r"auto_capture_config\.table_name_prefix: 'q'"
    ):
        after({"auto_capture_config": {"table_name_prefix": "q"}}, active=first)
    off = after({"auto_capture_config": {"enabled": False}}, active=first)
    assert off["auto_capture_config"] == {"table_name_prefix": "p", "enabled": False}
    again = after({"auto_capture_config": {"table_name_prefix": "q"}}, active=off)
    assert again["auto_capture_config"] == {"table_name_prefix": "q", "enabled": True}


def of(**shares: int) -> dict[str, Any]:
    return {
        "served_entities": [{"id": f"id-{name}", "name": name} for name in shares],
        "traffic_config": {"routes": contract.routes_of(shares), "sticky": {"key": "caller"}},
    }


@pytest.mark.parametrize(
    ("before", "name", "percentage", "meant"),
    [
        ({"a": 90, "b": 10}, "b", 100, {"a": 0, "b": 100}),
        ({"a": 90, "b": 10}, "b", 50, {"a": 50, "b": 50}),
        ({"a": 0, "b": 100, "c": 0}, "b", 90, {"a": 5, "b": 90, "c": 5}),
        ({"a": 0, "b": 100, "c": 0}, "b", 95, {"a": 3, "b": 95, "c": 2}),
        ({"a": 60, "b": 20, "c": 20}, "c", 50, {"a": 38, "b": 12, "c": 50}),
        ({"a": 33, "b": 33, "c": 34}, "c", 0, {"a": 50, "b": 50, "c": 0}),
        ({"a": 100}, "a", 100, {"a": 100}),
    ],
)
def test_the_others_share_the_rest_in_their_proportions(
    before: dict[str, int], name: str, percentage: int, meant: dict[str, int]
) -> None:
    assert contract.percentages(configuration.shift(of(**before), name, percentage)) == meant


def test_a_shift_keeps_stickiness_and_entities() -> None:
    made = configuration.shift(of(a=90, b=10), "b", 20)
    assert made["traffic_config"]["sticky"] == {"key": "caller"}
    assert made["served_entities"] == of(a=90, b=10)["served_entities"]


def test_a_proposed_split_is_taken_whole_or_not_at_all() -> None:
    assert contract.percentages(configuration.divide(TWO, {"a": 100})) == {"a": 100, "b": 0}
    for strange in ({"a": 90, "c": 10}, {"a": 90}):
        with pytest.raises(errors.Conflict, match="serves a, b"):
            configuration.divide(TWO, strange)


def test_a_shift_needs_a_known_entity_and_somebody_for_the_rest() -> None:
    with pytest.raises(errors.DoesNotExist, match="Served entity 'c' does not exist"):
        configuration.shift(of(a=90, b=10), "c", 50)
    with pytest.raises(errors.InvalidParameter, match="'a' is the only served entity"):
        configuration.shift(of(a=100), "a", 50)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 100), min_size=1), st.integers(0, 100))
def test_apportioning_gives_all_of_it_within_one_of_the_quota(
    weights: dict[str, int], total: int
) -> None:
    weights["more"] = 1
    given_out = configuration.apportion(weights, total)
    assert sum(given_out.values()) == total
    whole = sum(weights.values())
    assert all(abs(given_out[k] - total * w / whole) < 1 for k, w in weights.items())


READY = {"id-a": "DEPLOYMENT_READY", "id-b": "DEPLOYMENT_READY"}


@pytest.mark.parametrize(
    ("config", "active", "deployments", "stopped", "meant"),
    [
        (of(a=50, b=50), of(a=90, b=10), READY, False, True),
        (of(a=50, b=50), of(a=90, b=10), {**READY, "id-b": "DEPLOYMENT_RECOVERING"}, False, False),
        (of(a=100, b=0), of(a=90, b=10), {**READY, "id-b": "DEPLOYMENT_RECOVERING"}, False, True),
        (of(a=50, c=50), of(a=90, b=10), {**READY, "id-c": "DEPLOYMENT_READY"}, False, False),
        (of(a=100), None, READY, False, False),
        (of(c=100), of(a=100), {}, True, True),
    ],
)
def test_only_a_move_between_ready_entities_needs_no_start(
    config: Any, active: Any, deployments: dict[str, str], stopped: bool, meant: bool
) -> None:
    assert configuration.at_once(config, active, deployments, stopped) is meant


def test_ready_means_every_active_entity() -> None:
    assert configuration.is_ready(of(a=100, b=0), READY, False)
    assert not configuration.is_ready(of(a=100, c=0), READY, False)
    assert not configuration.is_ready(of(a=100), READY, True)
    assert not configuration.is_ready(None, READY, False)
