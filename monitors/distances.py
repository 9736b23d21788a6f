"""How far a profile is from its baseline, how well that is known, and whether it is drift.

Every distance carries a bound: computed from the raw values it lies within `bound` of `value`.
Effect sizes decide and p-values inform, because at a million rows every p-value alarms. Source:
monitors.md, "Numbers"; oracle: scipy on raw values, tests/monitors/test_distances.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from monitors import profile, shapes

Floats = NDArray[np.float64]

THRESHOLDS: dict[str, float] = {
    "ks": 0.1,
    "wasserstein_normed": 0.1,
    "psi": 0.2,
    "js_distance": 0.1,
    "tv_distance": 0.1,
    "l_infinity_distance": 0.1,
    "null_share": 0.1,
}
METRICS = (
    *("ks", "wasserstein", "wasserstein_normed", "psi", "js_distance", "tv_distance"),
    *("l_infinity_distance", "chi_squared", "cramers_v", "null_share", "avg_delta", "count_delta"),
    *("percent_null_delta", "percent_zeros_delta", "percent_distinct_delta"),
)
FLOOR = 1e-4
FALSE_ALARM = 0.001
OWN_WINDOWS = 8
MINIMUM_ROWS = 200
EXACT_SIZE = 1_000
EXACT_TAIL = 2.2
_NO_VALUES = "no values"


@dataclass(frozen=True, slots=True)
class Distance:
    """value None means undefined, for the reason given. bins: classes compared; n, m: values (for
    null_share rows) of the current side and of the baseline."""

    value: float | None
    bound: float | None = None
    pvalue: float | None = None
    threshold: float | None = None
    reason: str | None = None
    bins: int = 0
    n: int = 0
    m: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `reason` only where there is no value."""
        shown: dict[str, Any] = {
            "value": self.value,
            "bound": self.bound,
            "pvalue": self.pvalue,
            "threshold": self.threshold,
        }
        return shown if self.value is not None else {**shown, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Judgement:
    """The answer for one column. metric: the one farthest over its threshold."""

    status: str
    severity: str | None = None
    metric: str | None = None
    effect_over_threshold: float | None = None
    reasons: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    current: profile.Profile,
    baseline: profile.Profile,
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, Distance]:
    """Every distance that the kind of column has. Raises ValueError where kind or centre differ."""
    limits = {**THRESHOLDS, **(thresholds or {})}
    if isinstance(current, profile.NumericProfile) and isinstance(baseline, profile.NumericProfile):
        if current.centre != baseline.centre:
            raise ValueError(
                f"Profiles have different centres: {current.centre!r} and {baseline.centre!r}."
            )
        found = {**_numeric(current, baseline), **_numeric_deltas(current, baseline)}
    elif isinstance(current, profile.CategoricalProfile) and isinstance(
        baseline, profile.CategoricalProfile
    ):
        found = _categorical(current, baseline)
    else:
        raise ValueError(f"Profiles of different kinds: {current.kind} and {baseline.kind}.")
    found |= _shared_deltas(current, baseline)
    return {
        name: replace(
            distance,
            threshold=limits.get(name),
            n=distance.n or _compared(current),
            m=distance.m or _compared(baseline),
        )
        for name, distance in found.items()
    }


def judge(
    distances: Mapping[str, Distance],
    kind: str,
    n: int,
    m: int,
    columns: int,
    thresholds: Mapping[str, float] | None = None,
    own_maxima: Mapping[str, float] | None = None,
    minimum_rows: int = MINIMUM_ROWS,
) -> Judgement:
    """Drifted if a distance exceeds its limit: the largest of its threshold, what chance gives
    among `columns` columns, and the largest distance of the baseline's own windows. The effect is
    the distance over that limit: above 1 drifted, from 2 on critical. n, m: rows, nulls included.
    """
    if n < minimum_rows or m < minimum_rows:
        return Judgement("not_enough_data", reasons=[f"{n} and {m} rows; {minimum_rows} needed"])
    limits = {**THRESHOLDS, **(thresholds or {})}
    own = own_maxima or {}
    effects: dict[str, float] = {}
    over: dict[str, float] = {}
    thin = False
    for name, distance in distances.items():
        limit = limits.get(name)
        if limit is None or distance.value is None:
            continue
        if min(distance.n, distance.m) < minimum_rows:
            thin = True
            continue
        least = max(limit, chance(name, distance, columns), own.get(name, 0.0))
        effects[name] = distance.value / least if least > 0 else 0.0
        by_chance = name == "null_share" and (distance.pvalue or 0.0) >= _alpha(columns)
        if distance.value > least and not by_chance:
            over[name] = effects[name]
    # One outlier moves the Wasserstein distance at will: it counts only beside another distance.
    named = {name: effect for name, effect in over.items() if name != "wasserstein_normed"}
    if named:
        metric = max(named, key=lambda name: named[name])
        severity = "critical" if over[metric] >= 2 else "warning"
        reasons = [_reason(name, distances[name], limits[name]) for name in over]
        return Judgement("drifted", severity, metric, over[metric], reasons)
    aside = ("null_share", "wasserstein_normed")
    shaped = {name: effect for name, effect in effects.items() if name not in aside}
    if shaped:
        metric = max(shaped, key=lambda name: shaped[name])
        return Judgement("ok", None, metric, shaped[metric])
    if thin:
        return Judgement("not_enough_data", reasons=[f"fewer than {minimum_rows} values"])
    undefined = sorted({d.reason for d in distances.values() if d.value is None and d.reason})
    return Judgement("undefined", reasons=undefined)


def own_maxima(
    windows: Sequence[profile.Profile],
    baseline: profile.Profile,
    minimum_rows: int = MINIMUM_ROWS,
) -> dict[str, float]:
    """The largest distance that one of the baseline's own windows has from the whole baseline.

    Weather, weekdays and seasons make windows differ without drift. {} for fewer than 8 windows."""
    enough = [window for window in windows if window.rows >= minimum_rows]
    if len(enough) < OWN_WINDOWS:
        return {}
    found: dict[str, float] = {}
    for window in enough:
        for name, distance in compare(window, baseline).items():
            if name in THRESHOLDS and distance.value is not None:
                found[name] = max(found.get(name, 0.0), distance.value)
    return found


def chance(metric: str, distance: Distance, columns: int) -> float:
    """What a distance exceeds without drift with probability 0.001 / columns at these sizes."""
    if distance.n == 0 or distance.m == 0:
        return 0.0
    alpha = _alpha(columns)
    noise = 1 / distance.n + 1 / distance.m
    if metric == "ks":
        return float(special.kolmogi(alpha)) * sqrt(noise)
    if metric in ("psi", "js_distance", "tv_distance"):
        chi2 = noise * float(special.chdtri(max(1, distance.bins - 1), alpha))
        return _FROM_CHI2[metric](chi2)
    if metric == "l_infinity_distance":
        return -float(special.ndtri(alpha / (2 * max(1, distance.bins)))) * sqrt(noise) / 2
    return 0.0


def _alpha(columns: int) -> float:
    return FALSE_ALARM / max(1, columns)


def table_names(distances: Mapping[str, Distance]) -> dict[str, Any]:
    """The columns of the drift metrics table (databricks-monitoring.md section 4)."""
    row: dict[str, Any] = {
        column: distances[name].value if name in distances else None
        for name, column in _TABLE_COLUMNS.items()
    }
    for name, column in (("ks", "ks_test"), ("chi_squared", "chi_squared_test")):
        found = distances.get(name)
        defined = found is not None and found.value is not None
        row[column] = (
            {"statistic": found.value, "pvalue": found.pvalue} if found and defined else None
        )
    return row


_FROM_CHI2: dict[str, Callable[[float], float]] = {
    "psi": lambda chi2: chi2,
    # For small differences d of shares q: js^2 = sum d^2 / (8 q ln 2), and tv is at most half the
    # root of sum d^2 / q (Cauchy-Schwarz).
    "js_distance": lambda chi2: sqrt(chi2 / (8 * log(2))),
    "tv_distance": lambda chi2: sqrt(chi2) / 2,
}
_TABLE_COLUMNS = {
    "wasserstein": "wasserstein_distance",
    "psi": "population_stability_index",
    "tv_distance": "tv_distance",
    "l_infinity_distance": "l_infinity_distance",
    "js_distance": "js_distance",
    "count_delta": "count_delta",
    "avg_delta": "avg_delta",
    "percent_null_delta": "percent_null_delta",
    "percent_zeros_delta": "percent_zeros_delta",
    "percent_distinct_delta": "percent_distinct_delta",
}


def _numeric(
    current: profile.NumericProfile, baseline: profile.NumericProfile
) -> dict[str, Distance]:
    names = ("ks", "wasserstein", "wasserstein_normed", "psi", "js_distance", "tv_distance")
    if current.finite == 0 or baseline.finite == 0:
        return {name: Distance(None, reason=_NO_VALUES) for name in names}
    p, q = profile.shape(current), profile.shape(baseline)
    ks, ks_bound = shapes.largest_gap(p, q)
    moved, moved_bound = shapes.area_between(p, q)
    deciles = _binned(p, q, np.arange(1, 10) / 10)
    thirtieths = _binned(p, q, np.arange(1, 30) / 30)
    return {
        "ks": Distance(ks, ks_bound, _ks_pvalue(ks, current.finite, baseline.finite)),
        **_wasserstein(moved, moved_bound, baseline),
        "psi": deciles.total(_psi),
        "js_distance": thirtieths.root(_js),
        "tv_distance": thirtieths.total(_tv),
    }


def _wasserstein(
    moved: float, bound: float, baseline: profile.NumericProfile
) -> dict[str, Distance]:
    """Plain, and in units of the baseline's (population) standard deviation."""
    if not isfinite(moved):
        far = Distance(None, reason="the values lie farther apart than a double can hold")
        return {"wasserstein": far, "wasserstein_normed": far}
    plain, variance = Distance(moved, bound), baseline.m2 / baseline.finite
    if not 0 < variance < inf:
        constant = Distance(None, reason="the baseline has no standard deviation")
        return {"wasserstein": plain, "wasserstein_normed": constant}
    normed = Distance(moved / sqrt(variance), bound / sqrt(variance))
    return {"wasserstein": plain, "wasserstein_normed": normed}


def _ks_pvalue(ks: float, n: int, m: int) -> float:
    """Of the two-sided, two-sample test: Kolmogorov's distribution at an argument corrected for the
    sizes (J. Vrbik, Applied Mathematics 9 (2018)); in the tail of small ones twice Smirnov's exact
    one-sided probability. scipy's kstwo, the oracle, takes 0.7 s at a million rows a side."""
    size = max(1, round(n * m / (n + m)))
    z = sqrt(size) * ks
    if size <= EXACT_SIZE and (z * z >= EXACT_TAIL or ks >= 0.5):
        return min(1.0, 2 * float(special.smirnov(size, ks)))
    return float(special.kolmogorov(z + 1 / (6 * sqrt(size)) + (z - 1) / (4 * size)))


@dataclass(frozen=True, slots=True)
class _Binned:
    """Shares per bin: current p and baseline q, each with its certain limits; shape (bins,)."""

    p: Floats
    p_limits: tuple[Floats, Floats]
    q: Floats
    q_limits: tuple[Floats, Floats]

    def total(self, term: Callable[[Floats, Floats], Floats]) -> Distance:
        """The sum of a term over the bins. The term is convex in (p, q) and 0 at p = q, so over
        the limits it is largest in a corner and smallest in a corner or where they overlap."""
        value, least, most = self._sums(term)
        return Distance(value, max(value - least, most - value), bins=len(self.p))

    def root(self, term: Callable[[Floats, Floats], Floats]) -> Distance:
        """The square root of the sum of such a term."""
        value, least, most = (sqrt(max(0.0, x)) for x in self._sums(term))
        return Distance(value, max(value - least, most - value), bins=len(self.p))

    def _sums(self, term: Callable[[Floats, Floats], Floats]) -> tuple[float, float, float]:
        corners = np.stack([term(p, q) for p in self.p_limits for q in self.q_limits])
        overlap = (self.p_limits[0] <= self.q_limits[1]) & (self.q_limits[0] <= self.p_limits[1])
        least = np.where(overlap, 0.0, corners.min(axis=0)).sum()
        return float(term(self.p, self.q).sum()), float(least), float(corners.max(axis=0).sum())


def _binned(p: shapes.Shape, q: shapes.Shape, at: Floats) -> _Binned:
    """Both sides in the bins between quantiles of the baseline; a value on an edge lies below."""
    cuts = shapes.cuts(q, at)
    cuts = cuts.where(np.r_[True, np.diff(cuts.value) > 0])
    return _Binned(*_shares(p, cuts), *_shares(q, cuts))


def _shares(shape: shapes.Shape, cuts: shapes.Cuts) -> tuple[Floats, tuple[Floats, Floats]]:
    at, low, high = (
        np.r_[0, below, shape.total] / shape.total for below in shapes.below_cuts(shape, cuts)
    )
    shares = np.diff(at)
    least, most = np.clip(low[1:] - high[:-1], 0, 1), np.clip(high[1:] - low[:-1], 0, 1)
    return shares, (np.minimum(least, shares), np.maximum(most, shares))


def _psi(p: Floats, q: Floats) -> Floats:
    p, q = np.maximum(p, FLOOR), np.maximum(q, FLOOR)
    return (p - q) * np.log(p / q)


def _js(p: Floats, q: Floats) -> Floats:
    middle = (p + q) / 2
    return (special.rel_entr(p, middle) + special.rel_entr(q, middle)) / (2 * log(2))


def _tv(p: Floats, q: Floats) -> Floats:
    return np.abs(p - q) / 2


def _categorical(
    current: profile.CategoricalProfile, baseline: profile.CategoricalProfile
) -> dict[str, Distance]:
    names = ("psi", "js_distance", "tv_distance", "l_infinity_distance", "chi_squared")
    sides = (current, baseline)
    n, m = current.values_count, baseline.values_count
    reason = _NO_VALUES if n == 0 or m == 0 else None
    if reason is None and (current.other > n / 2 or baseline.other > m / 2):
        reason = "most rows hold values too rare to be kept"
    if reason is not None:
        return {name: Distance(None, reason=reason) for name in (*names, "cramers_v")}
    union = sorted({*current.values, *baseline.values})
    counts = [np.array([side.values.get(v, 0) for v in union], dtype=float) for side in sides]
    loose = [side.other / size for side, size in zip(sides, (n, m), strict=True)]
    if any(loose):
        counts = [np.r_[k, side.other] for k, side in zip(counts, sides, strict=True)]
    p, q = counts[0] / n, counts[1] / m
    binned = _Binned(p, (p, p), q, (q, q))
    found = {
        "psi": binned.total(_psi),
        "js_distance": binned.root(_js),
        "tv_distance": binned.total(_tv),
        "l_infinity_distance": Distance(float(np.abs(p - q).max()), 0.0, bins=len(p)),
        **_chi_squared(*counts),
    }
    return found if not any(loose) else _loosened(found, loose)


def _loosened(found: dict[str, Distance], loose: list[float]) -> dict[str, Distance]:
    """Bounds where part of either side (shares in loose) holds values that are not kept.

    The Jensen-Shannon distance is a metric and its square at most the mass that is moved."""
    bounds = {
        "tv_distance": sum(loose),
        "l_infinity_distance": sum(loose),
        "js_distance": sum(sqrt(share) for share in loose),
    }
    return {name: replace(d, bound=bounds.get(name)) for name, d in found.items()}


def _chi_squared(current: Floats, baseline: Floats) -> dict[str, Distance]:
    """The two-sample 2 x k table; rare categories are not merged, k = 2 with Yates' correction."""
    table = np.stack([current, baseline])
    table = table[:, table.sum(axis=0) > 0]
    k, total = table.shape[1], table.sum()
    if k < 2:
        same = Distance(0.0, 0.0, 1.0, bins=k)
        return {"chi_squared": same, "cramers_v": replace(same, pvalue=None)}
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / total
    apart = np.abs(table - expected)
    plain = float((apart**2 / expected).sum())
    if k == 2:
        apart = np.maximum(0.0, apart - np.minimum(0.5, apart))
    statistic = float((apart**2 / expected).sum())
    return {
        "chi_squared": Distance(statistic, 0.0, float(special.chdtrc(k - 1, statistic)), bins=k),
        "cramers_v": Distance(sqrt(plain / total), 0.0, bins=k),
    }


def _compared(side: profile.Profile) -> int:
    return side.finite if isinstance(side, profile.NumericProfile) else side.values_count


def _shared_deltas(current: profile.Profile, baseline: profile.Profile) -> dict[str, Distance]:
    return {
        "count_delta": Distance(float(current.rows - baseline.rows), 0.0),
        "percent_null_delta": _delta(profile.percent_null, current, baseline),
        "percent_distinct_delta": _delta(profile.percent_distinct, current, baseline, None),
        "null_share": _null_share(current, baseline),
    }


def _null_share(current: profile.Profile, baseline: profile.Profile) -> Distance:
    """The rise of the share of rows without a value, null or NaN: a feed that ended is seen here.

    p-value one-sided, normal with pooled variance."""
    n, m = current.rows, baseline.rows
    if n == 0 or m == 0:
        return Distance(None, reason="no rows")
    missing = n - current.values_count, m - baseline.values_count
    value = missing[0] / n - missing[1] / m
    pooled = sum(missing) / (n + m)
    noise = sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    pvalue = float(special.ndtr(-value / noise)) if noise > 0 else 1.0
    return Distance(value, 0.0, pvalue, n=n, m=m)


def _numeric_deltas(
    current: profile.NumericProfile, baseline: profile.NumericProfile
) -> dict[str, Distance]:
    return {
        "avg_delta": _delta(profile.average, current, baseline),
        "percent_zeros_delta": _delta(profile.percent_zeros, current, baseline),
    }


def _delta(
    measure: Callable[[Any], float | None],
    current: profile.Profile,
    baseline: profile.Profile,
    bound: float | None = 0.0,
) -> Distance:
    one, other = measure(current), measure(baseline)
    if one is None or other is None:
        return Distance(None, reason=_NO_VALUES)
    return Distance(one - other, bound)


def _reason(name: str, distance: Distance, limit: float) -> str:
    return f"{name} {distance.value:.3g}, threshold {limit:g}"
