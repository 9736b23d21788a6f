"""A decision -> the next step of a ramp, taken over HTTP with the service token.

A roll-back restores the newest earlier configuration in which the challenger had no traffic, and is
latched for the pair until a new experiment begins. It also guards ramps that a person paused or
that only a person advances. Whatever fails is tried again at the next look; nothing advances by
itself (promises 15 and 16).
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from capture import database, logline, outbox
from monitors import decisions, experiment_state, recommendations, server

log = logline.logger(__name__)

GUARDED = ("running", "held", "completed")
CHANGED_BY_A_PERSON = "changed_by_a_person"
FAILED = "server_refused"


def restore_target(
    versions: Sequence[Mapping[str, Any]], present: int, champion: str, challenger: str
) -> int | None:
    """The newest configuration before `present` that was active once, in which the challenger has
    no traffic, the champion has some, and nobody else loses or gains by it more than a part of the
    challenger's; None: there is none. Pure."""
    splits = {int(one["config_version"]): server.shares(one["config"]) for one in versions}
    now = splits.get(present, {})
    left = 100 - now.get(challenger, 0)

    def fits(shares: Mapping[str, int]) -> bool:
        if shares.get(challenger, 0) > 0 or shares.get(champion, 0) == 0:
            return False
        for name in {*shares, *now} - {champion, challenger}:
            mine, before = now.get(name, 0), shares.get(name, 0)
            # Shares are whole: one point more or less is rounding.
            least, most = mine - 1, 100 * mine / (left or 1) + 1
            if (mine == 0) != (before == 0) or not least <= before <= most:
                return False
        return True

    active = [
        int(one["config_version"])
        for one in versions
        if one.get("activated_time", "") is not None and int(one["config_version"]) < present
    ]
    return max((number for number in active if fits(splits[number])), default=None)


def act(
    engine: sa.Engine,
    gateway: server.Server,
    found: decisions.Look,
    refresh_seconds: float,
    now_ms: int,
) -> str | None:
    """Do what the decision and the ramp call for; gives what went wrong, in words."""
    endpoint = found.experiment.endpoint
    with database.reading(engine) as connection:
        ramp = experiment_state.get_ramp(connection, endpoint)
        latched = experiment_state.is_latched(
            connection, found.experiment, found.roles.champion, found.roles.challenger
        )
    if ramp is None or ramp.body["challenger"] != found.roles.challenger:
        return None
    try:
        if _regressed(ramp, found, latched):
            _roll_back(engine, gateway, ramp, found, now_ms)
        elif ramp.state in experiment_state.UNFINISHED:
            _step(engine, gateway, ramp, found, latched, refresh_seconds, now_ms)
    except server.Refused as refused:
        log.warning("ramp_refused", endpoint=endpoint, message=refused.message)
        return f"The ramp of '{endpoint}' could not change the traffic: {refused.message}"
    return None


def _regressed(ramp: experiment_state.Ramp, found: decisions.Look, latched: bool) -> bool:
    return (
        found.action == "roll_back"
        and not latched
        and ramp.body["on_regression"] == "roll_back"
        and ramp.state in GUARDED
    )


def _roll_back(
    engine: sa.Engine,
    gateway: server.Server,
    ramp: experiment_state.Ramp,
    found: decisions.Look,
    now_ms: int,
) -> None:
    endpoint, who = ramp.endpoint, found.roles
    traffic = gateway.traffic(endpoint)
    reason = str(found.decision["summary"])[:4096]
    version = traffic.config_version
    if traffic.shares.get(who.challenger, 0) > 0:
        pair = (who.champion, who.challenger)
        others = any(share for name, share in traffic.shares.items() if name not in pair)
        target = restore_target(gateway.versions(endpoint), version, who.champion, who.challenger)
        if target is not None:
            version = gateway.roll_back(endpoint, target, reason)
        elif others:
            version = gateway.promote(endpoint, who.challenger, 0, version, reason)
        else:
            version = gateway.promote(endpoint, who.champion, 100, version, reason)
    event = {
        "endpoint": endpoint,
        "champion": who.champion,
        "challenger": who.challenger,
        "reasons": list(found.decision["reasons"]),
        "summary": reason,
        "kind": found.kind,
        "config_version": version,
        "decided_time": found.moment.isoformat(),
    }
    with database.transaction(engine) as connection:
        experiment_state.latch(
            connection, found.experiment, who.champion, who.challenger, reason, now_ms
        )
        values = {
            "state": "rolled_back",
            "reason": str(found.decision["reasons"][0]),
            "next_gate": "a new experiment",
            "config_version": version,
            "since_ms": now_ms,
            "since_event_ms": _ms(found.moment),
        }
        # A person who touched the ramp meanwhile does not undo that the traffic went back.
        fresh = experiment_state.get_ramp(connection, endpoint)
        if fresh is not None and fresh.body["challenger"] == who.challenger:
            experiment_state.change_ramp(connection, fresh, values)
        outbox.emit(connection, "ramp.rolled_back", event, now_ms)
    log.warning("rolled_back", endpoint=endpoint, challenger=who.challenger, reason=reason)


def _step(
    engine: sa.Engine,
    gateway: server.Server,
    ramp: experiment_state.Ramp,
    found: decisions.Look,
    latched: bool,
    refresh_seconds: float,
    now_ms: int,
) -> None:
    traffic = gateway.traffic(ramp.endpoint)
    if ramp.config_version is not None and traffic.config_version != ramp.config_version:
        _pause(engine, ramp, traffic, now_ms)
        return
    plan = recommendations.Ramp(
        steps=tuple(ramp.body["steps"]),
        step=ramp.step,
        since=_time(ramp.since_event_ms) or found.moment,
        challenger_requests=_requests(found, traffic),
        newest_row=found.newest_row,
        decided=found.moment,
        refresh_seconds=refresh_seconds,
        min_minutes_per_step=ramp.body["min_minutes_per_step"],
        auto=ramp.body["auto"],
        approved=ramp.approved,
        on_regression=ramp.body["on_regression"],
        latched=latched,
        paused=ramp.paused,
    )
    step = recommendations.next_step(plan, found.decision, found.policy, found.moment)
    moved = step.kind in ("advance", "finish") and step.share != traffic.shares.get(
        found.roles.challenger, 0
    )
    version = traffic.config_version
    if moved:
        version = gateway.promote(
            ramp.endpoint, found.roles.challenger, step.share, version, step.gate[:4096]
        )
    _write_step(engine, ramp, step, found, version, now_ms)


def _requests(found: decisions.Look, traffic: server.Traffic) -> int:
    """Requests of the challenger at its present share."""
    return found.challenger_requests if found.config_version == traffic.config_version else 0


def _write_step(
    engine: sa.Engine,
    ramp: experiment_state.Ramp,
    step: recommendations.Step,
    found: decisions.Look,
    version: int,
    now_ms: int,
) -> None:
    values: dict[str, Any] = {
        "config_version": version,
        "next_gate": step.gate,
        "reason": step.reason,
    }
    if ramp.since_event_ms is None:
        values["since_event_ms"] = _ms(found.moment)
    event: str | None = None
    if step.kind in ("advance", "finish"):
        done = step.kind == "finish"
        values |= {
            "step": ramp.step + (0 if done else 1),
            "state": "completed" if done else "running",
            "approved": False,
            "since_ms": now_ms,
            "since_event_ms": _ms(found.moment),
        }
        event = "ramp.completed" if done else "ramp.advanced"
    else:
        values["state"] = "held"
        event = "ramp.held" if ramp.state != "held" or ramp.reason != step.reason else None
    with database.transaction(engine) as connection:
        if not experiment_state.change_ramp(connection, ramp, values):
            return  # a person changed the plan meanwhile; the next look goes by theirs
        if event is not None:
            told = {
                "endpoint": ramp.endpoint,
                "challenger": found.roles.challenger,
                "traffic_percentage": step.share,
                "reason": step.reason,
                "next_gate": step.gate,
            }
            outbox.emit(connection, event, told, now_ms)


def _pause(
    engine: sa.Engine, ramp: experiment_state.Ramp, traffic: server.Traffic, now_ms: int
) -> None:
    """A person's own change of traffic pauses the ramp until they resume it."""
    values = {
        "state": "held",
        "paused": True,
        "reason": CHANGED_BY_A_PERSON,
        "next_gate": "resume the ramp: somebody changed the configuration",
        "config_version": traffic.config_version,
    }
    with database.transaction(engine) as connection:
        if experiment_state.change_ramp(connection, ramp, values):
            told = {
                "endpoint": ramp.endpoint,
                "challenger": ramp.body["challenger"],
                "reason": CHANGED_BY_A_PERSON,
                "next_gate": values["next_gate"],
            }
            outbox.emit(connection, "ramp.held", told, now_ms)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
