"""Shapes of alert rules, alerts, webhooks and deliveries on the wire. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic

from capture import errors
from monitors import alert_state, contract

DRIFT_METRICS = (
    "drift",
    "ks",
    "wasserstein",
    "wasserstein_normed",
    "psi",
    "js_distance",
    "tv_distance",
    "l_infinity_distance",
    "chi_squared",
    "cramers_v",
    "percent_null_delta",
    "percent_zeros_delta",
    "percent_distinct_delta",
    "avg_delta",
    "count_delta",
    "null_share",
    "feature_age_hours",
)
QUALITY_METRICS = (
    "accuracy",
    "precision",
    "recall",
    "f1",
    "roc_auc",
    "log_loss",
    "brier",
    "mae",
    "mse",
    "rmse",
    "mape",
    "r2",
    "label_coverage",
    "label_delay_p50_seconds",
    "label_delay_p95_seconds",
)
SERVING_METRICS = ("error_rate", "p99_ms", "capture_lag_seconds")
# Of these the metric tables tell the past.
ON_THE_PAST = (
    *(
        m
        for m in DRIFT_METRICS
        if m not in ("wasserstein_normed", "cramers_v", "feature_age_hours")
    ),
    *QUALITY_METRICS,
)
WITHOUT_SLICES = ("feature_age_hours", "capture_lag_seconds")
METRICS = (*DRIFT_METRICS, *QUALITY_METRICS, *SERVING_METRICS)
EVENTS = (
    "endpoint.ready",
    "endpoint.update_failed",
    "endpoint.promoted",
    "endpoint.rolled_back",
    "endpoint.deleted",
    "alert.opened",
    "alert.changed",
    "alert.closed",
    "recommendation.created",
    "recommendation.applied",
    "recommendation.expired",
    "ramp.advanced",
    "ramp.held",
    "ramp.rolled_back",
    "ramp.completed",
    "capture.behind",
    "capture.recovered",
    "monitor.failed",
)


class Condition(contract.Shape):
    operator: Literal[">", "<"]
    threshold: float = pydantic.Field(strict=False, allow_inf_nan=False)


class RuleRequest(contract.Shape):
    name: str = pydantic.Field(min_length=1, max_length=256)
    endpoint: str
    metric: str
    column: str | None = pydantic.Field(default=None, max_length=256)
    slice: str | None = pydantic.Field(default=None, max_length=256)
    served_entity: str | None = pydantic.Field(default=None, max_length=63)
    condition: Condition
    windows: int = pydantic.Field(default=1, ge=1, le=100)
    severity: Literal["warning", "critical"] = "warning"
    cool_down_minutes: int = pydantic.Field(default=0, ge=0, le=100_000)
    enabled: bool = True

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> "RuleRequest":
        if self.metric not in METRICS:
            raise ValueError(f"metric '{self.metric[:64]}' is unknown; known: {', '.join(METRICS)}")
        if self.metric == "feature_age_hours" and self.column is None:
            raise ValueError("column: feature_age_hours needs the column that holds the time")
        if self.slice is not None and self.metric in WITHOUT_SLICES:
            raise ValueError(f"slice: {self.metric} is measured for all rows together")
        return self


class RuleChange(contract.Shape):
    name: str | None = pydantic.Field(default=None, min_length=1, max_length=256)
    condition: Condition | None = None
    windows: int | None = pydantic.Field(default=None, ge=1, le=100)
    severity: Literal["warning", "critical"] | None = None
    cool_down_minutes: int | None = pydantic.Field(default=None, ge=0, le=100_000)
    enabled: bool | None = None


def rule(given: Mapping[str, Any], rule_id: str, now_ms: int) -> alert_state.Rule:
    """A new rule from its body. Raises InvalidParameter."""
    asked = contract.parse(RuleRequest, given)
    return alert_state.Rule(
        id=rule_id,
        operator=asked.condition.operator,
        threshold=asked.condition.threshold,
        created_ms=now_ms,
        **asked.model_dump(exclude={"condition"}),
    )


def check_slice(text: str, monitors: Sequence[Mapping[str, Any]]) -> None:
    """A rule's slice is one that a monitor cuts its rows by. monitors: configurations. Raises
    InvalidParameter: a rule on other slices would never hear of anything."""
    known = sorted({cut for config in monitors for cut in config.get("slicing_exprs") or ()})
    if not any(text == cut or text.startswith(f"{cut}=") for cut in known):
        shown = ", ".join(known)[:500] or "there are none"
        raise errors.InvalidParameter(
            f"slice: '{text[:100]}' is no slicing expression of a monitor of this endpoint, nor "
            f"one with '=' and a value; slicing_exprs: {shown}."
        )


def rule_change(given: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a PATCH sets. Raises InvalidParameter."""
    asked = contract.parse(RuleChange, given)
    values = asked.model_dump(exclude_none=True, exclude={"condition"})
    if asked.condition is not None:
        values |= asked.condition.model_dump()
    return values


def rule_info(rule: alert_state.Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": rule.name,
        "endpoint": rule.endpoint,
        "metric": rule.metric,
        "column": rule.column,
        "slice": rule.slice,
        "served_entity": rule.served_entity,
        "condition": {"operator": rule.operator, "threshold": rule.threshold},
        "windows": rule.windows,
        "severity": rule.severity,
        "cool_down_minutes": rule.cool_down_minutes,
        "enabled": rule.enabled,
        "created_time": contract.rfc3339(rule.created_ms),
    }


def alert_info(alert: alert_state.Alert) -> dict[str, Any]:
    return {
        "id": alert.id,
        "rule_id": alert.rule_id,
        "endpoint": alert.endpoint,
        "metric": alert.metric,
        "column": alert.column,
        "slice": alert.slice,
        "severity": alert.severity,
        "state": alert.state,
        "opened_time": contract.rfc3339(alert.opened_ms),
        "updated_time": contract.rfc3339(alert.updated_ms),
        "closed_time": contract.rfc3339(alert.closed_ms),
        "value": alert.value,
        "threshold": alert.threshold,
        "n": alert.n,
        "window": alert.window,
        "message": alert.message,
        "acknowledged": alert.acknowledged_by is not None,
        "muted_until": contract.rfc3339(alert.muted_until_ms),
    }


def wants(patterns: Sequence[str], event: str) -> bool:
    """Does one of the patterns (`endpoint.promoted`, `alert.*`, `*`) take this event?"""
    family = event.partition(".")[0] + ".*"
    return any(pattern in ("*", family, event) for pattern in patterns)


def _known_patterns(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        if not any(wants([pattern], event) for event in EVENTS):
            raise ValueError(f"'{pattern[:64]}' matches no event; events: {', '.join(EVENTS)}")
    return patterns


class WebhookRequest(contract.Shape):
    url: str = pydantic.Field(max_length=2048)
    events: list[str] = pydantic.Field(min_length=1, max_length=100)
    format: Literal["standard", "slack"] = "standard"
    description: str | None = pydantic.Field(default=None, max_length=4096)

    @pydantic.field_validator("events")
    @classmethod
    def _known(cls, events: list[str]) -> list[str]:
        return _known_patterns(events)


class WebhookChange(contract.Shape):
    url: str | None = pydantic.Field(default=None, max_length=2048)
    events: list[str] | None = pydantic.Field(default=None, min_length=1, max_length=100)
    format: Literal["standard", "slack"] | None = None
    description: str | None = pydantic.Field(default=None, max_length=4096)

    @pydantic.field_validator("events")
    @classmethod
    def _known(cls, events: list[str] | None) -> list[str] | None:
        return None if events is None else _known_patterns(events)


def webhook_info(webhook: alert_state.Webhook) -> dict[str, Any]:
    """Without its secret, which is shown once at creation and rotation."""
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "format": webhook.format,
        "description": webhook.description,
        "created_time": contract.rfc3339(webhook.created_ms),
    }


def delivery_info(delivery: alert_state.Delivery) -> dict[str, Any]:
    waiting = delivery.state == "waiting"
    return {
        "id": str(delivery.id),
        "webhook_id": delivery.webhook_id,
        "message_id": delivery.message_id,
        "event": delivery.event_type,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "created_time": contract.rfc3339(delivery.created_ms),
        "next_attempt_time": contract.rfc3339(delivery.next_attempt_ms) if waiting else None,
        "ended_time": contract.rfc3339(delivery.ended_ms),
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
    }
