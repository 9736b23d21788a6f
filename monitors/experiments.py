"""Is the challenger better, and how sure are we? Rows in, one decision out.

evaluate may be called every few seconds for weeks: every test in it stays valid under continuous
looking. Everything said about an experiment anywhere is read from its result. Contract:
experiments.md; the rules of the decision table carry its numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, inf, isfinite
from typing import Any

import numpy as np
import polars as pl

from monitors import arms, cells, checks, effects, guardrails, policies, sequential, verdicts

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


@dataclass(frozen=True, slots=True)
class Slice:
    """The primary among the rows of one value of a slicing column."""

    name: str
    compared: effects.Comparison
    comparisons: int
    regression: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """All numbers of one evaluation, before anything is decided."""

    policy: Policy
    challenger: str | None
    champion: str | None
    requests: int
    primary: effects.Comparison
    units: dict[str, int]
    enough: bool
    guarded: list[guardrails.Guardrail]
    information: dict[str, dict[str, Any]]
    assignment: guardrails.Assignment
    ratio: guardrails.SampleRatio
    coverage: checks.Coverage
    maturity: checks.Maturity
    fading: checks.Fading
    slices: list[Slice]
    hours: int
    remaining: dict[str, Any]

    @property
    def names(self) -> tuple[str, str]:
        return str(self.challenger), str(self.champion)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of the first rule that applies."""

    action: str
    reasons: list[str]
    summary: str


def evaluate(rows: pl.DataFrame, policy: Mapping[str, Any] | Policy, now: datetime) -> Decision:
    """The decision on these rows at this moment; columns as in experiments.md, "Input".

    The order of rows does not matter. Raises ValueError on a bad policy, never on odd rows."""
    if not isinstance(policy, Policy):
        policy = Policy.parse(policy)
    with np.errstate(over="ignore", invalid="ignore"):  # absurd values end as None, not as warnings
        found = findings(arms.read(rows, policy, now), policy)
    verdict = decide(found)
    return Decision(
        action=verdict.action,
        reasons=verdict.reasons,
        summary=verdict.summary,
        champion=found.champion,
        challenger=found.challenger,
        now=now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC),
        primary=policy.primary.name,
        metrics=_finite(_metrics(found)),
        guardrails=_finite({g.metric.name: g.to_dict() for g in found.guarded}),
        slices=_finite([_slice_dict(s) for s in found.slices]),
        health=_finite(_health(found)),
        remaining=_finite(found.remaining),
    )


def findings(data: arms.Arms, policy: Policy) -> Findings:
    """Every number that a decision or a page needs."""
    metric = policy.primary
    sample = effects.metric_sample(data, metric)
    tau = effects.mixture_width(metric, sample.values)
    primary = effects.compare_sample(data, metric, policy.decisive_alpha, sample, tau)
    drawn = guardrails.assignment(data, policy)
    by_unit = drawn.by_unit
    units = effects.units_of(data, sample)
    sufficient = enough(primary, units, policy)
    return Findings(
        policy=policy,
        challenger=data.challenger,
        champion=data.champion,
        requests=len(data.time),
        primary=primary,
        units=units,
        enough=sufficient,
        guarded=[guardrails.evaluate(data, m, policy, by_unit) for m in policy.guardrails],
        information={m.name: _information(data, m, policy, by_unit) for m in policy.information},
        assignment=drawn,
        ratio=guardrails.sample_ratio(data, by_unit, policy.health_alpha),
        coverage=checks.coverage(data, policy),
        maturity=checks.maturity(data, primary, policy),
        fading=checks.fading(primary, policy, sufficient),
        slices=_slices(data, sample, tau, policy),
        hours=checks.hours_covered(primary.first, primary.last),
        remaining=remaining(primary, policy),
    )


def enough(primary: effects.Comparison, units: dict[str, int], policy: Policy) -> bool:
    """May the interval be acted upon: labels, units, and an interval at all?"""
    return (
        primary.interval is not None
        and primary.least >= policy.labels_needed(primary.metric)
        and min(units.values(), default=0) >= policy.min_units
    )


def remaining(primary: effects.Comparison, policy: Policy) -> dict[str, Any]:
    """Labels (of both versions) and hours until a decision must or may fall; None if unknown."""
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
    span = ((primary.last or 0) - (primary.first or 0)) / arms.HOUR
    return {
        "labels": ceil(labels) if labels < inf else None,
        "labels_at_most": ceil(at_most) if at_most < inf else None,
        "hours": labels / (so_far / span) if span > 0 and labels < inf else None,
    }


def _labels_until(half: float, se: float, so_far: int, tau: float, policy: Policy) -> float:
    """Further labels until the interval is `half` wide either way, se shrinking as 1/sqrt(n)."""
    if half <= 0:
        return inf
    if sequential.half_width(se, tau, policy.decisive_alpha) <= half:
        return 0.0
    needed = sequential.standard_error_for(half, tau, policy.decisive_alpha)
    return so_far * ((se / needed) ** 2 - 1)


def _information(
    data: arms.Arms, metric: policies.Metric, policy: Policy, by_unit: bool
) -> dict[str, Any]:
    if metric.kind in policies.QUALITY_KINDS:
        return effects.compare(data, metric, policy.decisive_alpha).to_dict()
    return guardrails.evaluate(data, metric, policy, by_unit).shown


def _slices(
    data: arms.Arms, sample: effects.Sample, tau: float | None, policy: Policy
) -> list[Slice]:
    """Each of the most frequent values of each slicing column, as an experiment of its own."""
    named = [
        (f"{name}={value}", chosen)
        for name in policy.slices
        for value, chosen in _values(data, name, sample, policy.max_slice_values)
    ]
    metric, needed = policy.primary, policy.labels_needed(policy.primary)
    result = []
    for name, chosen in named:
        alpha = policy.decisive_alpha / len(named)
        compared = effects.compare_sample(data, metric, alpha, sample.where(chosen), tau)
        interval = compared.gain_interval
        worse = interval is not None and interval[1] < -metric.margin
        result.append(Slice(name, compared, len(named), bool(worse and compared.least >= needed)))
    return result


def _values(
    data: arms.Arms, name: str, sample: effects.Sample, most: int
) -> list[tuple[str, np.ndarray]]:
    """The values with most labels (ties by name), each with the rows of the sample that hold it."""
    column = cells.texts(data.column(name, sample.rows))
    counts = pl.DataFrame({"value": column}).drop_nulls().group_by("value").len()
    top = counts.sort("len", "value", descending=[True, False]).head(most)["value"]
    return [(value, (column == value).fill_null(False).to_numpy()) for value in top.to_list()]


def decide(found: Findings) -> Verdict:
    """The first rule that applies; safety before doubt before hope."""
    for rule in RULES:
        verdict = rule(found)
        if verdict is not None:
            return verdict
    return _keep(found, "undecided", verdicts.undecided(found.remaining))


def _no_data(found: Findings) -> Verdict | None:
    if found.requests > 0:
        return None
    return Verdict("keep_collecting", ["no_data"], verdicts.no_data())


def _guardrail_on_requests(found: Findings) -> Verdict | None:
    return _crossed(found, [g for g in found.guarded if g.crossed and g.on_requests])


def _split(found: Findings) -> Verdict | None:
    if not found.ratio.alarm:
        return None
    text = verdicts.sample_ratio(found.names, found.ratio, found.requests)
    return Verdict("hold", ["sample_ratio"], text)


def _labels_uneven(found: Findings) -> Verdict | None:
    if not found.coverage.alarm:
        return None
    return Verdict("hold", ["labels_uneven"], verdicts.uneven(found.names, found.coverage))


def _not_enough(found: Findings) -> Verdict | None:
    primary, policy = found.primary, found.policy
    if found.enough:
        return None
    needed = policy.labels_needed(primary.metric)
    if primary.least == 0:
        reason = "no_labels"
    elif primary.least >= needed and primary.estimate.zero_variance:
        text = verdicts.zero_variance(found.names, primary)
        return Verdict("keep_collecting", ["zero_variance"], text)
    else:
        reason = "min_labels"
    text = verdicts.few_labels(
        found.names, primary, found.units, needed, policy.min_units, found.coverage.answered
    )
    return Verdict("keep_collecting", [reason], text)


def _labels_immature(found: Findings) -> Verdict | None:
    if not found.maturity.immature:
        return None
    return Verdict("keep_collecting", ["labels_immature"], verdicts.immature(found.maturity))


def _worse(found: Findings) -> Verdict | None:
    quality = [g for g in found.guarded if g.crossed and not g.on_requests]
    if _interval(found)[1] >= found.primary.metric.bound:
        return _crossed(found, quality)
    reasons = ["worse", *(g.metric.name for g in quality)]
    text = f"worse than the allowed {found.primary.metric.bound:g}"
    lead = f"Roll back {found.challenger}"
    return Verdict("roll_back", reasons, verdicts.compared(lead, found.names, found.primary, text))


def _slice_regression(found: Findings) -> Verdict | None:
    worse = [s for s in found.slices if s.regression]
    if not worse:
        return None
    reasons = [f"slice_regression:{s.name}" for s in worse]
    text = verdicts.compared("Hold", found.names, worse[0].compared, f"worse in {worse[0].name}")
    return Verdict("hold", reasons, text)


def _min_hours(found: Findings) -> Verdict | None:
    needed = found.policy.min_hours
    if found.hours >= needed:
        return None
    return _keep(found, "min_hours", f"{found.hours} of {needed:g} hours with labels")


def _better(found: Findings) -> Verdict | None:
    metric = found.primary.metric
    if _interval(found)[0] <= metric.bound:
        return None
    if found.fading.fading:
        return _hold(found, "fading", verdicts.fading(metric, found.fading))
    reason = "better" if metric.mode == "superiority" else "not_worse"
    lead = f"Promote {found.challenger}"
    rest = verdicts.respected(found.guarded)
    return Verdict("promote", [reason], verdicts.compared(lead, found.names, found.primary, rest))


def _below_mde(found: Findings) -> Verdict | None:
    metric = found.primary.metric
    if metric.mode != "superiority" or metric.mde is None or _interval(found)[1] >= metric.mde:
        return None
    return _hold(found, "below_mde", f"a gain of {metric.mde:g} is ruled out")


def _fading(found: Findings) -> Verdict | None:
    if not found.fading.fading:
        return None
    return _hold(found, "fading", verdicts.fading(found.primary.metric, found.fading))


# The rows of experiments.md, "The decision": 10 and 11 are one function, 14 is what is left.
RULES: tuple[Callable[[Findings], Verdict | None], ...] = (
    _no_data,  # 1
    _guardrail_on_requests,  # 2
    _split,  # 3
    _labels_uneven,  # 4
    _not_enough,  # 5
    _labels_immature,  # 6
    _worse,  # 7
    _slice_regression,  # 8
    _min_hours,  # 9
    _better,  # 10, 11
    _below_mde,  # 12
    _fading,  # 13
)


def _interval(found: Findings) -> tuple[float, float]:
    """Of the gain; only asked for after rule 5, which needs one."""
    interval = found.primary.gain_interval
    assert interval is not None
    return interval


def _crossed(found: Findings, crossed: list[guardrails.Guardrail]) -> Verdict | None:
    if not crossed:
        return None
    text = verdicts.crossed(found.names, crossed[0])
    return Verdict("roll_back", [g.metric.name for g in crossed], text)


def _hold(found: Findings, reason: str, rest: str) -> Verdict:
    return Verdict("hold", [reason], verdicts.compared("Hold", found.names, found.primary, rest))


def _keep(found: Findings, reason: str, rest: str) -> Verdict:
    text = verdicts.compared("Keep collecting", found.names, found.primary, rest)
    return Verdict("keep_collecting", [reason], text)


def _metrics(found: Findings) -> dict[str, Any]:
    guarded = {g.metric.name: g.shown for g in found.guarded}
    return {**found.information, **guarded, found.primary.metric.name: found.primary.to_dict()}


def _slice_dict(part: Slice) -> dict[str, Any]:
    shown = part.compared.to_dict()
    kept = ("n", "effect", "se", "interval", "value", "direction")
    return {
        "slice": part.name,
        **{key: shown[key] for key in kept},
        "comparisons": part.comparisons,
        "regression": part.regression,
    }


def _health(found: Findings) -> dict[str, Any]:
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
