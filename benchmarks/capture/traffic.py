"""What the benchmarks beside this file record: requests and answers as those of `inferlake demo`.

A request of 250-300 bytes of JSON, an answer of 200-250, and the columns that the gateway fills in.
"""

import json
import random
import time

import pyarrow as pa

from capture import names, rows

TABLE = "main.flights.flight_delay_payload"
DAY_US = 86_400_000_000
DISTINCT = 100_000  # to make a row takes ten times as long as to record it
SPLIT = '{"v1":50,"v2":50}'
ENDPOINT_ID = "7b1f0c52a9d84e0f9a3c5d6e7f801234"
ENTITIES = {"v1": "3f0e9b7c6d5a4f1e8c2b1a0d9e8f7a6b", "v2": "c0ffee12d3b44a5f96e7d8c9b0a1f2e3"}


def request(chance: random.Random) -> str:
    """Body of one query: a flight of the demo."""
    flight = {
        "carrier": chance.choice(("UA", "AA", "B6", "DL", "EV")),
        "origin": chance.choice(("EWR", "JFK", "LGA")),
        "dest": chance.choice(("IAH", "MIA", "BQN", "ATL", "ORD")),
        "tailnum": f"N{chance.randint(10_000, 99_999)}",
        "hour": "2013-07-16T10:00:00Z",
        "dow": float(chance.randint(1, 7)),
        "local_hour": float(chance.randint(5, 23)),
        "distance": float(chance.randint(80, 4_983)),
        "event_time": f"2013-07-16T10:{chance.randint(0, 59):02}:00Z",
    }
    body = {"client_request_id": f"flight-{chance.randint(0, 336_775)}"}
    return json.dumps(body | {"dataframe_records": [flight]})


def answer(chance: random.Random) -> str:
    """Body of its answer."""
    reasons = {name: round(chance.gauss(0, 1), 6) for name in ("carrier", "origin", "distance")}
    score = chance.random()
    found = {"prediction": float(score > 0.5), "score": score, "explanation": reasons}
    return json.dumps({"predictions": [found | {"threshold": 0.5, "model": "flight_delay"}]})


def payload(chance: random.Random, time_us: int) -> rows.Payload:
    """One row, as the gateway makes it."""
    entity = chance.choice(tuple(ENTITIES))
    body = request(chance)
    looked_up = {"seats": [chance.randint(20, 400)], "temp": [round(chance.gauss(60, 20), 2)]}
    return rows.Payload(
        request_date=time_us // DAY_US,
        databricks_request_id=str(names.uuid7(time_us // 1000, chance.getrandbits(74))),
        client_request_id=json.loads(body)["client_request_id"],
        request_time=time_us,
        status_code=200,
        sampling_fraction=1.0,
        execution_duration_ms=1,
        request=body,
        response=answer(chance),
        served_entity_id=ENTITIES[entity],
        logging_error_codes=None,
        requester="admin",
        endpoint_id=ENDPOINT_ID,
        served_entity_name=entity,
        model_name="main.flights.flight_delay",
        model_version=entity[1:],
        config_version=3,
        route_share=0.5,
        route_split=SPLIT,
        unit_id=None,
        shadow=False,
        looked_up=json.dumps(looked_up),
        usage_context=None,
        error_source=None,
        request_encoding="utf-8",
        content_type="application/json",
        gateway_us=chance.randint(60, 200),
        queue_us=chance.randint(20, 400),
        features_us=chance.randint(10, 50),
        predict_us=chance.randint(200, 900),
    )


def payloads(count: int, seed: int = 0) -> list[rows.Payload]:
    """Rows in order of time, the last of them now. Beyond `DISTINCT` they come again, later."""
    chance = random.Random(seed)
    start = time.time_ns() // 1000 - count
    first = [payload(chance, start + number) for number in range(min(count, DISTINCT))]
    later = range(start + len(first), start + count)
    return first + [
        first[number % DISTINCT]._replace(request_time=at, request_date=at // DAY_US)
        for number, at in enumerate(later)
    ]


def table(recorded: list[rows.Payload]) -> pa.Table:
    """The same rows as Arrow, with the columns and types of the payload table."""
    columns = zip(*recorded, strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, rows.PAYLOAD_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=rows.PAYLOAD_SCHEMA)
