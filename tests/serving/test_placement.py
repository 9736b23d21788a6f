"""A change of the split moves as few units as any change could."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import placement

NAMES = ("v1", "v2", "v3", "v4")


def split(weights: list[int]) -> dict[str, int]:
    total = sum(weights) or 1
    shares = [weight * 100 // total for weight in weights]
    shares[0] += 100 - sum(shares)
    return dict(zip(NAMES, shares, strict=False))


splits = st.lists(st.integers(0, 100), min_size=1, max_size=4).map(split)


def variation(one: dict[str, int], other: dict[str, int]) -> float:
    """Total variation distance of two splits, 0..1."""
    names = one.keys() | other.keys()
    return sum(abs(one.get(name, 0) - other.get(name, 0)) for name in names) / 200


def lengths(places: list[placement.Place]) -> dict[str, float]:
    found: dict[str, float] = {}
    for place in places:
        found[place.owner] = found.get(place.owner, 0.0) + place.length
    return found


@given(history=st.lists(splits, min_size=1, max_size=8))
def test_every_change_moves_the_total_variation_distance_and_gives_exact_percentages(
    history: list[dict[str, int]],
) -> None:
    places, before = placement.first(history[0]), history[0]
    for shares in history:
        after = placement.moved(places, shares)
        assert placement.distance(places, after) == pytest.approx(variation(before, shares))
        found = lengths(after)
        assert sum(found.values()) == pytest.approx(1)
        for name, share in shares.items():
            assert found.get(name, 0) == pytest.approx(share / 100, abs=1e-8)
        in_order = sorted(after)
        assert all(
            one.end == pytest.approx(other.start, abs=1e-8) for one, other in pairwise(in_order)
        )
        places, before = after, shares


@given(ramp=st.lists(st.integers(1, 99), min_size=1, max_size=6), share=st.integers(0, 100))
def test_two_versions_lie_where_the_first_rule_puts_them_however_they_got_there(
    ramp: list[int], share: int
) -> None:
    places = placement.first({"v1": 90, "v2": 10})
    for percentage in ramp:
        places = placement.moved(places, {"v1": 100 - percentage, "v2": percentage})
        assert placement.owner(places, 0.0) == "v2"
        assert placement.owner(places, percentage / 100 + 1e-6) == "v1"


def test_promotion_from_half_to_nine_tenths_moves_four_tenths() -> None:
    half = placement.first({"v1": 50, "v2": 50})
    most = placement.moved(half, {"v1": 10, "v2": 90})
    assert placement.distance(half, most) == pytest.approx(0.4)
    assert placement.distance(most, placement.moved(most, {"v1": 50, "v2": 50})) == pytest.approx(
        0.4
    )


def test_a_share_that_grew_and_shrinks_has_its_old_units_again() -> None:
    before = placement.first({"v1": 70, "v2": 20, "v3": 10})
    grown = placement.moved(before, {"v1": 39, "v2": 11, "v3": 50})
    back = placement.moved(grown, {"v1": 70, "v2": 20, "v3": 10})
    assert placement.distance(before, grown) == pytest.approx(0.4)
    assert placement.distance(before, back) == pytest.approx(0)


def test_challenger_j_owns_its_slot_from_j_over_k_and_the_largest_share_the_rest() -> None:
    found = placement.first({"v1": 70, "v2": 20, "v3": 10})
    assert [place.owner for place in sorted(found)] == ["v2", "v1", "v3", "v1"]
    assert [place.start for place in sorted(found)] == pytest.approx([0, 0.2, 0.5, 0.6])
    assert placement.first({"v1": 10, "v2": 90})[0] == placement.Place(0.0, 0.1, "v1")
    assert placement.first({"v1": 50, "v2": 50})[0] == placement.Place(0.0, 0.5, "v2")


def test_an_entity_that_leaves_gives_everything_and_nobody_else_moves() -> None:
    before = placement.first({"v1": 60, "v2": 30, "v3": 10})
    after = placement.moved(before, {"v1": 60, "v2": 40})
    assert placement.distance(before, after) == pytest.approx(0.1)
