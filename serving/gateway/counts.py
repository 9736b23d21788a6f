"""What a gateway counts, and its Prometheus text.

A request is noted as it is, and added up with others some times a second. Pure but for
its own sums; `second` is a whole second of any monotonic clock.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from serving import exposition

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
MINUTE = 60
MOST_NOTED = 10_000  # requests before they are added up, come what may
_MICROSECONDS = np.array(SECONDS) * 1e6


class Key(NamedTuple):
    """Whose counts: `entity` is empty for requests that reached none."""

    endpoint: str
    entity: str


@dataclass(slots=True)
class Histogram:
    """Durations: how many ended up in each bucket (not cumulative), their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    sum_seconds: float = 0.0

    def add(self, microseconds: list[int]) -> None:
        """Some durations."""
        durations = np.array(microseconds)
        places = np.searchsorted(_MICROSECONDS, durations)
        for place, count in enumerate(np.bincount(places, minlength=len(self.counts)).tolist()):
            self.counts[place] += count
        self.sum_seconds += int(durations.sum()) / 1e6


class LastMinute:
    """Counts of the 60 seconds before a moment, in slots of a second."""

    __slots__ = ("_counts", "_seconds")

    def __init__(self) -> None:
        self._seconds = [-1] * MINUTE
        self._counts = [0] * MINUTE

    def add(self, second: int, count: int = 1) -> None:
        """Events of a second."""
        slot = second % MINUTE
        if self._seconds[slot] != second:
            self._seconds[slot], self._counts[slot] = second, 0
        self._counts[slot] += count

    def total(self, second: int) -> int:
        """Events of the last minute."""
        pairs = zip(self._seconds, self._counts, strict=True)
        return sum(count for at, count in pairs if second - MINUTE < at <= second)


@dataclass(slots=True)
class EntityCounts:
    """Requests by status code, and where their time went."""

    codes: Counter[int] = field(default_factory=Counter)
    request: Histogram = field(default_factory=Histogram)
    queue: Histogram = field(default_factory=Histogram)
    model: Histogram = field(default_factory=Histogram)
    minute: LastMinute = field(default_factory=LastMinute)
    minute_4xx: LastMinute = field(default_factory=LastMinute)
    minute_5xx: LastMinute = field(default_factory=LastMinute)


class Counts:
    """The counts of one gateway since its start."""

    def __init__(self) -> None:
        self.by_entity: dict[Key, EntityCounts] = {}
        self.refused: Counter[int] = Counter()  # requests that reached no endpoint, by status
        self.unlogged: Counter[str] = Counter()  # rows that could not be written, by table
        self.copies: dict[Key, Counter[str]] = {}  # of requests, for the shadow, by outcome
        self._noted: list[tuple[tuple[str, str, int, int], tuple[int, int, int]]] = []

    def copied(self, key: Key, outcome: str) -> None:
        """One copy of a request for the version in the shadow."""
        self.copies.setdefault(key, Counter())[outcome] += 1

    def record(
        self,
        endpoint: str,
        entity: str,
        status: int,
        second: int,
        total_us: int,
        queue_us: int = 0,
        predict_us: int = 0,
    ) -> None:
        """Note one answered request, as `Key` has its names; times in microseconds."""
        self._noted.append(((endpoint, entity, status, second), (total_us, queue_us, predict_us)))
        if len(self._noted) >= MOST_NOTED:
            self.add_up()

    def add_up(self) -> None:
        """Take in what was noted; to be called some times a second."""
        noted, self._noted = self._noted, []
        groups: dict[tuple[str, str, int, int], list[tuple[int, int, int]]] = {}
        for alike, times in noted:
            groups.setdefault(alike, []).append(times)
        for (endpoint, entity, status, second), times_us in groups.items():
            key, count = Key(endpoint, entity), len(times_us)
            found = self.by_entity.setdefault(key, EntityCounts())
            found.codes[status] += count
            found.minute.add(second, count)
            found.request.add([total_us for total_us, _, _ in times_us])
            if asked := [(queue_us, model_us) for _, queue_us, model_us in times_us if model_us]:
                found.queue.add([queue_us for queue_us, _ in asked])
                found.model.add([model_us for _, model_us in asked])
            if status >= 500:
                found.minute_5xx.add(second, count)
            elif status >= 400:
                found.minute_4xx.add(second, count)

    def text(self, by_entity: Mapping[str, Mapping[Key, float]]) -> str:
        """Everything, since the start, with these gauges (name -> values by entity)."""
        self.add_up()
        lines = ["# TYPE inferlake_requests_total counter"]
        for key, found in self.by_entity.items():
            lines += [
                exposition.sample(
                    "inferlake_requests_total",
                    count,
                    exposition.labels(key) | {"code": str(status)},
                )
                for status, count in found.codes.items()
            ]
        lines.append("# TYPE inferlake_refused_requests_total counter")
        lines += [
            exposition.sample("inferlake_refused_requests_total", count, {"code": str(status)})
            for status, count in self.refused.items()
        ]
        lines += self._histograms("inferlake_request_seconds", lambda found: found.request, 1)
        lines += self._histograms("inferlake_queue_seconds", lambda found: found.queue, 1)
        lines += self._histograms("inferlake_model_seconds", lambda found: found.model, 1)
        for name, values in by_entity.items():
            lines += exposition.gauge(name, values)
        lines.append("# TYPE inferlake_unlogged_requests_total counter")
        lines += [
            exposition.sample("inferlake_unlogged_requests_total", count, {"table": table})
            for table, count in self.unlogged.items()
        ]
        lines.append("# TYPE inferlake_shadow_copies_total counter")
        lines += [
            exposition.sample(
                "inferlake_shadow_copies_total",
                count,
                exposition.labels(key) | {"outcome": outcome},
            )
            for key, outcomes in self.copies.items()
            for outcome, count in outcomes.items()
        ]
        return "\n".join(lines) + "\n"

    def export(self, endpoint: str, concurrency: Mapping[Key, float], second: int) -> str:
        """One endpoint, in the names of the contract: counts of the last minute, times in ms."""
        self.add_up()
        mine = {key: found for key, found in self.by_entity.items() if key.endpoint == endpoint}
        lines = exposition.gauge("provisioned_concurrent_requests_total", concurrency)
        minutes: tuple[tuple[str, Callable[[EntityCounts], LastMinute]], ...] = (
            ("request_count_total", lambda found: found.minute),
            ("request_4xx_count_total", lambda found: found.minute_4xx),
            ("request_5xx_count_total", lambda found: found.minute_5xx),
        )
        for name, of in minutes:
            lines += exposition.gauge(
                name, {key: of(found).total(second) for key, found in mine.items()}
            )
        histograms: tuple[tuple[str, Callable[[EntityCounts], Histogram]], ...] = (
            ("request_latency_ms", lambda found: found.request),
            ("model_prediction_latency_ms", lambda found: found.model),
            ("model_queue_time_ms", lambda found: found.queue),
        )
        for name, part in histograms:
            lines += self._histograms(name, part, 1000, endpoint)
        return "\n".join(lines) + "\n"

    def _histograms(
        self,
        name: str,
        part: Callable[[EntityCounts], Histogram],
        per_second: int,
        endpoint: str | None = None,
    ) -> list[str]:
        lines = [f"# TYPE {name} histogram"]
        for key, found in self.by_entity.items():
            if endpoint not in (None, key.endpoint):
                continue
            histogram, labels, total = part(found), exposition.labels(key), 0
            bounds = [f"{bound * per_second:g}" for bound in SECONDS]
            for bound, count in zip((*bounds, "+Inf"), histogram.counts, strict=True):
                total += count
                lines.append(exposition.sample(f"{name}_bucket", total, labels | {"le": bound}))
            lines.append(
                exposition.sample(f"{name}_sum", histogram.sum_seconds * per_second, labels)
            )
            lines.append(exposition.sample(f"{name}_count", total, labels))
        return lines
