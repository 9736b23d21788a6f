"""What a decision rests on, drawn: differences with intervals, and checks of the comparison."""

from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboard import api, charts, forest, words

SIGNS = {
    "fine": ":green[:material/check_circle:]",
    "failed": ":red[:material/error:]",
    "not known yet": ":gray[:material/hourglass_empty:]",
}
CHECKS_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One check of the comparison itself. fine: None = not known yet."""

    title: str
    fine: bool | None
    told: str


def roles(policy: api.Json, decision: api.Json) -> tuple[str, str]:
    """Challenger and champion by name."""
    challenger = decision.get("challenger") or policy.get("challenger")
    champion = decision.get("champion") or policy.get("champion")
    return str(challenger), str(champion)


# metrics


def metrics(policy: api.Json, decision: api.Json) -> None:
    """Goal, guardrails and information: challenger minus champion with always-valid intervals."""
    found = decision.get("metrics") or {}
    wanted = specs(policy, decision)
    rows = [row for kind, spec in wanted if (row := effect_of(kind, spec, found))]
    if rows:
        st.plotly_chart(forest.draw(rows), config=charts.CONFIG, key="experiment_forest")
    else:
        st.info(
            "No interval yet: it needs labels of both versions, and requests of both for the "
            "guardrails.",
            icon=":material/hourglass_top:",
        )
    st.caption(
        "Challenger minus champion, each in its own unit. Dotted: the smallest gain worth a change "
        "(goal) or the loss nobody minds (guardrail). The intervals hold however often you look."
    )
    st.dataframe(arms(policy, decision), hide_index=True, key="experiment_arms")


def specs(policy: api.Json, decision: api.Json) -> list[tuple[str, api.Json]]:
    """(role, metric) in the order of weight. Guardrails are those that were judged: a policy may
    leave them to the defaults."""
    judged = decision.get("guardrails") or {}
    guardrails = [{"name": name} | spec for name, spec in judged.items() if isinstance(spec, dict)]
    found = [("goal", policy.get("primary") or {})]
    found += [("guardrail", spec) for spec in guardrails or policy.get("guardrails") or []]
    found += [("information", spec) for spec in policy.get("information") or []]
    return [(kind, spec) for kind, spec in found if spec.get("name")]


def effect_of(kind: str, spec: api.Json, found: api.Json) -> forest.Effect | None:
    """One metric as a row of the forest; None where it has no interval."""
    metric = found.get(spec["name"]) or {}
    ends, value = words.pair(metric.get("interval")), words.figure(metric.get("effect"))
    if ends is None or value is None:
        return None
    good = 1 if metric.get("direction") == "higher" else -1
    limit = words.figure(spec.get("mde")) if kind == "goal" else None
    margin = words.figure(spec.get("margin"))
    if kind == "guardrail" and margin is not None:
        limit = -margin
    return forest.Effect(
        name=f"{words.metric(spec['name'])} ({kind})",
        value=value,
        low=ends[0],
        high=ends[1],
        good=good,
        limit=None if limit is None else good * limit,
        note=f"n {words.count(total(metric.get('n')))}",
    )


def total(counts: object) -> float | None:
    """The n of both versions together."""
    if isinstance(counts, dict):
        return sum(words.figure(n) or 0 for n in counts.values())
    return words.figure(counts)


def arms(policy: api.Json, decision: api.Json) -> list[dict[str, Any]]:
    """The value of each version with its n, one row per metric."""
    challenger, champion = roles(policy, decision)
    found, guardrails = decision.get("metrics") or {}, decision.get("guardrails") or {}
    rows = []
    for kind, spec in specs(policy, decision):
        judged = guardrails.get(spec["name"]) or {}
        metric = found.get(spec["name"]) or judged
        crossed = judged.get("crossed")
        rows.append(
            {
                "metric": words.metric(spec["name"]),
                "role": kind,
                f"{champion} (champion)": value_with_n(metric, champion),
                f"{challenger} (challenger)": value_with_n(metric, challenger),
                "limit": "crossed" if crossed else "respected" if crossed is False else "",
            }
        )
    return rows


def value_with_n(metric: api.Json, version: str) -> str:
    values, counts = metric.get("value") or {}, metric.get("n") or {}
    value = words.amount(values.get(version))
    return f"{value} (n {words.count(counts.get(version))})"


# health


def health(policy: api.Json, decision: api.Json) -> None:
    """Checks of the comparison itself, each with its numbers."""
    found = checks(policy, decision)
    for start in range(0, len(found), CHECKS_A_ROW):
        row = found[start : start + CHECKS_A_ROW]
        for column, check in zip(st.columns(CHECKS_A_ROW), row, strict=False):
            word = {True: "fine", False: "failed", None: "not known yet"}[check.fine]
            with column.container(border=True, height="stretch", gap="xxsmall"):
                st.markdown(f"{SIGNS[word]} **{check.title}: {word}**")
                if check.fine is not None:
                    st.caption(words.plain(check.told))


def checks(policy: api.Json, decision: api.Json) -> list[Check]:
    """Split, labels, lateness, assignment, lasting, running time. Pure."""
    found = decision.get("health") or {}
    reasons = [str(r) for r in decision.get("reasons") or []]
    challenger, champion = roles(policy, decision)
    coverage, fading = found.get("coverage") or {}, found.get("fading") or {}

    def judge(known: object, reason: str) -> bool | None:
        return None if known is None else reason not in reasons

    hours, least = words.figure(found.get("hours")), words.figure(policy.get("min_hours"))
    agreed = f", agreed were at least {words.duration(least * 3600)}" if least else ""
    return [
        Check(
            "Split",
            judge(words.figure(found.get("observed_share")), "sample_ratio"),
            f"{words.percent(found.get('observed_share'), 1)} of "
            f"{words.count(found.get('requests'))} requests went to {challenger}, "
            f"{words.percent(found.get('expected_share'), 1)} was configured "
            f"(p {words.amount(found.get('srm_p'))}).",
        ),
        Check(
            "Labels of both",
            judge(words.figure(coverage.get(challenger)), "labels_uneven"),
            f"Labelled: {champion} {words.percent(coverage.get(champion), 1)}, {challenger} "
            f"{words.percent(coverage.get(challenger), 1)}; difference "
            f"{words.interval(found.get('coverage_interval'))}.",
        ),
        Check(
            "Late labels",
            judge(words.figure(found.get("immature_weight")), "labels_immature"),
            f"90 % of the labels come within {words.amount(found.get('delay_90_hours'), 'h')}; "
            f"{words.percent(found.get('immature_weight'))} of the evidence is younger than that.",
        ),
        Check(
            "Assignment",
            None if found.get("assignment") is None else True,
            f"By {found.get('assignment')}; "
            f"{words.several(found.get('switches') or 0, 'change')} of version inside a unit.",
        ),
        Check(
            "Lasting",
            judge(words.figure(fading.get("slope_per_day")), "fading"),
            f"The difference changes by {words.signed(fading.get('slope_per_day'))} a day.",
        ),
        Check(
            "Running time",
            judge(hours, "min_hours"),
            f"Labelled requests cover {words.duration((hours or 0) * 3600)}{agreed}.",
        ),
    ]
