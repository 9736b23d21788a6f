"""What is kept of the rows of one file, window, version, slice and column. Merge is addition.

Numbers: counts, moments, a sparse histogram over the leading bits (bins.py) and exact counts of the
heaviest single values. Categories: exact counts of the heaviest values. Both: registers that count
distinct values. Source: monitors.md, "Profile".
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, sqrt
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import bins, cells, heavy, registers, shapes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Registers = registers.Registers
Kind = Literal["numeric", "categorical"]

_BLOCK = 16_384
_NO_INTS: Ints = np.empty(0, dtype=np.int64)
_NO_FLOATS: Floats = np.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class NumericProfile:
    """Numbers and times. rows counts everything; mean, m2, bins and atoms the finite values only.

    keys, counts: the bins. atom_values, atom_counts: the heaviest single values, with the rows of
    the files in which they were heavy: exact there, so a lower limit after merging."""

    centre: float
    rows: int = 0
    nulls: int = 0
    nans: int = 0
    infinities: int = 0
    zeros: int = 0
    minimum: float | None = None
    maximum: float | None = None
    mean: float = 0.0
    m2: float = 0.0
    keys: Ints = field(default_factory=lambda: _NO_INTS)
    counts: Ints = field(default_factory=lambda: _NO_INTS)
    atom_values: Floats = field(default_factory=lambda: _NO_FLOATS)
    atom_counts: Ints = field(default_factory=lambda: _NO_INTS)
    registers: Registers = field(default_factory=lambda: registers.NONE)

    @property
    def kind(self) -> Kind:
        return "numeric"

    @property
    def values_count(self) -> int:
        """Rows with a value: neither null nor NaN."""
        return self.rows - self.nulls - self.nans

    @property
    def finite(self) -> int:
        """Rows with a finite value."""
        return self.values_count - self.infinities


@dataclass(frozen=True, slots=True, eq=False)
class CategoricalProfile:
    """Texts, booleans, categories. other: rows whose value is not among `values`.

    Lengths are in characters; None where the column is no text or holds none."""

    rows: int = 0
    nulls: int = 0
    values: Mapping[str, int] = field(default_factory=dict)
    other: int = 0
    min_length: int | None = None
    max_length: int | None = None
    total_length: int | None = None
    registers: Registers = field(default_factory=lambda: registers.NONE)

    @property
    def kind(self) -> Kind:
        return "categorical"

    @property
    def values_count(self) -> int:
        """Rows with a value."""
        return self.rows - self.nulls


Profile = NumericProfile | CategoricalProfile


def kind_of(dtype: pl.DataType) -> Kind:
    """Numbers, times and lists (their length) are numeric; texts, booleans and the rest are not."""
    if dtype == pl.Boolean:
        return "categorical"
    lists = isinstance(dtype, pl.List | pl.Array)
    return "numeric" if dtype.is_numeric() or dtype.is_temporal() or lists else "categorical"


def choose_centre(series: pl.Series) -> float:
    """Where the bins are finest: the median, or 0 where the data lie around 0.

    To be chosen once per column and stored: only profiles of one centre merge and compare."""
    sample = cells.floats(series).gather_every(max(1, len(series) // 100_000)).drop_nulls()
    values = sample.filter(sample.is_finite())
    if len(values) == 0:
        return 0.0
    low, median, high = (_quantile_of(values, q) for q in (0.25, 0.5, 0.75))
    return median if 4 * abs(median) > high - low else 0.0


def profile_column(series: pl.Series, kind: Kind, centre: float = 0.0) -> Profile:
    """The profile of a column. centre: of a numeric one, in its unit (times: microseconds).

    A text in a numeric column that is no number counts as null."""
    return _numeric(series, centre) if kind == "numeric" else _categorical(series)


def of_counts(values: pl.Series, counts: Ints, rows: int) -> CategoricalProfile:
    """The profile of a text column whose distinct values and their counts are known, as those of a
    Parquet dictionary. rows: nulls included."""
    return _of_categories(values, counts, rows, with_lengths=True)


def empty(kind: Kind, centre: float = 0.0) -> Profile:
    """The profile of no rows: merging it changes nothing."""
    return NumericProfile(centre) if kind == "numeric" else CategoricalProfile()


def by_label(
    scores: pl.Series, labels: pl.Series, centre: float = 0.0
) -> dict[str, NumericProfile]:
    """The profile of the scores for each value of the label; rows without a label are left out."""
    texts = cells.texts(labels).filter(pl.Series(cells.present(labels)))
    scores = scores.filter(pl.Series(cells.present(labels)))
    return {
        value: _numeric(scores.filter(texts == value), centre)
        for value in texts.unique().sort().to_list()
    }


def merge(a: Profile, b: Profile) -> Profile:
    """The profile of the rows of both. Raises ValueError where kinds or centres differ."""
    if isinstance(a, NumericProfile) and isinstance(b, NumericProfile):
        if a.centre != b.centre:
            raise ValueError(f"Profiles have different centres: {a.centre!r} and {b.centre!r}.")
        return _merge_numeric(a, b)
    if isinstance(a, CategoricalProfile) and isinstance(b, CategoricalProfile):
        return _merge_categorical(a, b)
    raise ValueError(f"Profiles of different kinds: {a.kind} and {b.kind}.")


def compact(profile: Profile) -> Profile:
    """Forget the light single values that many merges gathered; every count stays right."""
    if isinstance(profile, NumericProfile):
        values, counts = heavy.numbers(profile.atom_values, profile.atom_counts)
        return replace(profile, atom_values=values, atom_counts=counts)
    kept = heavy.categories(profile.values)
    gone = sum(profile.values.values()) - sum(kept.values())
    return replace(profile, values=kept, other=profile.other + gone)


def standard_deviation(profile: NumericProfile) -> float | None:
    """Of the finite values (n - 1); None for fewer than two, or beyond the range of a double."""
    if profile.finite < 2 or not isfinite(profile.m2):
        return None
    return sqrt(max(0.0, profile.m2) / (profile.finite - 1))


def average(profile: NumericProfile) -> float | None:
    """Mean of the finite values; None without any."""
    return profile.mean if profile.finite > 0 and isfinite(profile.mean) else None


def distinct(profile: Profile) -> int:
    """Distinct values: exact where all are kept, else within a few percent."""
    if isinstance(profile, CategoricalProfile):
        known, complete = len(profile.values), profile.other == 0
    else:
        known = len(profile.atom_values)
        complete = int(profile.atom_counts.sum()) == profile.finite
    if complete:
        return known
    estimate = round(registers.estimate(profile.registers))
    return max(known, min(estimate, profile.values_count))


def percent_null(profile: Profile) -> float | None:
    """Nulls in percent of the rows."""
    return _percent(profile.nulls, profile.rows)


def percent_nan(profile: NumericProfile) -> float | None:
    """NaN in percent of the rows."""
    return _percent(profile.nans, profile.rows)


def percent_zeros(profile: NumericProfile) -> float | None:
    """Zeros in percent of the rows."""
    return _percent(profile.zeros, profile.rows)


def percent_distinct(profile: Profile) -> float | None:
    """Distinct values in percent of the rows."""
    return _percent(distinct(profile), profile.rows)


def shape(profile: NumericProfile) -> shapes.Shape:
    """The distribution function of the finite values."""
    limits = (profile.minimum or 0.0, profile.maximum or 0.0)
    parts = (profile.keys, profile.counts, profile.atom_values, profile.atom_counts)
    return shapes.build(profile.centre, *parts, limits)


def quantile(profile: NumericProfile, q: float) -> float | None:
    """The q-quantile of the finite values, q in 0..1; None without any."""
    found = quantiles(profile, [q])
    return None if found is None else found[0]


def quantiles(profile: NumericProfile, at: Sequence[float] | int = 1000) -> list[float] | None:
    """Several quantiles; a number n means n evenly spaced ones, [n / 2] being the median."""
    if profile.finite == 0:
        return None
    q = np.arange(at) / at if isinstance(at, int) else np.asarray(at, dtype=float)
    return [float(value) for value in shapes.cuts(shape(profile), q).value]


def frequent_items(profile: Profile, limit: int = 100) -> list[dict[str, Any]]:
    """The heaviest values as [{"item", "count"}], heaviest first."""
    if isinstance(profile, CategoricalProfile):
        items = list(profile.values.items())
    else:
        names = cells.texts(pl.Series(profile.atom_values)).to_list()
        items = list(zip(names, profile.atom_counts.tolist(), strict=True))
    items.sort(key=lambda item: (-item[1], item[0]))
    return [{"item": value, "count": count} for value, count in items[:limit]]


def edges(profiles: Sequence[NumericProfile], count: int = 50) -> list[float]:
    """count + 1 common edges, so that several sides can be drawn over each other; [] for no data.

    They span the middle 99 %, or all where the ends lie near."""
    held = [p for p in profiles if p.finite > 0]
    if not held:
        return []
    middle = [quantiles(p, [0.005, 0.995]) or [0.0, 0.0] for p in held]
    low, high = min(m[0] for m in middle), max(m[1] for m in middle)
    reach = (high - low) / 4
    least = min(p.minimum or 0.0 for p in held)
    most = max(p.maximum or 0.0 for p in held)
    low = least if least >= low - reach else low
    high = most if most <= high + reach else high
    if low == high:
        room = abs(low) / 10 or 0.5
        low, high = low - room, high + room
    with np.errstate(over="ignore"):
        return [float(x) for x in np.linspace(low / 2, high / 2, min(count, 100) + 1) * 2]


def histogram(
    profile: Profile, count: int = 50, at: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Ready to draw, at most 100 bars. Numbers: [{"low", "high", "count"}], low excluded, high
    included; the first and the last bar also hold what lies beyond. Categories: [{"value",
    "count"}], heaviest first; the rest as one bar with value None. at: edges to use."""
    if isinstance(profile, CategoricalProfile):
        return _bars_of_categories(profile, min(count, 100))
    ends = list(at) if at is not None else edges([profile], count)
    if profile.finite == 0 or len(ends) < 2:
        return []
    cumulated = shapes.below(shape(profile), np.array(ends[1:-1]))[0]
    heights = np.diff(np.r_[0, np.round(cumulated), profile.finite]).astype(int)
    return [
        {"low": low, "high": high, "count": int(height)}
        for low, high, height in zip(ends[:-1], ends[1:], heights, strict=True)
    ]


def to_dict(profile: Profile) -> dict[str, Any]:
    """JSON-able; the same rows give the same bytes."""
    shared = {
        "kind": profile.kind,
        "rows": profile.rows,
        "nulls": profile.nulls,
        "registers": _packed(profile.registers),
    }
    if isinstance(profile, CategoricalProfile):
        return {
            **shared,
            "values": dict(sorted(profile.values.items())),
            "other": profile.other,
            "min_length": profile.min_length,
            "max_length": profile.max_length,
            "total_length": profile.total_length,
        }
    return {
        **shared,
        "centre": profile.centre,
        "nans": profile.nans,
        "infinities": profile.infinities,
        "zeros": profile.zeros,
        "minimum": profile.minimum,
        "maximum": profile.maximum,
        "mean": profile.mean if isfinite(profile.mean) else None,
        "m2": profile.m2 if isfinite(profile.m2) else None,
        "keys": profile.keys.tolist(),
        "counts": profile.counts.tolist(),
        "atom_values": profile.atom_values.tolist(),
        "atom_counts": profile.atom_counts.tolist(),
    }


def from_dict(stored: Mapping[str, Any]) -> Profile:
    """The profile that to_dict was given."""
    given = {name: value for name, value in stored.items() if name != "kind"}
    given["registers"] = _unpacked(given["registers"])
    if stored["kind"] == "categorical":
        return CategoricalProfile(**given)
    for name in ("mean", "m2"):
        given[name] = inf if given[name] is None else given[name]
    for name in ("keys", "counts", "atom_counts"):
        given[name] = np.array(given[name], dtype=np.int64)
    given["atom_values"] = np.array(given["atom_values"], dtype=np.float64)
    return NumericProfile(**given)


def _numeric(series: pl.Series, centre: float) -> NumericProfile:
    values = cells.floats(series)
    present = values.drop_nulls()
    x = present.to_numpy()
    nans, finite = _finite_of(x)
    counted = NumericProfile(
        centre=centre,
        rows=len(values),
        nulls=len(values) - len(present),
        nans=nans,
        infinities=len(x) - nans - len(finite),
    )
    if len(finite) == 0:
        return counted
    with np.errstate(over="ignore", invalid="ignore"):  # 1e308 twice: the moments end as infinite
        mean = float(finite.mean())
        m2 = _squares_about(mean, finite) if isfinite(mean) else inf
    keys, counts = bins.count(finite, centre)
    atoms, atom_counts = heavy.of_column(finite)
    complete = int(atom_counts.sum()) == len(finite)
    return replace(
        counted,
        zeros=int(np.count_nonzero(finite == 0)),
        minimum=float(finite.min()),
        maximum=float(finite.max()),
        mean=mean,
        m2=m2,
        keys=keys,
        counts=counts,
        atom_values=atoms,
        atom_counts=atom_counts,
        registers=registers.of_numbers(atoms if complete else finite),
    )


def _finite_of(x: Floats) -> tuple[int, Floats]:
    """How many are NaN, and the values that are neither NaN nor infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if isfinite(x.sum()):  # one pass instead of three
            return 0, x
    return int(np.count_nonzero(np.isnan(x))), x[np.isfinite(x)]


def _squares_about(mean: float, x: Floats) -> float:
    """The sum of squared distances, in pieces that fit the processor's cache."""
    total = 0.0
    for start in range(0, len(x), _BLOCK):
        apart = x[start : start + _BLOCK] - mean
        total += float(np.square(apart, out=apart).sum())  # a dot product would start threads
    return total


def _categorical(series: pl.Series) -> CategoricalProfile:
    if series.dtype == pl.Boolean:
        true = int(series.sum() or 0)
        counts = np.array([len(series) - series.null_count() - true, true], dtype=np.int64)
        return _of_categories(pl.Series(["false", "true"]), counts, len(series), False)
    if series.dtype.is_float():
        series = series.fill_nan(None)
    is_text = series.dtype in (pl.String, pl.Categorical, pl.Enum)
    table = cells.texts(series).drop_nulls().alias("value").to_frame().group_by("value").len("rows")
    counts = table["rows"].to_numpy().astype(np.int64)
    return _of_categories(table["value"], counts, len(series), is_text)


def _of_categories(
    values: pl.Series, counts: Ints, rows: int, with_lengths: bool
) -> CategoricalProfile:
    """From distinct texts and how often each occurs; those that do not occur are left out."""
    there = counts > 0
    if not there.all():
        values, counts = values.filter(pl.Series(there)), counts[there]
    valued = int(counts.sum())
    kept = _kept_categories(values, counts)
    counted = CategoricalProfile(
        rows=rows,
        nulls=rows - valued,
        values=kept,
        other=valued - sum(kept.values()),
        registers=registers.of_texts(values),
    )
    if not with_lengths or valued == 0:
        return counted
    length = values.str.len_chars().to_numpy().astype(np.int64)
    return replace(
        counted,
        min_length=int(length.min()),
        max_length=int(length.max()),
        total_length=int(np.dot(length, counts)),
    )


def _kept_categories(values: pl.Series, counts: Ints) -> dict[str, int]:
    if len(values) > heavy.MOST_CATEGORIES:  # an id column: no dictionary of a million texts
        chosen = counts >= heavy.least_count(counts)
        values, counts = values.filter(pl.Series(chosen)), counts[chosen]
    return dict(zip(values.to_list(), counts.tolist(), strict=True))


def _merge_numeric(a: NumericProfile, b: NumericProfile) -> NumericProfile:
    keys, counts = heavy.added(a.keys, a.counts, b.keys, b.counts)
    atoms, atom_counts = heavy.added(a.atom_values, a.atom_counts, b.atom_values, b.atom_counts)
    n = a.finite + b.finite
    mean, m2 = a.mean, a.m2
    if b.finite > 0:
        with np.errstate(over="ignore", invalid="ignore"):
            apart = np.float64(b.mean) - a.mean
            mean = float(a.mean + apart * (b.finite / n))
            m2 = float(a.m2 + b.m2 + apart * apart * (a.finite * (b.finite / n)))
        mean, m2 = (value if isfinite(value) else inf for value in (mean, m2))
    return NumericProfile(
        centre=a.centre,
        rows=a.rows + b.rows,
        nulls=a.nulls + b.nulls,
        nans=a.nans + b.nans,
        infinities=a.infinities + b.infinities,
        zeros=a.zeros + b.zeros,
        minimum=_least(a.minimum, b.minimum),
        maximum=_most(a.maximum, b.maximum),
        mean=mean,
        m2=m2,
        keys=keys,
        counts=counts,
        atom_values=atoms,
        atom_counts=atom_counts,
        registers=np.maximum(a.registers, b.registers),
    )


def _merge_categorical(a: CategoricalProfile, b: CategoricalProfile) -> CategoricalProfile:
    values = dict(a.values)
    for value, count in b.values.items():
        values[value] = values.get(value, 0) + count
    return CategoricalProfile(
        rows=a.rows + b.rows,
        nulls=a.nulls + b.nulls,
        values=values,
        other=a.other + b.other,
        min_length=_least(a.min_length, b.min_length),
        max_length=_most(a.max_length, b.max_length),
        total_length=_sum(a.total_length, b.total_length),
        registers=np.maximum(a.registers, b.registers),
    )


def _bars_of_categories(profile: CategoricalProfile, most: int) -> list[dict[str, Any]]:
    heavy = frequent_items(profile, most)
    bars = [{"value": item["item"], "count": item["count"]} for item in heavy]
    rest = profile.values_count - sum(bar["count"] for bar in bars)
    return [*bars, {"value": None, "count": rest}] if rest > 0 else bars


def _quantile_of(values: pl.Series, q: float) -> float:
    return float(values.quantile(q, interpolation="lower") or 0.0)


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole > 0 else None


def _least(a: Any, b: Any) -> Any:
    return a if b is None else b if a is None else min(a, b)


def _most(a: Any, b: Any) -> Any:
    return a if b is None else b if a is None else max(a, b)


def _sum(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else a + b


def _packed(given: Registers) -> str | None:
    return base64.b64encode(given.tobytes()).decode() if given.any() else None


def _unpacked(stored: str | None) -> Registers:
    if stored is None:
        return registers.NONE
    return np.frombuffer(base64.b64decode(stored), dtype=np.uint8)
