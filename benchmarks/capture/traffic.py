"""What the benchmarks beside this file record: requests and answers as those of `inferlake demo`.

A request of 250-300 bytes of JSON, an answer of 200-250, and the columns that the gateway fills in.
"""

import json
import random
import struct
import time

import pyarrow as pa

from capture import blocks, contexts, decoding, exchanges, names, rows

TABLE = "main.flights.flight_delay_payload"
DISTINCT = 100_000  # to make a row takes ten times as long as to record it
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


def _context(entity: str) -> bytes:
    return contexts.packed(
        contexts.Context(
            sampling_fraction=1.0,
            served_entity_id=ENTITIES[entity],
            requester="admin",
            endpoint_id="7b1f0c52a9d84e0f9a3c5d6e7f801234",
            served_entity_name=entity,
            model_name="main.flights.flight_delay",
            model_version=entity[1:],
            config_version=3,
            route_share=0.5,
            route_split='{"v1":50,"v2":50}',
            shadow=False,
            content_type="application/json",
        )
    )


CONTEXTS = [_context(entity) for entity in ENTITIES]


def exchange(chance: random.Random, time_us: int) -> exchanges.Exchange:
    """One request and its answer, as the gateway logs it."""
    body = request(chance)
    looked_up = {"seats": [chance.randint(20, 400)], "temp": [round(chance.gauss(60, 20), 2)]}
    inside = chance.randint(20, 400), chance.randint(10, 50), chance.randint(200, 900)
    return exchanges.exchange(
        chance.choice(CONTEXTS),
        time_us * 1000,
        names.uuid7(time_us // 1000, chance.getrandbits(74)).int,
        200,
        body.encode(),
        answer(chance).encode(),
        1 << 20,
        sum(inside) + chance.randint(60, 200),
        *inside,
        client_request_id=json.loads(body)["client_request_id"],
        looked_up=json.dumps(looked_up).encode(),
    )


def recorded(count: int, seed: int = 0) -> list[exchanges.Exchange]:
    """In order of time, the last of them now. Beyond `DISTINCT` they come again, later."""
    chance = random.Random(seed)
    start = time.time_ns() // 1000 - count
    first = [exchange(chance, start + number) for number in range(min(count, DISTINCT))]
    later = range(start + len(first), start + count)
    return first + [_later(first[number % DISTINCT], at) for number, at in enumerate(later)]


def _later(one: exchanges.Exchange, time_us: int) -> exchanges.Exchange:
    at = struct.pack("<Q", time_us * 1000)  # the first field of a head
    return one._replace(head=at + one.head[len(at) :])


def table(group: list[exchanges.Exchange]) -> pa.Table:
    """The same as Arrow, with the columns and plain types of the payload table."""
    whole = blocks.signed(exchanges.block(TABLE, group))
    decoded = decoding.decode(whole, blocks.recover(whole).blocks)
    return decoded.cast(rows.PAYLOAD_SCHEMA).combine_chunks()
