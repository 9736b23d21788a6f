"""The decision table: the first rule that applies to what was found.

Safety before doubt before hope; the rules carry the numbers of experiments.md, "The decision".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from monitors import checks, effects, guardrails, policies, verdicts


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

    policy: policies.Policy
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


def verdict(found: Findings) -> Verdict:
    """The first rule that applies; safety before doubt before hope."""
    for rule in RULES:
        first = rule(found)
        if first is not None:
            return first
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
