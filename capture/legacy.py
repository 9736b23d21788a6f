"""Payload tables under the column names of the first inference tables (`auto_capture_config`), for
notebooks written against those: read into Arrow, or as the SQL of a view.

`request_metadata` holds `model_name`, `model_version` and `endpoint_name`; the table itself knows
its endpoint by id alone, so the name is given."""

from datetime import date
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from capture import errors, names

SCHEMA = pa.schema(
    [
        pa.field("databricks_request_id", pa.string()),
        pa.field("client_request_id", pa.string()),
        pa.field("date", pa.date32()),
        pa.field("timestamp_ms", pa.int64()),
        pa.field("status_code", pa.int32()),
        pa.field("sampling_fraction", pa.float64()),
        pa.field("execution_time_ms", pa.int64()),
        pa.field("request", pa.string()),
        pa.field("response", pa.string()),
        pa.field("request_metadata", pa.map_(pa.string(), pa.string())),
    ]
)
RENAMED = {"request_date": "date", "execution_duration_ms": "execution_time_ms"}
METADATA = ("model_name", "model_version", "endpoint_name")
_TAKEN = [
    *("databricks_request_id", "client_request_id", "request_date", "request_time", "status_code"),
    *("sampling_fraction", "execution_duration_ms", "request", "response"),
    *("model_name", "model_version"),
]
Dialect = Literal["spark", "duckdb"]


def read(
    path: str | Path, endpoint: str, start: date | None = None, end: date | None = None
) -> pa.Table:
    """Rows of a payload table, columns of SCHEMA. path: the table's folder; start, end: UTC days,
    both included, so that other days are not read."""
    import deltalake  # here, since the command line prints views without it

    wanted = pc.scalar(True)
    if start is not None:
        wanted &= pc.field("request_date") >= pa.scalar(start)
    if end is not None:
        wanted &= pc.field("request_date") <= pa.scalar(end)
    dataset = deltalake.DeltaTable(path).to_pyarrow_dataset()
    return renamed(dataset.to_table(columns=_TAKEN, filter=wanted), endpoint)


def renamed(payload: pa.Table, endpoint: str) -> pa.Table:
    """Payload rows as rows of SCHEMA, in their order."""
    columns = {RENAMED.get(name, name): payload[name] for name in _TAKEN}
    columns["timestamp_ms"] = pc.cast(
        payload["request_time"], pa.timestamp("ms", tz="UTC"), safe=False
    )
    columns["request_metadata"] = _metadata(payload, endpoint)
    return pa.Table.from_arrays(
        [columns[field.name].cast(field.type) for field in SCHEMA], schema=SCHEMA
    )


def _metadata(payload: pa.Table, endpoint: str) -> pa.Array:
    count, each = len(payload), len(METADATA)
    known = [payload[name].cast(pa.string()).to_pylist() for name in METADATA[:-1]]
    values = [one for row in zip(*known, [endpoint] * count, strict=True) for one in row]
    offsets = pa.array(range(0, (count + 1) * each, each), pa.int32())
    keys = pa.array(METADATA * count, pa.string())
    return pa.MapArray.from_arrays(offsets, keys, pa.array(values, pa.string()))


def view(dialect: Dialect, full_name: str, source: str, endpoint: str) -> str:
    """`CREATE VIEW <table>_legacy` in the SQL of an engine. source: what rows are selected from, as
    `source` gives it. Raises InvalidParameter for odd names."""
    table = names.table_name(full_name)
    names.check_entity(endpoint, "endpoint")
    if dialect == "spark":
        name = ".".join(f"`{part}`" for part in (*table[:2], f"{table.table}_legacy"))
        time = "unix_millis(request_time)"
        pairs = ", ".join(f"'{key}', {_value(key, endpoint)}" for key in METADATA)
        metadata = f"map({pairs})"
    else:
        name = f'"{table.table}_legacy"'
        time = "epoch_ms(request_time)"
        pairs = ", ".join(f"'{key}': {_value(key, endpoint)}" for key in METADATA)
        metadata = f"MAP {{{pairs}}}"
    made = {"timestamp_ms": time, "request_metadata": metadata}
    made |= {new: old for old, new in RENAMED.items()}
    columns = [f"{made[f.name]} AS {f.name}" if f.name in made else f.name for f in SCHEMA]
    chosen = ",\n  ".join(columns)
    return f"CREATE OR REPLACE VIEW {name} AS\nSELECT\n  {chosen}\nFROM {source};"


def source(dialect: Dialect, path: str) -> str:
    """A Delta table in a folder, as an engine names it in FROM. Raises InvalidParameter for a path
    with a quote in it."""
    if "`" in path or "'" in path:
        raise errors.InvalidParameter(f"A table at {path} cannot be named in SQL.")
    return f"delta.`{path}`" if dialect == "spark" else f"delta_scan('{path}')"


def _value(key: str, endpoint: str) -> str:
    return f"'{endpoint}'" if key == "endpoint_name" else key
