"""A decision in one English sentence with its numbers. Source: experiments.md, "Result"."""

from collections.abc import Mapping
from typing import Any

from monitors import checks, effects, guardrails, policies

TITLES = {"promote": "Promote", "roll_back": "Roll back", "hold": "Hold"}


def no_data() -> str:
    """Nothing of the experiment is there."""
    return "No data yet: no request of the experiment has arrived."


def crossed(names: tuple[str, str], guardrail: guardrails.Guardrail) -> str:
    """A guardrail is crossed. names: challenger, champion."""
    challenger, champion = names
    metric, value = guardrail.metric, guardrail.shown["value"]
    kind = metric.kind
    margin = f"{metric.margin:.0%}" if kind == "latency" else f"{metric.margin:g}"
    return (
        f"Roll back {challenger}: {metric.name} is {amount(value.get(challenger), kind)} against "
        f"{amount(value.get(champion), kind)} of {champion}, more than the allowed margin of "
        f"{margin}."
    )


def sample_ratio(names: tuple[str, str], found: guardrails.SampleRatio, requests: int) -> str:
    """The split is not the one configured."""
    return (
        f"Hold: {percent(found.observed)} of {requests:,} requests went to {names[0]} where "
        f"{percent(found.expected)} were configured; a broken split compares nothing."
    )


def uneven(names: tuple[str, str], found: checks.Coverage) -> str:
    """Labels arrive for one version more than for the other."""
    shares = [percent(found.share.get(name)) for name in names]
    return (
        f"Hold: {shares[0]} of the answers of {names[0]} have a label, {shares[1]} of {names[1]}; "
        "the comparison would not be fair."
    )


def few_labels(
    names: tuple[str, str],
    primary: effects.Comparison,
    units: Mapping[str, int],
    labels_needed: int,
    units_needed: int,
    answered: int,
) -> str:
    """No labels, or not enough of them, or not enough units."""
    counts = [primary.n.get(name, 0) for name in names]
    if sum(counts) == 0:
        return f"No data yet: 0 labels of {answered:,} answered requests have arrived."
    if min(counts) < labels_needed:
        return (
            f"Keep collecting: {counts[0]:,} and {counts[1]:,} labels of {names[0]} and "
            f"{names[1]}, {labels_needed:,} of each are needed."
        )
    held = [units.get(name, 0) for name in names]
    if min(held) < units_needed:
        return (
            f"Keep collecting: labels of {held[0]:,} and {held[1]:,} units of {names[0]} and "
            f"{names[1]}, {units_needed:,} of each are needed."
        )
    return f"Keep collecting: {names[0]} and {names[1]} have no labels of the same hours yet."


def zero_variance(names: tuple[str, str], primary: effects.Comparison) -> str:
    """All values are equal: nothing to measure with."""
    return (
        f"Keep collecting: {primary.metric.name} has the same value in every row of {names[0]} "
        f"and {names[1]}."
    )


def immature(found: checks.Maturity) -> str:
    """Too much of the evidence is younger than labels take to come."""
    return (
        f"Keep collecting: {percent(found.immature_weight)} of the comparison is younger than "
        f"{found.delay_90_hours:.1f} hours, in which 90 % of the labels come."
    )


def compared(lead: str, names: tuple[str, str], primary: effects.Comparison, rest: str) -> str:
    """lead: v3 against v2 on accuracy: +4.16 points [+2.87, +5.46] from ... labels; rest."""
    counts = [primary.n.get(name, 0) for name in names]
    effect, interval = primary.estimate.effect, primary.interval
    kind = primary.metric.kind
    numbers = "no difference yet"
    if effect is not None and interval is not None:
        unit = " points" if kind in ("binary", "error_rate") else ""
        numbers = (
            f"{signed(effect, kind)}{unit} "
            f"[{signed(interval[0], kind)}, {signed(interval[1], kind)}]"
        )
    return (
        f"{lead}: {names[0]} against {names[1]} on {primary.metric.name}: {numbers} from "
        f"{counts[0]:,} and {counts[1]:,} labels; {rest}."
    )


def undecided(remaining: Mapping[str, Any]) -> str:
    """What is still missing, in words."""
    labels, hours = remaining.get("labels"), remaining.get("hours")
    if not labels:
        return "not decided yet"
    return f"about {labels:,} more labels" + ("" if hours is None else f", {lasting(hours)}")


def lasting(hours: float) -> str:
    """A length of time in the unit that reads best: `9 hours`, `86 days`."""
    return f"{hours:,.0f} hours" if hours < 48 else f"{hours / 24:,.0f} days"


def respected(found: list[guardrails.Guardrail]) -> str:
    """How the guardrails stand when none is crossed."""
    return "guardrails respected" if found else "no guardrails"


def fading(metric: policies.Metric, found: checks.Fading) -> str:
    """The gain shrinks, and the newest part is no gain of its own."""
    slope = abs(found.slope_per_day or 0.0)
    if metric.kind == "binary":
        return f"its gain shrinks by {100 * slope:.2f} points a day"
    return f"its gain shrinks by {slope:.3g} a day"


def amount(value: float | None, kind: str) -> str:
    """A value in the unit a person thinks in."""
    if value is None:
        return "unknown"
    if kind in ("binary", "error_rate"):
        return percent(value)
    return f"{value:,.0f} ms" if kind == "latency" else f"{value:.4g}"


def signed(value: float, kind: str) -> str:
    """A difference with its sign: points for rates, four digits else."""
    if kind in ("binary", "error_rate"):
        return f"{100 * value:+.2f}"
    return f"{value:+.4f}" if kind == "auc" else f"{value:+.4g}"


def percent(share: float | None) -> str:
    """A share as percent with two digits, or the word for not known."""
    return "unknown" if share is None else f"{100 * share:.2f} %"
