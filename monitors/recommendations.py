"""What to do, on what evidence; and the next step of a ramp.

A decision says what the numbers say; here it meets the traffic as it is: what would be changed,
what that is worth, what it risks. A ramp advances only when everything asked for is there; anything
missing, late or on hold holds it for as long as it takes. Source: experiments.md, "Ramp".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from monitors import costs, policies, verdicts

Kind = Literal["promote", "shift", "roll_back", "collect", "investigate"]

LEAST_REQUESTS = 200
FRESH_SECONDS = 60
CAREFUL_FROM = 20
LASTS = {
    "promote": timedelta(days=7),
    "shift": timedelta(days=7),
    "roll_back": timedelta(days=7),
    "investigate": timedelta(days=2),
    "collect": timedelta(days=1),
}
_POINTS = ("accuracy", "recall", "precision", "error_rate")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A proposal. action: kind, served_entity (the version whose share it sets), routes (the whole
    split afterwards, or None where traffic stays as it is); about: the version that it judges."""

    about: str | None
    action: dict[str, Any]
    evidence: list[dict[str, Any]]
    expected_effect: str
    risk: str
    expires_time: datetime

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; times as RFC 3339."""
        return {
            "action": self.action,
            "evidence": self.evidence,
            "expected_effect": self.expected_effect,
            "risk": self.risk,
            "expires_time": self.expires_time.isoformat().replace("+00:00", "Z"),
        }


@dataclass(frozen=True, slots=True)
class Ramp:
    """Where a ramp stands. step: index of the present step, -1 before the first; since: at this
    share; challenger_requests: at this share; decided: time of the decision."""

    steps: tuple[int, ...]
    step: int
    since: datetime
    challenger_requests: int
    newest_row: datetime | None
    decided: datetime | None
    refresh_seconds: float
    min_minutes_per_step: float = 30
    auto: bool = True
    approved: bool = False
    on_regression: str = "roll_back"
    latched: bool = False
    paused: bool = False

    @property
    def share(self) -> int:
        """The challenger's percentage now."""
        return self.steps[self.step] if self.step >= 0 else 0


@dataclass(frozen=True, slots=True)
class Step:
    """What a ramp does now. share: the challenger's percentage afterwards; gate: in words, what the
    next step waits for or why it was taken; reason: its code."""

    kind: Literal["advance", "hold", "roll_back", "finish"]
    share: int
    gate: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A proposal before it is put into words for a person."""

    kind: Kind
    about: str | None
    entity: str | None
    evidence: list[dict[str, Any]]
    effect: str
    risk: str
    routes: list[dict[str, Any]] | None = field(default=None)


def recommend(
    decisions: Sequence[Mapping[str, Any]],
    shares: Mapping[str, int],
    holdout_percentage: int,
    drift: Sequence[Mapping[str, Any]],
    now: datetime,
    known_costs: Mapping[str, costs.Cost] | None = None,
) -> list[Recommendation]:
    """What follows from decisions (Decision.to_dict), one per challenger, the split in percent,
    drifted columns, and what the versions cost, as far as that is known.

    At most one proposal of a kind per version. Nothing is proposed that is so already."""
    found = [one for each in decisions for one in _from_decision(each, shares, holdout_percentage)]
    merged: dict[tuple[Kind, str | None], _Found] = {}
    dear = (_from_cost(each, shares, known_costs or {}) for each in decisions)
    for one in [*found, *(one for one in dear if one), *_from_drift(drift)]:
        key = (one.kind, one.about)
        merged[key] = _joined(merged[key], one) if key in merged else one
    at = now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC)
    return [
        Recommendation(
            about=one.about,
            action={"kind": one.kind, "served_entity": one.entity, "routes": one.routes},
            evidence=one.evidence,
            expected_effect=one.effect,
            risk=one.risk,
            expires_time=at + LASTS[one.kind],
        )
        for one in merged.values()
    ]


def next_step(
    ramp: Ramp,
    decision: Mapping[str, Any],
    policy: Mapping[str, Any] | policies.Policy,
    now: datetime,
) -> Step:
    """The next step of a ramp. No timer advances it: everything asked for has to be there."""
    if not isinstance(policy, policies.Policy):
        policy = policies.Policy.parse(policy)
    if ramp.latched:
        return _held(ramp, "latched", "it went back; a new experiment begins again")
    if decision.get("action") == "roll_back":
        if ramp.on_regression == "roll_back":
            return Step("roll_back", 0, str(decision.get("summary")), _first_reason(decision))
        return _held(ramp, "regression", str(decision.get("summary")))
    if ramp.paused:
        return _held(ramp, "paused", "a person changed the traffic; resume the ramp")
    if ramp.step >= len(ramp.steps) - 1:
        return Step("finish", ramp.share, "the last step is reached", "completed")
    missing = _missing(ramp, decision, policy, now)
    if missing is not None:
        return _held(ramp, *missing)
    share = ramp.steps[ramp.step + 1]
    if not ramp.auto and not ramp.approved:
        return _held(ramp, "approval", f"a person approves the step to {share} %")
    last = ramp.step + 1 == len(ramp.steps) - 1
    return Step("finish" if last else "advance", share, f"on to {share} %", "gates_passed")


def _missing(
    ramp: Ramp, decision: Mapping[str, Any], policy: policies.Policy, now: datetime
) -> tuple[str, str] | None:
    """The first gate that is not passed: its code and what it waits for in words."""
    if ramp.decided is None or not decision:
        return "no_decision", "a decision has to be made first"
    age = _seconds(now, ramp.decided)
    if age > 2 * ramp.refresh_seconds:
        return "stale_decision", f"the newest decision is {age:,.0f} s old"
    if ramp.newest_row is None or _seconds(now, ramp.newest_row) >= FRESH_SECONDS:
        return "stale_rows", f"no row has been committed for {FRESH_SECONDS} s"
    if decision.get("action") not in ("promote", "keep_collecting"):
        return f"decision_{decision.get('action')}", str(decision.get("summary"))
    share = ramp.steps[ramp.step + 1]
    if ramp.step >= 0:
        minutes = _seconds(now, ramp.since) / 60
        if minutes < ramp.min_minutes_per_step:
            return "soak", f"{minutes:.0f} of {ramp.min_minutes_per_step:g} minutes at this share"
        if ramp.challenger_requests < LEAST_REQUESTS:
            count = f"{ramp.challenger_requests:,} of {LEAST_REQUESTS:,}"
            return "requests", f"{count} requests of the challenger at this share"
    if share >= CAREFUL_FROM and (unsafe := _error_rate_open(decision, policy)) is not None:
        return "error_rate", unsafe
    if share >= 100 and decision.get("action") != "promote":
        return "not_promoted", f"100 % only on a verdict: {decision.get('summary')}"
    return None


def _error_rate_open(decision: Mapping[str, Any], policy: policies.Policy) -> str | None:
    """Why it is not yet known that the challenger fails no more than the margin; None if it is."""
    for metric in policy.guardrails:
        if metric.kind != "error_rate":
            continue
        shown = decision.get("guardrails", {}).get(metric.name) or {}
        interval = shown.get("interval")
        if interval is None:
            return f"the difference of {metric.name} is not known yet"
        if interval[1] > metric.margin:
            return (
                f"{metric.name} may still be {100 * interval[1]:.2f} points higher; "
                f"{100 * metric.margin:g} are allowed"
            )
    return None


def _held(ramp: Ramp, reason: str, gate: str) -> Step:
    return Step("hold", ramp.share, gate, reason)


def _seconds(now: datetime, then: datetime) -> float:
    both = [t.replace(tzinfo=UTC) if t.tzinfo is None else t for t in (now, then)]
    return (both[0] - both[1]).total_seconds()


def _first_reason(decision: Mapping[str, Any]) -> str:
    reasons = decision.get("reasons") or ["unknown"]
    return str(reasons[0])


def _from_decision(
    decision: Mapping[str, Any], shares: Mapping[str, int], holdout: int
) -> list[_Found]:
    challenger, champion = decision.get("challenger"), decision.get("champion")
    if challenger not in shares or champion not in shares:
        return []
    one = _proposal(decision, shares, holdout, str(challenger), str(champion))
    return [] if one is None else [one]


def _proposal(
    decision: Mapping[str, Any],
    shares: Mapping[str, int],
    holdout: int,
    challenger: str,
    champion: str,
) -> _Found | None:
    action, reason = decision["action"], _first_reason(decision)
    both = shares[challenger] + shares[champion]
    evidence = _evidence(decision)
    if action == "promote" and shares[challenger] < both - min(holdout, both):
        kept = min(holdout, both)
        routes = _routes(shares, {challenger: both - kept, champion: kept})
        rest = f"; {champion} keeps {kept} % so that the gain stays measured" if kept else ""
        effect = (
            f"{difference(decision)} for {both - kept - shares[challenger]} % more of the traffic"
        )
        return _Found(
            "promote", challenger, challenger, evidence, effect + rest, _risk(decision), routes
        )
    if action == "roll_back" and shares[challenger] > 0:
        routes = _routes(shares, {challenger: 0, champion: both})
        effect = f"{shares[challenger]} % of the traffic goes back to {champion}"
        risk = f"Small: {champion} served it before."
        return _Found("roll_back", challenger, champion, evidence, effect, risk, routes)
    if action == "hold" and reason == "below_mde" and shares[challenger] > 0:
        routes = _routes(shares, {challenger: 0, champion: both})
        effect = f"no traffic is spent on {challenger}, whose gain is not worth a change"
        risk = "A gain smaller than the policy asks for is given up."
        return _Found("shift", challenger, champion, evidence, effect, risk, routes)
    if action == "hold" and reason != "below_mde" and not reason.startswith("lost_to:"):
        effect = "a verdict that can be trusted"
        risk = "Until it is cleared up, neither promotion nor its refusal has a basis."
        return _Found("investigate", challenger, challenger, evidence, effect, risk)
    if action == "keep_collecting" and reason != "no_data":
        effect = _awaited(decision)
        return _Found("collect", challenger, challenger, evidence, effect, "None: traffic stays.")
    return None


def _routes(shares: Mapping[str, int], changed: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {"served_entity_name": name, "traffic_percentage": int(percentage)}
        for name, percentage in {**shares, **changed}.items()
    ]


def _awaited(decision: Mapping[str, Any]) -> str:
    """What is still missing until a decision."""
    remaining = decision.get("remaining") or {}
    labels, hours = remaining.get("labels"), remaining.get("hours")
    if not labels:
        return str(decision.get("summary"))
    when = "" if hours is None else f", about {verdicts.lasting(hours)}"
    return f"a decision after about {labels:,} more labels{when}"


def _evidence(decision: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sentence, the primary, and each guardrail that is crossed."""
    link = "/experiment"
    primary = _primary(decision)
    items = [{"text": decision.get("summary"), "value": None, "interval": None, "link": link}]
    if primary is not None and primary[1].get("effect") is not None:
        items.append(_measured(primary[0], primary[1], link))
    guardrails = (decision.get("guardrails") or {}).items()
    items += [_measured(name, shown, link) for name, shown in guardrails if shown.get("crossed")]
    slices = decision.get("slices") or []
    return items + [_measured(s["slice"], s, link) for s in slices if s.get("regression")]


def _measured(name: str, shown: Mapping[str, Any], link: str) -> dict[str, Any]:
    sides = ", ".join(f"{version} {value:.4g}" for version, value in _known(shown.get("value")))
    return {
        "text": f"{name}: {sides}" if sides else name,
        "value": shown.get("effect"),
        "interval": shown.get("interval"),
        "link": link,
    }


def _known(values: Mapping[str, float | None] | None) -> list[tuple[str, float]]:
    return [(name, value) for name, value in (values or {}).items() if value is not None]


def _primary(decision: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    name = decision.get("primary")
    shown = (decision.get("metrics") or {}).get(name)
    return None if name is None or shown is None else (str(name), shown)


def difference(decision: Mapping[str, Any]) -> str:
    """The primary's difference with its interval, in points for rates."""
    primary = _primary(decision)
    if primary is None or primary[1].get("effect") is None or not primary[1].get("interval"):
        return str(decision.get("summary"))
    name, shown = primary
    numbers = [shown["effect"], *shown["interval"]]
    if name in _POINTS:
        effect, low, high = (f"{100 * x:+.2f}" for x in numbers)
        return f"{name} {effect} points [{low}, {high}]"
    effect, low, high = (f"{x:+.4g}" for x in numbers)
    return f"{name} {effect} [{low}, {high}]"


def _risk(decision: Mapping[str, Any]) -> str:
    guardrails = decision.get("guardrails") or {}
    if not guardrails:
        return "No guardrail is watched."
    return f"Watched by {', '.join(guardrails)}; none is crossed. Undo is one step."


def _from_cost(
    decision: Mapping[str, Any], shares: Mapping[str, int], known: Mapping[str, costs.Cost]
) -> _Found | None:
    """A challenger that costs much more and shows no advantage: to give its traffic back where a
    gain is ruled out, else to look into."""
    challenger, champion = str(decision.get("challenger")), str(decision.get("champion"))
    found = costs.dearer(decision, known)
    if found is None or shares.get(challenger, 0) == 0 or champion not in shares:
        return None
    link = "/usage"
    evidence: list[dict[str, Any]] = [
        {"text": found.text, "value": found.ratio, "interval": None, "link": link},
        {"text": found.times, "value": None, "interval": None, "link": link},
        *_evidence(decision)[1:2],
    ]
    if _first_reason(decision) == "below_mde":
        routes = _routes(shares, {challenger: 0, champion: shares[challenger] + shares[champion]})
        effect = f"its requests cost {1 / found.ratio:.0%} on {champion}"
        risk = "A gain smaller than the policy asks for is given up."
        return _Found("shift", challenger, champion, evidence, effect, risk, routes)
    effect = f"the same answers at {1 / found.ratio:.0%} of the cost, if {champion} serves them"
    risk = "The experiment goes on: an advantage may still be found."
    return _Found("investigate", challenger, challenger, evidence, effect, risk)


def _from_drift(drift: Sequence[Mapping[str, Any]]) -> list[_Found]:
    """One proposal per version (or for all) that names the columns, the farthest first."""

    def farness(column: Mapping[str, Any]) -> float:
        value, threshold = column.get("value"), column.get("threshold")
        return abs(value) / threshold if value is not None and threshold else 0.0

    found = []
    for column in sorted(drift, key=farness, reverse=True):
        value, threshold = column.get("value"), column.get("threshold")
        numbers = f" {value:.3g}, threshold {threshold:g}" if value and threshold else ""
        text = f"{column['column']} drifted: {column.get('metric')}{numbers}"
        link = f"/drift?column={column['column']}"
        evidence = [{"text": text, "value": value, "interval": None, "link": link}]
        found.append(
            _Found(
                "investigate",
                column.get("served_entity"),
                column.get("served_entity"),
                evidence,
                "the cause of the change is known before quality suffers",
                "Labels come later than drift: quality may be falling unseen.",
            )
        )
    return found


def _joined(first: _Found, second: _Found) -> _Found:
    return _Found(
        first.kind,
        first.about,
        first.entity,
        [*first.evidence, *second.evidence],
        first.effect,
        first.risk,
        first.routes,
    )
