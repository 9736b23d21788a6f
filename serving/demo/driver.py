"""Sends the flights in order of event time, and each label once the story's clock passes it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import orjson
import polars as pl

from serving.demo import client, control, flights

OPEN_REQUESTS = 96
LABELS_AT_ONCE = 5_000
INVOCATIONS = f"/serving-endpoints/{control.ENDPOINT}/invocations"
LABELS = f"/api/1.0/endpoints/{control.ENDPOINT}/labels"


@dataclass(slots=True)
class Replay:
    """What was sent and what came back; arrays follow the rows of `flights`."""

    flights: pl.DataFrame
    sent: int = 0
    statuses: np.ndarray = field(init=False)  # (flights,) HTTP status, 0: not sent yet
    scores: np.ndarray = field(init=False)  # (flights,) probability answered, NaN: none
    versions: np.ndarray = field(init=False)  # (flights,) served entity
    labels_sent: int = 0

    def __post_init__(self) -> None:
        rows = self.flights.height
        self.statuses = np.zeros(rows, dtype=np.int32)
        self.scores = np.full(rows, np.nan)
        self.versions = np.full(rows, "", dtype=object)


def request_id(flight_id: int) -> str:
    """The `client_request_id` of a flight, its row in the package's file counted from 1: what the
    split is drawn by, and labels are joined by."""
    return f"flight-{flight_id + 1}"


def bodies(rows: pl.DataFrame) -> list[bytes]:
    """A request body per flight, one record each."""
    columns = rows.select(
        "flight_id",
        *[c for c in flights.REQUEST_COLUMNS if c != "event_time"],
        event_time=pl.col("event_time").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return [
        orjson.dumps(
            {"client_request_id": request_id(row.pop("flight_id")), "dataframe_records": [row]}
        )
        for row in columns.iter_rows(named=True)
    ]


class Driver:
    """Replays flights over HTTP. One event loop, `OPEN_REQUESTS` open requests."""

    def __init__(self, rows: pl.DataFrame, host: str, port: int, token: str) -> None:
        self.replay = Replay(rows)
        self.event_times = rows["event_time"].to_list()
        self.bodies = bodies(rows)
        self.labels = _labels(rows)
        self.runner = asyncio.Runner()
        self.client = client.Client(host, port, token, OPEN_REQUESTS)

    def next_event_time(self) -> datetime | None:
        """Event time of the first flight not sent yet."""
        sent = self.replay.sent
        return self.event_times[sent] if sent < len(self.event_times) else None

    def send_until(
        self,
        moment: datetime,
        at_most: int | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> int:
        """Send every flight whose request time lies before `moment` and wait for all answers.

        Gives how many were sent. `progress` is called with the number of answers as they come."""
        end = self.replay.sent
        last = len(self.event_times)
        while end < last and self.event_times[end] < moment:
            end += 1
        if at_most is not None:
            end = min(end, self.replay.sent + at_most)
        numbers = range(self.replay.sent, end)
        self.runner.run(self._send(numbers, progress))
        self.replay.sent = end
        return len(numbers)

    async def _send(self, numbers: range, progress: Callable[[int], None]) -> None:
        pending = iter(numbers)

        async def sender() -> None:
            for number in pending:
                self._keep(number, await self.client.post(INVOCATIONS, self.bodies[number]))
                progress(1)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(OPEN_REQUESTS, len(numbers))):
                group.create_task(sender())

    def _keep(self, number: int, answer: client.Answer) -> None:
        replay = self.replay
        replay.statuses[number] = answer.status
        replay.versions[number] = answer.served_entity or ""
        if answer.status == 200:
            replay.scores[number] = orjson.loads(answer.body)["predictions"][0][1]

    def label_until(self, moment: datetime) -> int:
        """Post the labels of sent flights that landed before `moment`. Gives how many."""
        due: list[dict[str, Any]] = []
        kept = []
        for item in self.labels:
            landed, number, label = item
            if landed < moment and number < self.replay.sent:
                due.append(label)
            else:
                kept.append(item)
        self.labels = kept
        for begin in range(0, len(due), LABELS_AT_ONCE):
            body = orjson.dumps({"labels": due[begin : begin + LABELS_AT_ONCE]})
            answer = self.runner.run(self.client.post(LABELS, body))
            if answer.status != 200:
                raise control.Refused(f"POST {LABELS}: {answer.status} {answer.body[:500]!r}")
        self.replay.labels_sent += len(due)
        return len(due)

    def close(self) -> None:
        self.runner.run(self.client.__aexit__(None, None, None))
        self.runner.close()


def _labels(rows: pl.DataFrame) -> list[tuple[datetime, int, dict[str, Any]]]:
    """(landing time, number of the flight in the replay, label) of every flight that arrives."""
    arrived = rows.with_row_index("number").filter(pl.col("label_time").is_not_null())
    return [
        (
            landed,
            number,
            {
                "client_request_id": request_id(flight_id),
                "label": int(late),
                "label_time": landed.isoformat(),
            },
        )
        for number, flight_id, late, landed in arrived.select(
            "number", "flight_id", "late", "label_time"
        ).iter_rows()
    ]
