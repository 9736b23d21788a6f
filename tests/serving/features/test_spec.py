"""The written definition: what it accepts, what it names when it refuses."""

import json

import pytest

from capture import errors
from serving.features import spec

WRITTEN = {
    "lookups": [
        {
            "table": "main.flights.planes",
            "lookup_key": ["tailnum"],
            "features": ["seats", "year"],
            "renames": {"year": "built"},
            "defaults": {"seats": 150},
            "timestamp_key": None,
        }
    ],
    "request_columns": {"tailnum": "string"},
}


def test_a_written_definition_comes_back_as_it_was():
    parsed = spec.parse(WRITTEN)
    assert spec.parse(json.loads(json.dumps(spec.written(parsed)))) == parsed
    assert parsed.lookups[0].outputs == ("seats", "built")


def test_a_definition_without_lookups_is_allowed():
    assert spec.parse({"lookups": []}).lookups == ()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": "seats"}, "features"),
        ({"table": None}, "table"),
        ({"lookup_key": []}, "lookup_key"),
        ({"renames": {"engines": "e"}}, "engines"),
        ({"defaults": {"engines": 2}}, "engines"),
        ({"renames": {"year": "seats"}}, "seats"),
    ],
)
def test_a_broken_lookup_is_refused_by_name(change, named):
    broken = {**WRITTEN, "lookups": [{**WRITTEN["lookups"][0], **change}]}
    with pytest.raises(errors.InvalidParameter, match=named):
        spec.parse(broken)


def test_an_unknown_kind_of_column_is_refused_by_name():
    with pytest.raises(errors.InvalidParameter, match="decimal"):
        spec.parse({"lookups": [], "request_columns": {"x": "decimal"}})
