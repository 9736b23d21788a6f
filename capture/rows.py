"""The recorded rows: payload and label columns, Arrow schemas, what the cap replaces. Pure."""

import base64
from typing import NamedTuple

import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")


class Payload(NamedTuple):
    """One request and its answer. Field order = column order of `<prefix>_payload`.

    Up to `requester` these are the documented inference-table columns; ours follow.
    """

    request_date: int  # days since 1970-01-01, UTC day of receipt; the partition
    databricks_request_id: str
    client_request_id: str | None
    request_time: int  # microseconds since the epoch, UTC
    status_code: int
    sampling_fraction: float
    execution_duration_ms: int  # model time only
    request: str | None
    response: str | None
    served_entity_id: str | None
    logging_error_codes: list[str] | None
    requester: str | None
    endpoint_id: str
    served_entity_name: str | None
    model_name: str | None
    model_version: str | None
    config_version: int | None
    route_share: float | None  # share 0..1 of this row's entity; null: not drawn by the split
    route_split: str | None  # the whole split that drew it, JSON {"entity": percentage}; or null
    unit_id: str | None  # hash of the routing key, hex; null: drawn at random
    shadow: bool
    looked_up: str | None  # features that the endpoint added, JSON {"column": [value per row]}
    usage_context: dict[str, str] | None
    error_source: str | None  # request | model | server; null: no error
    request_encoding: str  # utf-8 | base64
    content_type: str | None
    gateway_us: int
    queue_us: int
    features_us: int
    predict_us: int


PAYLOAD_SCHEMA = pa.schema(
    [
        pa.field("request_date", pa.date32(), nullable=False),
        pa.field("databricks_request_id", pa.string(), nullable=False),
        pa.field("client_request_id", pa.string()),
        pa.field("request_time", TIMESTAMP, nullable=False),
        pa.field("status_code", pa.int32(), nullable=False),
        pa.field("sampling_fraction", pa.float64()),
        pa.field("execution_duration_ms", pa.int64()),
        pa.field("request", pa.string()),
        pa.field("response", pa.string()),
        pa.field("served_entity_id", pa.string()),
        pa.field("logging_error_codes", pa.list_(pa.string())),
        pa.field("requester", pa.string()),
        pa.field("endpoint_id", pa.string(), nullable=False),
        pa.field("served_entity_name", pa.string()),
        pa.field("model_name", pa.string()),
        pa.field("model_version", pa.string()),
        pa.field("config_version", pa.int32()),
        pa.field("route_share", pa.float64()),
        pa.field("route_split", pa.string()),
        pa.field("unit_id", pa.string()),
        pa.field("shadow", pa.bool_(), nullable=False),
        pa.field("looked_up", pa.string()),
        pa.field("usage_context", pa.map_(pa.string(), pa.string())),
        pa.field("error_source", pa.string()),
        pa.field("request_encoding", pa.string(), nullable=False),
        pa.field("content_type", pa.string()),
        pa.field("gateway_us", pa.int32()),
        pa.field("queue_us", pa.int32()),
        pa.field("features_us", pa.int32()),
        pa.field("predict_us", pa.int32()),
    ]
)


class Label(NamedTuple):
    """One truth that came later. Field order = column order of `<prefix>_labels`."""

    received_date: int  # days since 1970-01-01; the partition
    databricks_request_id: str | None
    client_request_id: str | None
    row_index: int
    label: str  # JSON text of the scalar
    label_time: int  # microseconds since the epoch, UTC
    received_time: int  # microseconds since the epoch, UTC
    requester: str | None


LABEL_SCHEMA = pa.schema(
    [
        pa.field("received_date", pa.date32(), nullable=False),
        pa.field("databricks_request_id", pa.string()),
        pa.field("client_request_id", pa.string()),
        pa.field("row_index", pa.int32(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("label_time", TIMESTAMP, nullable=False),
        pa.field("received_time", TIMESTAMP, nullable=False),
        pa.field("requester", pa.string()),
    ]
)


class Usage(NamedTuple):
    """One request of an endpoint whose usage is tracked, whatever share of them it records. Field
    order = column order of `system.serving.endpoint_usage`; up to `served_entity_id` these are the
    documented columns after our date, ours follow."""

    request_date: int  # days since 1970-01-01, UTC day of receipt; the partition
    account_id: str | None
    workspace_id: str | None
    client_request_id: str | None
    databricks_request_id: str
    requester: str | None
    status_code: int
    request_time: int  # microseconds since the epoch, UTC
    input_token_count: int | None  # of language models; null else, as the three below
    output_token_count: int | None
    input_character_count: int | None
    output_character_count: int | None
    usage_context: dict[str, str] | None
    request_streaming: bool
    served_entity_id: str | None
    endpoint_id: str
    endpoint_name: str
    served_entity_name: str | None
    config_version: int | None
    execution_duration_ms: int


USAGE_SCHEMA = pa.schema(
    [
        pa.field("request_date", pa.date32(), nullable=False),
        pa.field("account_id", pa.string()),
        pa.field("workspace_id", pa.string()),
        pa.field("client_request_id", pa.string()),
        pa.field("databricks_request_id", pa.string(), nullable=False),
        pa.field("requester", pa.string()),
        pa.field("status_code", pa.int32(), nullable=False),
        pa.field("request_time", TIMESTAMP, nullable=False),
        pa.field("input_token_count", pa.int64()),
        pa.field("output_token_count", pa.int64()),
        pa.field("input_character_count", pa.int64()),
        pa.field("output_character_count", pa.int64()),
        pa.field("usage_context", pa.map_(pa.string(), pa.string())),
        pa.field("request_streaming", pa.bool_(), nullable=False),
        pa.field("served_entity_id", pa.string()),
        pa.field("endpoint_id", pa.string(), nullable=False),
        pa.field("endpoint_name", pa.string(), nullable=False),
        pa.field("served_entity_name", pa.string()),
        pa.field("config_version", pa.int32()),
        pa.field("execution_duration_ms", pa.int64(), nullable=False),
    ]
)
USAGE_TABLE = "system.serving.endpoint_usage"

KINDS: dict[str, tuple[pa.Schema, str]] = {
    "payload": (PAYLOAD_SCHEMA, "request_date"),
    "labels": (LABEL_SCHEMA, "received_date"),
    "usage": (USAGE_SCHEMA, "request_date"),
}


def loggable(body: bytes, cap_bytes: int) -> tuple[str | None, str, bool]:
    """What of a body goes into the table: its text as received, how that is encoded (base64 if it
    is not UTF-8), and whether it is over the cap: then null, never cut."""
    if len(body) > cap_bytes:
        return None, "utf-8", True
    try:
        return body.decode(), "utf-8", False
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), "base64", False


def error_codes(request_over: bool, response_over: bool) -> list[str] | None:
    """Documented codes for payloads over the cap, or null."""
    if not request_over and not response_over:
        return None
    codes = ["MAX_REQUEST_SIZE_EXCEEDED"] * request_over
    codes += ["MAX_RESPONSE_SIZE_EXCEEDED"] * response_over
    return codes
