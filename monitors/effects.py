"""The difference of two versions inside request hours: effect, standard error, interval, evidence.

Only rows of one stratum are compared (experiments.md, "The estimate"), because a ramp while the
world gets harder makes pooled means lie. A stratum with one version has no say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from monitors import arms, auc, measures, policies, sequential, sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

RATE_TAU = 0.02


@dataclass(frozen=True, slots=True)
class Estimate:
    """An effect in native sign. se is None where the data give none (no stratum, no variance).

    weights, differences, starts: per stratum (or AUC block) with a say, in order of time."""

    effect: float | None
    se: float | None
    design_effect: float | None
    zero_variance: bool
    weights: Floats
    differences: Floats
    starts: Ints

    @property
    def weight(self) -> float:
        return float(self.weights.sum())


NOTHING = Estimate(None, None, None, False, np.empty(0), np.empty(0), np.empty(0, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric of both versions and their difference: one entry of Decision.metrics."""

    metric: policies.Metric
    n: Mapping[str, int]
    value: Mapping[str, float | None]
    value_se: Mapping[str, float | None]
    estimate: Estimate
    tau: float | None
    interval: tuple[float, float] | None
    evidence: sequential.Evidence | None

    @property
    def least(self) -> int:
        """Rows of the version that has fewer."""
        return min(self.n.values(), default=0)

    @property
    def gain(self) -> float | None:
        effect = self.estimate.effect
        return None if effect is None else self.metric.sign * effect

    @property
    def gain_interval(self) -> tuple[float, float] | None:
        """The interval in gain sign: positive is better."""
        if self.interval is None:
            return None
        low, high = self.interval
        return (low, high) if self.metric.sign > 0 else (-high, -low)

    def to_dict(self) -> dict[str, Any]:
        evidence = self.evidence
        return {
            "n": dict(self.n),
            "value": dict(self.value),
            "value_se": dict(self.value_se),
            "effect": self.estimate.effect,
            "se": self.estimate.se,
            "interval": None if self.interval is None else list(self.interval),
            "direction": self.metric.direction,
            "design_effect": self.estimate.design_effect,
            "strata": len(self.estimate.weights),
            "log_e": None if evidence is None else evidence.two_sided,
            "log_e_better": None if evidence is None else evidence.better,
            "log_e_worse": None if evidence is None else evidence.worse,
        }


@dataclass(frozen=True, slots=True)
class Tally:
    """A measure's counts in cells of (stratum, side, unit). side: 1.0 challenger, 0.0 champion;
    unit: code, -1 where requests are units of their own; squares: about the cell's own mean.
    block, share: per stratum, in order of time; single: no unit has a second request."""

    stratum: Ints
    side: Floats
    unit: Ints
    n: Floats
    total: Floats
    squares: Floats
    block: Ints
    share: Floats
    width: int
    single: bool

    @classmethod
    def of(cls, cells: pl.DataFrame, found: "Kept") -> "Tally":
        """From rows of `sums.tallies`."""
        # In one order whatever was merged when: sums of floats depend on it.
        cells = cells.sort("block", "share", "side", "unit")
        block, share = cells["block"].to_numpy(), cells["share"].to_numpy()
        new = np.r_[True, (block[1:] != block[:-1]) | (share[1:] != share[:-1])][: len(block)]
        return cls(
            stratum=np.cumsum(new) - 1,
            side=cells["side"].to_numpy().astype(float),
            unit=found.clusters(cells["unit"]),
            n=cells["n"].to_numpy().astype(float),
            total=cells["total"].to_numpy(),
            squares=cells["squares"].to_numpy(),
            block=block[new],
            share=share[new],
            width=found.width,
            single=found.single,
        )

    def per_stratum(self, values: Floats) -> Floats:
        return sums.added(self.stratum, values, len(self.block))

    def in_strata(self, chosen: Flags) -> "Tally":
        """The cells of these strata; the strata stay numbered as they are."""
        cells = chosen[self.stratum]
        kept = {
            name: getattr(self, name)[cells]
            for name in ("stratum", "side", "unit", "n", "total", "squares")
        }
        return replace(self, **kept)

    def of_side(self, side: int) -> tuple[float, float]:
        """Rows and their total of the challenger (1) or the champion (0)."""
        chosen = self.side == side
        return float(self.n[chosen].sum()), float(self.total[chosen].sum())


@dataclass(frozen=True, slots=True)
class Kept:
    """Sums with what every comparison asks of them: how many units there are, and whether any of
    them came twice."""

    held: sums.Sums
    width: int
    many: bool
    single: bool

    @classmethod
    def of(cls, found: sums.Sums) -> "Kept":
        distinct = found.units["unit"].n_unique()
        requests = sum(sums.total(found.units[f"requests_{side}"]) for side in (1, 0))
        return cls(
            held=found,
            width=found.policy.stratum_hours * arms.HOUR,
            many=distinct > sums.MOST_UNITS,
            single=distinct == requests,
        )

    def clusters(self, unit: pl.Series) -> Ints:
        """A code per unit, or per bucket of units where there are many; -1 for null."""
        known = unit.is_not_null().to_numpy()
        hashes = unit.drop_nulls().to_numpy()
        code = np.full(len(unit), -1)
        code[known] = arms.codes(hashes % sums.MOST_UNITS if self.many else hashes)[1]
        return code

    def counts(self, measure: str) -> pl.DataFrame:
        """The cells of a measure."""
        return self.held.tallies.filter(measure=measure, column=sums.WHOLE)

    def rows_of(self, metric: policies.Metric) -> pl.DataFrame:
        """Cells of a labelled metric, or the scores of an AUC (n = 1 each)."""
        name = measures.name_of(metric)
        if metric.kind == "auc":
            return self.held.scores.filter(measure=name).with_columns(n=1)
        return self.counts(name)

    def slice_rows(self, number: int) -> pl.DataFrame:
        """The primary's cells or scores by `value` of a slicing column of the policy."""
        policy = self.held.policy
        if policy.primary.kind == "auc":
            return self.rows_of(policy.primary).with_columns(value=pl.col(f"{number}"))
        return self.held.tallies.filter(measure=policy.slices[number], column=number)

    def strata(self) -> tuple[Ints, Floats]:
        """Block and share of every stratum, in order of time."""
        pairs = self.held.tallies.select("block", "share").unique().sort("block", "share")
        return pairs["block"].to_numpy(), pairs["share"].to_numpy()


def compare(found: Kept, metric: policies.Metric, alpha: float) -> Comparison:
    """A binary, continuous or AUC metric over the labelled rows, its interval at level alpha."""
    rows = found.rows_of(metric)
    if metric.kind == "auc":
        return compare_rows(found, metric, alpha, rows, metric.mde or metric.margin or RATE_TAU)
    tally = Tally.of(rows, found)
    return compare_tally(found, metric, alpha, tally, mixture_width(metric, tally))


def compare_rows(
    found: Kept, metric: policies.Metric, alpha: float, rows: pl.DataFrame, tau: float | None
) -> Comparison:
    """The same on a part of the metric's sums, at a mixture width that was chosen before."""
    if metric.kind == "auc":
        return _compare_scores(found, metric, alpha, rows, tau)
    return compare_tally(found, metric, alpha, Tally.of(rows, found), tau)


def compare_tally(
    found: Kept, metric: policies.Metric, alpha: float, tally: Tally, tau: float | None
) -> Comparison:
    """Challenger against champion on these cells; the interval is None where nothing gives one."""
    sides = [_mean(tally, tally.side == side) for side in (1, 0)]
    counts = [int(tally.of_side(side)[0]) for side in (1, 0)]
    estimate = difference(tally, metric.kind != "continuous")
    return _comparison(found, metric, alpha, tau, counts, sides, estimate)


def _compare_scores(
    found: Kept, metric: policies.Metric, alpha: float, rows: pl.DataFrame, tau: float | None
) -> Comparison:
    rows = rows.sort("block", "share", "side", "unit", "score", "positive")
    c = rows["side"].to_numpy() == 1
    score, positive = rows["score"].to_numpy(), rows["positive"].to_numpy()
    estimate = _auc_difference(found, rows, score, positive, c)
    sides = auc.mann_whitney(score, positive, (~c).astype(np.int64), 2)
    return _comparison(found, metric, alpha, tau, [int(c.sum()), int((~c).sum())], sides, estimate)


def _comparison(
    found: Kept,
    metric: policies.Metric,
    alpha: float,
    tau: float | None,
    counts: Sequence[int],
    sides: Sequence[auc.Mean],
    estimate: Estimate,
) -> Comparison:
    return Comparison(
        metric=metric,
        n=found.held.per_version(*counts),
        value=found.held.per_version(*(side.value for side in sides)),
        value_se=found.held.per_version(*(side.se for side in sides)),
        estimate=estimate,
        tau=tau,
        interval=_interval(estimate, tau, alpha),
        evidence=_evidence(estimate, tau, metric.sign),
    )


def difference(tally: Tally, binary: bool) -> Estimate:
    """The Mantel-Haenszel weighted difference inside strata, with the larger of the pooled and
    the robust standard error times the clustering of units."""
    if len(tally.n) == 0:
        return NOTHING
    n = tally.per_stratum(tally.n)
    n1 = tally.per_stratum(tally.n * tally.side)
    safe = np.maximum(n, 1)
    h = n1 * (n - n1) / safe
    total = float(h.sum())
    if total == 0:
        return NOTHING
    own = tally.total / tally.n
    off = own - (tally.per_stratum(tally.total) / safe)[tally.stratum]
    dc = tally.side - (n1 / safe)[tally.stratum]
    product = tally.per_stratum(tally.n * dc * off)
    effect = float(product.sum() / total)
    freedom = np.maximum(n - 1, 1)
    variance = tally.per_stratum(tally.squares + tally.n * off * off) / freedom
    # u of a row is (c - cbar)(y - ybar - effect (c - cbar)) scale: its sum and its sum of squares
    # in a cell follow from the cell's count, mean and squares.
    scale = np.sqrt(n / freedom)[tally.stratum]
    rest = off - effect * dc
    summed = scale * dc * tally.n * rest
    squares = scale * scale * dc * dc * (tally.squares + tally.n * rest * rest)
    pooled = sqrt(float(np.dot(h, variance)))
    if binary and pooled == 0:
        pooled = _binary_floor(tally.in_strata(h > 0), total)
    design = 1.0 if tally.single else _design_effect(summed, squares, tally.unit)
    se = max(pooled, sqrt(float(squares.sum()))) / total * sqrt(design)
    if not isfinite(effect) or not isfinite(se):  # values beyond 1e150: squares are no numbers
        return NOTHING
    # Rounding leaves a trace of variance where there is none: relative to the values it is nothing.
    size = sqrt(float((tally.squares + tally.n * own * own).sum() / n.sum()))
    nothing = not binary and se <= 1e-12 * (abs(effect) + size)
    said = np.flatnonzero(h > 0)
    return Estimate(
        effect=effect,
        se=None if nothing else se,
        design_effect=design,
        zero_variance=nothing,
        weights=h[said],
        differences=product[said] / h[said],
        starts=tally.block[said] * tally.width,
    )


def _design_effect(summed: Floats, squares: Floats, unit: Ints) -> float:
    """How much the repeated requests of units inflate the variance.

    summed, squares: of u, per cell; unit: its code, -1 where every request is a unit of its own."""
    whole = float(squares.sum())
    known = unit >= 0
    if whole == 0 or not known.any():
        return 1.0
    per_unit = np.bincount(unit[known], summed[known])
    return max(1.0, (float(np.dot(per_unit, per_unit)) + float(squares[~known].sum())) / whole)


def mixture_width(metric: policies.Metric, tally: Tally) -> float | None:
    """tau: the mde, else the margin, else 0.02 for rates, else a tenth of y's deviation."""
    if metric.mde is not None:
        return metric.mde
    if metric.margin > 0:
        return metric.margin
    if metric.kind != "continuous":
        return RATE_TAU
    if len(tally.n) == 0:
        return None
    n = tally.n.sum()
    off = tally.total / tally.n - tally.total.sum() / n
    spread = sqrt(float((tally.squares + tally.n * off * off).sum() / n))
    return spread / 10 if 0 < spread < inf else None


def _auc_difference(
    found: Kept, rows: pl.DataFrame, score: Floats, positive: Flags, c: Flags
) -> Estimate:
    """Blocks of hours of one share, each with 20 positives and 20 negatives of either version."""
    blocks, shares = found.strata()
    stratum = _positions(blocks, shares, rows["block"].to_numpy(), rows["share"].to_numpy())
    block_of, first = auc.blocks(stratum, shares, blocks, c, positive)
    if not first:
        return NOTHING
    inside = block_of >= 0
    block, side = block_of[inside], c[inside]
    placed = auc.placements(score[inside], positive[inside], block * 2 + side)
    weights = 1 / (1 / placed.counts.reshape(len(first), 4)).sum(axis=1)
    part = weights / weights.sum()
    u = placed.influence * np.where(side, 1.0, -1.0) * part[block]
    unit = found.clusters(rows["unit"])[inside]
    design = 1.0 if found.single else _design_effect(u, u * u, unit)
    se = sqrt(float(np.dot(u, u)) * design)
    areas = placed.value.reshape(len(first), 2)
    differences = areas[:, 1] - areas[:, 0]
    nothing = se <= 1e-12
    return Estimate(
        effect=float(np.dot(part, differences)),
        se=None if nothing else se,
        design_effect=design,
        zero_variance=nothing,
        weights=weights,
        differences=differences,
        starts=blocks[np.array(first)] * found.width,
    )


def _positions(blocks: Ints, shares: Floats, block: Ints, share: Floats) -> Ints:
    """The number of the stratum that each row lies in."""
    distinct, code = arms.codes(shares)
    keys = np.searchsorted(np.unique(blocks), blocks) * len(distinct) + code
    wanted = np.searchsorted(np.unique(blocks), block) * len(distinct)
    return np.searchsorted(keys, wanted + np.searchsorted(distinct, share)).astype(np.int64)


def _evidence(estimate: Estimate, tau: float | None, sign: int) -> sequential.Evidence | None:
    if estimate.effect is None or estimate.se is None or tau is None:
        return None
    return sequential.evidence(sign * estimate.effect, estimate.se, tau)


def _interval(estimate: Estimate, tau: float | None, alpha: float) -> tuple[float, float] | None:
    if estimate.effect is None or estimate.se is None or tau is None:
        return None
    half = sequential.half_width(estimate.se, tau, alpha)
    if not isfinite(half):
        return None
    return estimate.effect - half, estimate.effect + half


def _binary_floor(tally: Tally, total: float) -> float:
    p = (float(tally.total.sum()) + 1) / (float(tally.n.sum()) + 2)
    return sqrt(p * (1 - p) * total)


def _mean(tally: Tally, chosen: Flags) -> auc.Mean:
    n = float(tally.n[chosen].sum())
    if n == 0:
        return auc.Mean(None, None)
    mean = float(tally.total[chosen].sum()) / n
    if not isfinite(mean):
        return auc.Mean(None, None)
    off = tally.total[chosen] / tally.n[chosen] - mean
    squares = float((tally.squares[chosen] + tally.n[chosen] * off * off).sum())
    se = sqrt(squares / (n - 1) / n) if n > 1 and isfinite(squares) else None
    return auc.Mean(mean, se)
