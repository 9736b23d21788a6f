"""Every Prometheus name, once, and how a process shows its numbers.

Hot paths count in plain integers; a source turns them into readings when somebody asks:

    registry = meters.registry(log.readings, lambda: meters.of_committed(status))
    meters.text(registry)

To add a meter: a constant here, and a source that yields its readings.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Meter:
    """A name, what it counts, and its labels. kind: "counter" (only grows) or "gauge"."""

    name: str
    help: str
    kind: str
    labels: tuple[str, ...] = ()


class Reading(NamedTuple):
    """A number of a meter, with the values of its labels in their order."""

    meter: Meter
    value: float
    labels: tuple[str, ...] = ()


Source = Callable[[], Iterable[Reading]]

LOG_ROWS = Meter(
    "inferlake_log_rows_total", "Rows appended to the log.", "counter", ("table", "kind")
)
LOG_BYTES = Meter("inferlake_log_bytes_total", "Bytes appended to the log.", "counter")
LOG_DROPPED = Meter(
    "inferlake_log_dropped_rows_total", "Rows served but not logged.", "counter", ("table",)
)
LOG_BACKLOG = Meter("inferlake_log_backlog_bytes", "Log bytes not committed yet.", "gauge")
TABLE_ROWS = Meter("inferlake_table_rows", "Rows in a table.", "gauge", ("table",))
TABLE_VERSION = Meter("inferlake_table_version", "Newest commit of a table.", "gauge", ("table",))
TABLE_COMMIT_TIME = Meter(
    "inferlake_table_last_commit_timestamp_seconds", "Time of it.", "gauge", ("table",)
)
TABLE_FAILING = Meter(
    "inferlake_table_failing", "1: its commits fail at present.", "gauge", ("table",)
)


@dataclass(frozen=True, slots=True)
class _Sources(Collector):
    """Asks the sources at each scrape."""

    sources: tuple[Source, ...] = field(default=())

    def collect(self) -> Iterator[Any]:
        by_meter: dict[Meter, list[Reading]] = {}
        for source in self.sources:
            for reading in source():
                by_meter.setdefault(reading.meter, []).append(reading)
        for meter, readings in by_meter.items():
            made = CounterMetricFamily if meter.kind == "counter" else GaugeMetricFamily
            family = made(meter.name, meter.help, labels=meter.labels)
            for reading in readings:
                family.add_metric(reading.labels, reading.value)
            yield family


def registry(*sources: Source) -> prometheus_client.CollectorRegistry:
    """A registry that asks these sources at each scrape."""
    made = prometheus_client.CollectorRegistry()
    made.register(_Sources(sources))
    return made


def text(known: prometheus_client.CollectorRegistry) -> bytes:
    """Prometheus text."""
    return prometheus_client.generate_latest(known)


def of_committed(status: Mapping[str, Any]) -> Iterator[Reading]:
    """Readings of what the committer tells in `run/committed.json`."""
    for table, known in status["tables"].items():
        yield Reading(TABLE_ROWS, known["rows"], (table,))
        yield Reading(TABLE_VERSION, known["commit_version"], (table,))
        yield Reading(TABLE_COMMIT_TIME, known["last_commit_ms"] / 1000, (table,))
    for table in status["failing"]:
        yield Reading(TABLE_FAILING, 1, (table,))
