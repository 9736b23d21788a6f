"""What must not get worse: errors, latency, quality; and whether the split is the one configured.

Errors, slow answers and requests are events that fall on the challenger with a known probability:
one exact test serves all three. Source: experiments.md, "One test for counts: tilted shares".
"""

from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import arms, cells, effects, policies, sequential

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

LEAST_TAU = 0.002


@dataclass(frozen=True, slots=True)
class Assignment:
    """How requests are given to versions: each by its own draw, or by unit. switches: of a unit
    between versions while its share stayed; expected: were every request drawn anew."""

    by_unit: bool
    switches: int
    expected: float
    pairs: int


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Observed and expected share of the challenger among the draws; evidence that they differ."""

    log_e: float | None
    observed: float | None
    expected: float | None
    alarm: bool


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A metric that must not get worse. log_e_worse decides for errors and latency, the interval
    for quality."""

    metric: policies.Metric
    shown: dict[str, Any]
    crossed: bool
    gain_interval: tuple[float, float] | None

    @property
    def on_requests(self) -> bool:
        return self.metric.kind in ("error_rate", "latency")

    def to_dict(self) -> dict[str, Any]:
        return {**self.shown, "margin": self.metric.margin, "crossed": self.crossed}


def assignment(data: arms.Arms, policy: policies.Policy) -> Assignment:
    """By unit if units hardly ever change their version while the split stays."""
    if data.unique_units:
        return Assignment(policy.assignment == "unit", 0, 0.0, 0)
    order = np.argsort(data.unit, kind="stable")
    unit, share, c = data.unit[order], data.share[order], data.is_challenger[order]
    pair = (unit[1:] == unit[:-1]) & (share[1:] == share[:-1]) & (share[1:] > 0) & (share[1:] < 1)
    s = share[1:][pair]
    expected = float(np.sum(2 * s * (1 - s)))
    switches = int(np.count_nonzero(c[1:][pair] != c[:-1][pair]))
    sticky = len(s) > 0 and (expected < 5 or switches < expected / 2)
    by_unit = sticky if policy.assignment == "auto" else policy.assignment == "unit"
    return Assignment(by_unit, switches, expected, len(s))


def sample_ratio(data: arms.Arms, by_unit: bool, alpha: float) -> SampleRatio:
    """Do as many draws fall on the challenger as its configured share says?"""
    events = _events(data, np.arange(len(data.time)), by_unit)
    if len(events) == 0:
        return SampleRatio(None, None, None, False)
    shares, ones, zeros = _by_share(data, events)
    log_e = sequential.tilted(shares, ones, zeros, sequential.BOTH_WAYS)
    return SampleRatio(
        log_e=log_e,
        observed=float(data.is_challenger[events].mean()),
        expected=float(data.share[events].mean()),
        alarm=bool(log_e >= log(1 / alpha)),
    )


def evaluate(
    data: arms.Arms, metric: policies.Metric, policy: policies.Policy, by_unit: bool
) -> Guardrail:
    """One guardrail of the policy, and whether it is crossed."""
    if metric.kind == "error_rate":
        return error_rate(data, metric, policy, by_unit)
    if metric.kind == "latency":
        return latency(data, metric, policy, by_unit)
    return quality(data, metric, policy)


def error_rate(
    data: arms.Arms, metric: policies.Metric, policy: policies.Policy, by_unit: bool
) -> Guardrail:
    """Errors per request; crossed at the evidence of the shares of errors and of their rate."""
    sample = effects.Sample(np.arange(len(data.time)), data.error.astype(float))
    shown = effects.compare_sample(
        data, metric, policy.crossing_alpha, sample, max(metric.margin, LEAST_TAU)
    )
    worse = None
    if (data.is_challenger == 0).any():
        among_errors = _error_shares(data, metric.margin, by_unit)
        if by_unit:
            rate = _error_rate_by_unit(data, metric.margin)
        else:
            rate = _error_rate_by_hour(data, metric.margin)
        worse = sequential.log_mean([among_errors, rate])
    return Guardrail(
        metric=metric,
        shown={**shown.to_dict(), "log_e_worse": worse},
        crossed=_crossed(worse, data, policy),
        gain_interval=shown.gain_interval,
    )


def latency(
    data: arms.Arms, metric: policies.Metric, policy: policies.Policy, by_unit: bool
) -> Guardrail:
    """A quantile of the answered rows' latency_ms; margin is relative (0.1 = a tenth slower)."""
    measured = cells.numbers(cells.column(data.frame, "latency_ms"))
    chosen = np.flatnonzero(data.answered & ~np.isnan(measured))
    ms, c = measured[chosen], data.is_challenger[chosen]
    values = [_quantile(ms[c == side], metric.quantile) for side in (1, 0)]
    worse = None
    if (c == 0).any():
        slow = chosen[_slow(data, chosen, ms / np.where(c == 1, 1 + metric.margin, 1), metric)]
        worse = sequential.tilted(
            *_by_share(data, _events(data, slow, by_unit)), sequential.UPWARDS
        )
    effect = None
    if values[0] is not None and values[1] is not None and values[1] > 0:
        effect = values[0] / values[1] - 1
    shown = {
        "n": data.per_version(int((c == 1).sum()), int((c == 0).sum())),
        "value": data.per_version(values[0], values[1]),
        "value_se": data.per_version(None, None),
        "effect": effect,
        "se": None,
        "interval": None,
        "direction": metric.direction,
        "design_effect": None,
        "strata": len(np.unique(data.stratum[chosen])),
        "log_e": None,
        "log_e_better": None,
        "log_e_worse": worse,
    }
    return Guardrail(metric, shown, _crossed(worse, data, policy), None)


def quality(data: arms.Arms, metric: policies.Metric, policy: policies.Policy) -> Guardrail:
    """A labelled metric; crossed when its interval lies wholly beyond the margin."""
    shown = effects.compare(data, metric, policy.crossing_alpha)
    interval = shown.gain_interval
    crossed = bool(
        interval is not None
        and interval[1] < -metric.margin
        and shown.least >= policy.labels_needed(metric)
    )
    return Guardrail(metric, shown.to_dict(), crossed, interval)


def _crossed(log_e_worse: float | None, data: arms.Arms, policy: policies.Policy) -> bool:
    champion_requests = len(data.time) - int(data.is_challenger.sum())
    return bool(
        log_e_worse is not None
        and log_e_worse >= log(1 / policy.crossing_alpha)
        and champion_requests >= policy.min_requests
    )


def _events(data: arms.Arms, positions: Ints, by_unit: bool) -> Ints:
    """The events that count: all, or the first of each unit (positions are in order of time)."""
    if not by_unit:
        return positions
    return positions[np.sort(np.unique(data.unit[positions], return_index=True)[1])]


def _by_share(data: arms.Arms, events: Ints) -> tuple[Floats, Floats, Floats]:
    """Distinct shares and the events of challenger and champion at each."""
    shares, code = arms.codes(data.share[events])
    c = data.is_challenger[events]
    total = np.bincount(code, minlength=len(shares)).astype(float)
    ones = np.bincount(code, c, minlength=len(shares))
    return shares.astype(float), ones.astype(float), total - ones


def _error_shares(data: arms.Arms, margin: float, by_unit: bool) -> float:
    """Test A: among errors, does the challenger hold more than its share times the odds allowed?"""
    c = data.is_challenger == 1
    champion_errors = int(np.count_nonzero(data.error & ~c))
    p0 = (champion_errors + 0.5) / (np.count_nonzero(~c) + 1)
    odds = (p0 + margin) / p0
    shares, ones, zeros = _by_share(data, _events(data, np.flatnonzero(data.error), by_unit))
    p = shares * odds / (shares * odds + 1 - shares)
    return sequential.tilted(p, ones, zeros, sequential.UPWARDS)


def _error_rate_by_hour(data: arms.Arms, margin: float) -> float:
    """Test B: the challenger's errors against the rate that the champion's hours allow it."""
    hours, hour = arms.codes(data.time // _width(data))
    c, e = data.is_challenger, data.error.astype(float)
    n1 = np.bincount(hour, c, minlength=len(hours))
    n0 = np.bincount(hour, 1 - c, minlength=len(hours))
    k0 = np.bincount(hour, (1 - c) * e, minlength=len(hours))
    there = n0 > 0
    overall = k0.sum() / n0.sum()
    ratio = n1 / np.where(there, n0, 1)
    expected = float(np.where(there, ratio * k0, n1 * overall).sum())
    variance = float(np.where(there, ratio**2 * k0, 0).sum())
    n, k = float(n1.sum()), float(np.dot(c, e))
    return _rate_evidence(k, n, float(n0.sum()), expected, variance, margin)


def _error_rate_by_unit(data: arms.Arms, margin: float) -> float:
    """Test B on units: how many of either version's units met an error."""
    c = data.is_challenger == 1
    n, k = _units_with_error(data, c)
    n0, k0 = _units_with_error(data, ~c)
    if n == 0:
        return 0.0
    per_unit = np.count_nonzero(c) / n
    return _rate_evidence(k, n, n0, n * k0 / n0, (n / n0) ** 2 * k0, margin * per_unit)


def _units_with_error(data: arms.Arms, side: Flags) -> tuple[float, float]:
    units = np.bincount(data.unit[side], minlength=data.units)
    errors = np.bincount(data.unit[side & data.error], minlength=data.units)
    return float(np.count_nonzero(units)), float(np.count_nonzero(errors))


def _rate_evidence(
    k: float, n: float, champion_n: float, expected: float, variance: float, margin: float
) -> float:
    if n == 0:
        return 0.0
    q = min(1.0, (expected + 2 * sqrt(variance) + 2 * n / champion_n) / n + margin)
    return sequential.tilted([q], [k], [n - k], sequential.UPWARDS)


def _slow(data: arms.Arms, chosen: Ints, ms: Floats, metric: policies.Metric) -> Flags:
    """True where an answer took longer than the quantile of both versions in its hour."""
    hours = pl.Series("hour", data.time[chosen] // _width(data))
    table = pl.DataFrame({"hour": hours, "ms": ms})
    limit = pl.col("ms").quantile(metric.quantile, "linear").over("hour")
    return table.select(pl.col("ms") > limit).to_series().to_numpy()


def _width(data: arms.Arms) -> int:
    return data.stratum_hours * arms.HOUR


def _quantile(values: Floats, q: float) -> float | None:
    return float(np.quantile(values, q)) if len(values) else None
