"""Values as JSON brings them -> typed columns."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture import columns

NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "double"),
        ([1, 2.5, None, True], "double"),
        ([1, 2**53 + 1], "int64"),
        ([1, 2**70], "string"),
        ([True, None], "bool"),
        (["a", None], "string"),
        (["2013-07-01T12:00:00Z", "2013-07-01"], "timestamp"),
        (["2013-07-01T12:00:00Z", "soon"], "string"),
        (["20130701"], "string"),
        ([1, "a"], "string"),
        ([[1, 2]], "string"),
        ([None], None),
        ([], None),
    ],
)
def test_a_kind_is_found_from_values(values, kind):
    assert columns.kind_of(values) == kind


@pytest.mark.parametrize(
    ("kind", "values", "fitted", "misfits"),
    [
        ("double", [1, 2.5, True, None], [1.0, 2.5, 1.0, None], {}),
        ("double", [1, "a", 10**400], [1.0, None, None], {1: '"a"', 2: "1" + "0" * 59 + "..."}),
        ("double", [2**60], [float(2**60)], {}),
        ("int64", [1, 2.0, None], [1, 2, None], {}),
        ("int64", [5.5, True, 2**63], [None] * 3, {0: "5.5", 1: "true", 2: str(2**63)}),
        ("string", ["a", 7, 1.5, True, [1, "ü"]], ["a", "7", "1.5", "true", '[1,"ü"]'], {}),
        ("string", ["\ud800"], ["?"], {}),
        ("bool", [True, None, 1], [True, None, None], {2: "1"}),
        (
            "timestamp",
            ["2013-07-01T14:00:00+02:00", "2013-07-01 12:00", None, "soon", 5],
            [NOON, NOON, None, None, None],
            {3: '"soon"', 4: "5"},
        ),
    ],
)
def test_what_does_not_fit_is_null_and_named(kind, values, fitted, misfits):
    found = columns.typed(values, kind)
    assert found.array.to_pylist() == fitted
    assert found.misfits == misfits


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


@given(values=st.lists(json_values, max_size=8), kind=st.sampled_from(sorted(columns.ARROW)))
def test_every_value_is_either_kept_or_named(values, kind):
    found = columns.typed(values, kind)
    assert found.array.type == columns.ARROW[kind]
    for place, value in enumerate(found.array.to_pylist()):
        assert (value is None) == (values[place] is None or place in found.misfits)


@given(values=st.lists(json_values, max_size=8))
def test_no_value_is_a_misfit_in_the_column_that_was_found_from_it(values):
    kind = columns.kind_of(values)
    if kind is None:
        assert all(value is None for value in values)
    elif kind != "double":  # among fractions a whole number may be too large for a double
        assert columns.typed(values, kind).misfits == {}
