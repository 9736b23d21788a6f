"""Shapes of the monitors' HTTP API, in and out: Databricks' quality monitors, experiments, ramps,
recommendations; those of alerts and webhooks are in `alert_contract.py`. Pure.

No other file knows these field names on the wire. Unknown fields are refused with their names.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, get_args

import orjson
import pydantic

from capture import errors, names
from monitors import experiment_state, policies, schedules, state, windows

M = TypeVar("M", bound=pydantic.BaseModel)
PROFILE_TYPES = ("snapshot", "time_series", "inference_log")
SERVICE_KEYS = ("start_time", "holdout_percentage", "guard")
MAX_BODY_BYTES = 1 << 20
MOST_SLICING_EXPRS = 20
MOST_CUSTOM_METRICS = 100
MOST_INPUT_COLUMNS = 200
MOST_ROLLING_WINDOWS = 60


# --- reading bodies ------------------------------------------------------------------------------


def body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request; an absent body is an empty one. Raises BadRequest."""
    if not raw.strip():
        return {}
    if len(raw) > MAX_BODY_BYTES:
        raise errors.BadRequest(f"Body over {MAX_BODY_BYTES} bytes.")
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise errors.BadRequest(f"Body is not valid JSON: {error}.") from None
    if not isinstance(parsed, dict):
        raise errors.BadRequest("Body must be a JSON object.")
    return parsed


def parse(model: type[M], given: Mapping[str, Any]) -> M:
    """Check a body against its shape. Raises InvalidParameter that names the field."""
    try:
        return model.model_validate(given)
    except pydantic.ValidationError as error:
        raise errors.InvalidParameter(_explain(model, error)) from None


def _explain(model: type[pydantic.BaseModel], error: pydantic.ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    unknown = [item["loc"] for item in found if item["type"] == "extra_forbidden"]
    if unknown:
        inside = _model_at(model, unknown[0][:-1])
        allowed = [f.alias or name for name, f in inside.model_fields.items()] if inside else []
        together = allowed and len({location[:-1] for location in unknown}) == 1
        hint = f"; allowed: {', '.join(allowed)}" if together else ""
        plural = "s" if len(unknown) > 1 else ""
        return f"Unknown field{plural}: {', '.join(_path(one) for one in unknown)}{hint}."
    first = found[0]
    said = first["msg"].removeprefix("Value error, ").rstrip(".")
    where = _path(first["loc"])
    return f"{where}: {said}." if where else f"{said}."


def _model_at(
    model: type[pydantic.BaseModel] | None, location: tuple[int | str, ...]
) -> type[pydantic.BaseModel] | None:
    """The shape of the object at a place within a body."""
    for part in location:
        if model is not None and isinstance(part, str):
            field = model.model_fields.get(part)
            model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The shape in `Model | None` or `list[Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((found for found in inner if found), None)


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def moment(text: str, field: str) -> datetime:
    """An RFC 3339 time, aware and in UTC; without an offset it is UTC. Raises InvalidParameter."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise errors.InvalidParameter(
            f"{field}: '{text[:50]}' is not an RFC 3339 time such as 2024-05-01T12:00:00Z."
        ) from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def rfc3339(unix_ms: int | None) -> str | None:
    """Unix milliseconds as the text of the API."""
    if unix_ms is None:
        return None
    time = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix_ms(time: datetime) -> int:
    """Whole milliseconds since the epoch, rounded down."""
    return int(time.timestamp() * 1000 // 1)


# --- Databricks' quality monitors ----------------------------------------------------------------


class Shape(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class Snapshot(Shape):
    """The table as a whole at the moment of each refresh."""


class TimeSeries(Shape):
    timestamp_col: str
    granularities: list[str] = pydantic.Field(min_length=1)

    @pydantic.field_validator("granularities")
    @classmethod
    def _known(cls, granularities: list[str]) -> list[str]:
        return list(dict.fromkeys(windows.check(granularity) for granularity in granularities))


class InferenceLog(TimeSeries):
    problem_type: Literal["PROBLEM_TYPE_CLASSIFICATION", "PROBLEM_TYPE_REGRESSION"]
    prediction_col: str
    model_id_col: str
    label_col: str | None = None
    prediction_proba_col: str | None = None


class Schedule(Shape):
    quartz_cron_expression: str
    timezone_id: str
    pause_status: Literal["UNPAUSED", "PAUSED"] | None = None

    @pydantic.model_validator(mode="after")
    def _runs(self) -> "Schedule":
        schedules.fields(self.quartz_cron_expression)
        schedules.timezone(self.timezone_id)
        return self


class Destination(Shape):
    email_addresses: list[str] = pydantic.Field(default_factory=list, max_length=5)


class Notifications(Shape):
    on_failure: Destination | None = None
    on_new_classification_tag_detected: Destination | None = None


class DataClassification(Shape):
    enabled: bool | None = None


class CustomMetric(Shape):
    """What its definition may hold is checked where it is parsed (custom_metrics.py)."""

    type: Literal[
        "CUSTOM_METRIC_TYPE_AGGREGATE", "CUSTOM_METRIC_TYPE_DERIVED", "CUSTOM_METRIC_TYPE_DRIFT"
    ]
    name: str = pydantic.Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")
    input_columns: list[str] = pydantic.Field(min_length=1, max_length=MOST_INPUT_COLUMNS)
    definition: str
    output_data_type: str

    @pydantic.field_validator("input_columns")
    @classmethod
    def _once(cls, columns: list[str]) -> list[str]:
        return list(dict.fromkeys(columns))


class MonitorConfig(Shape):
    """Body of creating and updating a monitor."""

    output_schema_name: str
    assets_dir: str | None = None
    snapshot: Snapshot | None = None
    time_series: TimeSeries | None = None
    inference_log: InferenceLog | None = None
    baseline_table_name: str | None = None
    slicing_exprs: list[str] | None = pydantic.Field(default=None, max_length=MOST_SLICING_EXPRS)
    custom_metrics: list[CustomMetric] | None = pydantic.Field(
        default=None, max_length=MOST_CUSTOM_METRICS
    )
    schedule: Schedule | None = None
    notifications: Notifications | None = None
    skip_builtin_dashboard: bool | None = None
    warehouse_id: str | None = None
    data_classification_config: DataClassification | None = None
    dashboard_id: str | None = None
    latest_monitor_failure_msg: str | None = None


def monitor_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked content of a monitor, without nulls. Raises InvalidParameter, and
    NotImplementedHere for parts of the contract that this server does not offer."""
    config = parse(MonitorConfig, given).model_dump(exclude_none=True)
    config.pop("latest_monitor_failure_msg", None)
    found = [kind for kind in PROFILE_TYPES if kind in config]
    if len(found) != 1:
        raise errors.InvalidParameter(
            f"Give exactly one of {', '.join(PROFILE_TYPES)}; found: {', '.join(found) or 'none'}."
        )
    check_schema(config["output_schema_name"], "output_schema_name")
    if "baseline_table_name" in config:
        _baseline_table(config["baseline_table_name"])
    return config


def check_schema(name: str, field: str) -> None:
    """Raises InvalidParameter for what is not `catalog.schema`."""
    parts = name.split(".")
    if len(parts) != 2:
        raise errors.InvalidParameter(f"{field}: '{name[:200]}' is not of the form catalog.schema.")
    for part in parts:
        names.check_part(part, field)


def _baseline_table(name: str) -> None:
    try:
        names.table_name(name)
    except errors.InvalidParameter as error:
        raise errors.InvalidParameter(f"baseline_table_name: {error.message}") from None


def updated_config(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """An update replaces the fields that it gives; a new kind of profile replaces the old one."""
    kept = dict(before)
    if any(given.get(kind) is not None for kind in PROFILE_TYPES):
        kept = {key: value for key, value in kept.items() if key not in PROFILE_TYPES}
    return monitor_config({**kept, **given})


def metric_tables(table_name: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """Full names of the profile and the drift table of a monitor."""
    stem = f"{config['output_schema_name']}.{names.table_name(table_name).table}"
    return f"{stem}_profile_metrics", f"{stem}_drift_metrics"


def reading_hints(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader of the metric tables needs to know of a monitor."""
    log = config.get("inference_log") or {}
    given = log or config.get("time_series") or {}
    outputs = ["prediction", "score", log.get("prediction_col"), log.get("prediction_proba_col")]
    return {
        "granularity": next(iter(given.get("granularities", ())), None),
        "granularities": list(given.get("granularities", ())),
        "model_id_col": log.get("model_id_col"),
        "outputs": sorted({name for name in outputs if name}),
    }


def dashboard_id(monitor: state.Monitor) -> str:
    """The one that a caller has set, or the table's id: every monitor has pages of its own."""
    return str(monitor.config.get("dashboard_id") or monitor.table_id.replace("-", ""))


def monitor_info(monitor: state.Monitor) -> dict[str, Any]:
    """MonitorInfo of Databricks."""
    profile_table, drift_table = metric_tables(monitor.table_name, monitor.config)
    info = {
        "table_name": monitor.table_name,
        "status": monitor.status,
        "monitor_version": monitor.monitor_version,
        "profile_metrics_table_name": profile_table,
        "drift_metrics_table_name": drift_table,
        "dashboard_id": dashboard_id(monitor),
        **monitor.config,
    }
    if "schedule" in info:
        info["schedule"] = {"pause_status": "UNPAUSED", **info["schedule"]}
    if monitor.failure_message:
        info["latest_monitor_failure_msg"] = monitor.failure_message
    return info


def refresh_info(refresh: state.Refresh) -> dict[str, Any]:
    """RefreshInfo of Databricks, and how far it is."""
    info: dict[str, Any] = {
        "refresh_id": refresh.id,
        "state": refresh.state,
        "trigger": refresh.trigger,
        "start_time_ms": refresh.started_ms or refresh.requested_ms,
    }
    if refresh.ended_ms is not None:
        info["end_time_ms"] = refresh.ended_ms
    if refresh.message:
        info["message"] = refresh.message
    if refresh.until_ms is not None:
        info["until"] = rfc3339(refresh.until_ms)
    if refresh.progress:
        info["progress"] = refresh.progress
    return info


class RefreshRequest(Shape):
    until: str | None = None


class BaselineRequest(Shape):
    kind: Literal["training", "window", "previous", "rolling"]
    table: str | None = None
    start: str | None = None
    end: str | None = None
    windows: int | None = pydantic.Field(default=None, ge=2, le=MOST_ROLLING_WINDOWS)


def baseline_spec(given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked content of a baseline. Raises InvalidParameter."""
    asked = parse(BaselineRequest, given)
    if asked.kind == "training":
        if asked.table is not None:
            names.table_name(asked.table)
        return {"kind": "training", "table": asked.table}
    if asked.kind == "window":
        start, end = (_given_time(getattr(asked, name), name) for name in ("start", "end"))
        if start >= end:
            raise errors.InvalidParameter("start: must be before end.")
        return {"kind": "window", "start": start.isoformat(), "end": end.isoformat()}
    if asked.kind == "previous":
        return {"kind": "previous", "windows": 1}
    if asked.windows is None:
        raise errors.InvalidParameter("windows: a number is needed for a rolling baseline.")
    return {"kind": "rolling", "windows": asked.windows}


def _given_time(text: str | None, field: str) -> datetime:
    if text is None:
        raise errors.InvalidParameter(f"{field}: a time is needed for a baseline of a window.")
    return moment(text, field)


# --- experiments and ramps -----------------------------------------------------------------------


class Guard(pydantic.BaseModel):
    """A second look at the newest hours: any policy key may differ there."""

    model_config = pydantic.ConfigDict(extra="allow")
    window_hours: float = pydantic.Field(gt=0)


def experiment(given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked body of an experiment: policy and service keys. Raises InvalidParameter."""
    policy = {key: value for key, value in given.items() if key not in SERVICE_KEYS}
    _check_policy(policy, "")
    if given.get("start_time") is not None:
        if not isinstance(given["start_time"], str):
            raise errors.InvalidParameter("start_time: expected an RFC 3339 time.")
        moment(given["start_time"], "start_time")
    holdout = given.get("holdout_percentage", 0)
    if isinstance(holdout, bool) or not isinstance(holdout, int) or not 0 <= holdout <= 50:
        raise errors.InvalidParameter("holdout_percentage: expected an integer 0..50.")
    if given.get("guard") is not None:
        guard = given["guard"]
        if not isinstance(guard, Mapping):
            raise errors.InvalidParameter("guard: expected an object.")
        parse(Guard, guard)
        _check_policy(guard_policy(given), "guard: ")
    return {key: value for key, value in given.items() if value is not None}


def policy_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The policy alone, as `experiments.evaluate` takes it."""
    return {key: value for key, value in body.items() if key not in SERVICE_KEYS}


def guard_policy(body: Mapping[str, Any]) -> dict[str, Any]:
    """The policy of the second look."""
    overrides = {key: value for key, value in body["guard"].items() if key != "window_hours"}
    return {**policy_of(body), **overrides}


def policies_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The policies of an experiment's looks."""
    return [policy_of(body), *([guard_policy(body)] if body.get("guard") else [])]


def _check_policy(policy: Mapping[str, Any], prefix: str) -> None:
    try:
        policies.Policy.parse(policy)
    except ValueError as error:
        raise errors.InvalidParameter(f"{prefix}{error}") from None


class RampRequest(Shape):
    challenger: str
    steps: list[int] = pydantic.Field(default=[1, 5, 20, 50, 100], min_length=1, max_length=100)
    min_minutes_per_step: float = pydantic.Field(default=30, ge=0, strict=False)
    auto: bool = False
    on_regression: Literal["roll_back", "hold"] = "roll_back"

    @pydantic.field_validator("steps")
    @classmethod
    def _rise(cls, steps: list[int]) -> list[int]:
        if any(not 1 <= step <= 100 for step in steps) or sorted(set(steps)) != steps:
            raise ValueError("expected growing percentages between 1 and 100")
        return steps


def ramp_request(given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked plan of a ramp. Raises InvalidParameter."""
    ramp = parse(RampRequest, given)
    names.check_entity(ramp.challenger, "challenger")
    return ramp.model_dump()


def ramp_info(ramp: experiment_state.Ramp) -> dict[str, Any]:
    return {
        **ramp.body,
        "step": ramp.step,
        "state": ramp.state,
        "since": rfc3339(ramp.since_ms),
        "next_gate": ramp.next_gate,
        "reason": ramp.reason,
        "approved": ramp.approved,
        "paused": ramp.paused,
    }


class ApplyRequest(Shape):
    if_config_version: int | None = None


class DismissRequest(Shape):
    reason: str | None = pydantic.Field(default=None, max_length=4096)


class UntilRequest(Shape):
    until: str


class TryRequest(Shape):
    from_: str = pydantic.Field(alias="from")
    to: str


class MuteRequest(Shape):
    until: str
    reason: str | None = pydantic.Field(default=None, max_length=4096)


def recommendation_info(found: experiment_state.Recommendation) -> dict[str, Any]:
    return {
        "id": found.id,
        "endpoint": found.endpoint,
        "action": found.action,
        "evidence": found.evidence,
        "expected_effect": found.expected_effect,
        "risk": found.risk,
        "created_time": rfc3339(found.created_ms),
        "expires_time": rfc3339(found.expires_ms),
        "snoozed_until": rfc3339(found.snoozed_until_ms),
        "state": found.state,
        "outcome": found.outcome,
    }
