"""Shapes of Databricks' second generation of monitor routes (`/api/data-quality/v1`), and the way
from them to what is stored, which has the first generation's names (databricks-monitoring.md, 1.2).
Pure.

What callers may set and what the server alone says travel in one object, so that an object that was
read can be changed and sent back: read-only fields of a request are taken and left aside.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from capture import errors
from monitors import contract, object_ids, schedules, state, windows

PROFILING, ANOMALIES = "data_profiling_config", "anomaly_detection_config"
CONFIG_OF = {"table": PROFILING, "schema": ANOMALIES}
READ_ONLY = (
    "monitored_table_name",
    "profile_metrics_table_name",
    "drift_metrics_table_name",
    "monitor_version",
    "status",
    "latest_monitor_failure_message",
    "dashboard_id",
    "effective_warehouse_id",
)
SAME = ("assets_dir", "baseline_table_name", "slicing_exprs", "skip_builtin_dashboard", "snapshot")
COLUMNS = {
    "timestamp_column": "timestamp_col",
    "prediction_column": "prediction_col",
    "prediction_proba_column": "prediction_proba_col",
    "label_column": "label_col",
    "model_id_column": "model_id_col",
}
# Of the first generation alone: an update by the second leaves them as they are.
FIRST_ONLY = ("data_classification_config", "dashboard_id")
GRANULARITY, PROBLEM = "AGGREGATION_GRANULARITY_", "INFERENCE_PROBLEM_TYPE_"
PAUSE, METRIC = "CRON_SCHEDULE_PAUSE_STATUS_", "DATA_PROFILING_CUSTOM_METRIC_TYPE_"
OBJECT_TYPES = ", ".join(CONFIG_OF)


# --- requests ------------------------------------------------------------------------------------


def _granularity(text: str) -> str:
    try:
        windows.check(_stored_granularity(text))
    except ValueError:
        allowed = ", ".join(_shown_granularity(name) for name in windows.GRANULARITIES)
        raise ValueError(f"'{text[:100]}' is not offered; allowed are {allowed}") from None
    return text


def _stored_granularity(text: str) -> str:
    if not text.startswith(GRANULARITY) or text != text.upper():
        raise ValueError("not of this generation")
    return text.removeprefix(GRANULARITY).replace("_", " ").lower()


def _shown_granularity(name: str) -> str:
    return GRANULARITY + name.replace(" ", "_").upper()


Granularity = Annotated[str, pydantic.AfterValidator(_granularity)]


class TimeSeries(contract.Shape):
    timestamp_column: str
    granularities: list[Granularity] = pydantic.Field(min_length=1)


class InferenceLog(TimeSeries):
    """`prediction_proba_column` is ours: the first generation has it, and so has what is stored."""

    problem_type: Literal[
        "INFERENCE_PROBLEM_TYPE_CLASSIFICATION", "INFERENCE_PROBLEM_TYPE_REGRESSION"
    ]
    prediction_column: str
    model_id_column: str
    label_column: str | None = None
    prediction_proba_column: str | None = None


class Schedule(contract.Shape):
    quartz_cron_expression: str
    timezone_id: str
    pause_status: (
        Literal["CRON_SCHEDULE_PAUSE_STATUS_UNPAUSED", "CRON_SCHEDULE_PAUSE_STATUS_PAUSED"] | None
    ) = None

    @pydantic.model_validator(mode="after")
    def _runs(self) -> "Schedule":
        schedules.fields(self.quartz_cron_expression)
        schedules.timezone(self.timezone_id)
        return self


class Notifications(contract.Shape):
    on_failure: contract.Destination | None = None


class CustomMetric(contract.CustomMetric):
    type: Literal[  # type: ignore[assignment]
        "DATA_PROFILING_CUSTOM_METRIC_TYPE_AGGREGATE",
        "DATA_PROFILING_CUSTOM_METRIC_TYPE_DERIVED",
        "DATA_PROFILING_CUSTOM_METRIC_TYPE_DRIFT",
    ]


class Profiling(contract.Shape):
    """What callers may set of a table's monitor."""

    output_schema_id: str
    assets_dir: str | None = None
    snapshot: contract.Snapshot | None = None
    time_series: TimeSeries | None = None
    inference_log: InferenceLog | None = None
    baseline_table_name: str | None = None
    slicing_exprs: list[str] | None = pydantic.Field(
        default=None, max_length=contract.MOST_SLICING_EXPRS
    )
    custom_metrics: list[CustomMetric] | None = pydantic.Field(
        default=None, max_length=contract.MOST_CUSTOM_METRICS
    )
    schedule: Schedule | None = None
    notification_settings: Notifications | None = None
    skip_builtin_dashboard: bool | None = None
    warehouse_id: str | None = None


class Recipients(contract.Shape):
    destination_ids: list[str] = pydantic.Field(default_factory=list, max_length=25)
    destination_user_ids: list[int] = pydantic.Field(default_factory=list, max_length=25)


class AnomalyNotifications(contract.Shape):
    on_unhealthy_table: Recipients | None = None


class Anomalies(contract.Shape):
    """Known and checked, not offered."""

    excluded_table_full_names: list[str] | None = None
    notification_settings: AnomalyNotifications | None = None


class Monitor(contract.Shape):
    object_type: Literal["table", "schema"]
    object_id: str
    data_profiling_config: Profiling | None = None
    anomaly_detection_config: Anomalies | None = None


class Refresh(contract.Shape):
    """Of a refresh that is asked for, only `until` is the caller's, and ours; the rest is what the
    server says of one."""

    object_type: str | None = None
    object_id: str | None = None
    until: str | None = None
    refresh_id: Any = None
    state: Any = None
    trigger: Any = None
    start_time_ms: Any = None
    end_time_ms: Any = None
    message: Any = None
    progress: Any = None


def check_type(object_type: str) -> None:
    """Raises InvalidParameter, and NotImplementedHere for schemas."""
    if object_type not in CONFIG_OF:
        raise errors.InvalidParameter(
            f"object_type: '{object_type[:50]}' is not one of {OBJECT_TYPES}."
        )
    if object_type == "schema":
        raise errors.NotImplementedHere(
            "Anomaly detection of schemas is not offered; monitors have object_type 'table'."
        )


def same_object(given: Mapping[str, Any], object_type: str, object_id: str) -> None:
    """What a body says of the object is what the path says. Raises InvalidParameter."""
    for field, wanted in (("object_type", object_type), ("object_id", object_id)):
        found = given.get(field)
        if found is not None and str(found).lower() != wanted:
            raise errors.InvalidParameter(
                f"{field}: expected '{wanted[:50]}' as in the path, found '{str(found)[:50]}'."
            )


def new_monitor(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Id of the table, and its checked profiling config. Raises InvalidParameter, and
    NotImplementedHere for schemas."""
    asked = contract.parse(Monitor, writable(given))
    for object_type, field in CONFIG_OF.items():
        there = getattr(asked, field) is not None
        if there != (asked.object_type == object_type):
            said = "is not allowed" if there else "a value is needed"
            raise errors.InvalidParameter(f"{field}: {said} for a {asked.object_type}.")
    check_type(asked.object_type)
    assert asked.data_profiling_config is not None
    return asked.object_id, asked.data_profiling_config.model_dump(exclude_none=True)


def checked(profiling: Mapping[str, Any]) -> dict[str, Any]:
    """A profiling config by itself, as `new_monitor` checks it. Raises InvalidParameter."""
    whole = {"object_type": "table", "object_id": "", PROFILING: profiling}
    asked = contract.parse(Monitor, whole)
    assert asked.data_profiling_config is not None
    return asked.data_profiling_config.model_dump(exclude_none=True)


def to_change(given: Mapping[str, Any]) -> dict[str, Any]:
    """The profiling config in the body of an update, as far as callers may set it; its values are
    checked where a mask names them. Raises InvalidParameter."""
    found = writable(given)
    profiling = found.get(PROFILING, {})
    if not isinstance(profiling, Mapping):
        raise errors.InvalidParameter(f"{PROFILING}: expected an object.")
    unknown = [name for name in found if name not in Monitor.model_fields]
    unknown += [f"{PROFILING}.{name}" for name in profiling if name not in Profiling.model_fields]
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        allowed = ", ".join((*Monitor.model_fields, *Profiling.model_fields))
        raise errors.InvalidParameter(
            f"Unknown field{plural}: {', '.join(unknown)[:500]}; allowed: {allowed}."
        )
    return dict(profiling)


def writable(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that the server alone says."""
    profiling = given.get(PROFILING)
    if not isinstance(profiling, Mapping):
        return dict(given)
    kept = {key: value for key, value in profiling.items() if key not in READ_ONLY}
    return {**given, PROFILING: kept}


# --- to and from what is stored ------------------------------------------------------------------


def stored(
    profiling: Mapping[str, Any], output_schema_name: str, before: Mapping[str, Any]
) -> dict[str, Any]:
    """The checked configuration as it is stored. profiling: checked; before: as it was stored, for
    what this generation cannot say. Raises InvalidParameter, NotImplementedHere."""
    config: dict[str, Any] = {key: before[key] for key in FIRST_ONLY if key in before}
    config |= {key: profiling[key] for key in (*SAME, "warehouse_id") if key in profiling}
    config["output_schema_name"] = output_schema_name
    for kind in ("time_series", "inference_log"):
        if kind in profiling:
            config[kind] = _stored_log(profiling[kind])
    if "schedule" in profiling:
        config["schedule"] = _renamed(profiling["schedule"], "pause_status", PAUSE, "")
    notifications = dict(profiling.get("notification_settings", {}))
    tags = before.get("notifications", {}).get("on_new_classification_tag_detected")
    if tags is not None:
        notifications["on_new_classification_tag_detected"] = tags
    if notifications:
        config["notifications"] = notifications
    if "custom_metrics" in profiling:
        config["custom_metrics"] = [
            _renamed(metric, "type", METRIC, "CUSTOM_METRIC_TYPE_")
            for metric in profiling["custom_metrics"]
        ]
    return contract.monitor_config(config)


def _stored_log(given: Mapping[str, Any]) -> dict[str, Any]:
    log = {COLUMNS.get(name, name): value for name, value in given.items()}
    log["granularities"] = [_stored_granularity(text) for text in given["granularities"]]
    return _renamed(log, "problem_type", PROBLEM, "PROBLEM_TYPE_")


def _renamed(given: Mapping[str, Any], field: str, prefix: str, instead: str) -> dict[str, Any]:
    """With the value of an enumeration under its other prefix."""
    changed = dict(given)
    if field in changed:
        changed[field] = instead + changed[field].removeprefix(prefix)
    return changed


def spelled(field: str) -> str:
    """What a field of the stored configuration, `inference_log.label_col`, is called here."""
    kind, _, name = field.partition(".")
    here = next((here for here, there in COLUMNS.items() if there == name), name)
    return f"{PROFILING}.{kind}.{here}"


def profiling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that callers may set, from what is stored."""
    shown = {key: config[key] for key in (*SAME, "warehouse_id") if key in config}
    shown["output_schema_id"] = object_ids.schema_id(config["output_schema_name"])
    for kind in ("time_series", "inference_log"):
        if kind in config:
            shown[kind] = _shown_log(config[kind])
    if "schedule" in config:
        schedule = {"pause_status": "UNPAUSED", **config["schedule"]}
        shown["schedule"] = _renamed(schedule, "pause_status", "", PAUSE)
    if "on_failure" in config.get("notifications", {}):
        shown["notification_settings"] = {"on_failure": config["notifications"]["on_failure"]}
    if "custom_metrics" in config:
        shown["custom_metrics"] = [
            _renamed(metric, "type", "CUSTOM_METRIC_TYPE_", METRIC)
            for metric in config["custom_metrics"]
        ]
    return shown


def _shown_log(log: Mapping[str, Any]) -> dict[str, Any]:
    names = {there: here for here, there in COLUMNS.items()}
    shown = {names.get(name, name): value for name, value in log.items()}
    shown["granularities"] = [_shown_granularity(name) for name in log["granularities"]]
    return _renamed(shown, "problem_type", "PROBLEM_TYPE_", PROBLEM)


# --- replies -------------------------------------------------------------------------------------


def monitor_info(monitor: state.Monitor) -> dict[str, Any]:
    """Monitor of Databricks."""
    first = contract.monitor_info(monitor)
    said = {
        **profiling(monitor.config),
        "monitored_table_name": monitor.table_name,
        "status": "DATA_PROFILING_STATUS_" + monitor.status.removeprefix("MONITOR_STATUS_"),
        "latest_monitor_failure_message": monitor.failure_message,
        "effective_warehouse_id": monitor.config.get("warehouse_id"),
        **{key: first.get(key) for key in _SAID_BY_BOTH},
    }
    return {
        "object_type": "table",
        "object_id": monitor.table_id,
        PROFILING: {key: value for key, value in said.items() if value is not None},
    }


_SAID_BY_BOTH = (
    *("profile_metrics_table_name", "drift_metrics_table_name"),
    *("monitor_version", "dashboard_id"),
)


def refresh_info(monitor: state.Monitor, refresh: state.Refresh) -> dict[str, Any]:
    """Refresh of Databricks, and how far it is."""
    return {
        **contract.refresh_info(refresh),
        "object_type": "table",
        "object_id": monitor.table_id,
        "state": f"MONITOR_REFRESH_STATE_{refresh.state}",
        "trigger": f"MONITOR_REFRESH_TRIGGER_{refresh.trigger}",
    }
