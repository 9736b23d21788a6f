"""The written definition of a model's features: what a client sends, what the endpoint adds. Pure.

Stored as `feature_spec.json` beside the model. `defaults` and `renames` go by the name of the
feature in its table; everything else about a feature goes by its output name, which is the model's
column.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from capture import errors

FILE_NAME = "feature_spec.json"
KINDS = ("double", "int64", "string", "bool", "timestamp")


@dataclass(frozen=True, slots=True)
class TableLookup:
    """Features of one table, found by request columns in the order of its primary keys."""

    table: str
    lookup_key: tuple[str, ...]
    features: tuple[str, ...]
    renames: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    timestamp_key: str | None = None  # request column; null: the newest row
    lookback_seconds: float | None = None  # older rows count as missing; null: any age
    table_version: int | None = None  # Delta version that the model was trained on

    @property
    def outputs(self) -> tuple[str, ...]:
        """Column names that the model sees, in the order of `features`."""
        return tuple(self.renames.get(name, name) for name in self.features)


@dataclass(frozen=True, slots=True)
class Spec:
    """All lookups of a model. Columns: name -> `double`, `int64`, `string`, `bool`, `timestamp`."""

    lookups: tuple[TableLookup, ...]
    request_columns: dict[str, str] = field(default_factory=dict)
    looked_up_columns: dict[str, str] = field(default_factory=dict)


def parse(definition: Mapping[str, Any]) -> Spec:
    """The definition in a `feature_spec.json`. Raises InvalidParameter, naming the field."""
    try:
        spec = msgspec.convert(definition, Spec)
    except msgspec.ValidationError as error:
        raise errors.InvalidParameter(f"{FILE_NAME}: {error}.") from error
    check(spec)
    return spec


def check(spec: Spec) -> None:
    """Raise InvalidParameter where lookups are empty, collide or name what they do not have."""
    taken: dict[str, str] = {}
    for lookup in spec.lookups:
        if not lookup.lookup_key:
            raise errors.InvalidParameter(f"lookup_key of table '{lookup.table}' is empty.")
        for name in (*lookup.renames, *lookup.defaults):
            if name not in lookup.features:
                raise errors.InvalidParameter(
                    f"'{name}' is renamed or has a default, but is not among the features of "
                    f"'{lookup.table}': {', '.join(lookup.features)[:500]}."
                )
        for output in lookup.outputs:
            if output in taken:
                raise errors.InvalidParameter(
                    f"Feature '{output}' comes from both '{taken[output]}' and '{lookup.table}'; "
                    "rename one of them."
                )
            taken[output] = lookup.table
    for name, kind in {**spec.request_columns, **spec.looked_up_columns}.items():
        if kind not in KINDS:
            raise errors.InvalidParameter(
                f"Column '{name}' has the type '{kind}'; allowed are {', '.join(KINDS)}."
            )


def written(spec: Spec) -> dict[str, Any]:
    """The definition as it is stored: JSON values only."""
    return msgspec.to_builtins(spec)
