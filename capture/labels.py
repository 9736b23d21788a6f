"""Labels: the truth that comes later. Parsing what clients send; which of several labels counts.

A label names its request by `databricks_request_id` or `client_request_id`, and the row in it. All
are kept, also those whose request nobody knows yet; of several for one row the newest `label_time`
counts, and the one received last if those are equal. `null` takes a label back.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from capture import errors, rows

if TYPE_CHECKING:
    import polars as pl

    Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)

MAX_LABELS = 10_000
MAX_ID_BYTES = 1024
MAX_LABEL_BYTES = 4096
DAY_US = 86_400_000_000
FIELDS = ("databricks_request_id", "client_request_id", "row_index", "label", "label_time")


def parse_json(body: bytes, received_time_us: int, requester: str | None) -> list[rows.Label]:
    """Labels of a body `{"labels": [...]}`. All or nothing: raises BadRequest naming the bad one.

    received_time_us: microseconds since the epoch, also the label time of those without one.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise errors.BadRequest(
            f"Body is not valid JSON: {error.msg} at byte {error.pos}."
        ) from None
    if not isinstance(document, dict) or not isinstance(document.get("labels"), list):
        raise errors.BadRequest("Body must be an object with a list 'labels'.")
    _check_fields(document, ("labels",), "Body")
    return _labels(document["labels"], received_time_us, requester)


def parse_parquet(body: bytes, received_time_us: int, requester: str | None) -> list[rows.Label]:
    """Labels of a Parquet body with the columns of a label. See `parse_json`."""
    try:
        file = pq.ParquetFile(pa.BufferReader(body))
        if file.metadata.num_rows > MAX_LABELS:
            raise _too_many(file.metadata.num_rows)
        found = file.read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise errors.BadRequest(f"Body is not a valid Parquet file: {reason}") from None
    return _labels(found, received_time_us, requester)


def _too_many(count: int) -> errors.BadRequest:
    return errors.BadRequest(f"{count} labels; at most {MAX_LABELS} are taken at once.")


def _labels(found: list[Any], received_time_us: int, requester: str | None) -> list[rows.Label]:
    if len(found) > MAX_LABELS:
        raise _too_many(len(found))
    return [
        _label(f"labels[{place}]", item, received_time_us, requester)
        for place, item in enumerate(found)
    ]


def _check_fields(item: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(item) - set(known))
    if unknown:
        raise errors.BadRequest(
            f"{where} has the unknown field '{unknown[0]}'; known are {', '.join(known)}."
        )


def _label(where: str, item: Any, received_time_us: int, requester: str | None) -> rows.Label:
    if not isinstance(item, dict):
        raise errors.BadRequest(f"{where} is no object.")
    _check_fields(item, FIELDS, where)
    if "label" not in item:
        raise errors.BadRequest(f"{where}.label is missing.")
    request_id, client_id = (_id(where, item, name) for name in FIELDS[:2])
    if request_id is None and client_id is None:
        raise errors.BadRequest(
            f"{where} needs a 'client_request_id' or a 'databricks_request_id'."
        )
    return rows.Label(
        received_date=received_time_us // DAY_US,
        databricks_request_id=request_id,
        client_request_id=client_id,
        row_index=_row_index(where, item.get("row_index")),
        label=_text(where, item["label"]),
        label_time=_time(where, item.get("label_time"), received_time_us),
        received_time=received_time_us,
        requester=requester,
    )


def _id(where: str, item: Mapping[str, Any], name: str) -> str | None:
    value = item.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value.encode()) <= MAX_ID_BYTES:
        raise errors.BadRequest(f"{where}.{name} must be text of 1 to {MAX_ID_BYTES} bytes.")
    return value


def _row_index(where: str, value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise errors.BadRequest(f"{where}.row_index must be a whole number from 0 on.")
    return value


def _text(where: str, value: Any) -> str:
    if not (value is None or isinstance(value, bool | int | float | str)):
        kind = type(value).__name__
        raise errors.BadRequest(
            f"{where}.label must be a number, text, true, false or null, not {kind}."
        )
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise errors.BadRequest(f"{where}.label is no finite number; use null for none.")
    text = orjson.dumps(value).decode()
    if len(text) > MAX_LABEL_BYTES:
        raise errors.BadRequest(f"{where}.label is longer than {MAX_LABEL_BYTES} characters.")
    return text


def _time(where: str, value: Any, otherwise_us: int) -> int:
    """Microseconds since the epoch of RFC 3339 text, or of a time with a zone (Parquet)."""
    if value is None:
        return otherwise_us
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise errors.BadRequest(
            f"{where}.label_time must be a time with its zone, as in 2024-10-04T12:00:00Z."
        )
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * DAY_US + since.seconds * 1_000_000 + since.microseconds


def newest(frame: "Frame") -> "Frame":
    """Of a labels table the one label that counts per request and row; order is not kept.

    Labels by `databricks_request_id` and by `client_request_id` are different rows here: only with
    the requests at hand can they be seen to mean the same.
    """
    import polars as pl  # here, since the gateway loads this file and never polars

    client_id = pl.when(pl.col("databricks_request_id").is_null()).then("client_request_id")
    return (
        frame.sort("label_time", "received_time", maintain_order=True)
        .with_columns(client_id.alias("_client_id"))
        .unique(["databricks_request_id", "_client_id", "row_index"], keep="last")
        .drop("_client_id")
    )
