"""What is kept of a part of custom metrics for some rows: sums that add up. Pure.

Values that are no finite number are left out, as in the profiles. The moments merge by the pairwise
formula of Chan, Golub and LeVeque (1979).
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from typing import TYPE_CHECKING, Any

import polars as pl

from capture import errors

if TYPE_CHECKING:
    from monitors import custom_metrics

Group = tuple[str | None, str]  # (model version or None for all, key of the part)


@dataclass(frozen=True, slots=True)
class Sums:
    """n: finite values; m2: of their squared distances from the mean. broken: some of the rows
    could not be computed, so nothing can be said of all."""

    n: int = 0
    total: float = 0.0
    m2: float = 0.0
    minimum: float | None = None
    maximum: float | None = None
    broken: bool = False


KIND = "sums"  # in a file that holds profiles, too
NONE = Sums()
BROKEN = Sums(broken=True)


def merge(a: Sums, b: Sums) -> Sums:
    """The sums of the rows of both."""
    if a.broken or b.broken:
        return BROKEN
    if not a.n or not b.n:
        return a if a.n else b
    assert a.minimum is not None and b.minimum is not None
    assert a.maximum is not None and b.maximum is not None
    apart = b.total / b.n - a.total / a.n
    return Sums(
        n=a.n + b.n,
        total=a.total + b.total,
        m2=a.m2 + b.m2 + apart * apart * (a.n / (a.n + b.n)) * b.n,
        minimum=min(a.minimum, b.minimum),
        maximum=max(a.maximum, b.maximum),
    )


def added(a: Mapping[Group, Sums], b: Mapping[Group, Sums]) -> dict[Group, Sums]:
    """Both, group by group."""
    return {group: merge(a.get(group, NONE), b.get(group, NONE)) for group in {**a, **b}}


def statistic(sums: Sums, name: str) -> float | None:
    """`count`, `sum`, `avg`, `min`, `max`, `stddev_samp`, `stddev_pop`, `var_samp`, `var_pop`; None
    where there are too few values, or beyond the range of a double."""
    if sums.broken:
        return None
    found = _statistic(sums, name)
    return found if found is not None and isfinite(found) else None


def _statistic(sums: Sums, name: str) -> float | None:
    if name == "count":
        return sums.total
    if sums.n == 0:
        return None
    match name:
        case "sum":
            return sums.total
        case "avg":
            return sums.total / sums.n
        case "min":
            return sums.minimum
        case "max":
            return sums.maximum
    kind, _, of = name.partition("_")
    freedom = sums.n - 1 if of == "samp" else sums.n
    if freedom == 0:
        return None
    variance = sums.m2 / freedom
    return sqrt(variance) if kind == "stddev" else variance


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows with a column per part. columns: part -> its column; broken: part -> why these rows'
    types do not fit it."""

    rows: pl.DataFrame
    columns: Mapping[str, str]
    broken: Mapping[str, str]


def prepared(rows: pl.DataFrame, parts: Iterable["custom_metrics.Part"]) -> Prepared:
    """Compute the parts of every row."""
    values: list[pl.Series] = []
    columns: dict[str, str] = {}
    broken: dict[str, str] = {}
    for number, part in enumerate(parts):
        try:
            found = part.values(rows)
        except errors.InvalidParameter as error:
            broken[part.key] = error.message
            continue
        columns[part.key] = f"__part_{number}"
        values.append(found.alias(columns[part.key]))
    return Prepared(rows.with_columns(values), columns, broken)


def measured(given: Prepared, rows: pl.DataFrame, model: str | None) -> dict[Group, Sums]:
    """The sums of some of the prepared rows, per version and of all together."""
    found: dict[Group, Sums] = {}
    if not given.columns and not given.broken:
        return found
    wanted = [pl.len(), *(one for name in given.columns.values() for one in _moments(name))]
    split = model if model is not None and model in rows.columns else None
    if split is None:
        by_version = {None: rows.select(wanted).row(0)}
    else:
        grouped = rows.group_by(pl.col(split).cast(pl.String).alias("__version")).agg(wanted)
        by_version = {row[0]: row[1:] for row in grouped.iter_rows()}
    for version, numbers in by_version.items():
        for number, key in enumerate(given.columns):
            one = _sums(numbers[1 + 5 * number : 6 + 5 * number])
            found[None, key] = merge(found.get((None, key), NONE), one)
            if version is not None:
                found[version, key] = one
    for key in given.broken:
        found |= {(version, key): BROKEN for version in (None, *by_version)}
    return found


def _moments(name: str) -> Iterable[pl.Expr]:
    one = pl.col(name)
    return (
        one.count().alias(f"{name}_n"),
        one.sum().alias(f"{name}_sum"),
        (one - one.mean()).pow(2).sum().alias(f"{name}_m2"),
        one.min().alias(f"{name}_min"),
        one.max().alias(f"{name}_max"),
    )


def _sums(numbers: tuple[Any, ...]) -> Sums:
    n, total, m2, minimum, maximum = numbers
    return Sums(n, total, m2, minimum, maximum) if n else NONE


def together(parts: Iterable[Mapping[Group, Sums]]) -> dict[Group, Sums]:
    """All of them, group by group."""
    return functools.reduce(added, parts, {})


def to_dict(sums: Sums) -> dict[str, Any]:
    """JSON-able."""
    if sums.broken:
        return {"kind": KIND, "broken": True}
    return {
        "kind": KIND,
        "n": sums.n,
        "total": sums.total if isfinite(sums.total) else None,
        "m2": sums.m2 if isfinite(sums.m2) else None,
        "minimum": sums.minimum,
        "maximum": sums.maximum,
    }


def from_dict(stored: Mapping[str, Any]) -> Sums:
    """The sums that to_dict was given."""
    if stored.get("broken"):
        return BROKEN
    numbers = {name: nan if stored[name] is None else stored[name] for name in ("total", "m2")}
    return Sums(stored["n"], numbers["total"], numbers["m2"], stored["minimum"], stored["maximum"])
