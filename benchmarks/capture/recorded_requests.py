"""Recorded requests in numbers, for benchmarks that read: a payload table, its typed rows, labels.

Rows are even over DAYS days before END, in as many files as wanted, each written by the product's
own table layout (partition, order, statistics, compression). One row in 25 failed, one in 20 has a
label. Bodies are JSON of 200 to 400 bytes.
"""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from capture import catalog, database, delta, rows, unpack
from capture.settings import Settings

ENDPOINT = "shop"
TABLE, UNPACKED, LABELS = (f"bench.shop.s_{kind}" for kind in ("payload", "unpacked", "labels"))
END = datetime(2024, 3, 6, tzinfo=UTC)
DAYS = 5
START = END - timedelta(days=DAYS)
FEATURES = ("amount", "distance", "age_days", "city", "channel")


def make(folder: Path, row_count: int, files: int) -> Settings:
    """The tables in a data directory, made unless they are there; seconds to minutes."""
    settings = Settings(data_dir=folder)
    done = folder / f"rows-{row_count}-files-{files}"
    if done.exists():
        return settings
    database.migrate(settings)
    with database.transaction(database.open_engine(settings)) as connection:
        catalog.record(connection, TABLE, "e" * 32, ENDPOINT, {}, {}, 0)
    payload = _table(settings, TABLE, rows.PAYLOAD_SCHEMA, "request_date")
    labels = _table(settings, LABELS, rows.LABEL_SCHEMA, "received_date")
    unpacked: delta.Table | None = None
    chance = np.random.default_rng(17)
    # A commit writes a file a day: 5 times fewer commits, and their fsyncs, for as many files.
    ends = np.linspace(0, row_count // DAYS, files // DAYS + 1).astype(int)
    for number, (first, last) in enumerate(itertools.pairwise(ends)):
        starts = (day * (row_count // DAYS) for day in range(DAYS))
        frame = pl.concat(
            _requests(start + first, start + last, row_count, chance) for start in starts
        )
        payload.append(_payload(frame), "bench", number)
        typed = _unpacked(frame)
        if unpacked is None:
            unpacked = _table(settings, UNPACKED, typed.schema, "request_date")
        unpacked.append(typed, f"unpack:{TABLE}", number + 1)
        if number % 10 == 0:
            labels.append(_labels(frame), "bench", number)
    done.touch()
    return settings


def _table(settings: Settings, name: str, schema: pa.Schema, by: str) -> delta.Table:
    return delta.open_or_create(delta.path_of(settings, name), schema, by)


def _requests(first: int, last: int, total: int, chance: np.random.Generator) -> pl.DataFrame:
    """Rows `first` to `last` of all, with what both tables are made of."""
    count = last - first
    span_us = int(DAYS * 86_400e6)
    time_us = int(START.timestamp() * 1e6) + np.arange(first, last) * span_us // total
    status = np.where(chance.random(count) < 0.04, 500, 200)
    return (
        pl.DataFrame(
            {
                "number": np.arange(first, last),
                "databricks_request_id": _ids(time_us, chance),
                "request_time": time_us,
                "status_code": status.astype(np.int32),
                "served_entity_name": chance.choice(["v1", "v2", "v3"], count, p=[0.5, 0.4, 0.1]),
                "execution_duration_ms": chance.integers(1, 30, count),
                "amount": chance.gamma(2, 40, count).round(2),
                "distance": chance.integers(80, 2_600, count).astype(float),
                "age_days": chance.integers(0, 4_000, count).astype(float),
                "city": chance.choice(["vienna", "bern", "graz", "lyon", "oslo"], count),
                "channel": chance.choice(["web", "app", "shop"], count),
                "score": chance.random(count).round(6),
                **{
                    f"{part}_us": chance.integers(100, 9_000, count).astype(np.int32)
                    for part in ("gateway", "queue", "features", "predict")
                },
            }
        )
        .with_columns(
            pl.from_epoch("request_time", "us").dt.replace_time_zone("UTC"),
            pl.format("order-{}", "number").alias("client_request_id"),
        )
        .with_columns(pl.col("request_time").dt.date().alias("request_date"))
    )


def _ids(time_us: npt.NDArray[np.int64], chance: np.random.Generator) -> pl.Series:
    """UUIDs of version 7, as `names.uuid7` makes them."""
    raw = chance.integers(0, 256, (len(time_us), 16), dtype=np.uint8)
    ms = time_us // 1000
    for place in range(6):
        raw[:, place] = ms >> 8 * (5 - place) & 0xFF
    raw[:, 6] = 0x70 | raw[:, 6] & 0x0F
    raw[:, 8] = 0x80 | raw[:, 8] & 0x3F
    texts = pl.Series(np.frombuffer(raw.tobytes().hex().encode(), dtype="S32").astype(str))
    ends = (0, 8, 12, 16, 20, 32)
    parts = [texts.str.slice(first, last - first) for first, last in itertools.pairwise(ends)]
    return pl.select(pl.concat_str(parts, separator="-")).to_series()


def _payload(frame: pl.DataFrame) -> pa.Table:
    record = pl.struct(*FEATURES, pl.lit("left at the door, ring twice").alias("note"))
    body = [
        pl.lit('{"dataframe_records": ['),
        record.struct.json_encode(),
        pl.lit('], "client_request_id": "'),
        pl.col("client_request_id"),
        pl.lit('"}'),
    ]
    answer = [pl.lit('{"predictions": ['), pl.col("score").cast(pl.String), pl.lit("]}")]
    failed = pl.lit('{"error_code": "INTERNAL_ERROR", "message": "The model raised."}')
    known = frame.with_columns(
        request=pl.concat_str(body),
        response=pl.when(pl.col("status_code") == 200)
        .then(pl.concat_str(answer))
        .otherwise(failed),
        error_source=pl.when(pl.col("status_code") != 200).then(pl.lit("model")),
        sampling_fraction=pl.lit(1.0),
        endpoint_id=pl.lit("e" * 32),
        model_name=pl.lit("main.shop.model"),
        model_version=pl.col("served_entity_name").str.slice(1),
        config_version=pl.lit(3, pl.Int32),
        requester=pl.lit("ann"),
        shadow=pl.lit(False),
        request_encoding=pl.lit("utf-8"),
        content_type=pl.lit("application/json"),
    )
    wanted = [name for name in rows.PAYLOAD_SCHEMA.names if name in known.columns]
    return _arrow(known.select(wanted))


def _unpacked(frame: pl.DataFrame) -> pa.Table:
    known = frame.with_columns(
        row_index=pl.lit(0, pl.Int32),
        unit_id=pl.lit(None, pl.String),
        model_name=pl.lit("main.shop.model"),
        model_version=pl.col("served_entity_name").str.slice(1),
        config_version=pl.lit(3, pl.Int32),
        route_share=pl.lit(None, pl.Float64),
        route_split=pl.lit(None, pl.String),
        shadow=pl.lit(False),
        error_source=pl.when(pl.col("status_code") != 200).then(pl.lit("model")),
        prediction=pl.when(pl.col("status_code") == 200).then("score"),
        unpack_errors=pl.lit(None, pl.List(pl.String)),
    )
    return _arrow(known.select(*unpack.FIXED, *FEATURES, "prediction", "score", "unpack_errors"))


def _labels(frame: pl.DataFrame) -> pa.Table:
    known = frame.gather_every(2).select(
        received_date=pl.col("request_date"),
        databricks_request_id=pl.lit(None, pl.String),
        client_request_id="client_request_id",
        row_index=pl.lit(0, pl.Int32),
        label=(pl.col("number") % 2).cast(pl.String),
        label_time=pl.col("request_time") + pl.duration(hours=2),
        received_time=pl.col("request_time") + pl.duration(hours=2),
    )
    return _arrow(known)


def _arrow(frame: pl.DataFrame) -> pa.Table:
    """With the text type of our tables."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    kinds = {pa.large_string(): pa.string(), pa.large_list(pa.large_string()): unpack.ERRORS}
    fields = [field.with_type(kinds.get(field.type, field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))
