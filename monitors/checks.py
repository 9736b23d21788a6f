"""Checks on labels and time: are labels lost unevenly, too young, or does the effect fade?

Source: experiments.md, "Checks on labels and time".
"""

from dataclasses import dataclass
from math import ceil, log, sqrt

import numpy as np
from numpy.typing import NDArray

from monitors import arms, auc, cells, effects, policies, sequential

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

LABELLED = policies.Metric("label_coverage", "binary", mde=0.02)
DAY = 24 * arms.HOUR


@dataclass(frozen=True, slots=True)
class Coverage:
    """Share of answered requests with a label, per version, and whether it is uneven."""

    share: dict[str, float | None]
    difference: float | None
    interval: tuple[float, float] | None
    answered: int
    alarm: bool


@dataclass(frozen=True, slots=True)
class Maturity:
    """How late labels come, whether the delay depends on what they say, and how much is young."""

    delay_90_hours: float | None
    delay_label_z: float | None
    immature_weight: float | None
    immature: bool


@dataclass(frozen=True, slots=True)
class Fading:
    """Slope of the effect over days (native sign), evidence that it shrinks, the newest effect."""

    slope_per_day: float | None
    log_e: float | None
    recent_effect: float | None
    fading: bool


def coverage(data: arms.Arms, policy: policies.Policy) -> Coverage:
    """Do labels arrive for both versions alike? Over answered rows of strata with any label."""
    answered = data.answered & data.mature
    c = data.is_challenger == 1
    arrived = np.bincount(data.stratum[data.labelled], minlength=len(data.strata.start)) > 0
    chosen = np.flatnonzero(answered & arrived[data.stratum])
    sample = effects.Sample(chosen, data.labelled[chosen].astype(float))
    compared = effects.compare_sample(data, LABELLED, policy.health_alpha, sample, LABELLED.mde)
    low, high = compared.interval or (0.0, 0.0)
    effect = compared.estimate.effect
    return Coverage(
        share=data.per_version(
            _share(data.labelled, answered & c), _share(data.labelled, answered & ~c)
        ),
        difference=effect,
        interval=compared.interval,
        answered=int(np.count_nonzero(answered)),
        alarm=(
            effect is not None
            and (low > 0 or high < 0)
            and abs(effect) >= policy.coverage_margin
            and compared.least >= policy.labels_needed(policy.primary)
        ),
    )


def maturity(data: arms.Arms, primary: effects.Comparison, policy: policies.Policy) -> Maturity:
    """Early labels lie where the answer says when it comes. Without a label window only."""
    chosen = np.flatnonzero(data.labelled)
    if len(chosen) == 0:
        return Maturity(None, None, None, False)
    kind, label = _kinds(data, chosen)
    delay_90 = _delay_90(data, chosen, kind)
    z = _delay_label_z(data, chosen, label)
    weight = _young_weight(data, chosen, primary, delay_90)
    immature = (
        policy.label_window_hours is None
        and weight is not None
        and (weight > 1 / 2 or (z is not None and abs(z) >= 4 and weight > 1 / 3))
    )
    return Maturity(delay_90, z, weight, immature)


def fading(primary: effects.Comparison, policy: policies.Policy, enough: bool) -> Fading:
    """Does the gain shrink from day to day, and is the newest part no gain of its own?"""
    estimate, metric = primary.estimate, primary.metric
    if primary.interval is None or metric.kind == "auc" or len(estimate.weights) < 6:
        return Fading(None, None, None, False)
    if estimate.effect is None or estimate.se is None or metric.mde is None:
        return Fading(None, None, None, False)
    h, d, total = estimate.weights, estimate.differences, estimate.weight
    days = (estimate.starts - estimate.starts[0]) / DAY
    from_mean = days - np.dot(h, days) / total
    spread = float(np.dot(h, from_mean**2))
    recent = _newest_third(h)
    recent_weight = float(h[recent:].sum())
    recent_effect = float(np.dot(h[recent:], d[recent:]) / recent_weight)
    if spread == 0:
        return Fading(None, None, recent_effect, False)
    slope = float(np.dot(h, from_mean * (d - estimate.effect))) / spread
    se_slope = estimate.se * sqrt(total / spread)
    shrinking = sequential.evidence(metric.sign * slope, se_slope, metric.mde).worse
    recent_half = sequential.half_width(
        estimate.se * sqrt(total / recent_weight), metric.mde, policy.decisive_alpha
    )
    still_good = metric.sign * recent_effect - recent_half > metric.bound
    alarm = enough and shrinking >= log(1 / policy.fading_alpha) and not still_good
    return Fading(slope, shrinking, recent_effect, alarm)


def hours_covered(first: int | None, last: int | None) -> int:
    """Hours from first to last labelled request, rounded up; 0 without any."""
    if first is None or last is None:
        return 0
    return ceil((last - first) / arms.HOUR)


def _share(hit: Flags, among: Flags) -> float | None:
    return float(hit[among].mean()) if among.any() else None


def _kinds(data: arms.Arms, chosen: Ints) -> tuple[Flags, Floats]:
    """Two kinds of labels (above the mean or not; texts: right or wrong), and labels as numbers."""
    column = data.column("label", chosen)
    label = cells.numbers(column)
    if not cells.numeric(column.dtype) or np.isnan(label).any():
        label = cells.equal(data.column("prediction", chosen), column).astype(float)
    return label > label.mean(), label


def _delay_90(data: arms.Arms, chosen: Ints, kind: Flags) -> float | None:
    """The larger of the two kinds' 90 % quantiles of the delay in the oldest third of strata."""
    stratum = data.stratum[chosen]
    used = np.unique(stratum)
    oldest = stratum <= used[max(1, len(used) // 3) - 1]
    delay = data.delay_hours[chosen]
    return max(
        float(np.quantile(delay[oldest & side], 0.9))
        for side in (kind, ~kind)
        if (oldest & side).any()
    )


def _delay_label_z(data: arms.Arms, chosen: Ints, label: Floats) -> float | None:
    """Rank correlation of delay and label inside (stratum, version), as a standard normal."""
    cell = data.stratum[chosen] * 2 + data.is_challenger[chosen].astype(np.int64)
    n = np.bincount(cell).astype(float)
    a = _centred(auc.average_ranks(data.delay_hours[chosen], cell), cell, n)
    b = _centred(_label_ranks(label, cell, n), cell, n)
    squares = np.bincount(cell, a * a) * np.bincount(cell, b * b)
    variance = float((squares / np.maximum(n - 1, 1)).sum())
    return float(np.dot(a, b)) / sqrt(variance) if variance > 0 else None


def _label_ranks(label: Floats, cell: Ints, n: Floats) -> Floats:
    """Average ranks inside cells, up to a constant per cell."""
    low = label.min()
    if np.isin(label, (low, label.max())).all():
        # With two values the average ranks lie half the cell's size apart: no sorting needed.
        return (label > low) * n[cell] / 2
    return auc.average_ranks(label, cell)


def _centred(ranks: Floats, cell: Ints, n: Floats) -> Floats:
    return ranks - (np.bincount(cell, ranks) / np.maximum(n, 1))[cell]


def _young_weight(
    data: arms.Arms, chosen: Ints, primary: effects.Comparison, delay_90: float | None
) -> float | None:
    """The part of the primary's weight in strata younger than the labels' 90 % delay."""
    weights, starts = primary.estimate.weights, primary.estimate.starts
    if delay_90 is None or len(weights) == 0:
        return None
    young = (data.now - starts) < delay_90 * arms.HOUR
    return float(weights[young].sum() / weights.sum())


def _newest_third(h: Floats) -> int:
    """Where the most recent strata begin that hold at most a third of the weight (at least one)."""
    held = np.cumsum(h[::-1])
    return len(h) - max(1, int(np.count_nonzero(held <= h.sum() / 3)))
