"""Rules over what a refresh measured -> alerts that open, change and close.

A fact is one measured number of one window. A rule looks at the newest windows with enough data; a
window without enough neither raises nor closes anything. One open alert per cause: rule, column,
served entity and slice. Plain Python, so that the gateway can load the default rules.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from capture import names, outbox
from monitors import alert_contract, alert_state

WARNING, CRITICAL = "warning", "critical"
LONGEST_CAUSE = 800

Slice = tuple[str, str]  # expression, value


@dataclass(frozen=True, slots=True)
class Fact:
    """One number. `value` None: not enough data, no answer. `served_entity` None: all together.

    `severity`: only of metric `drift`, whose thresholds are its own. `certain`: the bound of the
    value on the side of the threshold, where chance matters (error rates). `text`: the fact in
    words, a clause without its end. `idle`: the served entity gets no requests any more, so that
    nothing about it can hold. `slice` None: all rows."""

    metric: str
    column: str | None
    served_entity: str | None
    value: float | None
    n: int
    window: tuple[str, str] | None
    text: str
    granularity: str | None = None
    threshold: float | None = None
    severity: str | None = None
    certain: float | None = None
    explanation: str | None = None
    idle: bool = False
    slice: Slice | None = None


class Finding(NamedTuple):
    """What a rule says about one cause now. `fact` is the newest; `severity` None: it is well."""

    rule: alert_state.Rule
    cause: str
    fact: Fact
    severity: str | None


class Change(NamedTuple):
    """A step of one alert: `new` or columns of a known one, and the event that tells it."""

    alert_id: str
    new: alert_state.Alert | None
    values: dict[str, Any]
    event: tuple[str, dict[str, Any]] | None


def defaults(endpoint: str, now_ms: int) -> list[alert_state.Rule]:
    """The rules that a new monitor comes with, switched on."""
    rows = (
        ("Input or prediction drifted", "drift", 0.0, WARNING),
        ("Values are missing", "null_share", 0.25, CRITICAL),
        ("Requests fail", "error_rate", 0.05, CRITICAL),
    )
    return [
        alert_state.Rule(
            id=names.new_id(),
            endpoint=endpoint,
            name=name,
            metric=metric,
            column=None,
            slice=None,
            served_entity=None,
            operator=">",
            threshold=threshold,
            windows=1,
            severity=severity,
            cool_down_minutes=0,
            enabled=True,
            created_ms=now_ms + number,
        )
        for number, (name, metric, threshold, severity) in enumerate(rows)
    ]


# --- rules over facts: pure ----------------------------------------------------------------------


def findings(rules: Sequence[alert_state.Rule], facts: Iterable[Fact]) -> list[Finding]:
    """What each enabled rule says about each of its causes; causes without data are left out."""
    by_metric: dict[str, list[Fact]] = {}
    for fact in facts:
        by_metric.setdefault(fact.metric, []).append(fact)
    found = []
    for rule in rules:
        if rule.enabled:
            found += _of_rule(rule, by_metric.get(rule.metric, []))
    return found


def _of_rule(rule: alert_state.Rule, facts: Sequence[Fact]) -> list[Finding]:
    causes: dict[str, dict[str | None, list[Fact]]] = {}
    for fact in facts:
        if rule.column not in (None, fact.column):
            continue
        if rule.served_entity not in (None, fact.served_entity):
            continue
        if not watches(rule, fact.slice):
            continue
        if fact.value is not None or fact.idle:
            series = causes.setdefault(cause_of(rule, fact), {})
            series.setdefault(fact.granularity, []).append(fact)
    found = []
    for cause, by_granularity in causes.items():
        judged = [
            _judge(rule, series)
            for series in by_granularity.values()
            if len(series) >= rule.windows
        ]
        if judged:
            severity, fact = max(judged, key=lambda item: (_rank(item[0]), _newest(item[1])))
            found.append(Finding(rule, cause, fact, severity))
    return found


def cause_of(rule: alert_state.Rule, fact: Fact) -> str:
    """One text per (rule, column, served entity, slice)."""
    cause = "|".join((rule.id, fact.column or "", fact.served_entity or ""))
    if fact.slice is None:
        return cause
    cut = f"{cause}|{named(fact.slice)}"
    return (
        cut if len(cut) <= LONGEST_CAUSE else f"{cause}|{hashlib.sha256(cut.encode()).hexdigest()}"
    )


def watches(rule: alert_state.Rule, slice_: Slice | None) -> bool:
    """Is this slice, None: are all rows together, one that the rule is about?"""
    if slice_ is None or rule.slice is None:
        return slice_ is None and rule.slice is None
    return rule.slice in (slice_[0], named(slice_))


def named(slice_: Slice) -> str:
    """`expression=value`, as `?slice=` takes it."""
    return f"{slice_[0]}={slice_[1]}"


def spoken(slice_: Slice | None) -> str:
    """A slice in front of what is said of it: `carrier = UA, `; of all rows nothing is said."""
    if slice_ is None:
        return ""
    expression, value = slice_
    return {"true": f"{expression}, ", "false": f"not ({expression}), "}.get(
        value, f"{expression} = {value}, "
    )


def _judge(rule: alert_state.Rule, series: Sequence[Fact]) -> tuple[str | None, Fact]:
    """Severity, None if well, from the newest `rule.windows` facts; and the newest of them."""
    newest = sorted(series, key=_newest)[-rule.windows :]
    severities = [_severity(rule, fact) for fact in newest]
    worst = min(severities, key=_rank)  # all of them must hold, so the mildest decides
    return worst, newest[-1]


def _severity(rule: alert_state.Rule, fact: Fact) -> str | None:
    if fact.idle:
        return None
    if rule.metric == "drift":
        if fact.severity is None:
            return None
        return CRITICAL if CRITICAL in (fact.severity, rule.severity) else WARNING
    value = fact.value if fact.certain is None else fact.certain
    assert value is not None, "facts without a value were left out"
    crossed = value > rule.threshold if rule.operator == ">" else value < rule.threshold
    return rule.severity if crossed else None


def _rank(severity: str | None) -> int:
    return (None, WARNING, CRITICAL).index(severity)


def _newest(fact: Fact) -> str:
    return fact.window[0] if fact.window else ""


def changes(
    found: Sequence[Finding], before: Mapping[str, alert_state.Alert], now_ms: int
) -> list[Change]:
    """The next step of every alert. `before`: newest alert, open or closed, per cause."""
    steps = []
    for finding in found:
        last = before.get(finding.cause)
        is_open = last is not None and last.state == "open"
        if finding.severity is not None and not is_open:
            steps.append(_opened(finding, last, now_ms))
        elif finding.severity is not None and last is not None:
            steps.append(_continued(finding, last, now_ms))
        elif is_open and last is not None:
            steps.append(_closed(finding, last, now_ms))
    return steps


def _opened(finding: Finding, last: alert_state.Alert | None, now_ms: int) -> Change:
    rule, fact = finding.rule, finding.fact
    muted = last.muted_until_ms if last and _muted(last, now_ms) else None
    cool = last is not None and (now_ms - (last.notified_ms or 0) < rule.cool_down_minutes * 60_000)
    told = muted is None and not cool
    alert = alert_state.Alert(
        id=names.new_id(),
        rule_id=rule.id,
        cause=finding.cause,
        endpoint=rule.endpoint,
        metric=rule.metric,
        column=fact.column,
        severity=finding.severity or WARNING,
        state="open",
        opened_ms=now_ms,
        updated_ms=now_ms,
        closed_ms=None,
        notified_ms=now_ms if told else (last.notified_ms if last else None),
        acknowledged_by=None,
        muted_until_ms=muted,
        mute_reason=last.mute_reason if last and muted else None,
        slice=named(fact.slice) if fact.slice else None,
        **_measured(finding),
    )
    event = ("alert.opened", alert_contract.alert_info(alert)) if told else None
    return Change(alert.id, alert, {}, event)


def _continued(finding: Finding, last: alert_state.Alert, now_ms: int) -> Change:
    values = {**_measured(finding), "severity": finding.severity, "updated_ms": now_ms}
    event = None
    if finding.severity != last.severity and not _muted(last, now_ms):
        values["notified_ms"] = now_ms
        event = ("alert.changed", alert_contract.alert_info(last._replace(**values)))
    return Change(last.id, None, values, event)


def _closed(finding: Finding, last: alert_state.Alert, now_ms: int) -> Change:
    values: dict[str, Any] = {"state": "closed", "closed_ms": now_ms, "updated_ms": now_ms}
    told = alert_contract.alert_info(last._replace(**values))
    told |= {"value": finding.fact.value, "message": f"Recovered: {finding.fact.text}."}
    event = None if _muted(last, now_ms) else ("alert.closed", told)
    return Change(last.id, None, values, event)


def _muted(alert: alert_state.Alert, now_ms: int) -> bool:
    return alert.muted_until_ms is not None and alert.muted_until_ms > now_ms


def _measured(finding: Finding) -> dict[str, Any]:
    rule, fact = finding.rule, finding.fact
    threshold = fact.threshold if rule.metric == "drift" else rule.threshold
    return {
        "value": fact.value,
        "threshold": threshold,
        "n": fact.n,
        "window": list(fact.window) if fact.window else None,
        "message": _message(rule, fact, threshold),
    }


def _message(rule: alert_state.Rule, fact: Fact, threshold: float | None) -> str:
    side = "more" if rule.operator == ">" else "less"
    own_limit = rule.metric == "drift" or threshold is None  # a drift's words name its limit
    limit = "" if own_limit else f"; {side} than {threshold:g} is an alert"
    explained = f" {fact.explanation}" if fact.explanation else ""
    return f"{fact.text}{limit}.{explained}"


# --- writing them down ---------------------------------------------------------------------------


def apply(
    connection: sa.Connection,
    rules: Sequence[alert_state.Rule],
    facts: Iterable[Fact],
    endpoint: str,
    now_ms: int,
) -> list[Change]:
    """Judge the facts of an endpoint and write alerts and their events, in one transaction."""
    before = alert_state.newest_alert_of_each_cause(connection, endpoint)
    steps = changes(findings(rules, facts), before, now_ms)
    for step in steps:
        if step.new is not None:
            alert_state.add_alert(connection, step.new)
        else:
            alert_state.change_alert(connection, step.alert_id, step.values)
        if step.event is not None:
            outbox.emit(connection, *step.event, now_ms)
    return steps
