"""Checks on labels and time: are labels lost unevenly, too young, or does the effect fade?

Source: experiments.md, "Checks on labels and time".
"""

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import arms, effects, policies, sequential, sums

Floats = NDArray[np.float64]

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


def coverage(found: effects.Kept) -> Coverage:
    """Do labels arrive for both versions alike? Over answered rows of strata with any label."""
    policy = found.held.policy
    ready = effects.Tally.of(found.counts(sums.COVERAGE), found)
    arrived = ready.in_strata(ready.per_stratum(ready.total) > 0)
    compared = effects.compare_tally(found, LABELLED, policy.health_alpha, arrived, LABELLED.mde)
    low, high = compared.interval or (0.0, 0.0)
    effect = compared.estimate.effect
    sides = [ready.of_side(side) for side in (1, 0)]
    return Coverage(
        share=found.held.per_version(*(labels / n if n else None for n, labels in sides)),
        difference=effect,
        interval=compared.interval,
        answered=int(sum(n for n, _ in sides)),
        alarm=(
            effect is not None
            and (low > 0 or high < 0)
            and abs(effect) >= policy.coverage_margin
            and compared.least >= policy.labels_needed(policy.primary)
        ),
    )


def maturity(found: sums.Sums, primary: effects.Comparison, now: int) -> Maturity:
    """Early labels lie where the answer says when it comes. Without a label window only.

    now: microseconds since 1970."""
    labels = found.labels.sort("block")
    if labels.is_empty():
        return Maturity(None, None, None, False)
    # Texts cannot be ranked: whether the answer was right takes their place.
    kind = "label" if sums.total(labels["texts"]) == 0 else "right"
    mean = sums.total(labels[kind]) / sums.total(labels["n"])
    delay_90 = _delay_90(found.delays, kind, mean)
    variance = sums.total(labels[f"{kind}_variance"])
    z = sums.total(labels[f"{kind}_with_delay"]) / sqrt(variance) if variance > 0 else None
    weight = _young_weight(now, primary, delay_90)
    immature = (
        found.policy.label_window_hours is None
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


def _delay_90(delays: pl.DataFrame, kind: str, mean: float) -> float:
    """The larger of the 90 % quantiles of the delay of labels above their mean and of the others,
    in the oldest third of strata."""
    strata = delays.select("block", "share").unique().sort("block", "share")
    last = strata[max(1, strata.height // 3) - 1]
    block, share = last["block"][0], last["share"][0]
    oldest = delays.filter(
        (pl.col("block") < block) | ((pl.col("block") == block) & (pl.col("share") <= share))
    )
    above = oldest[kind].to_numpy() > mean
    hours = oldest["hours"].to_numpy()
    return max(float(np.quantile(hours[side], 0.9)) for side in (above, ~above) if side.any())


def _young_weight(now: int, primary: effects.Comparison, delay_90: float) -> float | None:
    """The part of the primary's weight in strata younger than the labels' 90 % delay."""
    weights, starts = primary.estimate.weights, primary.estimate.starts
    if len(weights) == 0:
        return None
    young = (now - starts) < delay_90 * arms.HOUR
    return float(weights[young].sum() / weights.sum())


def _newest_third(h: Floats) -> int:
    """Where the most recent strata begin that hold at most a third of the weight (at least one)."""
    held = np.cumsum(h[::-1])
    return len(h) - max(1, int(np.count_nonzero(held <= h.sum() / 3)))
