"""The difference of two arms inside request hours: effect, standard error, interval, evidence.

Only rows of one stratum are compared (experiments.md, "The estimate"), because a ramp while the
world gets harder makes pooled means lie. A stratum with one version has no say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitors import arms, auc, cells, policies, sequential

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

CLIP = 1e-15


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
    first: int | None
    last: int | None

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
class Sample:
    """The rows (positions in Arms) that have a value of a metric. values: y, or the score of an
    AUC; positive: the class of each row, for an AUC only."""

    rows: Ints
    values: Floats
    positive: Flags | None = None

    def where(self, chosen: Flags) -> "Sample":
        positive = None if self.positive is None else self.positive[chosen]
        return Sample(self.rows[chosen], self.values[chosen], positive)


def compare(data: arms.Arms, metric: policies.Metric, alpha: float) -> Comparison:
    """A binary, continuous or AUC metric over the labelled rows, its interval at level alpha."""
    sample = metric_sample(data, metric)
    return compare_sample(data, metric, alpha, sample, mixture_width(metric, sample.values))


def compare_sample(
    data: arms.Arms, metric: policies.Metric, alpha: float, sample: Sample, tau: float | None
) -> Comparison:
    """Challenger against champion on these rows; the interval is None where nothing gives one."""
    c = data.is_challenger[sample.rows] == 1
    if sample.positive is None:
        estimate = difference(data, sample, metric.kind != "continuous")
        sides = [_mean(sample.values[side]) for side in (c, ~c)]
    else:
        estimate = _auc_difference(data, sample)
        sides = auc.mann_whitney(sample.values, sample.positive, (~c).astype(np.int64), 2)
    time = data.time[sample.rows]
    return Comparison(
        metric=metric,
        n=data.per_version(int(c.sum()), int((~c).sum())),
        value=data.per_version(sides[0].value, sides[1].value),
        value_se=data.per_version(sides[0].se, sides[1].se),
        estimate=estimate,
        tau=tau,
        interval=_interval(estimate, tau, alpha),
        evidence=_evidence(estimate, tau, metric.sign),
        first=int(time.min()) if len(time) else None,
        last=int(time.max()) if len(time) else None,
    )


def difference(data: arms.Arms, sample: Sample, binary: bool) -> Estimate:
    """The Mantel-Haenszel weighted difference inside strata, with the larger of the pooled and
    the robust standard error times the clustering of units."""
    y = sample.values
    if len(y) == 0:
        return NOTHING
    c = data.is_challenger[sample.rows]
    stratum = data.stratum[sample.rows]
    size = len(data.strata.start)
    n = np.bincount(stratum, minlength=size)
    n1 = np.bincount(stratum, c, minlength=size)
    h = n1 * (n - n1) / np.maximum(n, 1)
    total = float(h.sum())
    if total == 0:
        return NOTHING
    safe = np.maximum(n, 1)
    dy = y - (np.bincount(stratum, y, minlength=size) / safe)[stratum]
    dc = c - (n1 / safe)[stratum]
    effect = float(np.dot(dc, dy) / total)
    variance = np.bincount(stratum, dy * dy, minlength=size) / np.maximum(n - 1, 1)
    u = dc * (dy - effect * dc) * np.sqrt(n / np.maximum(n - 1, 1))[stratum]
    squares = float(np.dot(u, u))
    pooled = sqrt(float(np.dot(h, variance)))
    if binary and pooled == 0:
        pooled = max(pooled, _binary_floor(y[h[stratum] > 0], total))
    design = design_effect(u, data.unit[sample.rows], data)
    se = max(pooled, sqrt(squares)) / total * sqrt(design)
    if not isfinite(effect) or not isfinite(
        se
    ):  # values beyond 1e150: their squares are no numbers
        return NOTHING
    # Rounding leaves a trace of variance where there is none: relative to the values it is nothing.
    nothing = not binary and se <= 1e-12 * (abs(effect) + float(np.abs(y).max()))
    said = np.flatnonzero(h > 0)
    product = np.bincount(stratum, dc * dy, minlength=size)
    return Estimate(
        effect=effect,
        se=None if nothing else se,
        design_effect=design,
        zero_variance=nothing,
        weights=h[said],
        differences=product[said] / h[said],
        starts=data.strata.start[said],
    )


def design_effect(u: Floats, unit: Ints, data: arms.Arms) -> float:
    """How much the repeated requests of a unit inflate the variance; 1 when units are unique."""
    squares = float(np.dot(u, u))
    if squares == 0 or data.unique_units:
        return 1.0
    if data.units > len(unit):
        unit = np.unique(unit, return_inverse=True)[1]
    per_unit = np.bincount(unit, u)
    return max(1.0, float(np.dot(per_unit, per_unit)) / squares)


def metric_sample(data: arms.Arms, metric: policies.Metric) -> Sample:
    """The labelled rows that have a value of this metric."""
    labelled = np.flatnonzero(data.labelled)
    if metric.kind == "auc":
        score = cells.numbers(data.column(metric.score, labelled))
        there = ~np.isnan(score)
        positive = cells.is_value(data.column("label", labelled), metric.positive)[there]
        return Sample(labelled[there], score[there], positive)
    if metric.value is None and metric.kind == "binary":
        return _hits(data, metric, labelled)
    if metric.value is not None:
        y = cells.numbers(data.column(metric.value, labelled))
    else:
        y = _losses(data, metric, labelled)
    there = np.isfinite(y)
    return Sample(labelled[there], y[there])


def units_of(data: arms.Arms, sample: Sample) -> dict[str, int]:
    """Distinct units per version among these rows."""
    c = data.is_challenger[sample.rows] == 1
    counts = [np.bincount(data.unit[sample.rows[side]]) for side in (c, ~c)]
    return data.per_version(*(int(np.count_nonzero(count)) for count in counts))


def mixture_width(metric: policies.Metric, y: Floats) -> float | None:
    """tau: the mde, else the margin, else 0.02 for rates, else a tenth of y's deviation."""
    if metric.mde is not None:
        return metric.mde
    if metric.margin > 0:
        return metric.margin
    if metric.kind != "continuous":
        return 0.02
    spread = float(np.std(y)) if len(y) else 0.0
    return spread / 10 if 0 < spread < inf else None


def _hits(data: arms.Arms, metric: policies.Metric, labelled: Ints) -> Sample:
    prediction, label = (data.column(name, labelled) for name in ("prediction", "label"))
    y = cells.equal(prediction, label).astype(float)
    if metric.name not in ("recall", "precision"):
        return Sample(labelled, y)
    among = cells.is_value(label if metric.name == "recall" else prediction, metric.positive)
    return Sample(labelled[among], y[among])


def _losses(data: arms.Arms, metric: policies.Metric, labelled: Ints) -> Floats:
    label = data.column("label", labelled)
    truth = cells.numbers(label)
    if metric.name in ("mse", "mae"):
        error = truth - cells.numbers(data.column("prediction", labelled))
        return error * error if metric.name == "mse" else np.abs(error)
    score = cells.numbers(data.column(metric.score, labelled))
    # A text, or a class named by the policy, is turned into 1 and 0; numbers stay what they are.
    if metric.positive != 1 or not cells.numeric(label.dtype):
        truth = cells.is_value(label, metric.positive).astype(float)
    if metric.name == "brier":
        return (score - truth) ** 2
    sure = np.clip(score, CLIP, 1 - CLIP)
    return -(truth * np.log(sure) + (1 - truth) * np.log1p(-sure))


def _auc_difference(data: arms.Arms, sample: Sample) -> Estimate:
    """Blocks of hours of one share, each with 20 positives and 20 negatives of either version."""
    assert sample.positive is not None
    c = data.is_challenger[sample.rows] == 1
    block_of, first = auc.blocks(
        data.stratum[sample.rows], data.strata.share, data.strata.block, c, sample.positive
    )
    if not first:
        return NOTHING
    inside = block_of >= 0
    block, side = block_of[inside], c[inside]
    placed = auc.placements(sample.values[inside], sample.positive[inside], block * 2 + side)
    weights = 1 / (1 / placed.counts.reshape(len(first), 4)).sum(axis=1)
    part = weights / weights.sum()
    u = placed.influence * np.where(side, 1.0, -1.0) * part[block]
    design = design_effect(u, data.unit[sample.rows][inside], data)
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
        starts=data.strata.start[np.array(first)],
    )


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


def _binary_floor(y: Floats, total: float) -> float:
    p = (float(y.sum()) + 1) / (len(y) + 2)
    return sqrt(p * (1 - p) * total)


def _mean(y: Floats) -> auc.Mean:
    if len(y) == 0:
        return auc.Mean(None, None)
    mean, se = float(y.mean()), float(y.std(ddof=1)) / sqrt(len(y)) if len(y) > 1 else None
    if not isfinite(mean):
        return auc.Mean(None, None)
    return auc.Mean(mean, se if se is not None and isfinite(se) else None)
