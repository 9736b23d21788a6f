"""Is the challenger better, and how sure are we? Rows in, one decision out.

evaluate may be called every few seconds for weeks: every test in it stays valid under continuous
looking. Everything said about an experiment anywhere is read from its result. Contract:
experiments.md; the decision table is in rules.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil, inf, isfinite
from typing import Any

import numpy as np
import polars as pl

from monitors import (
    arms,
    checks,
    effects,
    guardrails,
    policies,
    rules,
    sequential,
    summing,
    sums,
)

Policy = policies.Policy


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do and why. Shapes: experiments.md, "Result"; what cannot be computed is None."""

    action: str
    reasons: list[str]
    summary: str
    champion: str | None
    challenger: str | None
    now: datetime
    primary: str
    metrics: dict[str, Any]
    guardrails: dict[str, Any]
    slices: list[dict[str, Any]]
    health: dict[str, Any]
    remaining: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; now as RFC 3339."""
        return {
            "action": self.action,
            "reasons": list(self.reasons),
            "summary": self.summary,
            "champion": self.champion,
            "challenger": self.challenger,
            "now": self.now.isoformat().replace("+00:00", "Z"),
            "primary": self.primary,
            "metrics": self.metrics,
            "guardrails": self.guardrails,
            "slices": self.slices,
            "health": self.health,
            "remaining": self.remaining,
        }


def evaluate(rows: pl.DataFrame, policy: Mapping[str, Any] | Policy, now: datetime) -> Decision:
    """The decision on these rows at this moment; columns as in experiments.md, "Input".

    The order of rows does not matter. Raises ValueError on a bad policy, never on odd rows."""
    return decide(summing.summarise(rows, policy, now), now)


def decide(found: sums.Sums, now: datetime) -> Decision:
    """The decision on rows that are known as sums.

    Raises ValueError if time has changed what some of them mean: `sums.stale` names the blocks to
    summarise anew."""
    old = sums.stale(found, now)
    if old:
        raise ValueError(f"sums: {len(old)} blocks have changed by {now}; summarise them anew.")
    with np.errstate(over="ignore", invalid="ignore"):  # absurd values end as None, not as warnings
        return _decision(findings(found, arms.microseconds(now)), now)


def choose(found: Sequence[Decision]) -> list[Decision]:
    """Of several challengers that may be promoted the one with the highest lower bound is; the
    others hold (`lost_to:...`). One decision per challenger, of one policy."""
    able = [one for one in found if one.action == "promote"]
    best = max(able, key=_least_gain, default=None)
    return [one if one is best or one not in able else _lost(one, best) for one in found]


def _least_gain(one: Decision) -> float:
    """The lower end of the interval, in the good direction."""
    shown = one.metrics[one.primary]
    low, high = shown["interval"]
    return float(low if shown["direction"] == "higher" else -high)


def _lost(one: Decision, best: Decision | None) -> Decision:
    winner = None if best is None else best.challenger
    summary = f"Hold: {one.challenger} may be promoted, and {winner} is surer to gain more."
    return replace(one, action="hold", reasons=[f"lost_to:{winner}"], summary=summary)


def _decision(found: rules.Findings, now: datetime) -> Decision:
    verdict = rules.verdict(found)
    return Decision(
        action=verdict.action,
        reasons=verdict.reasons,
        summary=verdict.summary,
        champion=found.champion,
        challenger=found.challenger,
        now=now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC),
        primary=found.primary.metric.name,
        metrics=_finite(_metrics(found)),
        guardrails=_finite({g.metric.name: g.to_dict() for g in found.guarded}),
        slices=_finite([_slice_dict(s) for s in found.slices]),
        health=_finite(_health(found)),
        remaining=_finite(found.remaining),
    )


def findings(known: sums.Sums, now: int) -> rules.Findings:
    """Every number that a decision or a page needs. now: microseconds since 1970."""
    policy, found = known.policy, effects.Kept.of(known)
    primary = effects.compare(found, policy.primary, policy.decisive_alpha)
    drawn = guardrails.assignment(known)
    by_unit = drawn.by_unit
    units = _units(found)
    sufficient = enough(primary, units, policy)
    span = _span(known)
    return rules.Findings(
        policy=policy,
        challenger=known.challenger,
        champion=known.champion,
        requests=int(sums.total(known.tallies.filter(measure=sums.ERRORS)["n"])),
        primary=primary,
        units=units,
        enough=sufficient,
        guarded=[guardrails.evaluate(found, m, by_unit) for m in policy.guardrails],
        information={m.name: _information(found, m, by_unit) for m in policy.information},
        assignment=drawn,
        ratio=guardrails.sample_ratio(known, by_unit, policy.health_alpha),
        coverage=checks.coverage(found),
        maturity=checks.maturity(known, primary, now),
        fading=checks.fading(primary, policy, sufficient),
        slices=_slices(found, primary.tau),
        hours=0 if span is None else ceil(span),
        remaining=remaining(primary, span, policy),
    )


def _span(known: sums.Sums) -> float | None:
    """Hours from the first labelled request of the primary to the last; None without any."""
    if known.spans.is_empty():
        return None
    first, last = (known.spans[side].to_numpy() for side in ("first", "last"))
    return float(last.max() - first.min()) / arms.HOUR


def _units(found: effects.Kept) -> dict[str, int]:
    """Distinct units per version among the rows that the primary speaks of."""
    per_unit = found.held.units.group_by("unit").agg(pl.col("labels_1", "labels_0").sum())
    rows = found.rows_of(found.held.policy.primary).filter(pl.col("unit").is_null())
    counts = []
    for side in (1, 0):
        alone = sums.total(rows.filter(side=side)["n"])
        counts.append(int(sums.total(per_unit[f"labels_{side}"] > 0) + alone))
    return found.held.per_version(*counts)


def enough(primary: effects.Comparison, units: dict[str, int], policy: Policy) -> bool:
    """May the interval be acted upon: labels, units, and an interval at all?"""
    return (
        primary.interval is not None
        and primary.least >= policy.labels_needed(primary.metric)
        and min(units.values(), default=0) >= policy.min_units
    )


def remaining(primary: effects.Comparison, span: float | None, policy: Policy) -> dict[str, Any]:
    """Labels (of both versions) and hours until a decision must or may fall; None if unknown.

    span: hours from the first labelled request to the last."""
    unknown = {"labels": None, "labels_at_most": None, "hours": None}
    estimate, metric, tau = primary.estimate, primary.metric, primary.tau
    if primary.interval is None or estimate.se is None or primary.gain is None or tau is None:
        return unknown
    so_far = sum(primary.n.values())
    superior = metric.mode == "superiority"
    at_most = _labels_until(
        (metric.mde or 0) / 2 if superior else metric.margin, estimate.se, so_far, tau, policy
    )
    now_seen = _labels_until(abs(primary.gain - metric.bound), estimate.se, so_far, tau, policy)
    labels = min(at_most, now_seen)
    return {
        "labels": ceil(labels) if labels < inf else None,
        "labels_at_most": ceil(at_most) if at_most < inf else None,
        "hours": labels / (so_far / span) if span and labels < inf else None,
    }


def _labels_until(half: float, se: float, so_far: int, tau: float, policy: Policy) -> float:
    """Further labels until the interval is `half` wide either way, se shrinking as 1/sqrt(n)."""
    if half <= 0:
        return inf
    if sequential.half_width(se, tau, policy.decisive_alpha) <= half:
        return 0.0
    needed = sequential.standard_error_for(half, tau, policy.decisive_alpha)
    return so_far * ((se / needed) ** 2 - 1)


def _information(found: effects.Kept, metric: policies.Metric, by_unit: bool) -> dict[str, Any]:
    if metric.kind in policies.QUALITY_KINDS:
        return effects.compare(found, metric, found.held.policy.decisive_alpha).to_dict()
    return guardrails.evaluate(found, metric, by_unit).shown


def _slices(found: effects.Kept, tau: float | None) -> list[rules.Slice]:
    """Each of the most frequent values of each slicing column, as an experiment of its own."""
    policy = found.held.policy
    metric, needed = policy.primary, policy.labels_needed(policy.primary)
    named = [
        (f"{name}={value}", rows)
        for number, name in enumerate(policy.slices)
        for value, rows in _values(found.slice_rows(number), policy.max_slice_values)
    ]
    result = []
    for name, rows in named:
        alpha = policy.decisive_alpha / len(named)
        compared = effects.compare_rows(found, metric, alpha, rows, tau)
        interval = compared.gain_interval
        worse = interval is not None and interval[1] < -metric.margin
        regression = bool(worse and compared.least >= needed)
        result.append(rules.Slice(name, compared, len(named), regression))
    return result


def _values(rows: pl.DataFrame, most: int) -> list[tuple[str, pl.DataFrame]]:
    """The values with most labels (ties by name), each with its part of the sums."""
    rows = rows.filter(pl.col("value").is_not_null())
    counts = rows.group_by("value").agg(pl.col("n").sum())
    top = counts.sort("n", "value", descending=[True, False]).head(most)["value"].to_list()
    parts = rows.filter(pl.col("value").is_in(top)).partition_by("value", as_dict=True)
    return [(value, parts[(value,)]) for value in top]


def _metrics(found: rules.Findings) -> dict[str, Any]:
    guarded = {g.metric.name: g.shown for g in found.guarded}
    return {**found.information, **guarded, found.primary.metric.name: found.primary.to_dict()}


def _slice_dict(part: rules.Slice) -> dict[str, Any]:
    shown = part.compared.to_dict()
    kept = ("n", "effect", "se", "interval", "value", "direction")
    return {
        "slice": part.name,
        **{key: shown[key] for key in kept},
        "comparisons": part.comparisons,
        "regression": part.regression,
    }


def _health(found: rules.Findings) -> dict[str, Any]:
    ratio, coverage, maturity = found.ratio, found.coverage, found.maturity
    log_e = ratio.log_e
    return {
        "srm_log_e": log_e,
        "srm_p": None if log_e is None else sequential.capped_probability(log_e),
        "observed_share": ratio.observed,
        "expected_share": ratio.expected,
        "requests": found.requests,
        "assignment": "unit" if found.assignment.by_unit else "request",
        "switches": found.assignment.switches,
        "coverage": coverage.share,
        "coverage_difference": coverage.difference,
        "coverage_interval": None if coverage.interval is None else list(coverage.interval),
        "delay_90_hours": maturity.delay_90_hours,
        "delay_label_z": maturity.delay_label_z,
        "immature_weight": maturity.immature_weight,
        "fading": {
            "slope_per_day": found.fading.slope_per_day,
            "log_e": found.fading.log_e,
            "recent_effect": found.fading.recent_effect,
        },
        "hours": found.hours,
    }


def _finite(value: Any) -> Any:
    """The same structure with None in place of numbers that are none (infinite by underflow)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
