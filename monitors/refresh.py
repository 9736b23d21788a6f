"""One refresh of a monitor: read what is new, compare, write the metric tables, judge, tell.

Order: metric tables, decisions and what follows from them, then what the monitor keeps, then SQL. A
refresh that dies in between is done again from what was kept, and replaces what it had written.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import polars as pl
import sqlalchemy as sa

from capture import database, logline, names
from capture.settings import Settings
from monitors import (
    alert_state,
    alerts,
    baseline,
    comparisons,
    contract,
    facts,
    groups,
    kept,
    metric_rows,
    references,
    state,
    tables,
    watch,
    window_rows,
    windows,
)

log = logline.logger(__name__)

UNPACK_WAIT_SECONDS = 5.0
UNPACK_POLL_SECONDS = 0.02
CELLS_IN_MEMORY = 16
COVERAGE_OVER = timedelta(days=30)
ANCHOR = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Measured:
    """What a refresh computed of its windows. sliced: of those of slices, which are written down,
    not summed up, and alerted on where a rule names them."""

    compared: dict[kept.WindowKey, list[comparisons.Comparison]] = field(default_factory=dict)
    groups: dict[kept.WindowKey, dict[str | None, metric_rows.TableGroup]] = field(
        default_factory=dict
    )
    sliced: "Measured | None" = None

    def part(self, key: kept.WindowKey) -> "Measured":
        """Where the numbers of a window belong."""
        return self.sliced if key.slice and self.sliced is not None else self


class Refresher:
    """Refreshes the monitors of this process; keeps what it knows of each in memory."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.watches: dict[str, watch.Watch] = {}
        self.cells: dict[str, OrderedDict[kept.WindowKey, list[comparisons.Comparison]]] = {}

    def watch_of(self, monitor: state.Monitor) -> watch.Watch:
        """What is known of a monitor, read from disk on first use or when its meaning changed."""
        with database.reading(self.engine) as connection:
            recorded = watch.recorded(connection, monitor.table_name)
            reference = state.current_baseline(connection, monitor.table_name)
        known = self.watches.get(monitor.table_name)
        if known is None or not known.fits(monitor, recorded):
            known = watch.Watch(self.settings, monitor, recorded)
            self.watches[monitor.table_name] = known
            self.cells[monitor.table_name] = OrderedDict()
        known.use_baseline(reference)
        return known

    def forget(self, table_name: str) -> None:
        """Begin from disk at the next use: something went wrong in the middle."""
        self.watches.pop(table_name, None)
        self.cells.pop(table_name, None)

    def begin_anew(self, table_name: str, reason: str) -> None:
        """What was kept of a monitor cannot be read: its next refresh reads everything."""
        self.watches[table_name].begin_anew(reason)
        self.cells[table_name].clear()

    # --- measuring ---------------------------------------------------------------------------

    def measure(self, known: watch.Watch, also: Iterable[kept.WindowKey]) -> Measured:
        """Compare every dirty window and the one after it; windows in `also` as well, unless what
        was found before still holds."""
        found = Measured(sliced=Measured())
        cells = self.cells[str(known.name)]
        changed = set(known.dirty.profiles)
        reach = max(1, known.baseline.before if known.baseline is not None else 1)
        for key in known.dirty.profiles:
            changed.update(_next(known, key, reach))
        for key in sorted(changed, key=str):
            cells.pop(key, None)
        for key in sorted({*changed, *also}, key=str):
            if key not in cells:
                cells[key] = _compared(known, key)
            found.part(key).compared[key] = cells[key]
        while len(cells) > CELLS_IN_MEMORY:
            cells.popitem(last=False)
        known.dirty.quality |= groups.twins(known, known.dirty.quality)
        for key in sorted(known.dirty.quality | set(also), key=str):
            found.part(key).groups[key] = groups.of_window(known, key)
        if found.sliced is not None:
            groups.add_fairness(known, found.sliced.groups)
        return found

    def write(
        self,
        known: watch.Watch,
        monitor: state.Monitor,
        refresh_id: int,
        found: Measured,
        fence: Callable[[], None],
    ) -> None:
        """Replace the rows of dirty windows in both metric tables, one commit each."""
        origin = metric_rows.Origin(
            refresh_id=refresh_id,
            monitor_version=monitor.monitor_version,
            baseline_version=monitor.baseline_version,
            commit_version=known.intake.version,
            model_id_col=known.shape.model_id_col,
        )
        dirty = known.dirty
        made = window_rows.WindowRows(
            known,
            origin,
            lambda key: found.part(key).groups.get(key) or groups.of_window(known, key),
        )
        profiles: dict[str, window_rows.Maker] = {
            metric_rows.columns_key(key): partial(made.columns, key) for key in dirty.profiles
        }
        profiles |= {metric_rows.table_key(key): partial(made.table, key) for key in dirty.quality}
        self._add_baseline(known, profiles, made)
        drift: dict[str, window_rows.Maker] = {
            metric_rows.drift_key(key): partial(made.drift, key, cells)
            for part in (found, found.sliced)
            if part is not None
            for key, cells in part.compared.items()
            if key in dirty.profiles
            or any(k in dirty.profiles for k in references.before(known, key))
        }
        names_of = contract.metric_tables(monitor.table_name, monitor.config)
        for name, schema, makers in zip(
            names_of, window_rows.schemas(known), (profiles, drift), strict=True
        ):
            uri = names.table_path(self.settings.tables_root, names.table_name(name))
            rows = window_rows.Made(makers)
            tables.replace_windows(
                uri, schema, rows, monitor.table_id, refresh_id, not dirty.everything, fence
            )

    def _add_baseline(
        self,
        known: watch.Watch,
        rows: dict[str, window_rows.Maker],
        made: window_rows.WindowRows,
    ) -> None:
        """Rows of the baseline, with the first windows that are compared with it."""
        reference = known.baseline
        if reference is None or reference.problem is not None or not rows:
            return
        row_key = _baseline_key(reference)
        if known.kept.manifest.baseline_rows == row_key and not known.dirty.everything:
            return
        known.kept.manifest.baseline_rows = row_key
        if reference.before:
            return  # it has no rows of its own
        rows[row_key] = lambda: [
            row
            for slice_ in (None, *reference.by_slice)
            for row in made.of_baseline(reference, row_key, slice_)
        ]

    # --- judging -----------------------------------------------------------------------------

    def facts(
        self,
        known: watch.Watch,
        monitor: state.Monitor,
        rules: Iterable[alert_state.Rule],
        found: Measured,
        moment: datetime,
        now_ms: int,
    ) -> list[alerts.Fact]:
        """Every number that a rule of the endpoint asks for."""
        rules = [rule for rule in rules if rule.enabled]
        wanted = {rule.metric for rule in rules}
        made: list[alerts.Fact] = []
        for part in (found, found.sliced):
            if part is not None:
                made += _window_facts(known, rules, part)
        for column in {r.column for r in rules if r.metric == "feature_age_hours"}:
            if column is not None:
                newest = known.held.newest(column, moment, facts.NEWEST_FOR_AGE)
                made.append(facts.feature_age(newest, column, moment))
        if "capture_lag_seconds" in wanted:
            made.append(facts.capture_lag(self.settings.run_dir, now_ms))
        return made

    def summary(
        self, known: watch.Watch, found: Measured, moment: datetime, before: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What lists show of a monitor: the newest judged window's worst column, coverage."""
        summary: dict[str, Any] = {**before, "until": moment.isoformat()}
        judged = [
            (key, cells)
            for key, cells in found.compared.items()
            if any(one.judgement.status in ("ok", "drifted") for one in cells)
        ]
        if judged:
            key, cells = max(judged, key=lambda item: item[0].span[::-1])
            summary["window"] = list(facts.of_window(key))
            summary["worst"] = _worst(cells, known)
        coverage = _coverage(known, moment)
        if coverage is not None:
            summary["label_coverage"] = coverage
        return summary


def _window_facts(
    known: watch.Watch, rules: Sequence[alert_state.Rule], found: Measured
) -> Iterator[alerts.Fact]:
    """Numbers of windows, and of slices of them, that a rule is about."""
    finest = _finest(known.shape.granularities) if known.shape.granularities else None
    versions = known.versions()
    for key in sorted({*found.compared, *found.groups}, key=str):
        wanted = {rule.metric for rule in rules if alerts.watches(rule, key.slice)}
        if key in found.compared:
            yield from facts.drift(found.compared[key], known.shape, wanted)
        if key not in found.groups:
            continue
        yield from facts.quality(key, found.groups[key], wanted)
        if wanted & {"error_rate", "p99_ms"} and finest is not None and key.granularity == finest:
            rows = pl.concat(known.rows_of(key), how="vertical_relaxed")
            yield from facts.serving(key, rows, known.shape, known.columns, wanted, versions)


def wait_for_unpacking(
    settings: Settings, known: watch.Watch, seconds: float = UNPACK_WAIT_SECONDS
) -> bool:
    """Wait until the unpacked table holds all that the payload table held at the call; False: it
    did not come so far in time, and the refresh judges what is there."""
    if not known.shape.recorded:
        return True
    payload_name = str(known.name.sibling("payload"))
    payload = tables.open_table(known.uri("payload"))
    if payload is None:
        return True
    wanted, deadline = payload.version(), time.monotonic() + seconds
    while True:
        unpacked = tables.open_table(known.table_uri)
        if unpacked is not None:
            done = unpacked.transaction_version(f"unpack:{payload_name}")
            if done is not None and done >= wanted:
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(UNPACK_POLL_SECONDS)


def newest_windows(
    known: watch.Watch, count: int, rules: Sequence[alert_state.Rule] = ()
) -> list[kept.WindowKey]:
    """The newest windows of every granularity, and those of slices that a rule is about."""
    found = []
    for granularity in known.shape.granularities or (None,):
        cuts = {key.slice for key in known.kept.slices_of(granularity)}
        cuts = {cut for cut in cuts if any(alerts.watches(rule, cut) for rule in rules)}
        for cut in (None, *cuts):
            found += known.kept.keys(granularity, cut)[-count:]
    return found


def meet_new_baseline(known: watch.Watch) -> None:
    """The newest windows are compared again when the baseline is a new one; older ones keep the
    comparison that was right at their time."""
    reference = known.baseline
    if reference is None or reference.problem is not None:
        return
    if known.kept.manifest.baseline_rows not in (None, _baseline_key(reference)):
        for key in newest_windows(known, 1):
            both = {key, *known.kept.slices_of(key.granularity, key.start)}
            known.dirty.profiles.update(both)
            known.dirty.quality.update(both)


def _baseline_key(reference: baseline.Baseline) -> str:
    return f"baseline|{reference.baseline_version}|columns"


def _next(known: watch.Watch, key: kept.WindowKey, reach: int) -> list[kept.WindowKey]:
    """The known windows right after this one, whose comparison with it changes, too."""
    found = []
    for _ in range(reach if key.granularity is not None else 0):
        key = kept.WindowKey(key.granularity, key.span[1], key.slice)
        if known.kept.window(key) is not None:
            found.append(key)
    return found


def _compared(known: watch.Watch, key: kept.WindowKey) -> list[comparisons.Comparison]:
    window = known.kept.judged(key) or {}
    window = {g: one for g, one in window.items() if known.columns[g[1]].watched}
    found: list[comparisons.Comparison] = []
    reference = references.of_baseline(known, key)
    if reference is not None and reference.profiles:
        found += comparisons.with_baseline(key, window, reference, known.shape, known.columns)
    before = references.previous(known, key)
    previous = known.kept.judged(before) if before is not None else None
    if before is not None and previous is not None:
        found += comparisons.with_previous(
            key, window, before, previous, known.shape, known.columns
        )
    return found


def _finest(granularities: Iterable[str]) -> str:
    """The shortest of some granularities."""
    starts = {name: windows.align(ANCHOR, name)[0] for name in granularities}
    return min(starts, key=lambda name: windows.end_of(starts[name], name) - starts[name])


def _worst(cells: Iterable[comparisons.Comparison], known: watch.Watch) -> dict[str, Any] | None:
    judged = [
        one
        for one in cells
        if one.drift_type == kept.BASELINE
        and one.judgement.effect_over_threshold is not None
        and (one.version is None or one.column in known.shape.outputs)
    ]
    if not judged:
        return None
    worst = max(judged, key=lambda one: one.judgement.effect_over_threshold or 0)
    return {
        "column": worst.column,
        "served_entity": worst.version,
        "effect": worst.judgement.effect_over_threshold,
        "status": worst.judgement.status,
        "severity": worst.judgement.severity,
    }


def _coverage(known: watch.Watch, moment: datetime) -> float | None:
    """Share of the answered rows of the last 30 days that have a label."""
    if not {"label", "prediction"} <= set(known.held.columns):
        return None
    return known.held.tally.coverage(moment - COVERAGE_OVER)
