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

from monitors import arms, effects, policies, sequential, sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
ByShare = tuple[Floats, Floats, Floats]  # distinct shares; events of challenger and champion

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


def assignment(found: sums.Sums) -> Assignment:
    """By unit if units hardly ever change their version while the split stays."""
    units = found.units.sort("unit", "block")
    pairs = int(sums.total(units["pairs"]))
    switches, expected = int(sums.total(units["switches"])), sums.total(units["expected"])
    before, after = units.head(-1), units.tail(-1)
    share = after["first_share"].to_numpy()
    across = (
        (before["unit"] == after["unit"]).to_numpy()
        & (before["last_share"].to_numpy() == share)
        & (share > 0)
        & (share < 1)
    )
    switched = (before["last_side"] != after["first_side"]).to_numpy()
    pairs += int(np.count_nonzero(across))
    switches += int(np.count_nonzero(across & switched))
    expected += float(np.sum(2 * share[across] * (1 - share[across])))
    sticky = pairs > 0 and (expected < 5 or switches < expected / 2)
    wanted = found.policy.assignment
    return Assignment(sticky if wanted == "auto" else wanted == "unit", switches, expected, pairs)


def sample_ratio(found: sums.Sums, by_unit: bool, alpha: float) -> SampleRatio:
    """Do as many draws fall on the challenger as its configured share says?"""
    everyone = found.tallies.filter(measure=sums.ERRORS)
    shares, ones, zeros = _by_share(_counted(everyone, pl.col("n"), by_unit))
    if by_unit:
        first = found.units.sort("unit", "block").unique("unit", keep="first", maintain_order=True)
        drawn = first.select(share="first_share", side="first_side", n=1)
        shares, ones, zeros = _together((shares, ones, zeros), _by_share(drawn))
    draws = float((ones + zeros).sum())
    if draws == 0:
        return SampleRatio(None, None, None, False)
    log_e = sequential.tilted(shares, ones, zeros, sequential.BOTH_WAYS)
    return SampleRatio(
        log_e=log_e,
        observed=float(ones.sum() / draws),
        expected=float(np.dot(shares, ones + zeros) / draws),
        alarm=bool(log_e >= log(1 / alpha)),
    )


def evaluate(found: effects.Kept, metric: policies.Metric, by_unit: bool) -> Guardrail:
    """One guardrail of the policy, and whether it is crossed."""
    if metric.kind == "error_rate":
        return error_rate(found, metric, by_unit)
    if metric.kind == "latency":
        return latency(found.held, metric, by_unit)
    return quality(found, metric)


def error_rate(found: effects.Kept, metric: policies.Metric, by_unit: bool) -> Guardrail:
    """Errors per request; crossed at the evidence of the shares of errors and of their rate."""
    policy = found.held.policy
    tally = effects.Tally.of(found.counts(sums.ERRORS), found)
    tau = max(metric.margin, LEAST_TAU)
    shown = effects.compare_tally(found, metric, policy.crossing_alpha, tally, tau)
    worse = None
    champion_requests, champion_errors = tally.of_side(0)
    if champion_requests > 0:
        p0 = (champion_errors + 0.5) / (champion_requests + 1)
        among_errors = _error_shares(found.held, (p0 + metric.margin) / p0, by_unit)
        if by_unit:
            rate = _error_rate_by_unit(found.held, metric.margin)
        else:
            rate = _error_rate_by_hour(tally, metric.margin)
        worse = sequential.log_mean([among_errors, rate])
    return Guardrail(
        metric=metric,
        shown={**shown.to_dict(), "log_e_worse": worse},
        crossed=_crossed(worse, champion_requests, policy),
        gain_interval=shown.gain_interval,
    )


def latency(found: sums.Sums, metric: policies.Metric, by_unit: bool) -> Guardrail:
    """A quantile of the answered rows' latency_ms; margin is relative (0.1 = a tenth slower)."""
    times = found.times
    sides = [times.filter(side=side).sort("ms") for side in (1, 0)]
    counts = [int(sums.total(side["n"])) for side in sides]
    values = [
        float(_quantiles(np.zeros(len(side)), side["ms"], side["n"], metric.quantile)[0])
        if side.height
        else None
        for side in sides
    ]
    worse = None
    if counts[1] > 0:
        worse = sequential.tilted(*_slow(found, metric, by_unit), sequential.UPWARDS)
    effect = None
    if values[0] is not None and values[1] is not None and values[1] > 0:
        effect = values[0] / values[1] - 1
    shown = {
        "n": found.per_version(*counts),
        "value": found.per_version(*values),
        "value_se": found.per_version(None, None),
        "effect": effect,
        "se": None,
        "interval": None,
        "direction": metric.direction,
        "design_effect": None,
        "strata": times.select("block", "share").n_unique() if times.height else 0,
        "log_e": None,
        "log_e_better": None,
        "log_e_worse": worse,
    }
    champion = sums.total(found.tallies.filter(measure=sums.ERRORS, side=0)["n"])
    return Guardrail(metric, shown, _crossed(worse, champion, found.policy), None)


def quality(found: effects.Kept, metric: policies.Metric) -> Guardrail:
    """A labelled metric; crossed when its interval lies wholly beyond the margin."""
    policy = found.held.policy
    shown = effects.compare(found, metric, policy.crossing_alpha)
    interval = shown.gain_interval
    crossed = bool(
        interval is not None
        and interval[1] < -metric.margin
        and shown.least >= policy.labels_needed(metric)
    )
    return Guardrail(metric, shown.to_dict(), crossed, interval)


def _crossed(log_e_worse: float | None, champion: float, policy: policies.Policy) -> bool:
    return bool(
        log_e_worse is not None
        and log_e_worse >= log(1 / policy.crossing_alpha)
        and champion >= policy.min_requests
    )


def _counted(tallies: pl.DataFrame, events: pl.Expr, by_unit: bool) -> pl.DataFrame:
    """Events per share and side: all, or those of requests that are units of their own."""
    if by_unit:
        tallies = tallies.filter(pl.col("unit").is_null())
    return tallies.select("share", "side", n=events)


def _by_share(events: pl.DataFrame) -> ByShare:
    """Distinct shares and the events of challenger and champion at each."""
    if not events.height:
        return np.empty(0), np.empty(0), np.empty(0)
    shares, code = arms.codes(events["share"].to_numpy())
    n, side = events["n"].to_numpy().astype(float), events["side"].to_numpy()
    ones = sums.added(code, n * side, len(shares))
    return shares.astype(float), ones, sums.added(code, n, len(shares)) - ones


def _together(one: ByShare, other: ByShare) -> ByShare:
    shares, ones, zeros = (np.concatenate(pair) for pair in zip(one, other, strict=True))
    return shares, ones, zeros


def _error_shares(found: sums.Sums, odds: float, by_unit: bool) -> float:
    """Test A: among errors, does the challenger hold more than its share times the odds allowed?"""
    everyone = found.tallies.filter(measure=sums.ERRORS)
    events = _by_share(_counted(everyone, pl.col("total"), by_unit))
    if by_unit:
        failing = found.units.filter(pl.col("error_share").is_not_null()).sort("unit", "block")
        first = failing.unique("unit", keep="first", maintain_order=True)
        events = _together(
            events, _by_share(first.select(share="error_share", side="error_side", n=1))
        )
    shares, ones, zeros = events
    p = shares * odds / (shares * odds + 1 - shares)
    return sequential.tilted(p, ones, zeros, sequential.UPWARDS)


def _error_rate_by_hour(tally: effects.Tally, margin: float) -> float:
    """Test B: the challenger's errors against the rate that the champion's hours allow it."""
    hours, hour = arms.codes(tally.block[tally.stratum])

    def count(values: Floats) -> Floats:
        return sums.added(hour, values, len(hours))

    c = tally.side
    n1, n0, k0 = count(c * tally.n), count((1 - c) * tally.n), count((1 - c) * tally.total)
    there = n0 > 0
    overall = k0.sum() / n0.sum()
    ratio = n1 / np.where(there, n0, 1)
    expected = float(np.where(there, ratio * k0, n1 * overall).sum())
    variance = float(np.where(there, ratio**2 * k0, 0).sum())
    n, k = float(n1.sum()), float(np.dot(c, tally.total))
    return _rate_evidence(k, n, float(n0.sum()), expected, variance, margin)


def _error_rate_by_unit(found: sums.Sums, margin: float) -> float:
    """Test B on units: how many of either version's units met an error."""
    per_unit = found.units.group_by("unit").agg(
        pl.col(f"{what}_{side}").sum() for what in ("requests", "errors") for side in (1, 0)
    )
    alone = found.tallies.filter(pl.col("unit").is_null(), measure=sums.ERRORS)

    def units(side: int) -> tuple[float, float]:
        of_side = alone.filter(side=side)
        met = [sums.total(per_unit[f"{what}_{side}"] > 0) for what in ("requests", "errors")]
        return met[0] + sums.total(of_side["n"]), met[1] + sums.total(of_side["total"])

    (n, k), (n0, k0) = units(1), units(0)
    if n == 0:
        return 0.0
    requests = sums.total(found.tallies.filter(measure=sums.ERRORS, side=1)["n"])
    return _rate_evidence(k, n, n0, n * k0 / n0, (n / n0) ** 2 * k0, margin * requests / n)


def _rate_evidence(
    k: float, n: float, champion_n: float, expected: float, variance: float, margin: float
) -> float:
    if n == 0:
        return 0.0
    q = min(1.0, (expected + 2 * sqrt(variance) + 2 * n / champion_n) / n + margin)
    return sequential.tilted([q], [k], [n - k], sequential.UPWARDS)


def _slow(found: sums.Sums, metric: policies.Metric, by_unit: bool) -> ByShare:
    """Answers that took longer than the quantile of both versions in their hour; by unit the first
    of each."""
    times = found.times
    x = sums.allowed(times["ms"].to_numpy(), times["side"].to_numpy(), metric.margin)
    times = times.with_columns(x=x).sort("block", "x")
    blocks, hour = arms.codes(times["block"].to_numpy())
    limits = _quantiles(hour, times["x"], times["n"], metric.quantile)
    slow = times.filter(pl.Series(times["x"].to_numpy() > limits[hour]))
    if not by_unit:
        return _by_share(slow)
    records = found.slowest.filter(margin=metric.margin)
    limit = limits[np.searchsorted(blocks, records["block"].to_numpy())]
    late = records.filter(pl.Series(records["x"].to_numpy() > limit)).sort("unit", "block", "turn")
    first = late.unique("unit", keep="first", maintain_order=True)
    alone = slow.filter(pl.col("alone"))
    return _together(_by_share(alone), _by_share(first.select("share", "side", n=1)))


def _quantiles(group: NDArray, values: pl.Series, n: pl.Series, q: float) -> Floats:
    """The linear quantile of each group of values that occur n times each; groups from 0, in order
    of (group, value)."""
    x, counts = values.to_numpy(), n.to_numpy()
    sizes = np.bincount(group.astype(np.int64), counts)
    starts = np.cumsum(sizes) - sizes
    place = (sizes - 1) * q
    below, ends = np.floor(place), np.cumsum(counts)
    low, high = (
        x[np.searchsorted(ends, starts + side, side="right")] for side in (below, np.ceil(place))
    )
    return low + (high - low) * (place - below)
